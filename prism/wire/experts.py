"""What goes over the wire of the experts' scoring API: written once, for the service and its clients. (No torch.)

A *score* is a raw Bradley-Terry score of one section of one response: only differences between responses to one prompt
mean something. A calibration says what: it gives each of several responses to a prompt a percentile and a probability,
and a response alone neither. Whatever could not be scored has a status and no number.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from prism.wire.messages import IMAGE, Message, Text, Wire, plain_message
from prism.wire.response import Expert, JudgedSection

ScoreStatus = Literal["ok", "invalid_format", "too_long", "error"]
JudgedText = Literal["perception", "reasoning", "all"]


class Answer(BaseModel):
    """What a service answers: read leniently, so that an older client can talk to a newer service."""


class PromptFields(Wire):
    """What was asked: chat messages, or plain text with images before it."""

    messages: list[Message] | None = Field(
        default=None, min_length=1, description="the prompt as a chat; it ends with the user's turn"
    )
    prompt: Text | None = Field(default=None, description="the prompt as plain text, instead of messages")
    images: list[Text] = Field(default=[], description=f"images of a plain prompt: {IMAGE}")

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if (self.messages is None) == (self.prompt is None):
            raise ValueError("give either messages or prompt")
        if self.messages is not None and self.images:
            raise ValueError("images go with prompt; in messages they are parts of their message")
        if self.messages is not None and self.messages[-1].role != "user":
            raise ValueError("the last message must be the user's; responses go into 'responses'")
        return self

    def chat(self) -> list[Message]:
        """The prompt as messages, whichever way it was given."""
        return self.messages or [plain_message(self.prompt or "", self.images)]


class ScoreItem(PromptFields):
    """One prompt and the responses to it."""

    responses: list[Text] = Field(min_length=1, description="whole responses to the prompt, whoever wrote them")


class JudgingOptions(Wire):
    """How to judge, in every scoring request."""

    section: Literal["own", "all"] = Field(
        default="own",
        description="own: what this expert was trained on, its section as a rule, of responses in the response format. "
        "all: the whole text, whatever its format",
    )
    min_version: int | None = Field(
        default=None, ge=0, strict=True, description="refuse (409) to score with weights older than this"
    )


_EXAMPLE_PROMPT: dict[str, Any] = {"prompt": "What is 2 + 2?"}
_EXAMPLE_RESPONSE = "<caption>- two numbers</caption><think>2 + 2 = 4</think><answer>4</answer>"
_EXAMPLE_ITEM: dict[str, Any] = _EXAMPLE_PROMPT | {"responses": [_EXAMPLE_RESPONSE]}


class ScoreRequest(JudgingOptions):
    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"example": {"items": [_EXAMPLE_ITEM]}},
    )
    items: list[ScoreItem] = Field(min_length=1)


class Percentile(Answer):
    """A score's lead is its distance from the mean of the other responses to its prompt. Of the reference's leads the
    share that is smaller, ties counted half, in percent [0, 100]."""

    teacher: float = Field(description="among leads of the teacher's responses over the policy's")
    policy: float = Field(description="among leads of the policy's responses over the teacher's")


class ResponseScore(Answer):
    status: ScoreStatus
    score: float | None = Field(description="raw Bradley-Terry score; null unless status is ok")
    section: JudgedText = Field(description="what was judged")
    tokens: int | None = Field(default=None, description="tokens of what was judged, end token included")
    percentile: Percentile | None = Field(
        default=None,
        description="where the score's lead over the other responses to the prompt lies among the reference's; null "
        "without a calibration, and for a response alone",
    )
    probability: float | None = Field(
        default=None,
        description="that of it and the other responses to the prompt it is the teacher's, calibrated; null without a "
        "calibration, and for a response alone",
    )
    detail: str | None = Field(default=None, description="what is wrong, where status is not ok")


class ItemScores(Answer):
    scores: list[ResponseScore] = Field(description="one for each response, in order")


class Judge(Answer):
    """Who judged: every answer names the one version of one expert that judged all of it."""

    expert: Expert
    version: int = Field(description="updates that the weights have seen; 0 as started")
    attempt: int = Field(description="attempt of the training run that pushed them; 0 as started")


class ScoreAnswer(Judge):
    items: list[ItemScores] = Field(description="one for each item, in order")


class CompareRequest(JudgingOptions, PromptFields):
    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "example": _EXAMPLE_PROMPT
            | {"first": _EXAMPLE_RESPONSE, "second": _EXAMPLE_RESPONSE.replace("= 4", "= 5").replace(">4", ">5")}
        },
    )
    first: Text
    second: Text


class CompareAnswer(Judge):
    probability: float | None = Field(
        description="σ(D(first) − D(second)): that the first is the teacher's; null unless both were scored"
    )
    first: ResponseScore
    second: ResponseScore


class MixtureRequest(ScoreRequest):
    alpha: float = Field(default=0.5, ge=0, le=1, strict=True, description="weight of the perception expert")


class MixedScore(Answer):
    status: ScoreStatus = Field(description="ok where both experts scored; else what is wrong, perception's first")
    score: float | None = Field(description="alpha · perception + (1 − alpha) · reasoning; null unless status is ok")
    perception: ResponseScore
    reasoning: ResponseScore


class MixedItem(Answer):
    scores: list[MixedScore]


class MixtureAnswer(Answer):
    alpha: float
    perception: Judge
    reasoning: Judge
    items: list[MixedItem]


class Reference(Wire):
    """Where the scores of a calibration come from."""

    name: Text = Field(min_length=1, max_length=200, description="such as the data file's name")
    sha256: str = Field(pattern="^[0-9a-f]{64}$", description="of the data file")


RawScore = Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False, strict=True)]


Scores = Annotated[list[RawScore], Field(min_length=1, max_length=200_000)]


class PromptScores(Wire):
    """Of the responses to one prompt of the reference."""

    teacher: Scores
    policy: Scores


class CalibrationRequest(Wire):
    """Raw scores of reference responses by the weights that are to be calibrated, prompt by prompt."""

    reference: Reference
    version: int = Field(ge=0, strict=True)
    attempt: int = Field(ge=0, strict=True)
    section: Literal["own", "all"] = "own"
    prompts: list[PromptScores] = Field(
        min_length=2, max_length=200_000, description="two or more, since each is held out of a fit once"
    )


class CalibrationState(Answer):
    reference: Reference
    version: int
    attempt: int
    section: Literal["own", "all"]
    prompts: int = Field(description="prompts of the reference")
    teacher: int = Field(description="reference responses of the teacher")
    policy: int = Field(description="reference responses of the policy")
    accuracy: float = Field(
        description="share of reference responses on the right side of probability 0.5, by fits without their prompt; "
        "both sides of every prompt weigh the same, 0.5 is chance"
    )
    log_loss: float = Field(
        description="mean -log of the probability of what a reference response is, by the same fits; 0.693 is chance, "
        "more means that probabilities are too sure"
    )
    current: bool = Field(description="false once other weights are in use: then scores carry no calibration")


class ModelInfo(Judge):
    architecture: str
    base: str = Field(description="name of the folder or hub model the service started from")
    parameters: int
    experts: int | None = Field(description="experts of each mixture-of-experts layer; null: dense")
    experts_per_token: int | None
    dtype: str
    device: str
    limits: dict[str, int]
    urls: bool = Field(description="whether images may be given as http(s) URLs")
    pictures: bool = Field(default=True, description="whether it is shown pictures; false: it judges text alone")
    section: JudgedSection = Field(
        default="own",
        description="what it is shown of a response in the response format: its own section, or the whole",
    )
    calibration: CalibrationState | None


class SwapAnswer(Answer):
    version: int
    attempt: int
    sync_total_seconds: float = Field(description="from the request to the new weights in use")
    sync_paused_seconds: float = Field(description="time in which no batch could be scored")


class Problem(Answer):
    """One thing that is wrong with a request, and where it stands."""

    type: str
    loc: list[str | int]
    msg: str


class Refusal(Answer):
    detail: str | list[Problem]
