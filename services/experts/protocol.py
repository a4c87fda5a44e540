"""What goes over the wire of the scoring API."""

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from prism.expert_section import Section
from prism.service import well_formed

Text = Annotated[str, BeforeValidator(well_formed)]


class TextPart(BaseModel):
    model_config = ConfigDict(extra="forbid")
    type: Literal["text"]
    text: Text


class ImagePart(BaseModel):
    model_config = ConfigDict(extra="forbid")
    type: Literal["image"]
    image: str = Field(description="`data:image/...;base64,...`, or `sha256:...` of an image in the blob store")


class Message(BaseModel):
    model_config = ConfigDict(extra="forbid")
    role: Literal["system", "user", "assistant"]
    content: Text | list[Annotated[TextPart | ImagePart, Field(discriminator="type")]]


class ScoreRequest(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "example": {
                "messages": [{"role": "user", "content": "What is 2 + 2?"}],
                "responses": ["<caption>- two numbers</caption><think>2 + 2 = 4</think><answer>4</answer>"],
            }
        },
    )
    messages: list[Message] = Field(min_length=1, description="the prompt; it ends with the user's turn")
    responses: list[Text] = Field(
        min_length=1, description="whole responses; this expert judges its own section of each"
    )
    min_version: int | None = Field(
        default=None, ge=0, description="refuse (409) to score with weights older than this"
    )


class ResponseScore(BaseModel):
    status: Literal["ok", "invalid_format", "too_long", "error"]
    score: float | None = Field(description="raw Bradley-Terry score; null unless status is ok")
    tokens: int | None = Field(default=None, description="tokens of the section judged, end token included")
    detail: str | None = Field(default=None, description="what is wrong, where status is not ok")


class ScoreAnswer(BaseModel):
    expert: Section
    version: int = Field(description="the one version of weights that judged all of these")
    attempt: int
    scores: list[ResponseScore] = Field(description="one for each response, in order")


class SwapAnswer(BaseModel):
    version: int
    attempt: int
    sync_total_seconds: float = Field(description="from the request to the new weights in use")
    sync_paused_seconds: float = Field(description="time in which no batch could be scored")
