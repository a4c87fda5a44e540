"""Anthropic's own API (platform.claude.com/docs/en/api/messages, November 2026)."""

import base64
import json
from collections.abc import Mapping
from typing import Any

from prism.clients.teacher.config import TeacherConfig
from prism.clients.teacher.errors import Unusable
from prism.clients.teacher.reply import Finish, Question, Reply, Usage
from prism.wire.v1 import rollout_pb2 as pb

VERSION = "2023-06-01"
FINISH: dict[str, Finish] = {
    "end_turn": "stop", "stop_sequence": "stop", "max_tokens": "length", "refusal": "refused",
    "model_context_window_exceeded": "length",
}  # fmt: skip
INPUT = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")


class AnthropicApi:
    path = "/v1/messages"

    def __init__(self, config: TeacherConfig) -> None:
        self._config = config

    def headers(self, key: str) -> dict[str, str]:
        return {"x-api-key": key, "anthropic-version": VERSION}

    def body(self, question: Question, images: Mapping[str, bytes]) -> dict[str, Any]:
        system = "\n\n".join(
            part.text for message in question.messages if message.role == "system" for part in message.parts
        )
        body: dict[str, Any] = {
            "model": self._config.model,
            "max_tokens": question.max_tokens,
            "messages": [
                {"role": message.role, "content": [_part(part, images) for part in message.parts]}
                for message in question.messages
                if message.role != "system"
            ],
        }
        if system:
            body["system"] = system
        if question.temperature is not None:
            body["temperature"] = question.temperature
        if self._config.stream and not self._config.batch:
            body["stream"] = True
        return body

    def read(self, answer: Any) -> Reply:
        """Raises Unusable for what is no message, or an empty one."""
        usage = None
        try:
            usage = _usage(answer.get("usage") or {})
            text = "".join(block["text"] for block in answer["content"] if block.get("type") == "text")
            return _reply(text, answer.get("stop_reason"), str(answer.get("model") or self._config.model), usage)
        except (LookupError, TypeError, AttributeError) as error:
            raise Unusable(f"what is no message ({error!r})", usage) from None

    def read_events(self, events: list[bytes]) -> Reply:
        """The events of a stream that has ended. Raises Unusable if it has not, or is none."""
        text, reason, model, counts = "", None, self._config.model, dict[str, Any]()
        try:
            for data in events:
                event = json.loads(data)
                match event.get("type"):
                    case "message_start":
                        counts |= event["message"].get("usage") or {}
                        model = str(event["message"].get("model") or model)
                    case "content_block_delta" if event["delta"].get("type") == "text_delta":
                        text += event["delta"]["text"]
                    case "message_delta":
                        counts |= {name: n for name, n in (event.get("usage") or {}).items() if n is not None}
                        reason = event["delta"].get("stop_reason") or reason
                    case "message_stop":
                        return _reply(text, reason, model, _usage(counts))
                    case "error":
                        raise Unusable(f"an error in the stream: {str(event.get('error'))[:300]}")
                    case _:
                        pass  # pings, beginnings and ends of blocks, what may come
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise Unusable(f"a stream of what is no message ({error!r})") from None
        raise Unusable("a stream that broke off")

    def is_out_of_credit(self, status: int, told: str) -> bool:
        return status == 402 or "credit balance is too low" in told or "billing_error" in told


def _part(part: pb.Part, images: Mapping[str, bytes]) -> dict[str, Any]:
    if not part.HasField("image_sha256"):
        return {"type": "text", "text": part.text}
    data = images[part.image_sha256]
    kind = "jpeg" if data.startswith(b"\xff\xd8") else "webp" if data[8:12] == b"WEBP" else "png"
    source = {"type": "base64", "media_type": f"image/{kind}", "data": base64.b64encode(data).decode()}
    return {"type": "image", "source": source}


def _usage(told: dict[str, Any]) -> Usage | None:
    """None where nothing usable is told. What a cache held is paid for too, hence counted in full."""
    sent, made = [told.get(name) or 0 for name in INPUT], told.get("output_tokens")
    if "input_tokens" not in told or not all(isinstance(count, int) and count >= 0 for count in [*sent, made]):
        return None
    return Usage(sum(sent), made) if isinstance(made, int) else None


def _reply(text: str, reason: str | None, model: str, usage: Usage | None) -> Reply:
    finish = FINISH.get(reason or "")
    if finish == "refused":
        return Reply(text or "refusal", "refused", model, usage)
    if not text.strip():
        raise Unusable(f"an empty answer (stop_reason {reason})", usage)
    if finish is None:
        raise Unusable(f"an answer that ended for an unknown reason ({reason})", usage)
    return Reply(text, finish, model, usage)
