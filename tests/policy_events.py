"""What a policy server streams, for stand-ins of it."""

import json
from collections.abc import Sequence
from typing import Any

import httpx

DONE = b"data: [DONE]\n\n"
HEADERS = {"x-prism-policy-version": "3", "content-type": "text/event-stream"}


def event(value: object) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


def opening(n: int, prompt: Sequence[int] = (5,)) -> bytes:
    """The events before any token, one a choice, as vLLM sends them."""
    delta = {"role": "assistant", "content": ""}
    return b"".join(
        event({"choices": [{"index": i, "delta": delta, "logprobs": None}], "prompt_token_ids": list(prompt)})
        for i in range(n)
    )


def piece(index: int, text: str, logprobs: dict[int, float], finish: str | None = None) -> bytes:
    """Tokens of one choice; ``logprobs`` are theirs, by token id."""
    content = [{"token": "", "logprob": value} for value in logprobs.values()]
    choice: dict[str, Any] = {"index": index, "delta": {"content": text}, "logprobs": {"content": content}}
    return event({"choices": [choice | {"token_ids": list(logprobs), "finish_reason": finish}]})


def policy_events(*texts: str) -> bytes:
    """A whole stream: these texts, each of one token."""
    pieces = [piece(i, text, {1: -1.0}, "stop") for i, text in enumerate(texts)]
    return opening(len(texts)) + b"".join(pieces) + DONE


def policy_answer(*texts: str) -> httpx.Response:
    return httpx.Response(200, content=policy_events(*texts), headers=HEADERS)
