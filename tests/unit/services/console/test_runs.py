"""Runs are read from their files alone: finished, crashed, live, resumed, broken, a thousand of them."""

import gzip
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from prism.config import load_config, save_resolved
from prism.services.console.runs.curves import band, curve, downsample
from prism.services.console.runs.index import Index
from prism.services.console.runs.steps import Steps
from prism.services.console.store.engine import Store, sqlite_url
from prism.services.console.store.migrate import upgrade
from prism.stack.folder_lock import lock_run

CONFIGS = Path(__file__).parents[4] / "configs"


def write_run(runs: Path, name: str, lines: list[dict[str, Any]], *, seed: int = 0, done: tuple[str, ...] = ()) -> Path:
    config = load_config(CONFIGS / "demo.toml", [f"name={name}", f"seed={seed}"]).model_copy(update={"runs_dir": runs})
    save_resolved(config)
    folder = runs / name
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for stage in done:
        (folder / "stages" / stage).mkdir(parents=True)
        (folder / "stages" / stage / "stage.json").write_text(json.dumps({"kind": "sft", "version": 0, "steps": 1}))
    return folder


def steps_of(stage: str, values: list[float], attempt: int = 1, first: int = 1, at: float = 0) -> list[dict[str, Any]]:
    return [
        {"stage": stage, "step": number, "time": at, "attempt": attempt, "reward": value}
        for number, value in enumerate(values, first)
    ]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    (tmp_path / "runs").mkdir(exist_ok=True)
    return tmp_path / "runs"


@pytest.fixture
def index(runs: Path, tmp_path: Path) -> Index:
    store = Store(sqlite_url(tmp_path / "index.db"))
    upgrade(store)
    return Index(runs, store)


def test_a_resumed_run_counts_the_steps_that_led_to_its_weights(runs: Path, index: Index) -> None:
    lines = steps_of("rlvr", [0.1, 0.9, 0.95]) + steps_of("rlvr", [0.2, 0.3], attempt=2, first=2)
    write_run(runs, "resumed", lines)
    index.look()
    [run] = index.runs()
    found = run.figure("reward")
    assert found
    assert (found[1].last, found[1].most, found[1].most_step) == (0.3, 0.3, 3)  # the 0.95 was thrown away


def test_new_lines_are_read_alone_and_half_a_line_waits(runs: Path) -> None:
    file = write_run(runs, "live", steps_of("sft", [1.0])) / "metrics.jsonl"
    steps = Steps(file)
    assert steps.read_on()
    before = steps.offset
    with file.open("a") as opened:
        opened.write('{"stage": "sft", "st')
    assert not steps.read_on()
    assert steps.offset == before
    with file.open("a") as opened:
        opened.write('ep": 2, "reward": 0.5}\nno json\n')
    assert steps.read_on()
    assert [row["step"] for row in steps.stages["sft"]] == [1, 2]
    assert steps.broken == 1


def test_a_run_is_live_while_its_lock_is_held_and_nothing_is_touched_to_see_it(runs: Path, index: Index) -> None:
    folder = write_run(runs, "demo", steps_of("sft", [1.0], at=time.time()))
    write_run(runs, "whole", steps_of("sft", [1.0]), done=("sft", "align", "rlvr"))
    with lock_run(folder, "trainer"):
        index.look()
        assert {run.run: run.status for run in index.runs()} == {"demo": "running", "whole": "finished"}
    index.look()  # killed a moment ago: no lock, so it has stopped, however fresh its last line is
    assert index.get("demo").status == "stopped"  # pyright: ignore[reportOptionalMemberAccess]
    with lock_run(folder, "trainer"):  # which a look does not hinder
        pass


