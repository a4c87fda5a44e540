"""What a benchmark is: how its rows become questions, how a response is scored, and which figures are made of that.

No failure becomes a number, and nothing is guessed: a response from which no answer can be read is ``unparsed``, its
value None. (The official scorers draw an option at random or take the nearest one.)
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

from prism.errors import DataError
from prism.wire.grading import AnswerKind

RuleStatus = Literal["ok", "unparsed", "refused", "failed"]


class Picture(NamedTuple):
    """The picture in a column of the question's row."""

    column: str


@dataclass(frozen=True)
class Question:
    """One row, as it is asked and scored."""

    id: str
    parts: tuple[str | Picture, ...]
    """The user's message, in order."""
    gold: str
    cluster: str
    """Questions of one cluster are not independent of one another: versions of a problem, questions on a figure."""
    before: tuple[tuple[str, tuple[str | Picture, ...]], ...] = ()
    """Messages before the user's: who speaks, and what."""
    options: tuple[str, ...] = ()
    """Texts of the options, A first."""
    kind: str = ""
    """The benchmark's own name for how the answer is compared."""
    asked: str = ""
    """The question as a judge reads it, options included; empty: the texts of ``parts``."""
    categories: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """What figures are told apart by: a name, and of which of its values the question is."""
    place: Mapping[str, str] = field(default_factory=dict)
    """Where the question belongs, for figures of several questions: set, figure, step."""
    golds: tuple[str, ...] = ()
    """Others that are equally right."""
    answer_kind: AnswerKind = "auto"
    answer_options: Mapping[str, Any] = field(default_factory=dict)
    """How the grader compares, where it is asked: a row of one's own."""

    @property
    def turns(self) -> tuple[tuple[str, tuple[str | Picture, ...]], ...]:
        """All messages, the user's last."""
        return (*self.before, ("user", self.parts))

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """In the order of the messages."""
        return tuple(part for _, parts in self.turns for part in parts if isinstance(part, Picture))

    @property
    def text(self) -> str:
        return "".join(part if isinstance(part, str) else "" for part in self.parts).strip()


class Ruling(NamedTuple):
    """What the rule says of a response. ``right`` is None unless the status is ok."""

    status: RuleStatus
    right: bool | None = None
    extracted: str | None = None
    detail: str = ""


class ToGrader(NamedTuple):
    """The official rule says nothing of how these are compared: one of the grader's kinds does.

    ``format`` and ``extract`` are the grader's rules. ``response`` may be the answer alone, which was read already.
    """

    response: str
    gold: tuple[str, ...]
    kind: AnswerKind
    options: Mapping[str, Any] = {}


class Judged(NamedTuple):
    """A question's sample as a scorer sees it; ``right`` is None for one that is masked."""

    question: Question
    sample: int
    right: bool | None
    unclear: bool = False


class Unit(NamedTuple):
    """What a figure is the mean of. ``value`` is None for what is masked.

    With strata the figure is the mean of each stratum's mean.
    """

    id: str
    value: float | None
    cluster: str
    stratum: str = ""


class Benchmark(ABC):
    """The rules of one benchmark. Instances hold nothing."""

    name: ClassVar[str]
    title: ClassVar[str]
    repo: ClassVar[str] = ""
    """Where its files are on the hub; data sets move, so a configuration may name another."""
    files: ClassVar[tuple[str, ...]] = ()
    """Which of them: patterns."""
    official: ClassVar[Literal["rule", "judge"]] = "rule"
    prompt_version: ClassVar[str] = "1"
    """Another for every change of what is asked: samples of two versions are never mixed."""
    scorer_version: ClassVar[str] = "1"
    """Another for every change of what is right: samples are scored again by a new one."""
    headline: ClassVar[str] = "accuracy"
    guidance: ClassVar[str] = ""
    """What a judge is told of this benchmark."""

    @abstractmethod
    def question(self, row: Mapping[str, Any]) -> Question:
        """Raises DataError that says what is wrong with the row."""

    @abstractmethod
    def rule(self, question: Question, response: str) -> Ruling | ToGrader:
        """Never raises, whatever the response holds, and never runs any of it."""

    def units(self, judged: Sequence[Judged]) -> dict[str, list[Unit]]:
        """The figures of one sample of every question, ``accuracy`` first."""
        return {"accuracy": [Unit(one.question.id, as_value(one.right), one.question.cluster) for one in judged]}

    def reference(self, question: Question) -> str:
        """The gold answer as a judge reads it."""
        letter = question.gold
        if question.options and len(letter) == 1 and 0 <= (index := ord(letter) - 65) < len(question.options):
            return f"{letter}. {question.options[index]}"
        return " or ".join((question.gold, *question.golds))


def as_value(right: bool | None) -> float | None:
    return None if right is None else float(right)


def all_right(members: Sequence[Judged]) -> float | None:
    """1 if all are right; None if one is masked, even beside a wrong one: else only the wrong would count."""
    if any(one.right is None for one in members):
        return None
    return float(all(one.right for one in members))


def text_of(row: Mapping[str, Any], column: str, default: str | None = None) -> str:
    """Raises DataError for a column that is missing and has no default."""
    value = row.get(column)
    if value is None or (isinstance(value, float) and value != value):
        if default is None:
            raise DataError(f"column {column!r} is missing")
        return default
    return str(value)


def picture_column(row: Mapping[str, Any], *columns: str) -> str:
    """The first of ``columns`` that holds a picture. Raises DataError if none does."""
    for column in columns:
        if isinstance(row.get(column), str) and row[column]:
            return column
    raise DataError(f"no picture in {' or '.join(columns)}")


def category_values(values: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """As ``Question.categories``, without those that are not there."""
    out: dict[str, tuple[str, ...]] = {}
    for name, value in values.items():
        several = value if isinstance(value, list | tuple) else [value]
        if texts := tuple(str(one) for one in several if one not in (None, "")):
            out[name] = texts
    return out
