"""The grader's HTTP messages."""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PositiveFloat, model_validator
from pydantic_core import PydanticCustomError

from prism.data.table import NUMBERS_ARE_TEXTS, without_nan
from prism.services.grader import verdict
from prism.services.grader.verdict import (
    DEFAULT_OPTIONS,
    AnswerKind,
    BoxOrder,
    Options,
    PartKind,
    Source,
    VerdictStatus,
)
from prism.wire.messages import Text, well_formed

ShortText = Annotated[str, Field(max_length=4096), BeforeValidator(well_formed)]


Gold = Text | Annotated[list[Text], Field(min_length=1, max_length=64)]
"""One right answer, or several that are equally right."""


_SOURCE = r"^(?:answer|boxed|phrase|whole|tag:[A-Za-z][A-Za-z0-9_-]{0,63})$"


def _known_source(value: str) -> str:
    if not re.fullmatch(_SOURCE, value):
        raise PydanticCustomError("source", "Input should be answer, boxed, phrase, whole or tag:NAME")
    return value


CheckedSource = Annotated[Source, AfterValidator(_known_source), Field(json_schema_extra={"pattern": _SOURCE})]


class GradeOptions(BaseModel):
    """How a kind compares. Each kind reads its own; others do nothing."""

    model_config = NUMBERS_ARE_TEXTS | ConfigDict(extra="forbid")

    rel_tol: float = Field(0.0, ge=0, le=1, description="number: tolerance as a share of the gold answer")
    abs_tol: float = Field(0.0, ge=0, allow_inf_nan=False, description="number: tolerance; the larger of both counts")
    units: Literal["lenient", "strict"] = Field(
        "lenient",
        description="number: lenient forgives a unit or percent sign that only one side has; never another unit",
    )
    choices: list[ShortText] = Field([], max_length=26, description="choice: the options' texts, A first")
    aliases: list[list[ShortText]] = Field([], max_length=256, description="text: groups of texts that mean the same")
    ordered: bool = Field(False, description="multi: whether the parts must come in the gold answer's order")
    part_kind: PartKind = Field("auto", description="multi: the kind of each part")
    iou: float = Field(0.5, gt=0, le=1, description="box: the least intersection over union that is right")
    distance: float = Field(
        10.0, ge=0, allow_inf_nan=False, description="box: the largest distance from a gold point that is right"
    )
    graded: bool = Field(False, description="box: accuracy is the IoU itself, not whether it is enough")
    box_order: BoxOrder = Field(
        "xyxy",
        description="box: what the answer's numbers are, unless it says so itself; w, h: width, height",
    )
    gold_box_order: BoxOrder = Field("xyxy", description="box: what the gold answer's numbers are")
    box_scale: Literal["same", "pixels", "0-1", "0-1000"] = Field(
        "same", description="box: the answer's scale; same as the gold answer's, or shares or thousandths of the image"
    )
    gold_box_scale: Literal["pixels", "0-1", "0-1000"] = Field(
        "pixels", description="box: the gold answer's scale, where box_scale is not same"
    )
    image_size: tuple[PositiveFloat, PositiveFloat] | None = Field(
        None, description="box: width and height in pixels, needed between pixels and another scale"
    )
    strict: bool = Field(True, description="math: variables must have the same names, sets are no tuples")
    set_relations: bool = Field(False, description="math: an inequality may answer an interval, not only the reverse")
    float_rounding: int = Field(6, ge=0, le=15, description="math: decimals at which numbers are compared")
    notation: Literal["any", "latex", "plain"] = Field("any", description="math: where to look for the expression")
    question: ShortText = Field("", description="judge: the question that was asked")

    def plain(self) -> Options:
        """As the kinds take it."""
        values = self.model_dump()
        values["choices"] = tuple(self.choices)
        values["aliases"] = tuple(tuple(group) for group in self.aliases)
        return Options(**values)


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
        "or an alias. math: LaTeX and expressions, by math-verify. multi: several parts. box: a bounding box by IoU, a "
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
    extract: list[CheckedSource] = Field(
        ["answer", "boxed", "phrase"],
        min_length=1,
        max_length=4,
        description="where the answer is, first match first. answer: the last <answer>. boxed: the last \\boxed{}. "
        'phrase: after the last "the answer is". whole: all of it. tag:NAME: the last <NAME>…</NAME>. '
        "Inside <answer>, boxed and phrase apply too. With "
        "the required format it is always <answer>.",
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
