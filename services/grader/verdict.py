"""The grader's words: what is graded, by which rules, and what is said of it. Plain data that crosses processes."""

import hashlib
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal, get_args

from prism.wire.grading import DEFAULT_OPTIONS, AnswerKind, Options

VerdictStatus = Literal["ok", "invalid_format", "unparseable_answer", "unparseable_gold", "timeout", "error"]

KINDS: tuple[AnswerKind, ...] = get_args(AnswerKind)
MAX_SHOWN_CHARS = 500
MATHEMATICS = ("math-verify", "latex2sympy2_extended", "sympy")


@cache
def grader_version() -> str:
    """PRISM's version, and 12 digits that change with the grader's code and with the libraries that read formulas."""
    return version_of(Path(__file__).parent)


def version_of(folder: Path) -> str:
    """Of the grader whose code is there."""
    digest = hashlib.sha256(" ".join(map(_installed, MATHEMATICS)).encode())
    for file in sorted(folder.rglob("*.py")):
        digest.update(f"\n{file.relative_to(folder).as_posix()}\n".encode() + file.read_bytes())
    return f"{_installed('prism-align')}+{digest.hexdigest()[:12]}"


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


class Unreadable(Exception):
    """A gold answer or an answer that cannot be read as its kind. The message completes "… is"."""


class GoldUnreadable(Unreadable):
    """Found out only when the answer was compared: the gold answer's fault, not the answer's."""


@dataclass(frozen=True, slots=True)
class Match:
    """What comparing two values gave, how, and any number worth keeping beside it (a box's IoU).

    ``share`` is there for an answer that is graded rather than right or wrong, 0 to 1.
    """

    right: bool
    how: str
    components: tuple[tuple[str, float], ...] = ()
    share: float | None = None

    @property
    def accuracy(self) -> float:
        return float(self.right) if self.share is None else self.share


@dataclass(frozen=True, slots=True)
class AnswerPair:
    """One comparison: an extracted answer with its equivalent gold answers. ``answer`` None: only the gold is read.

    ``others`` stand in, in turn, for an answer that cannot be read as the gold answer's kind.
    """

    kind: AnswerKind
    answer: str | None
    golds: tuple[str, ...]
    options: Options = DEFAULT_OPTIONS
    others: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a task. ``accuracy`` is None where nothing was compared: that is no 0.

    ``candidate`` is which of the task's answers was compared: 0 its ``answer``, from 1 on its ``others``.
    """

    status: VerdictStatus
    accuracy: float | None = None
    how: str | None = None
    detail: str | None = None
    components: tuple[tuple[str, float], ...] = ()
    elapsed_seconds: float = 0.0
    candidate: int = 0


@dataclass(frozen=True, slots=True)
class OverlongPenalty:
    """DAPO's soft penalty: 0 up to ``limit - buffer`` tokens, then linear down to -1 at ``limit``, -1 beyond."""

    limit: int
    buffer: int

    def penalty(self, tokens: int) -> float:
        return -min(1.0, max(0.0, (tokens - (self.limit - self.buffer)) / self.buffer))


@dataclass(frozen=True, slots=True)
class Rules:
    """How responses are read: whether the response format is required, and where an answer is looked for, in order.

    ``unparseable``: an answer that cannot be read is wrong, or it is masked, with no numbers at all.
    """

    format: Literal["required", "ignored"] = "required"
    extract: tuple[str, ...] = ("answer", "boxed", "phrase")
    overlong: OverlongPenalty | None = None
    unparseable: Literal["wrong", "masked"] = "wrong"


@dataclass(frozen=True, slots=True)
class Item:
    """What is to be graded. ``tokens`` is the response's length, which only the over-long penalty reads."""

    response: str
    golds: tuple[str, ...]
    kind: AnswerKind = "auto"
    options: Options = DEFAULT_OPTIONS
    tokens: int | None = None


@dataclass(frozen=True, slots=True)
class RewardFormula:
    """reward = accuracy weight * accuracy + format weight * format + overlong weight * penalty.

    A response that breaks the required format earns ``invalid_format`` and no more; where the format is ignored, it
    counts as kept. The penalty, 0 to -1, is there only if the request asks for it.
    """

    accuracy: float = 0.8
    format: float = 0.2
    overlong: float = 1.0
    invalid_format: float = 0.0

    def reward(self, accuracy: float, format_: float | None, penalty: float | None) -> float:
        if format_ == 0.0:
            return self.invalid_format
        return self.accuracy * accuracy + self.format + self.overlong * (penalty or 0.0)


@dataclass(frozen=True, slots=True)
class GradedItem:
    """``reward`` is None wherever the response was not judged: that is no 0, and learners mask it."""

    status: VerdictStatus
    accuracy: float | None = None
    format: float | None = None
    reward: float | None = None
    components: dict[str, float] = field(default_factory=dict)
    extracted: str | None = None
    compared: str | None = None
    detail: str | None = None
    elapsed_seconds: float = 0.0


def shown(text: str) -> str:
    """``text`` for a person to read, cut at MAX_SHOWN_CHARS."""
    return text if len(text) <= MAX_SHOWN_CHARS else text[:MAX_SHOWN_CHARS] + "…"
