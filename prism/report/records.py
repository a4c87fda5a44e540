"""The lines a run writes, as they stand in its files. Unknown fields are ignored, what is not finite is no data."""

import math
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from prism.wire.response import EXPERTS


def finite_or_none(value: Any) -> Any:
    """NaN and infinity say that there was no figure."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


Figure = Annotated[float | None, BeforeValidator(finite_or_none)]
StageKind = Literal["sft", "align", "rlvr"]


class Record(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, coerce_numbers_to_str=True)


class LevelResult(Record):
    """Held-out figures of one level of difficulty."""

    questions: int
    accuracy: Figure = None
    caption_f1: Figure = None


class UnaskedRow(Record):
    """A held-out row that no service took."""

    row: str
    reason: str


class Evaluation(Record):
    """The held-out questions, asked after a stage."""

    stage: str
    kind: StageKind
    policy_version: int
    questions: int
    judged: int
    """Questions with a verdict: what ``accuracy`` is over."""
    unasked: int = 0
    """Questions that no service took, which ``questions`` does not count."""
    unasked_rows: list[UnaskedRow] = []
    """The first of them."""
    skipped_rows: int = 0
    """Rows of the file that cannot be used, such as those without gold."""
    skipped_reasons: list[str] = []
    """Of the first of them, with file and line."""
    accuracy: Figure = None
    accuracy_stderr: Figure = None
    format_rate: Figure = None
    caption_f1: Figure = None
    response_tokens: Figure = None
    by_level: dict[str, LevelResult] = {}
    seconds: Figure = None


class Change(Record):
    """How an expert's scores of held-out responses change when one section is corrupted."""

    rows: int
    change: Figure = None
    std: Figure = None
    stderr: Figure = None
    accuracy: Figure = None
    """Share of responses that score higher than their corrupted copy; a tie is half."""


class Disentanglement(Record):
    """Corrupted held-out responses, scored by the experts that an alignment ended with: expert to change."""

    stage: str
    expert_version: int
    share: Figure = None
    """Of a section's numbers that were changed."""
    section: str = "own"
    """What the experts are shown: each its own section, or the whole."""
    caption: dict[str, Change]
    steps: dict[str, Change]


class LookShare(Record):
    """Pairs told apart with one picture."""

    share: Figure = None
    """In which the teacher's response has the higher score; 0.5 is a coin."""
    stderr: Figure = None


class ExpertLooks(Record):
    """Held-out pairs of teacher and policy, judged by one expert with the right picture, another's and a blank one."""

    pairs: int
    """Those that differ for this expert: what the shares are over."""
    tie_share: Figure = None
    """Of all pairs, those that do not."""
    right: LookShare
    shuffled: LookShare
    blank: LookShare
    close: bool
    """With another prompt's picture more than half of the lead over a coin stays."""


class StepLooks(Record):
    """Whether the experts look, after a step of an alignment."""

    step: int
    policy_version: Figure = None
    expert_version: Figure = None
    experts: dict[str, ExpertLooks]


class ScoreRecord(Record):
    expert: str
    version: int | None = None
    status: str
    value: Figure = None
    detail: str | None = None


class VerdictRecord(Record):
    status: str
    accuracy: Figure = None
    format: Figure = None
    reward: Figure = None
    extracted: str | None = None
    detail: str | None = None


class AnsweredPrompt(Record):
    """One held-out prompt answered after a stage."""

    stage: str
    prompt_id: str
    images: list[str] = []
    question: str
    gold: str | None = None
    teacher: str | None = None
    response: str
    policy_version: int | None = None
    scores: list[ScoreRecord] = []
    teacher_scores: list[ScoreRecord] = []
    verdict: VerdictRecord | None = None


class StageResult(Record):
    """``stages/<name>/stage.json``: written when the stage is finished."""

    kind: StageKind | None = None
    version: int
    steps: int
    seconds: Figure = None


class Step(Record):
    """One line of ``metrics.jsonl``; what is a number beside these is a figure."""

    stage: str
    step: int = Field(ge=1)
    time: Figure = None
    attempt: int | None = None
    warmup: bool = False
    alerts: dict[str, Figure] = {}
    """Those that were on, with the bound that was crossed."""
    figures: dict[str, Figure] = {}

    @classmethod
    def read(cls, line: dict[str, Any]) -> "Step":
        named = {key: value for key, value in line.items() if key in cls.model_fields and key != "figures"}
        figures = {
            key: finite_or_none(value)
            for key, value in line.items()
            if key not in cls.model_fields and (value is None or _is_number(value))  # lists stay in metrics.jsonl
        }
        return cls.model_validate({**named, "figures": figures})


class GroupTimes(Record):
    """One line of ``timeline.jsonl``."""

    stage: str
    step: int
    groups: list[tuple[float, float, float]]
    """When each was asked for, sampled and judged: Unix time, by its worker's clock."""


def values(steps: Iterable[Step], name: str) -> list[float]:
    """What is known of a figure."""
    return [value for step in steps if (value := step.figures.get(name)) is not None]


def total(steps: Iterable[Step], name: str) -> float | None:
    return math.fsum(found) if (found := values(steps, name)) else None


def looks_of(steps: Iterable[Step]) -> list[StepLooks]:
    """Of the steps after which it was measured."""
    found: list[StepLooks] = []
    for step in steps:
        of_experts = {name: _look(step, name) for name in EXPERTS}
        if known := {name: look for name, look in of_experts.items() if look is not None}:
            versions = {f"{who}_version": step.figures.get(f"looks_{who}_version") for who in ("policy", "expert")}
            found.append(StepLooks.model_validate({"step": step.step, "experts": known} | versions))
    return found


def _look(step: Step, expert: str) -> ExpertLooks | None:
    def figure(name: str) -> float | None:
        return step.figures.get(f"{expert}_looks_{name}")

    def view(name: str) -> LookShare:
        return LookShare(share=figure(name), stderr=figure(f"{name}_stderr"))

    pairs, views = figure("pairs"), {"right": view("right"), "shuffled": view("shuffled"), "blank": view("blank")}
    if pairs is None:
        return None
    return ExpertLooks(pairs=round(pairs), tie_share=figure("tie_share"), **views, close=bool(figure("close")))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def surviving(lines: Sequence[Step]) -> list[Step]:
    """The steps of one stage that led to its weights, in order; ``lines`` are its lines in the order of the file.

    A resumed attempt goes on from a checkpoint, so what earlier attempts did from its first step on was thrown away.
    Lines without an attempt (SFT's) tell a resume by counting back. Within an attempt a step's last line counts.
    """
    kept: dict[int, Step] = {}
    attempt = previous = None
    for line in sorted(lines, key=lambda step: step.attempt or 0):  # stable: the order of the file within an attempt
        counts_back = line.attempt is None and previous is not None and line.step <= previous
        if kept and (line.attempt != attempt or counts_back):
            kept = {step: kept[step] for step in kept if step < line.step}
        kept[line.step] = line
        attempt, previous = line.attempt, line.step
    return [kept[step] for step in sorted(kept)]
