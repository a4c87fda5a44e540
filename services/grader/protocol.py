"""The grader's HTTP messages."""

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from prism.service import well_formed
from services.grader.grading import Kind, Status

Text = Annotated[str, BeforeValidator(well_formed)]


class GradeItem(BaseModel):
    """One response and the gold answer to hold it against."""

    model_config = ConfigDict(extra="forbid")

    id: Annotated[str, Field(max_length=200), BeforeValidator(well_formed)] | None = Field(
        None, description="the caller's own name for the item; its verdict repeats it"
    )
    response: Text = Field(
        description="the whole response: <caption>…</caption><think>…</think><answer>…</answer>",
        examples=["<caption>- top left: 3\n- top right: 4</caption><think>3 + 4 = 7</think><answer>7</answer>"],
    )
    gold: Text = Field(description="the right answer", examples=["7"])
    kind: Kind = Field(
        "auto",
        description="number: exact value of integers, decimals and simple fractions. text: equal once normalised "
        "(Unicode, case, white space, trailing full stop). auto: number if the gold answer is one, else text.",
    )


class GradeRequest(BaseModel):
    """A batch; the service's settings limit how many items and how long a text."""

    model_config = ConfigDict(extra="forbid")

    items: list[GradeItem] = Field(description="what to grade; the verdicts come in the same order")


class GradeVerdict(BaseModel):
    """What the grader says of one item. Where ``reward`` is null nothing was judged: mask it, it is not a 0."""

    model_config = ConfigDict(from_attributes=True)

    id: str | None = Field(None, description="the item's id, if it had one")
    status: Status = Field(
        description="ok: compared. invalid_format: the response breaks the format and earns 0. unparseable_answer: "
        "well-formed, but the answer cannot be read as the gold answer's kind: wrong. unparseable_gold, timeout, "
        "error: not judged, all numbers null."
    )
    accuracy: float | None = Field(description="1 right, 0 wrong, null not judged")
    format: float | None = Field(description="1 valid, 0 invalid, null not judged")
    reward: float | None = Field(description="accuracy and format by their weights, null not judged", examples=[1.0])
    extracted: str | None = Field(description="the answer as found, cut at 500 characters", examples=["7"])
    detail: str | None = Field(description="what was wrong, by name")
    elapsed_seconds: float = Field(description="seconds spent on the item")


class GradeResponse(BaseModel):
    """One verdict for each item of the request, in its order."""

    verdicts: list[GradeVerdict]


class Problem(BaseModel):
    """Why a request was refused."""

    detail: str
