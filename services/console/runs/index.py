"""All runs of a folder, each summed up from its files when they have changed, and cached in SQL."""

import json
import logging
import socket
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any

from pydantic import TypeAdapter
from sqlalchemy import delete, insert, select
from sqlalchemy.exc import SQLAlchemyError

from prism.services.console.runs.steps import NOT_FIGURES, Row, Steps, figure, read_steps
from prism.services.console.store.engine import Store
from prism.services.console.store.models import RunIndex
from prism.stack.folder_lock import LOCKS

FORMAT = 3
DEPTH = 3  # folders below one another in which runs are looked for
LOOK_SECONDS = 2.0
SHARE = 20  # of a look's own time that is waited after it at least: looking never takes more than a twentieth of a core
ALIVE_SECONDS = 120  # since the last line of a run on another machine, of which nothing else can be told
PUBLISH_SECONDS = 1.0
END_BYTES = 64 * 1024  # of a file's end, from which a table is made at once; the whole of it is read later, in its turn
OWED_SHARE = 3  # of the time that a whole file took, waited after it: what is owed takes a quarter of a core

log = logging.getLogger("prism")


@dataclass(frozen=True)
class Extremes:
    """Of a figure."""

    last: float
    last_step: int
    least: float | None
    least_step: int | None
    most: float | None
    most_step: int | None
    """None while its end alone was read: nobody knows the least and the most yet."""


@dataclass(frozen=True)
class StageSummary:
    name: str
    kind: str
    planned: int | None
    """Steps."""
    done: int
    finished: bool
    version: int | None
    """Of the policy."""
    figures: dict[str, Extremes]
    alerts: list[str]
    accuracy: float | None
    """On held-out questions."""
    accuracy_stderr: float | None


@dataclass(frozen=True)
class RunSummary:
    run: str
    """Its folder, from the runs folder."""
    status: str
    """running, finished or stopped."""
    seed: int | None
    started: float | None
    updated: float
    stages: list[StageSummary]
    signature: list[Any]
    """Of the files that it is made of."""
    broken: int
    """Lines that could not be read."""
    whole: bool = True
    """Whether more was read than the end of a large file."""
    format: int = FORMAT

    @property
    def now(self) -> StageSummary | None:
        """The last stage that has begun."""
        return next((stage for stage in reversed(self.stages) if stage.done), None)

    @property
    def accuracy(self) -> float | None:
        return next((stage.accuracy for stage in reversed(self.stages) if stage.accuracy is not None), None)

    @property
    def alerts(self) -> list[str]:
        return list(dict.fromkeys(name for stage in self.stages for name in stage.alerts))

    def figure(self, name: str) -> tuple[StageSummary, Extremes] | None:
        """Of the last stage that has it."""
        return next(((stage, stage.figures[name]) for stage in reversed(self.stages) if name in stage.figures), None)


CACHED = TypeAdapter(RunSummary)


