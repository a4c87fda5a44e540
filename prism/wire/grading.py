"""How answers are found and compared, as rows of data, a run's configuration and requests to the grader say it."""

import re
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PositiveFloat
from pydantic_core import PydanticCustomError

from prism.wire.messages import well_formed

AnswerKind = Literal["auto", "math", "number", "choice", "text", "date", "multi", "box", "judge"]
PartKind = Literal["auto", "math", "number", "choice", "text", "date", "box"]
BoxOrder = Literal["xyxy", "xywh", "yxyx"]

VERSION_HEADER = "x-prism-grader-version"
"""Of an answer with verdicts: which grader gave them."""

PATTERN = "pattern:"
MAX_PATTERN_CHARS = 1_000
_SOURCE = rf"^(?:answer|boxed|phrase|whole|tag:[A-Za-z][A-Za-z0-9_-]{{0,63}}|{PATTERN}[\s\S]{{1,{MAX_PATTERN_CHARS}}})$"


def _known_source(source: str) -> str:
    if not re.fullmatch(_SOURCE, source):
        raise PydanticCustomError(
            "source",
            "Input should be answer, boxed, phrase, whole, tag:NAME or pattern:REGULAR EXPRESSION of at most {limit} "
            "characters",
            {"limit": MAX_PATTERN_CHARS},
        )
    if source.startswith(PATTERN):
        try:
            from prism.wire.patterns import BadPattern, compiled
        except ImportError:
            return source  # who only sends it need not have RE2: the grader has, and checks
        try:
            compiled(source.removeprefix(PATTERN))
        except BadPattern as error:
            raise PydanticCustomError("pattern", "the pattern {problem}", {"problem": str(error)}) from None
    return source


Source = Annotated[str, AfterValidator(_known_source), Field(json_schema_extra={"pattern": _SOURCE})]
"""A place where a response may hold its answer."""

Sources = Annotated[list[Source], Field(min_length=1, max_length=4)]


def split_sources(text: str) -> list[str]:
    """The sources in a text such as ``boxed,tag:final,pattern:…``: a pattern takes all that follows it."""
    before, mark, pattern = text.partition(PATTERN)
    names = [name.strip() for name in before.split(",")]
    return [*names[:-1], mark + pattern] if mark and not names[-1] else [name.strip() for name in text.split(",")]


@dataclass(frozen=True, slots=True)
class Options:
    """How one kind compares; each kind reads its own fields. Hashable: it is part of the cache's key."""

    rel_tol: float = 0.0
    abs_tol: float = 0.0
    units: Literal["lenient", "strict"] = "lenient"
    choices: tuple[str, ...] = ()
    aliases: tuple[tuple[str, ...], ...] = ()
    ordered: bool = False
    part_kind: PartKind = "auto"
    iou: float = 0.5
    distance: float = 10.0
    graded: bool = False
    box_order: BoxOrder = "xyxy"
    gold_box_order: BoxOrder = "xyxy"
    box_scale: Literal["same", "pixels", "0-1", "0-1000"] = "same"
    gold_box_scale: Literal["pixels", "0-1", "0-1000"] = "pixels"
    image_size: tuple[float, float] | None = None
    strict: bool = True
    set_relations: bool = False
    float_rounding: int = 6
    notation: Literal["any", "latex", "plain"] = "any"
    question: str = ""


DEFAULT_OPTIONS = Options()


ShortText = Annotated[str, Field(max_length=4096), BeforeValidator(well_formed)]


class GradeOptions(BaseModel):
    """How a kind compares. Each kind reads its own; others do nothing."""

    model_config = ConfigDict(extra="forbid", coerce_numbers_to_str=True)

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
