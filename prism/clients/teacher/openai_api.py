"""OpenAI's chat completions, and whoever speaks them (platform.openai.com/docs/api-reference, November 2026)."""

import json
from collections.abc import Mapping
from typing import Any

from prism.clients.teacher.config import TeacherConfig
from prism.clients.teacher.errors import Unusable
from prism.clients.teacher.reply import Finish, Question, Reply, Usage
from prism.wire.messages import to_openai

FINISH: dict[str, Finish] = {"stop": "stop", "length": "length", "content_filter": "refused"}
OUT_OF_CREDIT = ("insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "insufficient_balance")
BATCH_ENDED = {"completed", "expired", "cancelled", "failed"}
"""States of a batch that change no more; ``failed`` has run nothing."""


class OpenAiApi:
    path = "/chat/completions"

    def __init__(self, config: TeacherConfig) -> None:
        self._config = config

    def headers(self, key: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {key}"}

    def body(self, question: Question, images: Mapping[str, bytes]) -> dict[str, Any]:
        config = self._config
        # Models that think refuse max_tokens, older servers know nothing else.
        limit = "max_completion_tokens" if "api.openai.com" in config.url else "max_tokens"
        body: dict[str, Any] = {
            "model": config.model,
            "messages": to_openai(question.messages, images),
            limit: question.max_tokens,
        }
        if question.temperature is not None:
            body["temperature"] = question.temperature
        if config.stream and not config.batch:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        return body

    def read(self, answer: Any) -> Reply:
        """Raises Unusable for what is no completion, or an empty one."""
        usage = None
        try:
            usage = _usage(answer.get("usage"))
            choice = answer["choices"][0]
            message, finish = choice["message"], choice.get("finish_reason") or ""
            text, refusal = message.get("content") or "", message.get("refusal")
            model = str(answer.get("model") or self._config.model)
        except (LookupError, TypeError, AttributeError) as error:
            raise Unusable(f"what is no chat completion ({error!r})", usage) from None
        return _reply(text, refusal, finish, model, usage)

    def read_events(self, events: list[bytes]) -> Reply:
        """The events of a stream that has ended. Raises Unusable if it has not, or is none."""
        text, refusal, finish, model, usage = "", "", "", self._config.model, None
        try:
            for event in events:
                if event == b"[DONE]":
                    return _reply(text, refusal, finish, model, usage)
                chunk = json.loads(event)
                if chunk.get("error"):
                    raise Unusable(f"an error in the stream: {str(chunk['error'])[:300]}", usage)
                usage = _usage(chunk.get("usage")) or usage
                model = str(chunk.get("model") or model)
                for choice in chunk.get("choices") or []:
                    delta = choice.get("delta") or {}
                    text += delta.get("content") or ""
                    refusal += delta.get("refusal") or ""
                    finish = choice.get("finish_reason") or finish
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise Unusable(f"a stream of what is no completion ({error!r})", usage) from None
        raise Unusable("a stream that broke off", usage)

    def is_out_of_credit(self, status: int, told: str) -> bool:
        return status == 402 or (status in (400, 403, 429) and any(code in told for code in OUT_OF_CREDIT))


def _usage(told: Any) -> Usage | None:
    """None where nothing usable is told. Some count thoughts in the total alone."""
    if not isinstance(told, dict):
        return None
    sent, made = _count(told.get("prompt_tokens")), _count(told.get("completion_tokens"))
    total = _count(told.get("total_tokens"))
    if sent is None or made is None:
        return None
    return Usage(sent, made if total is None else max(made, total - sent))


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _reply(text: object, refusal: object, finish: str, model: str, usage: Usage | None) -> Reply:
    if isinstance(refusal, str) and refusal.strip():
        return Reply(refusal, "refused", model, usage)
    if not isinstance(text, str):
        raise Unusable("an answer that is no text", usage)
    ended = FINISH.get(finish)
    if ended == "refused":
        return Reply(text or finish, "refused", model, usage)
    if not text.strip():
        raise Unusable(f"an empty answer (finish_reason {finish or 'missing'})", usage)
    if ended is None:
        raise Unusable(f"an answer that ended for an unknown reason ({finish or 'none'})", usage)
    return Reply(text, ended, model, usage)
