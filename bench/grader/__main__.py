"""``python -m bench.grader``: verdicts a second, HTTP included, beside math-verify in a loop and in a process pool.

One run on one machine: 10,000 pairs, a quarter of each kind, checked to get the same verdicts. Then how long a batch of
16 takes, and what healthy items lose while one in a hundred is hostile. A loaded machine spoils what the clock says, so
its load is printed, and beside the clock's figures processor time per verdict: the server's and its workers', together.
"""

import argparse
import asyncio
import json
import os
import secrets
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import httpx
import psutil
from rich.console import Console
from rich.table import Table

from bench.grader import plain
from bench.grader.pairs import Pair, hostile, in_groups, make

FAST = ("choice", "number", "text")
THOUGHTS = 8
CORES = len(os.sched_getaffinity(0))


@contextmanager
def server() -> Iterator[tuple[httpx.Client, psutil.Process]]:
    """A grader with empty caches, ready."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_urlsafe(24)
    environment = os.environ | {
        "PRISM_PORT": str(port),
        "PRISM_TOKEN": token,
        "PRISM_ADMIN_TOKEN": secrets.token_urlsafe(24),
        "PRISM_LOG_LEVEL": "error",
    }
    process = subprocess.Popen([sys.executable, "-m", "prism.services.grader"], env=environment)
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=600) as client:
            while True:
                try:
                    if client.get("/readyz").status_code == 200:
                        break
                except httpx.TransportError:
                    pass
                if process.poll() is not None:
                    raise RuntimeError("the grader did not start")
                time.sleep(0.1)
            yield client, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()


def bodies(pairs: Sequence[Pair], batch: int) -> list[bytes]:
    items = [pair.item(THOUGHTS) for pair in pairs]
    return [json.dumps({"items": items[start : start + batch]}).encode() for start in range(0, len(items), batch)]


async def ask(client: httpx.Client, requests: Sequence[bytes], at_once: int) -> list[dict[str, object]]:
    """All verdicts, in order, with ``at_once`` requests under way."""
    room = asyncio.Semaphore(at_once)
    async with httpx.AsyncClient(base_url=client.base_url, headers=client.headers, timeout=600) as http:

        async def one(body: bytes) -> list[dict[str, object]]:
            async with room:
                response = await http.post("/v1/grade", content=body)
                return response.raise_for_status().json()["verdicts"]

        return [verdict for verdicts in await asyncio.gather(*map(one, requests)) for verdict in verdicts]


def rate(
    client: httpx.Client, pairs: Sequence[Pair], batch: int, at_once: int
) -> tuple[float, list[dict[str, object]]]:
    requests = bodies(pairs, batch)
    start = time.perf_counter()
    verdicts = asyncio.run(ask(client, requests, at_once))
    return len(pairs) / (time.perf_counter() - start), verdicts


def cpu_seconds(process: psutil.Process) -> float:
    """Of the server and all its processes."""
    times = [member.cpu_times() for member in (process, *process.children(recursive=True))]
    return sum(time.user + time.system for time in times)


def disagreements(pairs: Sequence[Pair], expected: list[bool], verdicts: list[dict[str, object]]) -> list[str]:
    return [
        f"{pair.kind}: {pair.gold!r} v {pair.answer!r}: math-verify says {right}, the grader {verdict['accuracy']}"
        for pair, right, verdict in zip(pairs, expected, verdicts, strict=True)
        if verdict["accuracy"] != float(right)
    ]


def speed(console: Console, count: int) -> None:
    table = Table(
        "kind", "loop /s", "pool /s", "grader /s", "v loop", "v loop x cores", "CPU ms: loop", "grader", "same"
    )
    differ: list[str] = []
    for kind in (*FAST, "math", "math in groups of 16"):
        pairs = make(kind.split()[0], count)
        if "groups" in kind:
            pairs = in_groups(pairs)
        loop, loop_cpu, expected = plain.loop(pairs)
        pool = plain.process_pool(pairs, CORES)
        # Of the fast kinds nothing is cached; so short a time is best taken several times.
        batch, repeats = (250, 5) if kind in FAST else (64, 1)
        with server() as (client, process):
            before = cpu_seconds(process)
            runs = [rate(client, pairs, batch, 4 * CORES) for _ in range(repeats)]
            grader_cpu = (cpu_seconds(process) - before) / repeats
            graded, verdicts = max(runs, key=lambda run: run[0])
        wrong = disagreements(pairs, expected, verdicts)
        differ += wrong
        same = f"{len(pairs) - len(wrong)} of {len(pairs)}"
        figures = (f"{loop:.0f}", f"{pool:.0f}", f"{graded:.0f}", f"{graded / loop:.1f}x")
        cpu = (f"{seconds / len(pairs) * 1000:.3f}" for seconds in (loop_cpu, grader_cpu))
        table.add_row(kind, *figures, f"{graded / (loop * CORES):.2f}x", *cpu, same)
    console.print(table)
    for line in differ[:10]:
        console.print(f"  {line}")


def latency(console: Console, count: int) -> None:
    pairs = [pair for trio in zip(*(make(kind, count) for kind in FAST), strict=True) for pair in trio]
    seconds: list[float] = []
    with server() as (client, _):
        for body in bodies(pairs, 16) * 3:
            start = time.perf_counter()
            client.post("/v1/grade", content=body).raise_for_status()
            seconds.append(time.perf_counter() - start)
    cuts = statistics.quantiles(seconds, n=100)
    console.print(f"a batch of 16 (choice, number, text): p50 {cuts[49] * 1000:.1f} ms, p99 {cuts[98] * 1000:.1f} ms")


def under_attack(console: Console, count: int) -> None:
    """Healthy items alone, then beside hostile requests, one item in a hundred, that are sent all the while."""
    pairs = make("math", count, seed=1)
    healthy = bodies(pairs, 16)
    attack = bodies(hostile(count // 100), 1)

    async def attacked(client: httpx.Client) -> float:
        start = time.perf_counter()
        bombs = asyncio.create_task(ask(client, attack, len(attack)))
        await ask(client, healthy, 4 * CORES)
        seconds = time.perf_counter() - start
        statuses = [str(verdict["status"]) for verdict in await bombs]
        said = ", ".join(f"{statuses.count(status)} {status}" for status in sorted(set(statuses)))
        console.print(f"hostile items: {said}")
        return seconds

    with server() as (client, _):
        start = time.perf_counter()
        asyncio.run(ask(client, healthy, 4 * CORES))
        alone = time.perf_counter() - start
    with server() as (client, _):
        beside = asyncio.run(attacked(client))
    console.print(
        f"healthy math items: {count / alone:.0f}/s alone, {count / beside:.0f}/s while one in a hundred is hostile: "
        f"{alone / beside:.0%}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.grader", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=10_000, help="pairs in all, a quarter of each kind")
    count = parser.parse_args().pairs // 4
    console = Console(highlight=False, width=120)
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    console.print(f"{CORES} cores; load of the machine before: {load}")
    latency(console, count)
    speed(console, count)
    under_attack(console, count)


if __name__ == "__main__":
    main()