def test_a_large_file_is_in_the_table_by_its_end_at_once_and_read_whole_later(
    runs: Path, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prism.services.console.runs.index.END_BYTES", 1000)
    lines = steps_of("rlvr", [0.9, -0.5] + [0.1] * 50, at=7) + steps_of("rlvr", [0.4], attempt=2, first=52, at=8)
    write_run(runs, "large", lines)
    write_run(runs, "small", steps_of("rlvr", [0.2]))
    index.look()
    large, small = index.get("large"), index.get("small")
    assert large
    assert small
    assert (large.whole, small.whole, large.now.done if large.now else 0) == (False, True, 52)
    found = large.figure("reward")
    assert found
    assert (found[1].last, found[1].most, found[1].least) == (0.4, None, None)
    index.look()
    assert index.get("large") == large  # which is not read again
    index._read_owed()
    again = Index(runs, index.store)
    again._load()
    again.look()
    for known in (index, again):
        assert known._owed == {}
        whole = known.get("large")
        assert whole
        found = whole.figure("reward")
        assert found
        assert (found[1].last, found[1].most, found[1].most_step, found[1].least) == (0.4, 0.9, 1, -0.5)
        assert (whole.whole, whole.started) == (True, 7)


def test_what_cannot_be_read_stops_nothing_else(runs: Path, index: Index) -> None:
    folder = write_run(runs, "broken", [])
    (folder / "config.json").write_text("[")
    (folder / "metrics.jsonl").write_bytes(b'\xff\xfe\n{"stage": 1}\n{"stage": "a", "step": 3, "x": NaN, "y": 2}\n')
    (folder / "evaluations.jsonl").write_text("7\n")
    write_run(runs, "whole", steps_of("sft", [1.0]))
    index.look()
    assert {run.run for run in index.runs()} == {"broken", "whole"}
    run = index.get("broken")
    assert run
    assert run.broken == 2
    assert set(run.stages[0].figures) == {"y"}


def test_a_thousand_runs_open_at_once_from_the_cache(runs: Path, index: Index, client: TestClient) -> None:
    write_run(runs, "one", steps_of("rlvr", [0.5]))
    index.look()
    one = index.runs()[0]
    index._save([replace(one, run=f"run-{number}", seed=number) for number in range(1000)], {"one"})
    again = Index(runs, index.store)
    again._load()
    assert len(again.runs()) == 1000
    client.app.state.console.index.stop()  # pyright: ignore[reportFunctionMemberAccess, reportAttributeAccessIssue]
    client.app.state.console.index._runs = again._runs  # pyright: ignore[reportFunctionMemberAccess, reportAttributeAccessIssue]
    answer = client.get("/runs?sort=-seed&columns=reward:most", headers={"Accept-Encoding": "gzip"})
    assert answer.headers["content-encoding"] == "gzip"
    assert len(gzip.compress(answer.content)) < 150_000
    rows = [line for line in answer.text.split('<th scope="row">') if line.startswith('<a href="/runs/run-')]
    assert len(rows) == 100
    assert rows[0].startswith('<a href="/runs/run-999"')


def test_a_curve_keeps_its_extremes_and_says_nothing_where_there_was_nothing() -> None:
    values: list[float | None] = [0.0] * 10_000
    values[1234], values[7000] = 5.0, -3.0
    values[:200] = [None] * 200
    drawn = downsample(list(range(1, 10_001)), values, 100)
    assert len(drawn.steps) == 100
    assert max(value for value in drawn.most if value is not None) == 5
    assert min(value for value in drawn.least if value is not None) == -3
    assert drawn.mean[0] is None
    rows = [{"step": 1, "x": 1.0}, {"step": 2, "x": float("inf")}, {"step": 3, "x": True}, {"step": 4}]
    assert curve(rows, "x").mean == [1.0, None, None, None]


def test_a_band_is_over_the_seeds_that_have_the_step() -> None:
    one = curve([{"step": 1, "x": 0.0}, {"step": 3, "x": 2.0}], "x")
    two = curve([{"step": 1, "x": 4.0}], "x")
    both = band([one, two])
    assert (both.steps, both.mean) == ([1, 3], [2.0, 2.0])
    assert (both.least, both.most) == ([0.0, 2.0], [4.0, 2.0])


def test_pages_of_runs(client: TestClient, runs: Path) -> None:
    nasty = "<script>alert(1)</script>"
    write_run(runs, "one", steps_of("sft", [1.0, 2.0]), seed=1)
    write_run(runs, "two", [*steps_of("sft", [3.0]), {"stage": nasty, "step": 1, nasty: 1.0}], seed=2)
    client.app.state.console.index.look()  # pyright: ignore[reportFunctionMemberAccess, reportAttributeAccessIssue]
    assert nasty not in client.get("/runs/two").text
    assert client.get("/runs/none").status_code == 404
    compared = client.get("/compare?run=one&run=two").text
    assert "<code>seed</code>" in compared
    assert client.get("/curves?stage=sft&figure=reward&run=one").json()["one"]["mean"] == [1.0, 2.0]
    both = client.get("/curves?stage=sft&figure=reward&run=one&run=two&group=one,two").json()
    assert both["one and 1 more"]["mean"][0] == 2.0
    assert "2" in client.get("/runs/one?step=2").text
    client.post("/runs", data={"action": "tag", "run": ["one"], "tag": "keep"})
    assert 'href="/runs?tag=keep"' in client.get("/runs?tag=keep").text
    assert client.post("/runs/one/delete", data={"confirm": "two"}).status_code == 422
    assert (runs / "one").is_dir()
    with lock_run(runs / "one", "trainer"):
        assert client.post("/runs/one/delete", data={"confirm": "one"}).status_code == 422
    client.post("/runs/one/delete", data={"confirm": "one"})
    assert not (runs / "one").exists()
    assert "run deleted" in client.get("/audit").text


def test_the_form_of_a_run_sends_what_was_changed_alone(client: TestClient) -> None:
    form = client.get("/jobs/new/run?config=demo.toml").text
    assert 'name="key.stages.align.steps"' in form
    data = {"config": "demo.toml", "name": "mine", "key.stages.align.steps": "3", "key.seed": "0"}
    checked = client.post("/jobs/new/run", data=data | {"check": "true"}).text
    assert "This can start" in checked
    assert "stages.align.steps=3" in checked
    wrong = client.post("/jobs/new/run", data=data | {"key.seed": "nine"})
    assert wrong.status_code == 422
    assert "seed" in wrong.text
    page = client.post("/jobs/new/run", data=data).text
    assert "run mine" in page
    [job] = client.get("/api/v1/jobs").json()
    assert job["parameters"]["overrides"] == ["stages.align.steps=3"]
