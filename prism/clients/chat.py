"""Any OpenAI-compatible server, as an evaluation asks it: one response a request, whole."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from prism.clients.http import Refused, ServiceClient
from prism.wire.versions import MIN_VERSION_HEADER, VERSION_HEADER


class Reply(NamedTuple):
    text: str
    finish_reason: str | None
    refusal: str | None
    """What the server says instead of a response."""
    tokens: int | None
    prompt_tokens: int | None
    model: str | None
    policy_version: int | None
    """Of PRISM's own server; others have none."""


class ChatClient(ServiceClient):
    async def chat(self, body: Mapping[str, Any], min_version: int | None = None) -> Reply:
        """``min_version``: of our own server's weights, which are waited for.

        Raises Unavailable once patience has run out; Refused at once, also for what is no completion.
        """
        headers = None if min_version is None else {MIN_VERSION_HEADER: str(min_version)}
        response = await self.post("/chat/completions", dict(body), headers)
        try:
            answer = response.json()
            choice = answer["choices"][0]
            message, usage, model = choice["message"], dict(answer.get("usage") or {}), answer.get("model")
            text, reason, refusal = message.get("content"), choice.get("finish_reason"), message.get("refusal")
        except (ValueError, LookupError, TypeError, AttributeError):
            raise Refused(f"{self.url} answered what is no chat completion: {response.text[:200]!r}") from None
        if not isinstance(text, str | None) or not isinstance(reason, str | None):
            raise Refused(f"{self.url} answered what is no chat completion: {json.dumps(choice)[:200]}")
        version = response.headers.get(VERSION_HEADER, "")
        return Reply(
            text=text or "",
            finish_reason=reason,
            refusal=str(refusal) if refusal else None,
            tokens=_count(usage, "completion_tokens"),
            prompt_tokens=_count(usage, "prompt_tokens"),
            model=model if isinstance(model, str) else None,
            policy_version=int(version) if version.isdecimal() else None,
        )


def _count(usage: Mapping[str, Any], name: str) -> int | None:
    return value if isinstance(value := usage.get(name), int) else None
