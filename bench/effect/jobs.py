"""Jobs: each node trained and measured once, by however many processes of a machine, in as many sittings as it takes.

A node's model lies in a folder that is there once it is whole; its results lie elsewhere, to be kept. A node with
results is finished, though its model may be gone with the machine that made it: then it is made again if another needs
it. A process that ends takes its locks with it.
"""

import fcntl
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.effect.nodes import Node, needs, recipe, with_needs
from bench.effect.results import SUFFIX
from configs.effect.plan import Plan
from prism.errors import ConfigError
from prism.files import sealed_folder, write_json

MARKER = "done.json"
WAIT_SECONDS = 2.0


@dataclass(frozen=True)
class Work:
    """What is done with a node."""

    train: Callable[[Node, Path], dict[str, Any]]
    """Fills a folder with the model; returns figures."""
    measure: Callable[[Node, Path, dict[str, Any]], None]
    """Writes the results of the model in the folder, whose figures these are."""


class Jobs:
    """The nodes of one plan, data and size under ``root``, their results in ``results``."""

    def __init__(self, root: Path, results: Path, plan: Plan, size: str, data: str) -> None:
        self.root, self.results, self.plan, self.size, self.data = root, results, plan, size, data

    def folder(self, node: Node) -> Path:
        return self.root / "nodes" / node.name

    def result(self, node: Node) -> Path:
        return self.results / f"{node.name}{SUFFIX}"

    def model(self, node: Node) -> dict[str, Any] | None:
        """The figures of a node whose model is there. Raises ConfigError if other settings or other data made it."""
        marker = self.folder(node) / MARKER
        if not marker.is_file():
            return None
        found = json.loads(marker.read_text())
        if found["made_of"] != self._made_of(node):
            raise ConfigError(
                f"{self.folder(node)} was made by other settings of the plan, or from other data: choose another "
                "--root, or delete nodes/ and pools/ in this one"
            )
        return found["figures"]

    def _made_of(self, node: Node) -> dict[str, str]:
        return {"data": self.data, "recipe": recipe(self.plan, self.size, node)}

    def left(self, wanted: Sequence[Node]) -> list[Node]:
        """What is still to be done for all of ``wanted``, and all that comes before, to have results: each after what
        it needs. One with results is among them where its model is gone and another starts from it."""
        found: dict[Node, None] = {}

        def add(node: Node) -> None:
            if node not in found:
                for one in self._missing(node):
                    add(one)
                found[node] = None

        for node in with_needs(self.plan, wanted):
            if not self.result(node).is_file():
                add(node)
        return list(found)

    def _missing(self, node: Node) -> list[Node]:
        """Models that must be made before it can be trained or, where that is done, measured."""
        before = needs(self.plan, node)
        return [one for one in (before if self.model(node) is None else before[-1:]) if self.model(one) is None]

    def do(self, node: Node, work: Work) -> None:
        """Train it, if its model is not there, and measure it, if its results are not."""
        if self.model(node) is None:
            began = time.time()
            with sealed_folder(self.folder(node)) as folder:
                figures = work.train(node, folder) | {"seconds": round(time.time() - began, 1)}
                write_json(folder / MARKER, {"made_of": self._made_of(node), "figures": figures})
        if not self.result(node).is_file():
            work.measure(node, self.folder(node), self.model(node) or {})

    def work(self, wanted: Sequence[Node], work: Work, until: float) -> int:
        """Do what can be done until then (time.time()); returns how many nodes were. Waits while others do what the
        rest needs."""
        count = 0
        while time.time() < until:
            busy = False
            for node in self.left(wanted):
                if self._missing(node):
                    continue
                with self.locked(node) as ours:
                    busy = busy or not ours
                    if ours and node in self.left(wanted):
                        self.do(node, work)
                        count += 1
                        break
            else:
                if not busy:
                    return count
                time.sleep(WAIT_SECONDS)
        return count

    @contextmanager
    def locked(self, node: Node) -> Iterator[bool]:
        """Whether this process has the node to itself."""
        file = self.root / "locks" / node.name
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("w") as held:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True


def run_workers(arguments: Sequence[str], processes: int, minutes: float) -> int:
    """``python -m bench.effect ARGUMENTS`` in several processes, which are ended when the time is over; the exit
    status of the first that failed, or 0. What they were at is begun anew the next time, or goes on from a checkpoint.
    """
    command = [sys.executable, "-m", "bench.effect", *arguments]
    until = time.monotonic() + 60 * minutes
    running = [subprocess.Popen(command) for _ in range(processes)]
    failed = 0
    try:
        while any(process.poll() is None for process in running) and time.monotonic() < until:
            time.sleep(0.2)
        failed = next((process.returncode for process in running if process.poll()), 0)
        if alive := sum(process.poll() is None for process in running):
            print(f"the time is over: {alive} jobs end here and are taken up again by the same command")
    finally:
        for process in running:
            if process.poll() is None:
                process.terminate()
        for process in running:
            process.wait()
    return failed
