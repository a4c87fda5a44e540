"""A run's policy, experts and grader, as the playground asks them. A failure is a status, never a number."""

import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from pydantic import ValidationError

from prism.clients.http import SILENCE_SECONDS, Refused, Unavailable
from prism.clients.services import PB_STATUS, ExpertClient, GraderClient
from prism.data.images import decode_image
from prism.errors import ConfigError, DataError, ServiceError
from prism.http.client import async_client
from prism.services.console.runs.index import read_object
from prism.settings import describe
from prism.wire.console import ChatRequest, Graded, GradeRequest, JudgedBy, JudgeRequest, Turn
from prism.wire.events import EVENTS, read_events
from prism.wire.experts import ScoreItem, ScoreRequest
from prism.wire.messages import data_uri, data_uri_bytes, is_data_uri
from prism.wire.response import EXPERTS
from prism.wire.versions import VERSION_HEADER

STACK = "stack.json"
PATIENCE_SECONDS = 5.0  # with a service that is away: somebody waits before the page
STATUS_NAMES = {number: name for name, number in PB_STATUS.items()}


@dataclass(frozen=True, repr=False)
class Services:
    """Where a run's are."""

    policy_url: str
    perception_url: str
    reasoning_url: str
    grader_url: str
    token: str

    def expert_url(self, expert: str) -> str:
        return self.perception_url if expert == "perception" else self.reasoning_url


def services_of(folder: Path) -> Services:
    """Raises ConfigError for a run that is not up on this machine."""
    noted = read_object(folder / STACK)
    found = [noted.get(name) for name in Services.__dataclass_fields__]
    if not all(isinstance(value, str) and value for value in found):
        raise ConfigError(f"{folder.name} is not up here: start it, or its services alone with `prism up`")
    return Services(*map(str, found))


def picture(uri: str | None) -> str | None:
    """An uploaded picture as services take it. Raises DataError for what is none, or holds too many pixels."""
    if uri is None:
        return None
    if not is_data_uri(uri):
        raise DataError("image: give a data URI")
    try:
        data = data_uri_bytes(uri)
    except ValueError as error:
        raise DataError(f"image: {error}") from None
    decode_image(data)
    return data_uri(data)


def chat_messages(turns: Sequence[Turn], image: str | None) -> list[dict[str, object]]:
    """As OpenAI has them; the picture stands before the first user's text."""
    messages: list[dict[str, object]] = [{"role": turn.role, "content": turn.content} for turn in turns]
    first = next((message for message in messages if message["role"] == "user"), None)
    if image is not None and first is not None:
        text = {"type": "text", "text": first["content"]}
        first["content"] = [{"type": "image_url", "image_url": {"url": image}}, text]
    return messages


async def chat(services: Services, asked: ChatRequest) -> AsyncIterator[str]:
    """Server-sent events: ``text`` as it comes, then ``end``; or ``problem`` with a status instead of an end."""
    async for name, data in _answered(services, asked):
        yield f"event: {name}\ndata: {json.dumps(data)}\n\n"


async def answer(services: Services, asked: ChatRequest) -> tuple[str, int | None]:
    """The policy's whole answer, and its version. Raises ServiceError where there is none."""
    texts: list[str] = []
    async for name, data in _answered(services, asked):
        if name == "end":
            return "".join(texts), data["version"]
        if name == "problem":
            raise ServiceError(f"{asked.run}: {data['detail']}")
        texts.append(data["text"])
    raise AssertionError("neither an end nor a problem")


async def _answered(services: Services, asked: ChatRequest) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    """Names and data of ``chat``'s events."""
    body: dict[str, object] = {
        "model": "policy",
        "messages": chat_messages(asked.messages, asked.image),
        "temperature": asked.temperature,
        "stream": True,
    }
    if asked.max_tokens is not None:
        body["max_tokens"] = asked.max_tokens
    headers = {"Authorization": f"Bearer {services.token}", "Accept": EVENTS}
    url = f"{services.policy_url.rstrip('/')}/v1/chat/completions"
    reason: str | None = None
    try:
        async with (
            async_client(timeout=httpx.Timeout(SILENCE_SECONDS, connect=5)) as http,
            http.stream("POST", url, json=body, headers=headers) as response,
        ):
            if not response.is_success:
                told = (await response.aread()).decode(errors="replace")[:500]
                status = "unavailable" if response.status_code >= 500 or response.status_code == 429 else "refused"
                yield "problem", {"status": status, "detail": f"the policy answered {response.status_code}: {told}"}
                return
            version = response.headers.get(VERSION_HEADER, "")
            async for data in read_events(response.aiter_bytes()):
                if data == b"[DONE]":
                    known = int(version) if version.isdecimal() else None
                    yield "end", {"finish_reason": reason, "version": known}
                    return
                chunk = json.loads(data)
                if "error" in chunk:
                    yield "problem", {"status": "error", "detail": str(chunk["error"])[:500]}
                    return
                for choice in chunk["choices"]:
                    reason = choice.get("finish_reason") or reason
                    if text := choice["delta"].get("content"):
                        yield "text", {"text": text}
            yield "problem", {"status": "unavailable", "detail": "the answer broke off: what is above is not whole"}
    except httpx.HTTPError as error:
        yield "problem", {"status": "unavailable", "detail": f"the policy does not answer: {type(error).__name__}"}
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        yield "problem", {"status": "error", "detail": f"the policy streamed what is no answer: {error!r}"[:500]}


async def score(services: Services, asked: JudgeRequest) -> list[JudgedBy]:
    """What each expert says of one response. Raises DataError for a prompt that is none."""
    try:
        messages = chat_messages(asked.messages, asked.image)
        item = ScoreItem.model_validate({"messages": messages, "responses": [asked.response]})
    except ValidationError as error:
        raise DataError("; ".join(describe(error))) from None
    found: list[JudgedBy] = []
    async with async_client() as http:
        for expert in EXPERTS:
            client = ExpertClient(http, services.expert_url(expert), services.token, PATIENCE_SECONDS)
            try:
                answer = await client.judge(expert, ScoreRequest(items=[item], section=asked.section))
            except ServiceError as error:
                found.append(JudgedBy(expert=expert, status=_status(error), detail=str(error)[:500]))
                continue
            given = answer.items[0].scores[0]
            found.append(
                JudgedBy(
                    expert=expert,
                    status=given.status,
                    version=answer.version,
                    score=given.score if given.status == "ok" else None,
                    detail=given.detail or "",
                )
            )
    return found


async def grade(services: Services, asked: GradeRequest) -> Graded:
    """The grader's verdict on one response."""
    async with async_client() as http:
        client = GraderClient(http, services.grader_url, services.token, PATIENCE_SECONDS)
        try:
            (given,) = await client.grade([asked.response], asked.gold, asked.kind)
        except ServiceError as error:
            return Graded(status=_status(error), detail=str(error)[:500])
    numbers = {name: getattr(given, name) for name in ("accuracy", "format", "reward") if given.HasField(name)}
    return Graded(status=STATUS_NAMES[given.status], extracted=given.extracted, detail=given.detail, **numbers)


def _status(error: ServiceError) -> str:
    return "unavailable" if isinstance(error, Unavailable) else "refused" if isinstance(error, Refused) else "error"
