"""`python -m bench.console.pages`: how long the table of many runs takes, and its bytes over the wire.

Every run's figures are one file, linked: what is measured is looking at them, not a disk's size. A first look sums all
of them up in the background; then a console that starts afresh, from the cache, is asked for its first page.
"""

import argparse
import json
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import uvicorn

from prism.config import load_config, save_resolved
from prism.http.client import sync_client
from prism.services.console.access.identity import new_token
from prism.services.console.app import create_app
from prism.services.console.settings import ConsoleSettings
from prism.services.console.store.migrate import upgrade
from prism.settings import load_settings

ROOT = Path(__file__).parents[2]
FIGURES = 60  # of a line, as alignment's has


def make_runs(runs: Path, count: int, steps: int) -> None:
    lines = (
        {"stage": "rlvr", "step": step, "time": float(step), "attempt": 1}
        | {f"figure_{n}": (step * n) % 97 / 97 for n in range(FIGURES - 1)}
        | {"reward": step / steps}
        for step in range(1, steps + 1)
    )
    written = runs.parent / "metrics.jsonl"
    with written.open("w") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    for number in range(count):
        config = load_config(ROOT / "configs" / "demo.toml", [f"name=run-{number}", f"seed={number}"])
        folder = save_resolved(config.model_copy(update={"runs_dir": runs})).parent
        os.link(written, folder / "metrics.jsonl")


@contextmanager
def served(settings: ConsoleSettings) -> Iterator[tuple[httpx.Client, int]]:
    """A console, and how many runs it knows at once."""
    store = settings.open_store()
    upgrade(store)
    token = new_token(store, f"bench-{time.time_ns()}", "view", "bench")
    app = create_app(settings, store)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    headers = {"Authorization": f"Bearer {token}", "Accept-Encoding": "gzip"}
    try:
        with sync_client(base_url=url, headers=headers, timeout=600) as client:
            yield client, len(app.state.console.index.runs())
    finally:
        server.should_exit = True
        thread.join()
        store.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--asks", type=int, default=100)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="prism-pages-") as folder:
        runs = Path(folder) / "runs"
        make_runs(runs, given.runs, given.steps)
        settings = load_settings(ConsoleSettings, runs=runs, state_dir=runs / ".console", configs=ROOT / "configs")
        began = time.monotonic()
        with served(settings) as (client, _):
            while f"of {given.runs}</span>" not in client.get("/runs").text:
                time.sleep(1)
        print(f"first look at {given.runs} runs of {given.steps} steps: {time.monotonic() - began:.1f} s")
        with served(settings) as (client, known):
            print(f"known at the next start, from the cache: {known}")
            took: list[float] = []
            size = 0
            for _ in range(given.asks):
                began = time.perf_counter()
                with client.stream("GET", "/runs") as answer:
                    size = sum(len(part) for part in answer.iter_raw())
                answer.raise_for_status()
                took.append(1000 * (time.perf_counter() - began))
            p95 = statistics.quantiles(took, n=20)[-1] if len(took) > 1 else took[0]
            print(f"first page: median {statistics.median(took):.0f} ms, p95 {p95:.0f} ms, {size / 1000:.1f} kB")


if __name__ == "__main__":
    main()
