"""A chat completion that is streamed, put together as the server would have answered it in one piece.

A stream says that its answer is being made: by tokens, and by comments of the server while others' are. So what is
measured is silence, never the time that an answer takes.
"""

import json
from dataclasses import dataclass, field
from typing import Any

import httpx

from prism.clients.http import Refused, Unavailable
from prism.wire.events import read_events
from prism.wire.versions import FIELD, Changes, read_changes

END = b"[DONE]"


@dataclass
class Choice:
    """One response. ``logprobs`` are the sampler's own, one for each of ``token_ids``."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish_reason: str | None = None


@dataclass
class Completion:
    """``choices`` in the order of their index."""

    choices: list[Choice]
    prompt_token_ids: list[int] = field(default_factory=list)
    changes: Changes | None = None
    """Of policy versions, where our own server says that there were any in the middle."""

    def add(self, chunk: dict[str, Any]) -> None:
        """Raises LookupError, ValueError or TypeError for what is no chunk of this completion."""
        if FIELD in chunk:
            self.changes = read_changes(chunk[FIELD])
        self.prompt_token_ids = chunk.get("prompt_token_ids") or self.prompt_token_ids
        for part in chunk["choices"]:
            choice = self.choices[part["index"]]
            choice.text += part["delta"].get("content") or ""
            choice.token_ids += part.get("token_ids") or []
            choice.logprobs += [token["logprob"] for token in (part.get("logprobs") or {}).get("content") or []]
            choice.finish_reason = part.get("finish_reason") or choice.finish_reason

    def is_whole(self) -> bool:
        return bool(self.prompt_token_ids) and all(
            choice.finish_reason and len(choice.logprobs) == len(choice.token_ids) for choice in self.choices
        )


async def read_completion(response: httpx.Response, n: int) -> Completion:
    """``n`` choices from a stream. Raises Unavailable for one that breaks off, Refused for one that cannot be used."""
    url, completion = response.url, Completion([Choice() for _ in range(n)])
    async for data in read_events(response.aiter_bytes()):
        if data == END:
            if not completion.is_whole():
                raise Refused(f"{url}: a stream of tokens without their ids or log-probabilities")
            return completion
        try:
            chunk = json.loads(data)
            if "error" in chunk:
                raise _error(str(url), chunk["error"])
            completion.add(chunk)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise Refused(f"{url} streamed what is no chunk of a completion ({error!r}): {data[:200]!r}") from None
    raise Unavailable(f"{url}: the stream ended in the middle of the answer", reached=True)


def _error(url: str, error: dict[str, Any]) -> Refused | Unavailable:
    """Once a stream has begun an error has no status of its own; vLLM says there what it would have been."""
    code, text = int(error.get("code") or 500), f"{url}: {error.get('code')} {str(error.get('message'))[:500]}"
    return Refused(text, code) if 400 <= code < 500 else Unavailable(text, reached=True, status=code)