class Index:
    """``look`` brings it up to date; ``start`` has a thread do so. Whoever asks is never made to wait for a disk."""

    def __init__(self, runs: Path, store: Store) -> None:
        self._root, self.store = runs.resolve(), store
        self._runs: dict[str, RunSummary] = {}
        self.generation = 0
        """Counted up with every change."""
        self.spent = 0.0
        """Seconds of a processor that the thread has taken."""
        self._looking, self._end, self._thread = Lock(), Event(), None
        self._owed: dict[str, None] = {}
        """Runs of which the end alone was read, in the order in which the whole is."""

    def runs(self) -> list[RunSummary]:
        """The one that wrote last first."""
        return sorted(self._runs.values(), key=lambda run: -run.updated)

    def get(self, name: str) -> RunSummary | None:
        return self._runs.get(name)

    def start(self) -> None:
        self._load()
        self._thread = Thread(target=self._keep_looking, name="runs", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._end.set()
        if self._thread:
            self._thread.join()

    def look(self) -> None:
        """Sum up what has changed."""
        with self._looking:
            self._look()

    def _keep_looking(self) -> None:
        wait = 0.0
        while not self._end.wait(wait):
            began = time.monotonic()
            try:
                self.look()
            except SQLAlchemyError as error:
                log.warning("the cache of runs could not be written: %s", str(error).splitlines()[0])
            self.spent = time.thread_time()
            until = time.monotonic() + max(LOOK_SECONDS, SHARE * (time.monotonic() - began))
            while self._owed and (left := until - time.monotonic()) > 0:
                began = time.monotonic()
                self._read_owed()
                self.spent = time.thread_time()
                if self._end.wait(min(left, OWED_SHARE * (time.monotonic() - began))):
                    return
            wait = max(0.0, until - time.monotonic())

    def _read_owed(self) -> None:
        """The whole of one file."""
        with self._looking:
            name = next(iter(self._owed))
            del self._owed[name]
            before = self._runs.get(name)
            if before and not before.whole:
                now = _summary(name, self._root / name, before, held_locks(), whole=True)
                try:
                    self._publish([now], ())
                except SQLAlchemyError as error:
                    log.warning("the cache of runs could not be written: %s", str(error).splitlines()[0])

    def _look(self) -> None:
        held = held_locks()
        seen: set[str] = set()
        changed: list[RunSummary] = []
        published = time.monotonic()
        for folder in sorted(run_folders(self._root), key=_written, reverse=True):
            if self._end.is_set():
                return
            name = str(folder.relative_to(self._root))
            seen.add(name)
            before = self._runs.get(name)
            if (now := _summary(name, folder, before, held)) != before:
                changed.append(now)
            if not now.whole:
                self._owed.setdefault(name)
            if changed and time.monotonic() - published > PUBLISH_SECONDS:  # a first look at many may take minutes
                self._publish(changed, ())
                changed, published = [], time.monotonic()
        self._publish(changed, self._runs.keys() - seen)

    def _publish(self, changed: Sequence[RunSummary], gone: Collection[str]) -> None:
        if changed or gone:
            kept = {name: run for name, run in self._runs.items() if name not in gone}
            self._runs = kept | {run.run: run for run in changed}
            self.generation += 1
            self._save(changed, gone)

    def _save(self, changed: Iterable[RunSummary], gone: Collection[str]) -> None:
        """Raises SQLAlchemy's errors."""
        rows = [{"run": run.run, "summary": asdict(run)} for run in changed]
        names = [*gone, *(row["run"] for row in rows)]
        with self.store.write() as session:
            for first in range(0, len(names), 1000):
                session.execute(delete(RunIndex).where(RunIndex.run.in_(names[first : first + 1000])))
            if rows:
                session.execute(insert(RunIndex), rows)

    def _load(self) -> None:
        with self.store.read() as session:
            rows = session.scalars(select(RunIndex.summary)).all()
        self._runs = {row["run"]: CACHED.validate_python(row) for row in rows if row.get("format") == FORMAT}


def run_folders(root: Path, depth: int = DEPTH) -> Iterator[Path]:
    """Folders of runs: those that have written figures. What lies inside a run is none."""
    try:
        entries = sorted(entry for entry in root.iterdir() if not entry.name.startswith(".") and entry.is_dir())
    except OSError:
        return
    for entry in entries:
        if entry.is_symlink():
            continue
        if (entry / "metrics.jsonl").is_file() or (entry / "evaluations.jsonl").is_file():
            yield entry
        elif depth > 1:
            yield from run_folders(entry, depth - 1)


def held_locks() -> set[tuple[int, int]]:
    """Processes of this machine that hold ``flock``s, with the files' numbers: (process, inode)."""
    found: set[tuple[int, int]] = set()
    try:
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return found
    for line in lines:
        fields = line.split()  # 1: FLOCK ADVISORY WRITE 815 00:2d:1234 0 EOF
        if fields[1:2] == ["FLOCK"] and len(fields) > 5:
            found.add((int(fields[4]), int(fields[5].rpartition(":")[2])))
    return found


def read_object(file: Path) -> dict[str, Any]:
    """Empty if there is none that can be read."""
    try:
        value = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _summary(
    name: str, folder: Path, before: RunSummary | None, held: set[tuple[int, int]], *, whole: bool = False
) -> RunSummary:
    """With ``whole``, of all that a large file holds; else of its end, unless the run is live and known whole."""
    finished = sorted(
        file.parent.name for file in folder.glob("stages/*/stage.json") if not file.parent.name.endswith(".partial")
    )
    stamps = [_stamp(folder / file) for file in ("config.json", "metrics.jsonl", "evaluations.jsonl")]
    signature = [*stamps, finished]
    holder = holder_of(folder)
    if before is None or before.signature != signature or (whole and not before.whole):
        live = holder is not None and (holder in held)
        whole = whole or (live and before is not None and before.whole)
        before = _read(name, folder, signature, finished, live=live, whole=whole)
    return replace(before, status=_status(before, holder, held))


def _read(name: str, folder: Path, signature: list[Any], finished: list[str], *, live: bool, whole: bool) -> RunSummary:
    config = read_object(folder / "config.json")
    if live and whole:
        steps = read_steps(folder)  # which stays in memory: at the next look the new lines alone are read
    else:
        steps = Steps(folder / "metrics.jsonl")
        if whole:
            steps.read_on()
        else:
            whole = steps.read_end(END_BYTES)
    evaluated = {line["stage"]: line for line in _objects(folder / "evaluations.jsonl") if _is_text(line.get("stage"))}
    configured = config.get("stages")
    planned = {k: v for k, v in configured.items() if isinstance(v, dict)} if isinstance(configured, dict) else {}
    names = dict.fromkeys([*planned, *steps.stages, *evaluated, *finished])
    seed = config.get("seed")
    return RunSummary(
        name,
        "stopped",
        seed if type(seed) is int else None,
        steps.first,
        steps.last if steps.last is not None else _written(folder),
        [
            _stage(
                stage,
                planned.get(stage, {}),
                steps.stages.get(stage, []),
                read_object(folder / "stages" / stage / "stage.json") if stage in finished else None,
                evaluated.get(stage, {}),
                whole=whole,
            )
            for stage in names
        ],
        signature,
        steps.broken,
        whole,
    )


def _stage(
    name: str,
    planned: dict[str, Any],
    rows: list[Row],
    result: dict[str, Any] | None,
    evaluated: dict[str, Any],
    *,
    whole: bool,
) -> StageSummary:
    kind = planned.get("kind") or (result or {}).get("kind") or evaluated.get("kind") or ""
    counts = [planned.get("steps"), planned.get("warmup_steps", 0) if kind == "align" else 0]
    known = [count for count in counts if type(count) is int]
    done = rows[-1]["step"] if rows else (result or {}).get("steps", 0)
    version = (result or {}).get("version", rows[-1].get("policy_version") if rows else None)
    alerts = [key for row in rows if isinstance(row.get("alerts"), dict) for key in row["alerts"]]
    return StageSummary(
        name,
        str(kind),
        sum(known) if len(known) == len(counts) else None,
        done if type(done) is int else 0,
        result is not None,
        version if type(version) is int else None,
        _figures(rows, whole),
        list(dict.fromkeys(alerts)),
        figure(evaluated, "accuracy"),
        figure(evaluated, "accuracy_stderr"),
    )


def _figures(rows: list[Row], whole: bool) -> dict[str, Extremes]:
    found: dict[str, Extremes] = {}
    for name in dict.fromkeys(key for row in rows for key in row if key not in NOT_FIGURES):
        known = [(value, row["step"]) for row in rows if (value := figure(row, name)) is not None]
        if known and not whole:
            found[name] = Extremes(*known[-1], None, None, None, None)
        elif known:
            least, most = min(known, key=lambda pair: pair[0]), max(known, key=lambda pair: pair[0])
            found[name] = Extremes(*known[-1], *least, *most)
    return found


def holder_of(folder: Path, use: str = "trainer") -> tuple[int, int] | None:
    """Of its lock, held or not, the process and the file's number; None if it is of another machine."""
    file = folder.parent / LOCKS / use / folder.name
    told = read_object(file)
    if told.get("host") != socket.gethostname() or type(told.get("pid")) is not int:
        return None
    try:
        return told["pid"], file.stat().st_ino
    except OSError:
        return None


def _status(run: RunSummary, holder: tuple[int, int] | None, held: set[tuple[int, int]]) -> str:
    finished = bool(run.stages) and all(stage.finished for stage in run.stages)
    lately = not finished and time.time() - run.updated < ALIVE_SECONDS
    alive = holder in held if holder is not None else lately
    return "running" if alive else "finished" if finished else "stopped"


def _objects(file: Path) -> Iterator[dict[str, Any]]:
    try:
        lines = file.read_bytes().split(b"\n")
    except OSError:
        return
    for line in lines:
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            yield value


def _stamp(file: Path) -> list[int] | None:
    try:
        known = file.stat()
    except OSError:
        return None
    return [known.st_size, known.st_mtime_ns, known.st_ino]


def _written(folder: Path) -> float:
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        try:
            return (folder / name).stat().st_mtime
        except OSError:
            continue
    return 0.0


def _is_text(value: object) -> bool:
    return isinstance(value, str)
