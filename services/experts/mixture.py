"""The discriminator's score of a response, alpha · perception + (1 − alpha) · reasoning, from both experts at once."""

import asyncio
from collections.abc import Awaitable, Callable

import httpx
from fastapi import HTTPException
from pydantic import ValidationError

from prism import telemetry
from prism.http.client import async_client
from prism.services.experts.settings import ExpertSettings
from prism.wire.experts import (
    Judge,
    MixedItem,
    MixedScore,
    MixtureAnswer,
    MixtureRequest,
    ResponseScore,
    ScoreAnswer,
    ScoreRequest,
)

# What the caller can act on is passed on. Anything else is between the two experts.
PASSED_ON = (409, 413, 422, 429)


class Peer:
    """The other expert, asked with this one's data token."""

    def __init__(self, settings: ExpertSettings) -> None:
        self._expert = "reasoning" if settings.expert == "perception" else "perception"
        self._name = f"the {self._expert} expert"
        self._url = (settings.peer_url or "").rstrip("/")
        self._http = async_client(
            headers={"Authorization": f"Bearer {settings.token.get_secret_value()}"},
            timeout=httpx.Timeout(settings.peer_timeout_seconds, connect=5),
            limits=httpx.Limits(max_connections=settings.max_queue),
        )

    async def mixture(
        self, request: MixtureRequest, score: Callable[[ScoreRequest], Awaitable[ScoreAnswer]]
    ) -> MixtureAnswer:
        """``score`` is how this expert judges; the other is asked meanwhile.

        Raises HTTPException if the other gives no scores.
        """
        if not self._url:
            raise HTTPException(404, "this expert knows no other: set PRISM_PEER_URL to the other expert's base URL")
        asked = ScoreRequest(items=request.items, section=request.section, min_version=request.min_version)
        peers = asyncio.create_task(self._score(asked))
        try:
            own = await score(asked)
            theirs = await peers
        finally:
            peers.cancel()
        by_expert = {own.expert: own, theirs.expert: theirs}
        perception, reasoning = by_expert["perception"], by_expert["reasoning"]
        return MixtureAnswer(
            alpha=request.alpha,
            perception=_judge(perception),
            reasoning=_judge(reasoning),
            items=[
                MixedItem(scores=[_mix(request.alpha, p, r) for p, r in zip(ps.scores, rs.scores, strict=True)])
                for ps, rs in zip(perception.items, reasoning.items, strict=True)
            ],
        )

    async def _score(self, request: ScoreRequest) -> ScoreAnswer:
        try:
            response = await self._http.post(
                f"{self._url}/v1/score",
                content=request.model_dump_json(exclude_defaults=True),
                headers={"Content-Type": "application/json"} | telemetry.headers(),
            )
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise HTTPException(
                503,
                f"{self._name} (PRISM_PEER_URL) cannot be reached: {type(error).__name__}: {error}",
                headers={"Retry-After": "2"},
            ) from None
        if response.status_code in PASSED_ON:
            retry = response.headers.get("Retry-After")
            raise HTTPException(
                response.status_code,
                f"{self._name}: {response.text[:1000]}",
                headers={"Retry-After": retry} if retry else None,
            )
        if response.status_code in (401, 403):
            raise HTTPException(502, f"{self._name} refuses this one's token: give both the same PRISM_TOKEN")
        if response.status_code == 503:
            raise HTTPException(503, f"{self._name}: {response.text[:1000]}", headers={"Retry-After": "2"})
        return self._checked(request, response)

    def _checked(self, request: ScoreRequest, response: httpx.Response) -> ScoreAnswer:
        """Raises HTTPException 502 unless these are the other expert's scores of this very request."""
        if response.status_code != 200:
            raise HTTPException(502, f"{self._name} answers {response.status_code}: {response.text[:1000]}")
        try:
            answer = ScoreAnswer.model_validate_json(response.content)
        except ValidationError as error:
            raise HTTPException(502, f"what answers at PRISM_PEER_URL is no expert: {str(error)[:500]}") from None
        if answer.expert != self._expert:
            raise HTTPException(502, f"PRISM_PEER_URL leads to a {answer.expert} expert: it must be {self._name}'s")
        if [len(item.responses) for item in request.items] != [len(item.scores) for item in answer.items]:
            raise HTTPException(502, f"{self._name} gave other scores than it was asked for")
        return answer

    async def close(self) -> None:
        await self._http.aclose()


def _judge(answer: ScoreAnswer) -> Judge:
    return Judge(expert=answer.expert, version=answer.version, attempt=answer.attempt)


def _mix(alpha: float, perception: ResponseScore, reasoning: ResponseScore) -> MixedScore:
    score = None
    if perception.score is not None and reasoning.score is not None:
        score = alpha * perception.score + (1 - alpha) * reasoning.score
    status = perception.status if perception.status != "ok" else reasoning.status
    return MixedScore(status=status, score=score, perception=perception, reasoning=reasoning)
