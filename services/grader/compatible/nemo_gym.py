"""NeMo Gym's resources server: ``POST /verify``, and ``/seed_session`` and ``/close_session``, which keep nothing.

The shape is that of NVIDIA-NeMo/Gym's ``nemo_gym/base_resources_server.py`` (``BaseVerifyRequest``,
``BaseVerifyResponse``; commit 011c3386) and ``resources_servers/math_with_judge/app.py``, read in November 2026. The
request is a row of the data set (``responses_create_params`` and keys of its own, such as ``expected_answer``) with the
model's ``response``, an object of OpenAI's Responses API; the answer is the request with ``reward``, a number always.
``mask_sample`` says that it is no measurement: NeMo RL and Gym leave such a sample out. ``_ng_failure_class`` said the
same to Gym before there was ``mask_sample`` (``nemo_gym/judge.py``). ``verdict`` is ours; its numbers are null there.
"""

import json
from collections.abc import Awaitable, Callable
from typing import Any, Literal

from fastapi import FastAPI, HTTPException, Response
from pydantic import BaseModel, ConfigDict, Field, model_validator

from prism.data.table import NUMBERS_ARE_TEXTS, without_nan
from prism.services.grader.protocol import (
    Gold,
    GradeItem,
    GradeOptions,
    GradeRequest,
    GradeRules,
    GradeVerdict,
    to_wire,
)
from prism.services.grader.verdict import AnswerKind, GradedItem
from prism.wire.messages import Text, Wire

IGNORED = GradeRules.model_validate({"format": "ignored"})


class Output(BaseModel):
    """An item of a response's output. Those that are no message (reasoning, calls of tools) are not read."""

    model_config = ConfigDict(extra="allow")

    type: str = "message"
    role: str = "assistant"
    content: Any = None

    @property
    def text(self) -> str | None:
        """What the assistant says; None if this is no message of it."""
        if self.type != "message" or self.role != "assistant":
            return None
        parts = self.content if isinstance(self.content, list) else []
        texts = [part.get("text") for part in parts if isinstance(part, dict) and part.get("type") == "output_text"]
        return "".join(text for text in texts if isinstance(text, str))


class ModelResponse(BaseModel):
    """Of OpenAI's Responses API."""

    model_config = ConfigDict(extra="allow")

    output: list[Output]


class Grading(Wire):
    """How a row is graded, in the row's own key ``prism``."""

    kind: AnswerKind = Field("auto", description="kind of the gold answer")
    options: GradeOptions | None = Field(None, description="how the kind compares")
    rules: GradeRules = Field(IGNORED, description="how the response is read; any format by default")
    value: Literal["accuracy", "reward"] = Field("accuracy", description="what the reward is")
    tokens: int | None = Field(None, ge=0, le=2**31, description="the response's length, for the over-long penalty")


class VerifyRequest(BaseModel):
    model_config = NUMBERS_ARE_TEXTS | ConfigDict(extra="allow")

    responses_create_params: dict[str, Any] = Field(description="what the model was asked")
    response: ModelResponse = Field(description="the model's response, as OpenAI's Responses API has it")
    expected_answer: Gold = Field(description="the gold answer, or several that are equally right")
    prism: Grading | None = Field(None, description="how this row is graded")

    @model_validator(mode="before")
    @classmethod
    def _nan_is_nothing(cls, value: object) -> object:
        return without_nan(value)


class VerifyAnswer(BaseModel):
    """The request, and what is said of it."""

    model_config = ConfigDict(extra="allow")

    responses_create_params: dict[str, Any]
    response: dict[str, Any]
    reward: float = Field(description="no measurement where mask_sample is true: the shape leaves no room for null")
    mask_sample: bool = Field(description="true where nothing was judged: leave the sample out")
    failure_kind: str | None = Field(description="of NeMo Gym's vocabulary, where nothing was judged")
    failure_reason: str | None = Field(description="what was wrong, by name")
    extracted_answer: Text | None = Field(description="the answer as found, cut at 500 characters")
    verdict: GradeVerdict = Field(
        description="as POST /v1/grade gives it; its numbers are null where nothing was judged"
    )


class Session(BaseModel):
    model_config = ConfigDict(extra="allow")

    resources_session_id: str | None = Field(None, description="the caller's own name for the session")


def add_routes(
    app: FastAPI,
    grade: Callable[[GradeRequest], Awaitable[list[GradedItem]]],
    refusals: dict[int | str, dict[str, Any]],
) -> None:
    @app.post("/verify", tags=["other trainers"], response_model=VerifyAnswer, responses=refusals)
    async def verify(request: VerifyRequest) -> Response:
        """NeMo Gym's verification of one response. Where nothing was judged ``mask_sample`` is true."""
        how = request.prism or Grading()  # pyright: ignore[reportCallIssue]
        texts = [text for item in request.response.output if (text := item.text) is not None]
        item = GradeItem(
            id=None,
            response="".join(texts),
            gold=request.expected_answer,
            kind=how.kind,
            options=how.options,
            tokens=how.tokens,
        )
        [verdict] = await grade(GradeRequest(items=[item], rules=how.rules))
        value = getattr(verdict, how.value)
        masked: dict[str, Any] = {"mask_sample": False, "failure_kind": None, "failure_reason": None}
        if value is None:
            failure = "judge_failed" if how.kind == "judge" else "verifier_error"
            masked = {"mask_sample": True, "failure_kind": failure, "_ng_failure_class": "judge_failed"}
            masked["failure_reason"] = f"{verdict.status}: {verdict.detail}"
        answer = {
            **request.model_dump(exclude_unset=True),
            "reward": 0.0 if value is None else value,
            **masked,
            "extracted_answer": verdict.extracted,
            "verdict": to_wire(item, verdict),
        }
        try:
            text = json.dumps(answer, allow_nan=False)
        except (ValueError, RecursionError):
            raise HTTPException(
                422, "the row holds what JSON has no form for: NaN, infinity, or nests too deep"
            ) from None
        return Response(text, media_type="application/json")

    @app.post("/seed_session", tags=["other trainers"], response_model_exclude_none=True)
    async def seed_session(session: Session) -> Session:
        """NeMo Gym's beginning of an episode: nothing is kept of it."""
        return Session(resources_session_id=session.resources_session_id)

    @app.post("/close_session", tags=["other trainers"], response_model_exclude_none=True)
    async def close_session(session: Session) -> Session:
        """NeMo Gym's end of an episode: nothing was kept of it."""
        return Session(resources_session_id=session.resources_session_id)
