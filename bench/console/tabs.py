"""`python -m bench.console.tabs`: how much longer a step takes while fifty tabs watch the run.

The demo's SFT trains, a console is over its folder, and rounds without and with tabs take turns. A tab does what the
page of a run does: it holds a stream of events open, and asks for the page's part and six curves whenever it is told of
new figures. In use the tabs are other machines'; here they are one process, and what it takes counts too.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from itertools import pairwise
from pathlib import Path

from bench.shared import DidNotStart, Server, console, spread, started
from configs.demo import prepare
from prism.services.console.access.identity import new_token
from prism.services.console.settings import ConsoleSettings
from prism.services.console.store.migrate import upgrade
from prism.settings import load_settings
from prism.stack.ports import free_port
from prism.stack.processes import end_group, start_process

ROOT = Path(__file__).parents[2]
RUN = "watched"
FIGURES = ("loss", "grad_norm", "lr", "tokens", "update_seconds", "step_seconds")
WARM_UP = 8  # steps of a round, after which it is measured


async def watch(port: int, token: str, tabs: int) -> None:
    """Be the tabs, until killed. Says when all are open, and each time that one has drawn."""

    async def ask(path: str, more: str = "") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer {token}\r\n{more}"
        writer.write(f"{head}Accept-Encoding: gzip\r\nConnection: close\r\n\r\n".encode())
        return reader, writer

    async def fetch(path: str, more: str = "") -> None:
        reader, writer = await ask(path, more)
        status = await reader.readline()
        if b" 200 " not in status:
            raise RuntimeError(f"{path}: {status!r}")
        await reader.read()
        writer.close()

    async def opened() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await ask("/events")
        while not (await reader.readline()).startswith(b"retry:"):
            pass
        return reader, writer

    async def tab(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        """The writer closes its connection once nobody has it."""
        async for line in reader:
            if line.startswith(b"event: runs"):
                await fetch(f"/runs/{RUN}", "HX-Request: true\r\n")
                for name in FIGURES:
                    await fetch(f"/curves?stage=sft&figure={name}&run={RUN}")
                print("drawn", flush=True)
        raise RuntimeError("the stream of events ended")

    streams = [await opened() for _ in range(tabs)]
    print("open", flush=True)
    await asyncio.gather(*(tab(*stream) for stream in streams))


@contextmanager
def watching(url: str, token: str, tabs: int) -> Iterator[list[str]]:
    """Once all streams are open; at the end the list has a line for each time that a tab drew its figures anew.

    Raises DidNotStart for tabs that have ended meanwhile.
    """
    command = [sys.executable, "-m", "bench.console.tabs", "--watch", url.rpartition(":")[2], f"--tabs={tabs}"]
    told: list[str] = []
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | {"BENCH_TOKEN": token}
    ) as process:
        assert process.stdout
        try:
            if process.stdout.readline() != "open\n":
                raise DidNotStart("the tabs did not open: what they met stands above")
            yield told
            if process.poll() is not None:
                raise DidNotStart("the tabs ended: what they met stands above")
        finally:
            process.terminate()
            told += process.stdout.read().splitlines()


def measured(file: Path, steps: int) -> tuple[list[float], float]:
    """Milliseconds of so many steps, from the figures as they are written, and how many seconds all took."""
    begun = time.monotonic()
    seen = first = len(file.read_bytes().splitlines())
    while seen < first + WARM_UP + steps + 1:
        time.sleep(0.5)
        seen = len(file.read_bytes().splitlines())
    lines = file.read_bytes().splitlines()[first + WARM_UP :][: steps + 1]
    times = [json.loads(line)["time"] for line in lines]
    return [1000 * (after - before) for before, after in pairwise(times)], time.monotonic() - begun


def cpu(server: Server) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in server.processes())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--tabs", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=4, help="of each kind")
    parser.add_argument("--steps", type=int, default=60, help="measured in a round")
    parser.add_argument("--watch", type=int, metavar="PORT", help="be the tabs")
    given = parser.parse_args()
    if given.watch:
        asyncio.run(watch(given.watch, os.environ["BENCH_TOKEN"], given.tabs))
        return
    with ExitStack() as held:
        runs = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="prism-tabs-"))) / "runs"
        prepare.main(["--out", str(runs / RUN), "--public-demos=2000", "--teacher-demos=8", "--prompts=8"])
        settings = load_settings(ConsoleSettings, runs=runs, state_dir=runs / ".console", configs=ROOT / "configs")
        store = settings.open_store()
        upgrade(store)
        token = new_token(store, "bench", "view", "bench")
        store.close()
        port = free_port()
        places = {"PRISM_RUNS": runs, "PRISM_STATE_DIR": settings.state_dir, "PRISM_PORT": port}
        serve = [sys.executable, "-m", "prism", "serve", "console"]
        server = held.enter_context(started(serve, places, port, "/readyz"))
        sets = [f"name={RUN}", f"runs_dir={json.dumps(str(runs))}", "stages.sft.steps=1000000"]
        options = ["--set=" + each for each in (*sets, "stages.sft.checkpoint_every=1000000")]
        train = [sys.executable, "-m", "prism", "train", "sft", "--config", str(ROOT / "configs/demo.toml"), *options]
        with (runs / "train.log").open("wb") as log:
            trainer = start_process(train, {}, output=log)
        held.callback(end_group, trainer, 10)
        held.callback(trainer.terminate)
        file = runs / RUN / "metrics.jsonl"
        while not file.exists():
            if trainer.poll() is not None:
                raise DidNotStart((runs / "train.log").read_text()[-4000:])
            time.sleep(0.5)
        milliseconds: dict[bool, list[float]] = {False: [], True: []}
        shares: dict[bool, list[float]] = {False: [], True: []}
        ratios: list[float] = []
        draws = 0
        for number in range(given.rounds):
            medians: dict[bool, float] = {}
            for watched in (False, True) if number % 2 else (True, False):
                with watching(server.url, token, given.tabs) if watched else nullcontext([]) as drawn:
                    before = cpu(server)
                    taken, whole = measured(file, given.steps)
                    shares[watched].append(100 * (cpu(server) - before) / whole)
                draws += len(drawn)
                milliseconds[watched] += taken
                medians[watched] = statistics.median(taken)
            ratios.append(100 * (medians[True] / medians[False] - 1))
            console.print(f"round {number + 1}: {ratios[-1]:+.1f} %")
        for watched, what in ((False, "without"), (True, f"with {given.tabs} tabs")):
            taken = milliseconds[watched]
            console.print(f"{what}: a step takes {spread(taken)} ms, {statistics.mean(taken):.2f} in the mean;")
            console.print(f"  the console takes {spread(shares[watched])} % of a core")
        console.print(f"longer by {spread(ratios)} %, by rounds' medians; a tab drew {draws / given.tabs:.1f} times")


if __name__ == "__main__":
    main()
