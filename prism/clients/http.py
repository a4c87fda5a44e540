"""Asynchronous clients of the services. What may pass by waiting is retried; what may not is an error at once."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx
from pydantic import BaseModel, ValidationError
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    RetryError,
    retry_if_exception_type,
    stop_before_delay,
    wait_random_exponential,
)

from prism import telemetry
from prism.errors import ServiceError
from prism.settings import describe
from prism.wire.experts import Judge, ScoreAnswer, ScoreItem, ScoreRequest
from prism.wire.messages import to_json, to_openai
from prism.wire.section import Expert
from prism.wire.v1 import rollout_pb2 as pb

STATUS = {
    "ok": pb.STATUS_OK,
    "invalid_format": pb.STATUS_INVALID_FORMAT,
    "too_long": pb.STATUS_TOO_LONG,
    "unparseable_answer": pb.STATUS_UNPARSEABLE_ANSWER,
    "unparseable_gold": pb.STATUS_UNPARSEABLE_GOLD,
    "timeout": pb.STATUS_TIMEOUT,
    "error": pb.STATUS_ERROR,
}
VERSION_HEADER = "x-prism-policy-version"
MIN_VERSION_HEADER = "x-prism-min-policy-version"
Answer = TypeVar("Answer", bound=BaseModel)


class Unavailable(ServiceError):
    """The service cannot answer now: restarting, overloaded, or its weights are still older than asked for."""

    def __init__(self, message: str, retry_after: float = 0, *, reached: bool = False) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        """Seconds the service asks to be left alone."""
        self.reached = reached
        """Whether the request was with the service when it failed, and so may be why."""


class Refused(ServiceError):
    """The service will never answer this request: something about it is wrong."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        """The HTTP status; None where there was an answer, but one that cannot be used."""


@dataclass(frozen=True)
class PolicyAnswer:
    version: int
    prompt_token_ids: list[int]
    samples: list[pb.Sample]


class ServiceClient:
    """One service: base URL, token, and how long to be patient with it."""

    def __init__(self, http: httpx.AsyncClient, url: str, token: str, patience_seconds: float) -> None:
        self._http, self.url, self._patience = http, url.rstrip("/"), patience_seconds
        self._headers = {"Authorization": f"Bearer {token}"}

    async def post(self, path: str, body: dict[str, Any], headers: dict[str, str] | None = None) -> httpx.Response:
        """POST until answered. Raises Unavailable after the patience has run out, Refused at once."""
        return await self._request("POST", path, body, headers)

    async def ask(self, kind: type[Answer], method: str, path: str, body: BaseModel | None = None) -> Answer:
        """The answer as what it is. Raises as ``post`` does, and Refused if the answer is not of that kind.

        A conflict is waited out unless this is a PUT: what is put rests on what has changed.
        """
        sent = body.model_dump(mode="json", exclude_none=True) if body else None
        response = await self._request(method, path, sent, conflict_passes=method != "PUT")
        try:
            return kind.model_validate_json(response.content)
        except ValidationError:
            raise Refused(f"{self.url}{path} answered what is no {kind.__name__}: {response.text[:200]}") from None

    async def _request(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None,
        headers: dict[str, str] | None = None,
        conflict_passes: bool = True,
    ) -> httpx.Response:
        reached = False
        try:
            async for attempt in AsyncRetrying(
                retry=retry_if_exception_type(Unavailable), wait=_wait, stop=stop_before_delay(self._patience)
            ):
                with attempt:
                    try:
                        return await self._request_once(method, path, body, headers or {}, conflict_passes)
                    except Unavailable as error:
                        error.reached = reached = reached or error.reached
                        raise
        except RetryError as error:
            raise error.last_attempt.exception() or Unavailable(self.url) from None
        raise AssertionError("unreachable: the loop returns or raises")

    async def _request_once(
        self, method: str, path: str, body: dict[str, Any] | None, headers: dict[str, str], conflict_passes: bool
    ) -> httpx.Response:
        with telemetry.span(f"{method} {path}", kind="client", url=self.url):
            try:
                sent = self._headers | telemetry.headers() | headers
                response = await self._http.request(method, self.url + path, json=body, headers=sent)
            except httpx.TransportError as error:
                reached = not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)
                raise Unavailable(f"{self.url}{path}: {type(error).__name__}: {error}", reached=reached) from None
            status = response.status_code
            if status in (408, 425, 429) or status >= 500 or (status == 409 and conflict_passes):
                told = f"{self.url}{path}: {status} {_reason(response)}"
                raise Unavailable(told, _retry_after(response), reached=status == 500)
            if response.is_error:
                raise Refused(f"{self.url}{path}: {status} {_reason(response)}", status)
            return response


_backoff = wait_random_exponential(multiplier=0.1, max=2)


def _wait(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    return max(_backoff(state), error.retry_after if isinstance(error, Unavailable) else 0)


def _retry_after(response: httpx.Response) -> float:
    """In seconds; the header's other form, a date, is left to the usual backoff."""
    value = response.headers.get("retry-after", "")
    return float(value) if value.isdecimal() else 0


