"""Scores as JSON Lines that can be gone on with: every line says what it was made of, and by which weights."""

import fcntl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from pydantic import BaseModel, ConfigDict, ValidationError

from prism.clients.experts import JudgedPart
from prism.errors import DataError
from prism.scoring.batches import Judgement, Judging, Scored
from prism.scoring.rows import RowLine
from prism.wire.experts import ModelInfo
from prism.wire.section import Section


class Weights(BaseModel):
    """Who judged a line. Version 0 of another base is another expert."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    base: str
    version: int
    attempt: int
    calibration: str | None
    """sha256 of the reference that percentiles and probabilities speak of."""


class Line(BaseModel):
    """One row's scores."""

    index: int
    id: str
    input: str
    """Digest of the row as it stood in the file; what its image files hold is not in it."""
    section: JudgedPart
    alpha: float | None
    weights: dict[Section, Weights]
    responses: list[Judgement]


def weights_of(info: ModelInfo, section: JudgedPart) -> Weights:
    state = info.calibration
    return Weights(
        base=info.base,
        version=info.version,
        attempt=info.attempt,
        calibration=state.reference.sha256 if state and state.current and state.section == section else None,
    )


def to_line(scored: Scored, how: Judging, known: dict[Section, Weights]) -> Line:
    """``known`` are the weights in use when scoring began; others may have judged this row."""
    weights: dict[Section, Weights] = {}
    for expert, judge in scored.judges.items():
        then = known[expert]
        same = (then.version, then.attempt) == (judge.version, judge.attempt)
        weights[expert] = (
            then if same else Weights(base=then.base, version=judge.version, attempt=judge.attempt, calibration=None)
        )
    return Line(
        index=scored.row.line.index,
        id=scored.row.id,
        input=scored.row.line.digest,
        section=how.section,
        alpha=how.alpha,
        weights=weights,
        responses=scored.judgements,
    )


class Output:
    """The file, locked while it is open."""

    def __init__(self, path: Path, tell: Callable[[Line], None]) -> None:
        """Tells each line that is there already; a torn last one is cut off.

        Raises DataError if the file is not one of ours, or another process writes it.
        """
        self.path = path
        self.done: dict[int, str] = {}
        """Digest by index of the rows that are scored."""
        self._made: set[tuple[JudgedPart, float | None, tuple[tuple[Section, Weights], ...]]] = set()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: IO[bytes] = path.open("a+b")
        except OSError as error:
            raise DataError(f"{path}: {error.strerror}") from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for line in self._read():
                self.done[line.index] = line.input
                self._made.add((line.section, line.alpha, tuple(line.weights.items())))
                tell(line)
        except BlockingIOError:
            self._file.close()
            raise DataError(
                f"{path} is being written by another prism score: wait for it, or name another file"
            ) from None
        except BaseException:
            self._file.close()
            raise

    def _read(self) -> Iterator[Line]:
        self._file.seek(0)
        whole = 0
        for number, text in enumerate(self._file, 1):
            if not text.endswith(b"\n"):
                if not _may_be_ours(text):
                    raise self._not_ours(number)
                self._file.truncate(whole)
                return
            whole += len(text)
            try:
                yield Line.model_validate_json(text)
            except ValidationError:
                raise self._not_ours(number) from None

    def _not_ours(self, number: int) -> DataError:
        return DataError(f"{self.path}:{number} was not written by prism score: name another file to write to")

    def require(self, how: Judging, weights: dict[Section, Weights] | None) -> None:
        """Raises DataError if a line was made in another way or, where they are given, by other weights."""
        for section, alpha, made_by in self._made:
            judges = dict(made_by)
            if (section, alpha, tuple(judges)) != (how.section, how.alpha, how.experts):
                was = f"by {' and '.join(judges)}, section {section}, alpha {alpha}"
                now = f"by {' and '.join(how.experts)}, section {how.section}, alpha {how.alpha}"
                raise self._other(f"its rows were scored {was}, now it is {now}")
            if weights is not None and judges != weights:
                raise self._other(f"its rows were scored by {_names(judges)}, now it is {_names(weights)}")

    def require_input(self, source: Path, lines: Iterator[RowLine]) -> int:
        """The number of rows in the input. Raises DataError if a scored row does not stand there as it did."""
        left = dict(self.done)
        total = 0
        for row in lines:
            total += 1
            if row.index in left and left.pop(row.index) != row.digest:
                raise self._other(f"{source}:{row.number} is not the row that was scored")
        if left:
            raise self._other(f"{len(left)} scored rows are not in {source} any more")
        return total

    def _other(self, what: str) -> DataError:
        return DataError(f"{self.path}: {what}. Write to another file, or delete this one to score all rows again")

    def write(self, line: Line) -> None:
        self._file.write(line.model_dump_json().encode() + b"\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _may_be_ours(text: bytes) -> bool:
    """Whether half a line may be the beginning of one that ``write`` wrote."""
    begin = b'{"index":'
    return text.startswith(begin) or begin.startswith(text)


def _names(weights: dict[Section, Weights]) -> str:
    def name(one: Weights) -> str:
        calibrated = f", calibrated on {one.calibration[:8]}" if one.calibration else ", not calibrated"
        return f"{one.base} version {one.version} (attempt {one.attempt}{calibrated})"

    return " and ".join(f"{expert} {name(one)}" for expert, one in weights.items())
