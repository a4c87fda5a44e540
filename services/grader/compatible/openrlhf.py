"""OpenRLHF's remote reward model: ``POST /get_reward``.

The shape is that of OpenRLHF's ``openrlhf/utils/agent.py`` (``SingleTurnAgentExecutor``) and its documentation,
"Remote Reward Model", read in November 2026. The request has ``query`` (each prompt with its response, special tokens
included), ``prompts`` and ``labels``; the answer has ``rewards``, from which advantages are made, ``scores``, 0 to 1,
by which groups are filtered, and ``extra_logs``, numbers to be logged. ``statuses`` and ``details`` are ours.
"""

import re
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from fastapi import FastAPI, Query
from pydantic import BaseModel, Field, model_validator

from prism.data.table import NUMBERS_ARE_TEXTS, without_nan
from prism.services.grader.compatible.reading import Reading
from prism.services.grader.protocol import Gold, GradeItem, GradeRequest
from prism.services.grader.verdict import GradedItem
from prism.wire.messages import Text

# What tokenizers end a turn with. A response is never decoded without it.
_END_TOKENS = re.compile(r"(?:\s*(?:<\|[^<>|\s]{1,40}\|>|<｜[^<>｜]{1,40}｜>|</s>|<eos>|<end_of_turn>|<turn\|>))+\s*\Z")


class RewardRequest(BaseModel):
    model_config = NUMBERS_ARE_TEXTS

    query: list[Text] = Field(description="prompt and response of each sample, or its response alone without prompts")
    prompts: list[Text] | None = Field(None, description="what each query begins with, after a BOS token if it has one")
    labels: list[Gold] = Field(description="the gold answer of each query, or several that are equally right")

    @model_validator(mode="before")
    @classmethod
    def _nan_is_nothing(cls, value: object) -> object:
        return without_nan(value)

    @model_validator(mode="after")
    def _one_each(self) -> "RewardRequest":
        if {len(self.labels), len(self.query if self.prompts is None else self.prompts)} != {len(self.query)}:
            raise ValueError("query, prompts and labels must be of one length")
        return self


class RewardAnswer(BaseModel):
    """A list entry for each query. Where a reward is null nothing was judged: it is not a 0."""

    rewards: list[float | None] = Field(description="the value that was asked for: accuracy, or the grader's reward")
    scores: list[float | None] = Field(description="accuracy: 1 right, 0 wrong, null not judged")
    extra_logs: dict[str, list[float]] = Field(description="judged: 1 where there is a verdict, else 0")
    statuses: list[str] = Field(description="of each verdict, as POST /v1/grade gives it")
    details: list[str | None] = Field(description="what was wrong, by name")


def response_of(query: str, prompt: str | None) -> str | None:
    """The response in a query, without the tokens that end it; None if the query does not hold its prompt."""
    if prompt:
        _, found, query = query.partition(prompt)
        if not found:
            return None
    return _END_TOKENS.sub("", query)


def add_routes(
    app: FastAPI,
    grade: Callable[[GradeRequest], Awaitable[list[GradedItem]]],
    refusals: dict[int | str, dict[str, Any]],
) -> None:
    @app.post("/get_reward", tags=["other trainers"], responses=refusals)
    async def get_reward(request: RewardRequest, reading: Annotated[Reading, Query()]) -> RewardAnswer:
        """OpenRLHF's remote reward model. What could not be judged is null."""
        prompts = request.prompts or [None] * len(request.query)
        responses = [response_of(query, prompt) for query, prompt in zip(request.query, prompts, strict=True)]
        items = [
            GradeItem(id=None, response=response, gold=gold, kind=reading.kind, options=None, tokens=None)
            for response, gold in zip(responses, request.labels, strict=True)
            if response is not None
        ]
        graded = iter(await grade(GradeRequest(items=items, rules=reading.rules())))
        lost = GradedItem("error", detail="the query does not hold its prompt, so where its response begins is unknown")
        verdicts = [lost if response is None else next(graded) for response in responses]
        return RewardAnswer(
            rewards=[getattr(verdict, reading.value) for verdict in verdicts],
            scores=[verdict.accuracy for verdict in verdicts],
            extra_logs={"judged": [float(verdict.accuracy is not None) for verdict in verdicts]},
            statuses=[verdict.status for verdict in verdicts],
            details=[verdict.detail for verdict in verdicts],
        )
