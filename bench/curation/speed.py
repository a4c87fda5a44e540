"""How fast and how large ``prism curate`` is, and the share of bare httpx's rate that it leaves of an instant teacher:

    python -m bench.curation.speed --rows 100000

Rows with an image each go through state and cache, their teacher a transport in the same process; then a smaller number
goes over HTTP to a teacher in a process of its own, in turn with bare httpx that sends it the same bodies.
"""

import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from PIL import Image
from pydantic import SecretStr
from sqlalchemy import update

from bench.rows import resident
from bench.shared import command_line, console, spread, started
from prism.clients.teacher.client import Teacher
from prism.curation.ask import Asked, ask, queue_demos
from prism.curation.config import CurateConfig
from prism.curation.rows import load_problems
from prism.curation.sets.split import split
from prism.curation.sets.write import write_sets
from prism.curation.state.books import Books
from prism.curation.state.job import begin
from prism.curation.state.store import Store
from prism.curation.state.tables import Demo
from prism.curation.verify import choose_best
from prism.data.blobs import BlobStore
from prism.http.client import async_client
from prism.stack.ports import free_port
from tests.fake_teacher import GOOD, FakeTeacher

IMAGES = 500


def main() -> None:
    parser = command_line("bench.curation.speed", __doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--http-rows", type=int, default=2_000, help="0: none")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--concurrency", type=int, default=256, help="of the rows through state and cache")
    parser.add_argument("--http-concurrency", type=int, default=64)
    parser.add_argument("--serve", type=int, help="be the teacher, on this port")
    options = parser.parse_args()
    if options.serve:
        uvicorn.run(_Ready(FakeTeacher()), port=options.serve, log_level="error", lifespan="off")
        return
    console.print(f"load average {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as name:
        through_state(Path(name), options.rows, options.concurrency)
    if options.http_rows:
        over_http(options.http_rows, options.http_concurrency, options.rounds)


def write_problems(folder: Path, rows: int) -> None:
    (folder / "images").mkdir(parents=True)
    for number in range(IMAGES):
        Image.effect_noise((48, 48), 90).convert("RGB").save(folder / f"images/{number}.png")
    with (folder / "problems.jsonl").open("w") as file:
        for number in range(rows):
            text = f"What is the length of side {number} of the polygon, in the units of the drawing?"
            content = [{"type": "image", "image": f"images/{number % IMAGES}.png"}, {"type": "text", "text": text}]
            row = {"id": f"r{number}", "messages": [{"role": "user", "content": content}], "gold": str(number)}
            file.write(json.dumps(row) + "\n")


def make_config(folder: Path, url: str, concurrency: int) -> CurateConfig:
    teacher = {"api": "openai", "url": url, "model": "oracle", "input_price": 1, "output_price": 10, "cap": 1e6}
    values = {
        "name": "job",
        "runs_dir": folder,
        "run": folder,
        "data": str(folder / "problems.jsonl"),
        "teacher": teacher | {"concurrency": concurrency, "max_tokens": 1000},
        "terms": {"name": "none", "accepted_by": "nobody", "licence": "none"},
        "verify": {"caption": "none"},
    }
    return CurateConfig.model_validate(values)


def through_state(folder: Path, rows: int, concurrency: int) -> None:
    """Everything that grows with the rows, in this process."""
    choice = {"message": {"content": GOOD}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}
    answer = json.dumps({"model": "oracle", "choices": [choice], "usage": usage}).encode()
    transport = _Instant(answer)
    write_problems(folder, rows)
    config = make_config(folder, "http://teacher", concurrency)
    asked, blobs = Asked.of(config), BlobStore(str(config.folder / "blobs"))
    config.folder.mkdir()
    Path("/proc/self/clear_refs").write_text("5")
    with Store(config.database_url) as store:
        job = begin(store, "job", config.folder, {"teacher": 1e6})

        def timed(what: str, work: Callable[[], Any]) -> None:
            began, cpu = time.monotonic(), time.process_time()
            work()
            seconds, busy = time.monotonic() - began, time.process_time() - cpu
            peak = resident("VmHWM") / 2**20
            console.print(
                f"{what:>36}: {seconds:6.1f} s ({busy:.1f} s of CPU), {rows / seconds:7,.0f} rows a second, "
                f"{rows / busy:7,.0f} a second of CPU; {peak:.0f} MiB at most so far"
            )

        async def through() -> None:
            async with Teacher(config.teacher, SecretStr("key"), Books(job, "teacher"), transport=transport) as teacher:
                await ask(job, asked, teacher, blobs)

        timed("read", lambda: load_problems(job, config.data, config.path, blobs, config.limits, mined=False))
        timed("queued", lambda: queue_demos(job, asked))
        timed("asked, through state and cache", lambda: asyncio.run(through()))
        with store.writing() as connection:
            connection.execute(update(Demo).values(state="queued"))
        timed("asked again, all of it in the cache", lambda: asyncio.run(through()))
        with store.writing() as connection:
            connection.execute(update(Demo).values(state="verified", checks={"caption": {"bullets": 3}}))
        timed("best chosen", lambda: choose_best(job))
        timed("split", lambda: split(job, config, blobs, {}))
        timed("sets written", lambda: write_sets(job, config.folder, 1000))


def over_http(rows: int, concurrency: int, rounds: int) -> None:
    port = free_port()
    command = [sys.executable, "-m", "bench.curation.speed", "--serve", str(port)]
    ours, bare = list[float](), list[float]()
    with started(command, {}, port, "/healthz") as server:
        for _ in range(rounds):
            with tempfile.TemporaryDirectory() as name:
                bare_rate, our_rate = _one_round(Path(name), server.url, rows, concurrency)
            bare.append(bare_rate)
            ours.append(our_rate)
    shares = [100 * one / other for one, other in zip(ours, bare, strict=True)]
    console.print(
        f"over HTTP, {rows} rows: bare httpx {spread(bare)} a second, prism curate {spread(ours)}: "
        f"{statistics.median(shares):.0f} % ({min(shares):.0f}–{max(shares):.0f})"
    )


def _one_round(folder: Path, url: str, rows: int, concurrency: int) -> tuple[float, float]:
    write_problems(folder, rows)
    config = make_config(folder, url, concurrency)
    config.folder.mkdir()
    asked, blobs = Asked.of(config), BlobStore(str(config.folder / "blobs"))
    bodies = list[dict[str, Any]]()

    async def bare() -> float:
        left, limits = iter(bodies), httpx.Limits(max_connections=concurrency)
        async with async_client(limits=limits, timeout=60) as http:

            async def one() -> None:
                for body in left:
                    response = await http.post(f"{url}/chat/completions", json=body)
                    assert response.json()["choices"][0]["message"]["content"]

            began = time.monotonic()
            await asyncio.gather(*(one() for _ in range(concurrency)))
            return rows / (time.monotonic() - began)

    with Store(config.database_url) as store:
        job = begin(store, "job", config.folder, {"teacher": 1e6})
        load_problems(job, config.data, config.path, blobs, config.limits, mined=False)
        queue_demos(job, asked)

        async def ours() -> float:
            async with Teacher(config.teacher, SecretStr("key"), Books(job, "teacher")) as teacher:
                began = time.monotonic()
                await ask(job, asked, teacher, blobs)
                return rows / (time.monotonic() - began)

        bodies.extend(_bodies(config, asked, blobs, rows, folder))
        return asyncio.run(bare()), asyncio.run(ours())


def _bodies(config: CurateConfig, asked: Asked, blobs: BlobStore, rows: int, folder: Path) -> list[dict[str, Any]]:
    """What the teacher is sent, for bare httpx to send it too."""
    from prism.clients.teacher.http import make_api
    from prism.curation.rows import own_row
    from prism.data.rows import read_rows

    data, api = read_rows(folder / "problems.jsonl", "fail", images="exist"), make_api(config.teacher)
    bodies = list[dict[str, Any]]()
    for number in range(rows):
        row = own_row(data.rows[number], data, blobs)
        sha256 = row["messages"][0]["content"][0]["image"].removeprefix("sha256:")
        bodies.append(api.body(asked.question(row, 0), {sha256: blobs.get(sha256)}))
    return bodies


class _Instant(httpx.AsyncBaseTransport):
    """A teacher in this process that always says the same, and takes no time to: its answer is made and read once."""

    def __init__(self, answer: bytes) -> None:
        self._answer = httpx.Response(200, content=answer)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return self._answer


class _Ready:
    """The app, and a path that says that it is up."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["path"] == "/healthz":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"ok"})
        else:
            await self._app(scope, receive, send)


if __name__ == "__main__":
    main()
