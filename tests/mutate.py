#!/usr/bin/env python3
"""Break the code on purpose, one line at a time, and see whether the tests notice.

tests/mutations.toml lists the mutants. Each names a file, a line of it that must stand there exactly once, what the
line becomes, and the tests that guard it. Every one of these tests must fail, or the mutant has survived: then the
line is not tested, or no longer does anything. Nothing in this checkout is touched; mutants live in a copy of it.

  make mutations                       all of them
  tests/mutate.py heartbeat fsync       those whose name holds one of these words
  tests/mutate.py --list                their names

To add one, append to the list:

  [[mutant]]
  name = "the worker sends no heartbeat"
  file = "services/rollouts/worker.py"
  line = "await stream.keep(delivery)"   # without its indentation; several lines in '''...''' if one is not unique
  becomes = "pass"                       # left out, the line is deleted
  tests = ["tests/unit/services/rollouts/test_rollouts_worker.py::test_a_group_that_takes_longer_..."]

Exit status: 0 if all were caught, 1 if any survived or could not be tried.
"""

import argparse
import importlib.util
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIST = ROOT / "tests" / "mutations.toml"
PYTHON = ROOT / ".venv" / "bin" / "python"


@dataclass(frozen=True)
class Mutant:
    name: str
    file: str
    line: str
    tests: list[str]
    becomes: str | None = None

    def applied_to(self, code: str) -> str:
        """Raises ValueError if the line does not stand there exactly once."""
        lines, wanted = code.split("\n"), [line.strip() for line in self.line.strip().split("\n")]
        found = [i for i in range(len(lines)) if [line.strip() for line in lines[i : i + len(wanted)]] == wanted]
        if len(found) != 1:
            raise ValueError(f"{self.file} has this line {len(found)} times, not once: {self.line.strip()}")
        start = found[0]
        indent = re.match(r"\s*", lines[start])
        assert indent
        new = [] if self.becomes is None else [indent[0] + line.strip() for line in self.becomes.strip().split("\n")]
        return "\n".join([*lines[:start], *new, *lines[start + len(wanted) :]])


@dataclass(frozen=True)
class Outcome:
    """Of one run of pytest (a test that hangs fails at the suite's own timeout): what passed, and the last words."""

    status: int
    passed: list[str]
    tail: str


def copy_checkout(folder: Path) -> None:
    """What git knows or would add, as it is now."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    for name in listing.stdout.split("\0"):
        source, target = ROOT / name, folder / name
        if name and (source.is_file() or source.is_symlink()):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target, follow_symlinks=False)


def run_tests(folder: Path, tests: Iterable[str]) -> Outcome:
    options = ["-q", "-rpfE", "--tb=short", "--disable-warnings", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [PYTHON if PYTHON.exists() else sys.executable, "-m", "pytest", *options, *tests],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    passed = re.findall(r"^PASSED (.*)$", done.stdout, re.MULTILINE)
    told = [line for line in done.stdout.splitlines() if not line.startswith("PASSED ")]
    return Outcome(done.returncode, passed, "\n".join(told[-20:]))


def attempt(mutant: Mutant, folder: Path) -> str | None:
    """Why the mutant was not caught; None if it was."""
    file = folder / mutant.file
    code = file.read_text()
    try:
        changed = mutant.applied_to(code)
    except ValueError as error:
        return str(error)
    try:
        rewrite(file, changed)
        outcome = run_tests(folder, mutant.tests)
    finally:
        rewrite(file, code)
    if outcome.passed or outcome.status == 0:
        return "green all the same: " + ", ".join(outcome.passed)
    if outcome.status != 1:  # of pytest: tests ran, and some failed
        return f"pytest ended with status {outcome.status}, which says nothing about the tests:\n{outcome.tail}"
    return None


def rewrite(file: Path, code: str) -> None:
    file.write_text(code)
    # Python takes a compiled file for current if size and second are the same.
    Path(importlib.util.cache_from_source(str(file))).unlink(missing_ok=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="tests/mutate.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("words", nargs="*", help="try only mutants whose name holds one of these")
    parser.add_argument("--list", action="store_true", help="show the mutants' names and end")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="how many at a time (default: 2)")
    options = parser.parse_args()
    mutants = [Mutant(**entry) for entry in tomllib.loads(LIST.read_text())["mutant"]]
    chosen = [m for m in mutants if not options.words or any(word in m.name for word in options.words)]
    if options.list:
        print(*(mutant.name for mutant in chosen), sep="\n")
        return 0
    if not chosen:
        parser.error(f"no mutant's name holds {' or '.join(options.words)}; --list shows them")

    folders: queue.SimpleQueue[Path] = queue.SimpleQueue()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="prism-mutate-") as temporary, ThreadPoolExecutor(options.jobs) as threads:
        copies = [Path(temporary, str(number)) for number in range(options.jobs)]
        for copy in copies:
            copy_checkout(copy)
            folders.put(copy)

        tests = sorted({test for mutant in chosen for test in mutant.tests})
        shares = [share for number in range(options.jobs) if (share := tests[number :: options.jobs])]
        for outcome in threads.map(run_tests, copies, shares):
            if outcome.status:
                print(f"the tests fail without a mutant:\n{outcome.tail}")
                return 1
        print(f"{len(tests)} tests pass on the code as it is ({time.monotonic() - started:.0f} s)", flush=True)

        def judge(mutant: Mutant) -> bool:
            folder, began = folders.get(), time.monotonic()
            problem = attempt(mutant, folder)
            folders.put(folder)
            verdict = "SURVIVED" if problem else "caught  "
            print(f"{verdict} {time.monotonic() - began:5.1f} s  {mutant.name}", flush=True)
            if problem:
                print(f"         {problem}", flush=True)
            return not problem

        caught = sum(threads.map(judge, chosen))
    print(f"caught {caught} of {len(chosen)} ({time.monotonic() - started:.0f} s)")
    return 0 if caught == len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main())
