"""vLLM's shapes of scoring, for clients that ask a reward model there: ``/score``, ``/classify``, ``/v1/models``.

They are those of vLLM 0.27.1 (2026), ``vllm/entrypoints/pooling/{scoring,classify}/protocol.py`` and its documentation,
"Pooling Models": a query is a prompt here and a document a response to it, and a conversation that is classified ends
with its response. As there, the activation of a head with one output is the sigmoid, and ``use_activation: false``
gives the raw score. What could not be scored has ``score: null``, or no ``probs``; ``status``, ``detail``, ``version``
and ``attempt`` are ours. vLLM's options that would change the input (templates, truncation) are refused by name, unless
they say what holds without them.
"""

import time
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Annotated, Any, Literal, Self

from fastapi import FastAPI, Request
from pydantic import BaseModel, Field, field_validator, model_validator

from prism.http.app import unless_gone
from prism.services.experts.calibration import sigmoid
from prism.services.experts.scorer import Scorer
from prism.services.experts.settings import ExpertSettings
from prism.wire.experts import JudgingOptions, ResponseScore, ScoreAnswer, ScoreItem, ScoreRequest, ScoreStatus
from prism.wire.messages import ContentPart, Message, Text, TextPart, Wire

LABEL = "LABEL_0"  # transformers' own name for the output of a head that has one


class Parts(Wire):
    """Text and images, in their order."""

    content: list[ContentPart] = Field(min_length=1)


Input = Text | Parts
Inputs = Input | Annotated[list[Input], Field(min_length=1)]
PAIRS = (("queries", "documents"), ("text_1", "text_2"), ("queries", "items"), ("data_1", "data_2"))


# What vLLM takes as well, with the values that change nothing; None, which its clients write out, does not either.
UNCHANGING: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("max_tokens_per_query", "max_tokens_per_doc"), (0,)),
    **dict.fromkeys(("add_generation_prompt", "continue_final_message", "add_special_tokens"), (False,)),
    **dict.fromkeys(("mm_processor_kwargs", "media_io_kwargs", "chat_template_kwargs"), ({},)),
    **dict.fromkeys(("truncate_prompt_tokens", "truncation_side", "instruction", "chat_template"), ()),
}
OF_NO_EFFECT = ("encoding_format", "cache_salt")


