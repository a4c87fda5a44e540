"""``python -m bench.grader``: verdicts a second, HTTP included, beside math-verify in a loop and in a process pool.

One run on one machine: 10,000 pairs, a quarter of each kind, checked to get the same verdicts. Then how long a batch of
16 takes, and what healthy items lose while one in a hundred is hostile. A loaded machine spoils what the clock says, so
its load is printed, and beside the clock's figures processor time per verdict: the server's and its workers', together.
"""

import asyncio
import json
import os
import statistics
import time
from collections.abc import Sequence

from rich.table import Table

from bench.grader import plain
from bench.grader.pairs import Pair, hostile, in_groups, make
from bench.shared import Server, at_most, command_line, console, prism_service
from prism.http.client import sync_client

FAST = ("choice", "number", "text")
THOUGHTS = 8
CORES = len(os.sched_getaffinity(0))
AT_ONCE = 4 * CORES  # requests
QUIET = {"PRISM_LOG_LEVEL": "error"}


def bodies(pairs: Sequence[Pair], batch: int) -> list[bytes]:
    items = [pair.item(THOUGHTS) for pair in pairs]
    return [json.dumps({"items": items[start : start + batch]}).encode() for start in range(0, len(items), batch)]


async def ask(server: Server, requests: Sequence[bytes], number: int) -> list[dict[str, object]]:
    """All verdicts, in order, with ``number`` requests under way."""
    async with server.client() as http:

        async def one(body: bytes) -> list[dict[str, object]]:
            response = await http.post("/v1/grade", content=body)
            return response.raise_for_status().json()["verdicts"]

        return [verdict for verdicts in await at_most(number, map(one, requests)) for verdict in verdicts]


def rate(server: Server, pairs: Sequence[Pair], batch: int) -> tuple[float, list[dict[str, object]]]:
    requests = bodies(pairs, batch)
    start = time.perf_counter()
    verdicts = asyncio.run(ask(server, requests, AT_ONCE))
    return len(pairs) / (time.perf_counter() - start), verdicts


def cpu_seconds(server: Server) -> float:
    """Of the server and all its processes."""
    times = [process.cpu_times() for process in server.processes()]
    return sum(time.user + time.system for time in times)


def disagreements(pairs: Sequence[Pair], expected: list[bool], verdicts: list[dict[str, object]]) -> list[str]:
    return [
        f"{pair.kind}: {pair.gold!r} v {pair.answer!r}: math-verify says {right}, the grader {verdict['accuracy']}"
        for pair, right, verdict in zip(pairs, expected, verdicts, strict=True)
        if verdict["accuracy"] != float(right)
    ]


def speed(count: int) -> None:
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
        # So short a time is best taken several times, each time of other pairs: what was read once may be kept.
        batch, repeats = (250, 5) if kind in FAST else (64, 1)
        with prism_service("grader", QUIET) as server:
            before = cpu_seconds(server)
            runs = [rate(server, pairs, batch)]
            runs += [rate(server, make(kind, count, seed), batch) for seed in range(2, repeats + 1)]
            grader_cpu = (cpu_seconds(server) - before) / repeats
            graded, verdicts = max(made for made, _ in runs), runs[0][1]
        wrong = disagreements(pairs, expected, verdicts)
        differ += wrong
        same = f"{len(pairs) - len(wrong)} of {len(pairs)}"
        figures = (f"{loop:.0f}", f"{pool:.0f}", f"{graded:.0f}", f"{graded / loop:.1f}x")
        cpu = (f"{seconds / len(pairs) * 1000:.3f}" for seconds in (loop_cpu, grader_cpu))
        table.add_row(kind, *figures, f"{graded / (loop * CORES):.2f}x", *cpu, same)
    console.print(table)
    for line in differ[:10]:
        console.print(f"  {line}")


def latency(count: int) -> None:
    pairs = [pair for trio in zip(*(make(kind, count) for kind in FAST), strict=True) for pair in trio]
    seconds: list[float] = []
    with (
        prism_service("grader", QUIET) as server,
        sync_client(base_url=server.url, headers=server.headers, timeout=600) as client,
    ):
        for body in bodies(pairs, 16) * 3:
            start = time.perf_counter()
            client.post("/v1/grade", content=body).raise_for_status()
            seconds.append(time.perf_counter() - start)
    cuts = statistics.quantiles(seconds, n=100)
    console.print(f"a batch of 16 (choice, number, text): p50 {cuts[49] * 1000:.1f} ms, p99 {cuts[98] * 1000:.1f} ms")


def under_attack(count: int) -> None:
    """Healthy items alone, then beside hostile requests, one item in a hundred, that are sent all the while."""
    pairs = make("math", count, seed=1)
    healthy = bodies(pairs, 16)
    attack = bodies(hostile(count // 100), 1)

    async def attacked(server: Server) -> float:
        start = time.perf_counter()
        bombs = asyncio.create_task(ask(server, attack, len(attack)))
        await ask(server, healthy, AT_ONCE)
        seconds = time.perf_counter() - start
        statuses = [str(verdict["status"]) for verdict in await bombs]
        said = ", ".join(f"{statuses.count(status)} {status}" for status in sorted(set(statuses)))
        console.print(f"hostile items: {said}")
        return seconds

    with prism_service("grader", QUIET) as server:
        start = time.perf_counter()
        asyncio.run(ask(server, healthy, AT_ONCE))
        alone = time.perf_counter() - start
    with prism_service("grader", QUIET) as server:
        beside = asyncio.run(attacked(server))
    console.print(
        f"healthy math items: {count / alone:.0f}/s alone, {count / beside:.0f}/s while one in a hundred is hostile: "
        f"{alone / beside:.0%}"
    )


def main() -> None:
    parser = command_line("bench.grader", __doc__)
    parser.add_argument("--pairs", type=int, default=10_000, help="pairs in all, a quarter of each kind")
    count = parser.parse_args().pairs // 4
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    console.print(f"{CORES} cores; load of the machine before: {load}")
    latency(count)
    speed(count)
    under_attack(count)


if __name__ == "__main__":
    main()
