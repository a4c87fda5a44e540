"""The grader's HTTP messages."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from prism.data.table import NUMBERS_ARE_TEXTS, without_nan
from prism.services.grader import verdict
from prism.services.grader.verdict import VerdictStatus
from prism.wire.grading import DEFAULT_OPTIONS, AnswerKind, GradeOptions, Sources
from prism.wire.messages import Text, well_formed

Gold = Text | Annotated[list[Text], Field(min_length=1, max_length=64)]
"""One right answer, or several that are equally right."""


class GradeItem(BaseModel):
    """One response and the gold answer to hold it against. Numbers may stand for texts, as in training rows."""

    model_config = NUMBERS_ARE_TEXTS | ConfigDict(extra="forbid")

    id: Annotated[str, Field(max_length=200), BeforeValidator(well_formed)] | None = Field(
        None, description="the caller's own name for the item; its verdict repeats it"
    )
    response: Text = Field(
        description="the whole response: <caption>…</caption><think>…</think><answer>…</answer>",
        examples=["<caption>- top left: 3\n- top right: 4</caption><think>3 + 4 = 7</think><answer>7</answer>"],
    )
    gold: Gold = Field(
        description="the right answer, or several that are equally right; a number stands for its text",
        examples=["7", ["7", "seven"]],
    )
    kind: AnswerKind = Field(
        "auto",
        description="number: exact value within a tolerance; units, percent, thousands, scientific, fractions. "
        "date: a date, a time of day or both, in any spelling. choice: "
        "a letter or the option's text, or several letters where the gold answer is several. "
        "text: equal once normalised (Unicode, case, white space, trailing full stop), "
        "or an alias. math: LaTeX and expressions, read whole by latex2sympy2_extended and compared by sympy. "
        "multi: several parts. box: a bounding box by IoU, a "
        "point by distance. judge: a language model, if the service has one. auto: date, number, choice, box, math or "
        "text, whichever the gold answer is; scores, ranges and ratios too.",
    )
    options: GradeOptions | None = Field(None, description="how the kind compares; null for its defaults")
    tokens: int | None = Field(None, ge=0, le=2**31, description="the response's length, for the over-long penalty")

    @model_validator(mode="before")
    @classmethod
    def _nan_is_nothing(cls, value: object) -> object:
        return without_nan(value)

    def plain(self) -> verdict.Item:
        """As the engine takes it."""
        golds = (self.gold,) if isinstance(self.gold, str) else tuple(self.gold)
        options = self.options.plain() if self.options else DEFAULT_OPTIONS
        return verdict.Item(self.response, golds, self.kind, options, self.tokens)


class Overlong(BaseModel):
    """DAPO's soft penalty: 0 up to limit - buffer tokens, then linear down to -1 at the limit, -1 beyond."""

    model_config = ConfigDict(extra="forbid")

    limit: int = Field(ge=1, le=2**31, description="tokens at which the penalty is -1")
    buffer: int = Field(ge=1, le=2**31, description="tokens before the limit at which it begins")


class GradeRules(BaseModel):
    """How responses are read."""

    model_config = ConfigDict(extra="forbid")

    format: Literal["required", "ignored"] = Field(
        "required",
        description="required: a response that breaks the response format earns 0. ignored: any text will do",
    )
    extract: Sources = Field(
        ["answer", "boxed", "phrase"],
        description="where the answer is, first match first. answer: the last <answer>. boxed: the last \\boxed{}. "
        'phrase: after the last "the answer is". whole: all of it. tag:NAME: the last <NAME>…</NAME>. '
        "pattern:REGULAR EXPRESSION: the last match of a pattern in RE2's syntax, of it the group named answer, else "
        "the first group, else all. Inside <answer> all but answer and whole apply too. With the required format it is "
        "always inside <answer>.",
    )
    overlong: Overlong | None = Field(None, description="adds the soft over-long penalty; items then need tokens")
    unparseable: Literal["wrong", "masked"] = Field(
        "wrong", description="an answer that cannot be read, or is not there, is wrong, or has no numbers: mask it"
    )

    def plain(self) -> verdict.Rules:
        overlong = verdict.OverlongPenalty(self.overlong.limit, self.overlong.buffer) if self.overlong else None
        return verdict.Rules(self.format, tuple(self.extract), overlong, self.unparseable)


class GradeRequest(BaseModel):
    """A batch; the service's settings limit how many items and how long a text."""

    model_config = ConfigDict(extra="forbid")

    items: list[GradeItem] = Field(description="what to grade; the verdicts come in the same order")
    rules: GradeRules = Field(GradeRules.model_construct(), description="how responses are read")


class GradeVerdict(BaseModel):
    """What the grader says of one item. Where ``reward`` is null nothing was judged: mask it, it is not a 0."""

    model_config = ConfigDict(from_attributes=True)

    id: str | None = Field(None, description="the item's id, if it had one")
    status: VerdictStatus = Field(
        description="ok: compared. invalid_format: the response breaks the format and earns 0. unparseable_answer: "
        "well-formed, but the answer cannot be read as the gold answer's kind: wrong. unparseable_gold, timeout, "
        "error: not judged, all numbers null."
    )
    accuracy: float | None = Field(description="1 right, 0 wrong, null not judged")
    format: float | None = Field(description="1 valid, 0 invalid, null not judged, or not looked at")
    reward: float | None = Field(
        description="accuracy, format and over-long penalty by their weights, null not judged", examples=[1.0]
    )
    components: dict[str, float] = Field(
        description="more numbers where the kind or the rules have some: iou, distance, parts, overlong"
    )
    extracted: str | None = Field(description="the answer as found, cut at 500 characters", examples=["7"])
    compared: str | None = Field(description="how it was compared", examples=["number: equal"])
    detail: str | None = Field(description="what was wrong, by name")
    elapsed_seconds: float = Field(description="seconds spent on the item; a repeated one is compared once")


class GradeResponse(BaseModel):
    """One verdict for each item of the request, in its order."""

    verdicts: list[GradeVerdict]


class Refusal(BaseModel):
    """Why a request was refused."""

    detail: str


def to_wire(item: GradeItem, given: verdict.GradedItem) -> dict[str, Any]:
    """A GradeVerdict as JSON's values. Not by way of the model, which would cost more than most comparisons."""
    return {"id": item.id} | {name: getattr(given, name) for name in given.__slots__}
