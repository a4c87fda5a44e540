"""The API from Python and from the command line: jobs queued, listed, followed, cancelled, and refusals in words."""

import json
import threading
import time
from collections.abc import Iterator

import pytest
import uvicorn
from fastapi import FastAPI
from typer.testing import CliRunner

from prism import cli
from prism.clients.console import ConsoleClient
from prism.data.blobs import BlobStore
from prism.errors import ConfigError, ServiceError
from prism.services.console.jobs import queue

RUN = {"config": "demo.toml", "name": "first"}


@pytest.fixture
def url(app: FastAPI) -> Iterator[str]:
    """The console served for real."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    deadline = time.monotonic() + 60
    while not server.started:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


def test_a_job_from_python(url: str, app: FastAPI, tokens: dict[str, str]) -> None:
    store, jobs_dir = app.state.console.store, app.state.console.settings.jobs_dir
    with ConsoleClient(url, tokens["operate"]) as console:
        assert console.who_am_i().scope == "operate"
        assert "run" in {command.name for command in console.commands()}
        assert console.plan("run", RUN).ports == 6
        with pytest.raises(ServiceError, match="seed"):
            console.add("run", RUN | {"overrides": ["seed=nine"]})
        job = console.add("run", RUN, priority=3)
        assert [found.id for found in console.jobs(states=("queued",))] == [job.id]
        claimed = queue.claim(store, worker="w", host="h")
        assert claimed
        (jobs_dir / str(job.id)).mkdir(parents=True)
        (jobs_dir / str(job.id) / "log").write_text("one\nzwölf\n")
        queue.finish(store, job.id, claimed.attempt, "done", worker="w", exit_status=0, reason=None)
        assert "".join(console.follow(job.id)) == "one\nzwölf\n"
        assert console.job(job.id).state == "done"
        with pytest.raises(ServiceError, match="nothing to cancel"):
            console.cancel(job.id)
        assert console.retry(job.id).state == "queued"
        assert console.prioritise(job.id, 9).priority == 9
        assert [event.what for event in console.events(job.id)][-1] == "priority"
    with ConsoleClient(url, tokens["view"]) as console, pytest.raises(ServiceError, match="needs the scope operate"):
        console.add("run", RUN)
    with ConsoleClient("http://127.0.0.1:1", "x") as away, pytest.raises(ServiceError, match="does not answer"):
        away.jobs()


def test_votes_from_python(url: str, app: FastAPI, tokens: dict[str, str]) -> None:
    folder = app.state.console.place.runs / "voted"
    image = BlobStore(str(folder / "blobs")).put(b"\x89PNG no more")
    one = {"stage": "sft", "prompt_id": "p", "question": "?", "response": "r", "teacher": "t", "images": [image]}
    (folder / "samples.jsonl").write_text(json.dumps(one) + "\n")
    (folder / "metrics.jsonl").write_text('{"stage": "sft", "step": 1, "time": 1.0}\n')
    app.state.console.index.look()
    with ConsoleClient(url, tokens["vote"]) as console:
        pair = console.draw(["voted"])
        assert console.picture(pair.id) == b"\x89PNG no more"
        told = console.vote(pair.id, "left")
        assert told.left.text == pair.left
        assert console.votes(["voted"]) == [told]
        assert {one.name for one in console.vote_figures().strengths} == {"teacher", "voted after sft"}
        assert json.loads(console.vote_reference())["teacher"] == pair.left
        with pytest.raises(ServiceError, match="needs the scope operate"):
            console.add("run", RUN)
    with ConsoleClient(url, tokens["view"]) as console, pytest.raises(ServiceError, match="needs the scope vote"):
        console.draw(["voted"])


def test_a_job_from_the_command_line(url: str, tokens: dict[str, str]) -> None:
    runner = CliRunner(env={"PRISM_CONSOLE_URL": url, "PRISM_CONSOLE_TOKEN": tokens["operate"]})

    def said(*arguments: str) -> str:
        result = runner.invoke(cli.app, ["jobs", *arguments], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    assert "overrides" in said("commands")
    given = ("run", "config=demo.toml", "name=mine", "overrides=seed=7", "overrides=threads=1")
    assert "seed = 7" in said("add", *given, "--plan")
    assert said("add", *given) == "job 1: run mine\n"
    assert "run mine" in said("list")
    assert "queued by operate" in said("show", "1")
    assert "cancelled" in said("cancel", "1")
    with pytest.raises(ConfigError, match="there is no command 'walk'"):
        said("add", "walk")
    with pytest.raises(ConfigError, match="NAME=VALUE"):
        said("add", "run", "demo")
