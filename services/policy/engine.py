"""The vLLM server behind the middleware, called in-process through its own HTTP routes. Every call has a deadline."""

import asyncio
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import httpx
from starlette.types import ASGIApp, Receive, Scope, Send

from prism.errors import ServiceError
from prism.http.client import async_client
from prism.wire.weights import Broadcast, Probe

RETRY_SECONDS = 0.02
CHAT = "chatcmpl-"  # before a chat's id in the engine


class Engine:
    """Raises ServiceError for an answer that is not 200 and for a deadline that passes (in seconds)."""

    def __init__(self, app: ASGIApp, model: str) -> None:
        self.app, self.model = app, model
        self.root: Any = None  # the FastAPI application: vLLM's routes find their engine through it

    async def health(self, deadline: float) -> None:
        await self._call("GET", "/health", deadline)

    async def reload(self, folder: Path, deadline: float) -> None:
        """Load a folder's weights in place. They must not be used before ``flush``."""
        await self._workers("reload_weights", deadline, weights_path=str(folder))

    async def merge(self, folder: Path, deadline: float, *, over_same: bool) -> None:
        """Load a folder's weights in place with its adapter merged, as ``reload`` does without. ``over_same``: those in
        memory are the same with another adapter of the same layers."""
        await self._workers("load_merged", deadline, folder=str(folder), over_same=over_same)

    async def join(self, broadcast: Broadcast, deadline: float) -> None:
        """Meet the learner whose weights come; what is loaded stays as it is."""
        await self._workers("join_broadcast", deadline, broadcast=broadcast.model_dump(), deadline=deadline * 0.8)

    async def receive(self, deadline: float) -> None:
        """Load in place what the learner sends that was met last. It must not be used before ``flush``."""
        await self._workers("load_broadcast", deadline)

    async def flush(self, deadline: float) -> None:
        """Forget everything computed with earlier weights: keys and values, processed images, encoder outputs."""
        end = time.monotonic() + deadline
        # The prefix cache refuses while an aborted request still holds blocks; it lets go of them within a step.
        while not (await self._call("POST", "/reset_prefix_cache", deadline)).json()["success"]:
            if time.monotonic() > end:
                raise ServiceError(f"the prefix cache could not be flushed within {deadline:g} s")
            await asyncio.sleep(RETRY_SECONDS)
        await self._call("POST", "/reset_mm_cache", deadline)
        await self.forget_images(deadline)

    async def pause(self, deadline: float) -> dict[str, dict[int, int]]:
        """Stop the engine after the step that it is in; its requests, and those that come, stay as they are until
        ``resume``. Returns how many tokens each choice of each chat that is not finished has, by its request's id.

        The server's process reads a step's tokens a moment after the engine made them, so workers are asked how many
        there are.
        """
        await self._call("POST", "/pause?mode=keep&clear_cache=false", deadline)
        answer = await self._workers("tokens_made", deadline)
        sampled: dict[str, int] = {}
        for worker in answer.json()["results"]:
            sampled |= {name: max(count, sampled.get(name, 0)) for name, count in worker.items()}
        known = self.root.state.engine_client.output_processor.request_states
        end = time.monotonic() + deadline
        while any(
            sampled.get(name, 0) != state.detokenizer.num_output_tokens()
            for name, state in known.items()
            if state.detokenizer is not None
        ):
            if time.monotonic() > end:
                raise ServiceError(f"the engine's tokens had not all come out {deadline:g} s after it was paused")
            await asyncio.sleep(RETRY_SECONDS)
        made: defaultdict[str, dict[int, int]] = defaultdict(dict)
        for name, state in known.items():
            made[state.external_req_id.removeprefix(CHAT)][state.request_index] = sampled.get(name, 0)
        return made

    async def resume(self, deadline: float) -> None:
        await self._call("POST", "/resume", deadline)

    async def forget_images(self, deadline: float) -> None:
        """Forget what the vision tower made. A paused engine makes it anew where a request still needs it."""
        await self._call("POST", "/reset_encoder_cache", deadline)

    async def warm_up(self, deadline: float) -> None:
        """Generate one token."""
        body = {"model": self.model, "prompt": "a", "max_tokens": 1}
        await self._call("POST", "/v1/completions", deadline, body)

    async def probe(self, probe: Probe, deadline: float, salt: str = "") -> float:
        """Mean absolute difference between the probe's logprobs and the server's own of the same tokens, in nats.
        ``salt`` is the prefix cache's."""
        body = {
            "model": self.model,
            "messages": probe.messages,
            "add_generation_prompt": False,
            "continue_final_message": True,
            "max_tokens": 1,
            "temperature": 1.0,
            "prompt_logprobs": 0,  # of the prompt's own tokens, no alternatives
        } | ({"cache_salt": salt} if salt else {})
        answer = (await self._call("POST", "/v1/chat/completions", deadline, body)).json()
        entries = answer["prompt_logprobs"][1:]  # nothing comes before the first token
        if not 0 < len(probe.logprobs) <= len(entries):
            raise ServiceError(f"the probe scores {len(probe.logprobs)} tokens, its messages have {len(entries)}")
        ours = [next(iter(entry.values()))["logprob"] for entry in entries[-len(probe.logprobs) :]]
        return sum(abs(a - b) for a, b in zip(ours, probe.logprobs, strict=True)) / len(ours)

    async def _workers(self, method: str, limit: float, /, **arguments: object) -> httpx.Response:
        # Inside vLLM the deadline is the worker's: a little less, so that its message comes before our timeout.
        body = {"method": method, "kwargs": arguments, "timeout": limit * 0.9}
        return await self._call("POST", "/collective_rpc", limit, body)

    async def _call(self, method: str, path: str, deadline: float, body: object = None) -> httpx.Response:
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            if self.root is not None:
                scope["app"] = self.root
            await self.app(scope, receive, send)

        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        try:
            async with asyncio.timeout(deadline), async_client(transport=transport, timeout=deadline) as client:
                answer = await client.request(method, f"http://engine{path}", json=body)
        except TimeoutError:
            raise ServiceError(f"{path} did not answer within {deadline:g} s") from None
        if answer.status_code != 200:
            raise ServiceError(f"{path} answered {answer.status_code}: {answer.text[:500]}")
        return answer