class PoolingOptions(JudgingOptions):
    """What vLLM takes beside the input, as far as it has a meaning here."""

    @model_validator(mode="before")
    @classmethod
    def _without_what_changes_nothing(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        for name in UNCHANGING.keys() & value.keys():
            if value[name] is not None and value[name] not in UNCHANGING[name]:
                raise ValueError(f"{name}: would change what is judged, which is the whole input: leave it out")
        return {key: given for key, given in value.items() if key not in UNCHANGING and key not in OF_NO_EFFECT}

    model: Text | None = Field(None, description="of no effect: this service has one model")
    user: Text | None = Field(None, description="of no effect")
    request_id: Text | None = Field(None, max_length=200, description="the answer's id ends with it")
    priority: Literal[0] = Field(0, description="of no effect")
    use_activation: bool | None = Field(None, description="false: raw scores; else their sigmoid", strict=True)

    def activated(self, score: float) -> float:
        return score if self.use_activation is False else sigmoid(score)


class PairsRequest(PoolingOptions):
    """Prompts and responses under one of four pairs of names: one prompt with many responses, or as many of each."""

    queries: Inputs | None = Field(None, description="a prompt, or several; goes with documents or items")
    documents: Inputs | None = Field(None, description="a response to each prompt, or several to one")
    items: Inputs | None = Field(None, description="another name for documents")
    text_1: Inputs | None = Field(None, description="another name for queries; goes with text_2")
    text_2: Inputs | None = Field(None, description="another name for documents")
    data_1: Inputs | None = Field(None, description="another name for queries; goes with data_2")
    data_2: Inputs | None = Field(None, description="another name for documents")

    @model_validator(mode="after")
    def _one_pair(self) -> Self:
        given = {name for pair in PAIRS for name in pair if getattr(self, name) is not None}
        if given not in [set(pair) for pair in PAIRS]:
            raise ValueError("give one pair: queries and documents, queries and items, text_1 and text_2, or data_1 …")
        prompts, responses = self._pair()
        if len(prompts) not in (1, len(responses)):
            raise ValueError(f"{len(prompts)} prompts and {len(responses)} responses: give one prompt, or one for each")
        self._texts(responses)
        return self

    def _pair(self) -> tuple[list[Input], list[Input]]:
        first, second = next(pair for pair in PAIRS if all(getattr(self, name) is not None for name in pair))
        prompts, responses = getattr(self, first), getattr(self, second)
        return (
            prompts if isinstance(prompts, list) else [prompts],
            responses if isinstance(responses, list) else [responses],
        )

    @staticmethod
    def _texts(responses: list[Input]) -> list[str]:
        """Raises ValueError for a response that holds an image."""
        return [response if isinstance(response, str) else _text(response.content) for response in responses]

    def request(self) -> ScoreRequest:
        prompts, responses = self._pair()
        texts = self._texts(responses)
        each = [texts] if len(prompts) == 1 else [[text] for text in texts]
        items = [
            ScoreItem(messages=[_user(prompt)], responses=answers)
            for prompt, answers in zip(prompts, each, strict=True)
        ]
        return ScoreRequest(items=items, section=self.section, min_version=self.min_version)


class ClassifyRequest(PoolingOptions):
    """A chat that ends with the response. A rendered text (vLLM's ``input``) does not say where the response begins."""

    messages: list[Message] = Field(min_length=2, description="the prompt, and as the last the assistant's response")

    @model_validator(mode="before")
    @classmethod
    def _no_input(cls, value: object) -> object:
        if isinstance(value, dict) and "input" in value and "messages" not in value:
            raise ValueError("input: a text does not say where the response begins; give messages, the response last")
        return value

    @field_validator("messages", mode="before")
    @classmethod
    def _as_clients_keep_them(cls, value: object) -> object:
        """Without what is null or empty beside role and content, as an answer of OpenAI's client has much of it."""
        if not isinstance(value, list):
            return value
        return [
            {key: given for key, given in message.items() if key in ("role", "content") or given not in (None, [])}
            if isinstance(message, dict)
            else message
            for message in value
        ]

    @model_validator(mode="after")
    def _ends_with_response(self) -> Self:
        if [message.role for message in self.messages[-2:]] != ["user", "assistant"]:
            raise ValueError("the last message must be the assistant's, and the user's before it")
        _text(self.messages[-1].parts)
        return self

    def request(self) -> ScoreRequest:
        *prompt, response = self.messages
        item = ScoreItem(messages=prompt, responses=[_text(response.parts)])
        return ScoreRequest(items=[item], section=self.section, min_version=self.min_version)


class Usage(BaseModel):
    """Tokens of what was judged; prompts, whose states are kept, are not counted."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int = 0
    prompt_tokens_details: None = None


class Judged(BaseModel):
    """What vLLM's data has not: who judged, and what was wrong."""

    index: int
    status: ScoreStatus
    detail: str | None = Field(None, description="what is wrong, where status is not ok")


class PairScore(Judged):
    object: Literal["score"] = "score"
    score: float | None = Field(description="null unless status is ok")


class Classified(Judged):
    label: str | None = Field(description="of the only class; null unless status is ok")
    probs: list[float] = Field(description="of the only class; empty unless status is ok")
    num_classes: Literal[1] = 1


class PoolingAnswer(BaseModel):
    id: str
    object: Literal["list"] = "list"
    created: int
    model: str = Field(description="the expert's name")
    version: int = Field(description="updates that the weights have seen; 0 as started")
    attempt: int = Field(description="attempt of the training run that pushed them; 0 as started")
    usage: Usage


class PairsAnswer(PoolingAnswer):
    data: list[PairScore]


class ClassifyAnswer(PoolingAnswer):
    data: list[Classified]


class ServedModel(BaseModel):
    id: str = Field(description="the expert's name")
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["prism"] = "prism"
    root: str = Field(description="name of the folder or hub model the service started from")
    max_model_len: int = Field(description="tokens of prompt and response together")


class ServedModels(BaseModel):
    object: Literal["list"] = "list"
    data: list[ServedModel]


def add_routes(
    app: FastAPI,
    settings: ExpertSettings,
    admitted: Callable[[str, int], AbstractContextManager[Scorer]],
    refusals: dict[int | str, dict[str, Any]],
) -> None:
    @app.get("/v1/models", tags=["vLLM's shapes"])
    async def models() -> ServedModels:
        """The one that is served, for clients that ask what to name; they may name anything."""
        model = ServedModel(
            id=settings.expert,
            created=int(time.time()),
            root=settings.base,
            max_model_len=settings.max_model_len,
        )
        return ServedModels(data=[model])

    @app.post("/score", tags=["vLLM's shapes"], responses=refusals)
    async def score_pairs(request: PairsRequest, http: Request) -> PairsAnswer:
        """vLLM's Score API: a score for each pair of a prompt and a response."""
        asked = request.request()
        with admitted("pairs", sum(len(item.responses) for item in asked.items)) as scorer:
            answer = await unless_gone(http, scorer.score(asked))
        scores = _scores(answer)
        data = [
            PairScore(
                index=index,
                status=score.status,
                detail=score.detail,
                score=None if score.score is None else request.activated(score.score),
            )
            for index, score in enumerate(scores)
        ]
        return PairsAnswer(**_common("score", request, answer), data=data)

    @app.post("/classify", tags=["vLLM's shapes"], responses=refusals)
    async def classify(request: ClassifyRequest, http: Request) -> ClassifyAnswer:
        """vLLM's Classification API: one class, whose probability is the sigmoid of the response's score."""
        with admitted("classify", 1) as scorer:
            answer = await unless_gone(http, scorer.score(request.request()))
        data = [
            Classified(
                index=index,
                status=score.status,
                detail=score.detail,
                label=None if score.score is None else LABEL,
                probs=[] if score.score is None else [request.activated(score.score)],
            )
            for index, score in enumerate(_scores(answer))
        ]
        return ClassifyAnswer(**_common("classify", request, answer), data=data)


def _common(what: str, request: PoolingOptions, answer: ScoreAnswer) -> dict[str, Any]:
    tokens = sum(score.tokens or 0 for score in _scores(answer))
    return {
        "id": f"{what}-{request.request_id or uuid.uuid4().hex}",
        "created": int(time.time()),
        "model": answer.expert,
        "version": answer.version,
        "attempt": answer.attempt,
        "usage": Usage(prompt_tokens=tokens, total_tokens=tokens),
    }


def _scores(answer: ScoreAnswer) -> list[ResponseScore]:
    return [score for item in answer.items for score in item.scores]


def _user(prompt: Input) -> Message:
    return Message(role="user", content=prompt if isinstance(prompt, str) else prompt.content)


def _text(parts: list[Any]) -> str:
    """Raises ValueError for an image."""
    if not all(isinstance(part, TextPart) for part in parts):
        raise ValueError("a response is text: images go into the prompt")
    return "".join(part.text for part in parts)
