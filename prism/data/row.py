"""PRISM's own row, checked: what every use of data is given, whichever format and file it came from.

A row's ``messages`` end with the user's turn, or with the assistant's, which is then the demonstration ``response``.
``teacher`` is the closed teacher's text, ``gold`` the answer that a grader compares with, by ``kind`` and ``options``;
all are optional. Several golds, or ``equivalent_answers`` beside one, are equally right. A text that is null, NaN or
blank is not there.
"""

from functools import cached_property
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, Field, ValidationError, ValidationInfo, model_validator

from prism.data.table import NUMBERS_ARE_TEXTS, without_nan
from prism.settings import describe
from prism.wire.grading import AnswerKind, GradeOptions
from prism.wire.messages import Message, image_parts, place_images, take_demonstration

MAX_EQUIVALENT = 63  # beside the gold answer: a grader takes 64


def _blank_is_none(value: object) -> object:
    return None if isinstance(value, str) and not value.strip() else value


OptionalText = Annotated[str | None, BeforeValidator(_blank_is_none)]


def _without_blanks(value: object) -> list[object]:
    """Texts and numbers of a list, without what is null, NaN or blank; a value alone is a list of one."""
    values = value if isinstance(value, list) else [value]
    return [v for v in values if _blank_is_none(v) is not None and not (isinstance(v, float) and v != v)]


READ: dict[str, Any] = {}
"""The context of validation for what a reader has made: its images are in place, its demonstration is apart."""


def _grade_options(value: object) -> object:
    """Strictly, unlike all else of a row: a key that nobody reads would change what is right without a word."""
    if not isinstance(value, dict):
        return value
    given = {name: one for name, one in value.items() if one is not None}
    try:
        return GradeOptions.model_validate(without_nan(given)) if given else None
    except ValidationError as error:
        raise ValueError("; ".join(describe(error))) from None


class DataRow(BaseModel):
    """One line. Unknown keys are let through: data sets carry more than a trainer reads.

    An image is named by its path, relative to the file the row stands in, or given as a data: URL.
    """

    model_config = NUMBERS_ARE_TEXTS

    id: str = Field(min_length=1)
    messages: list[Message] = Field(min_length=1)
    response: OptionalText = None
    teacher: OptionalText = None
    gold: OptionalText = None
    equivalent_answers: Annotated[list[str], Field(max_length=MAX_EQUIVALENT), BeforeValidator(_without_blanks)] = (
        Field(default_factory=list)
    )
    kind: AnswerKind = "auto"
    options: Annotated[GradeOptions | None, BeforeValidator(_grade_options)] = None
    meta: dict[str, object] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _as_read(cls, value: object, info: ValidationInfo) -> object:
        """Images in place and the demonstration apart; of several golds the first, and the others as equivalent."""
        if info.context is not READ:
            value = take_demonstration(place_images(without_nan(value)))
        if not isinstance(value, dict):
            return value
        if not isinstance(value.get("gold"), list) and value.get("equivalent_answers") is None:
            return value
        first, *others = _without_blanks(value.get("gold")) + _without_blanks(value.get("equivalent_answers")) or [None]
        return value | {"gold": first, "equivalent_answers": others}

    @model_validator(mode="after")
    def _ends_with_user(self) -> "DataRow":
        if self.messages[-1].role != "user":
            raise ValueError("the last message must be the user's (or the assistant's demonstration after it)")
        if not all(self.image_paths):
            raise ValueError("an image of the messages has an empty path")
        return self

    @cached_property
    def image_paths(self) -> list[str]:
        return [part.image for part in image_parts(self.messages)]


def validated(own: dict[str, Any]) -> DataRow:
    """Of what a reader has made. Raises ValidationError. (In messages, HTTP takes no unknown key.)"""
    return DataRow.model_validate(own, extra="ignore", context=READ)


def what_is_wrong(error: Exception) -> str:
    """With a row, in words; ``error`` is one of ROW_ERRORS."""
    return "; ".join(describe(error)) if isinstance(error, ValidationError) else str(error)