def _reason(response: httpx.Response) -> str:
    """The ``detail`` of our services in words, else the beginning of the text."""
    try:
        detail = response.json()["detail"]
        if isinstance(detail, list):
            # The place begins with "body", which says nothing.
            places = (".".join(str(at) for at in one["loc"][1:]) for one in detail)
            detail = "; ".join(f"{place}: {one['msg']}" for place, one in zip(places, detail, strict=True))
        return str(detail)[:500]
    except (ValueError, KeyError, TypeError):
        return response.text[:500]


class PolicyClient(ServiceClient):
    async def sample(
        self, messages: Sequence[pb.Message], images: dict[str, bytes], sampling: pb.Sampling, min_version: int
    ) -> PolicyAnswer:
        """``sampling.n`` responses with token ids and the sampler's own logprobs. top_p stays 1: see TRL#6789."""
        response = await self.post(
            "/v1/chat/completions",
            {
                "model": "policy",
                "messages": to_openai(messages, images),
                "n": sampling.n,
                "temperature": sampling.temperature,
                "top_p": 1.0,
                "max_tokens": sampling.max_tokens,
                "seed": sampling.seed,
                "logprobs": True,
                "return_token_ids": True,
            },
            {MIN_VERSION_HEADER: str(min_version)},
        )
        answer = response.json()
        samples = [
            pb.Sample(
                text=choice["message"]["content"] or "",
                token_ids=choice["token_ids"],
                logprobs=[token["logprob"] for token in choice["logprobs"]["content"]],
                finish_reason=choice["finish_reason"],
            )
            for choice in answer["choices"]
        ]
        return PolicyAnswer(int(response.headers[VERSION_HEADER]), answer["prompt_token_ids"], samples)


class ExpertClient(ServiceClient):
    async def judge(self, expert: Expert, request: ScoreRequest) -> ScoreAnswer:
        """Raises Refused also if another expert answers there, or not one score comes for each response."""
        answer = await self.ask(ScoreAnswer, "POST", "/v1/score", request)
        self.check_expert(expert, answer)
        self.check_counts(request.items, [len(item.scores) for item in answer.items])
        return answer

    def check_expert(self, expert: Expert, answer: Judge) -> None:
        if answer.expert != expert:
            raise Refused(f"{self.url} is the {answer.expert} expert, not the {expert} expert: check its address")

    def check_counts(self, items: Iterable[ScoreItem], given: list[int]) -> None:
        asked = [len(item.responses) for item in items]
        if given != asked:
            raise Refused(f"{self.url} gave {given} scores for {asked} responses")

    async def score(
        self, expert: Expert, messages: Sequence[pb.Message], responses: list[str], min_version: int
    ) -> list[pb.Score]:
        """One score per response, all by one version of the expert."""
        try:
            item = ScoreItem(messages=to_json(messages), responses=responses)
        except ValidationError as error:
            raise Refused("; ".join(describe(error))) from None
        answer = await self.judge(expert, ScoreRequest(items=[item], min_version=min_version))
        return [
            pb.Score(
                expert=expert,
                expert_version=answer.version,
                status=STATUS[score.status],
                value=score.score,
                detail=score.detail or "",
            )
            for score in answer.items[0].scores
        ]


class GraderClient(ServiceClient):
    async def grade(self, responses: list[str], gold: str, kind: str) -> list[pb.Verdict]:
        """One verdict per response."""
        items = [{"response": response, "gold": gold, "kind": kind} for response in responses]
        answer = (await self.post("/v1/grade", {"items": items})).json()
        return [
            pb.Verdict(
                status=STATUS[verdict["status"]],
                accuracy=verdict["accuracy"],
                format=verdict["format"],
                reward=verdict["reward"],
                extracted=verdict["extracted"] or "",
                detail=verdict["detail"] or "",
            )
            for verdict in answer["verdicts"]
        ]
