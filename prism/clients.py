"""Asynchronous clients of the services. What may pass by waiting is retried; what may not is an error at once."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx
from tenacity import AsyncRetrying, RetryError, retry_if_exception_type, stop_after_delay, wait_random_exponential

from prism.errors import ServiceError
from prism.expert_section import Section
from prism.v1 import rollout_pb2 as pb

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


class Unavailable(ServiceError):
    """The service cannot answer now: restarting, overloaded, or its weights are still older than asked for."""


class Refused(ServiceError):
    """The service will never answer this request: something about it is wrong."""


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
        try:
            async for attempt in AsyncRetrying(
                retry=retry_if_exception_type(Unavailable),
                wait=wait_random_exponential(multiplier=0.1, max=2),
                stop=stop_after_delay(self._patience),
            ):
                with attempt:
                    return await self._post_once(path, body, headers or {})
        except RetryError as error:
            raise error.last_attempt.exception() or Unavailable(self.url) from None
        raise AssertionError("unreachable: the loop returns or raises")

    async def _post_once(self, path: str, body: dict[str, Any], headers: dict[str, str]) -> httpx.Response:
        try:
            response = await self._http.post(self.url + path, json=body, headers=self._headers | headers)
        except httpx.TransportError as error:
            raise Unavailable(f"{self.url}{path}: {type(error).__name__}: {error}") from None
        if response.status_code in (408, 409, 425, 429) or response.status_code >= 500:
            raise Unavailable(f"{self.url}{path}: {response.status_code} {response.text[:500]}")
        if response.is_error:
            raise Refused(f"{self.url}{path}: {response.status_code} {response.text[:500]}")
        return response


class PolicyClient(ServiceClient):
    async def sample(
        self, messages: Sequence[pb.Message], images: dict[str, bytes], sampling: pb.Sampling, min_version: int
    ) -> PolicyAnswer:
        """``sampling.n`` responses with token ids and the sampler's own logprobs. top_p stays 1: see TRL#6789."""
        response = await self.post(
            "/v1/chat/completions",
            {
                "model": "policy",
                "messages": [openai_message(message, images) for message in messages],
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
    async def score(
        self, expert: Section, messages: Sequence[pb.Message], responses: list[str], min_version: int
    ) -> list[pb.Score]:
        """One score per response, all by one version of the expert."""
        body = {
            "messages": [_reference_message(message) for message in messages],
            "responses": responses,
            "min_version": min_version,
        }
        answer = (await self.post("/v1/score", body)).json()
        return [
            pb.Score(
                expert=expert,
                expert_version=answer["version"],
                status=STATUS[score["status"]],
                value=score["score"],
                detail=score["detail"] or "",
            )
            for score in answer["scores"]
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


def data_uri(image: bytes) -> str:
    kind = "jpeg" if image.startswith(b"\xff\xd8") else "webp" if image[8:12] == b"WEBP" else "png"
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"


def openai_message(message: pb.Message, images: dict[str, bytes]) -> dict[str, Any]:
    parts = [
        {"type": "image_url", "image_url": {"url": data_uri(images[part.image_sha256])}}
        if part.HasField("image_sha256")
        else {"type": "text", "text": part.text}
        for part in message.parts
    ]
    return {"role": message.role, "content": parts}


def _reference_message(message: pb.Message) -> dict[str, Any]:
    parts = [
        {"type": "image", "image": f"sha256:{part.image_sha256}"}
        if part.HasField("image_sha256")
        else {"type": "text", "text": part.text}
        for part in message.parts
    ]
    return {"role": message.role, "content": parts}
