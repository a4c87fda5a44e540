"""A teacher to test against: both APIs, streams, batches, and everything that goes wrong with a real one.

What it answers is a function of the request; what befalls a request is drawn by ``troubles``. It keeps a bill of what
it made, whether or not the answer came through, as a real one does.
"""

import asyncio
import hashlib
import json
import random
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from prism.clients.teacher.reply import Prices, Usage

GOOD = "<caption>- a three</caption><think>3 + 4 = 7</think><answer>7</answer>"
IMAGE_TOKENS = 300
TROUBLES = ("busy", "broken", "drop", "late", "malformed", "empty", "refusal", "credit")
"""429 with Retry-After; 500; an answer that is made and not delivered, the connection closed, or kept silent; an answer
in no shape, or empty; a refusal; 402."""


@dataclass
class FakeTeacher:
    """An ASGI app."""

    answer: Callable[[dict[str, Any]], str] = lambda body: GOOD
    troubles: dict[str, float] = field(default_factory=dict)
    """Share of the requests that each befalls."""
    limit: int | None = None
    """Requests that it takes in any window of ``window`` seconds; the others are answered 429."""
    window: float = 60.0
    retry_after: str = "0.05"
    prices: Prices = field(default_factory=lambda: Prices(1.0, 10.0))
    delay: float = 0.0
    key: str | None = None
    lost_batches: int = 0
    """How many of the next batches vanish."""
    busy_polls: int = 0
    """How many of the next questions about a batch are answered 429."""
    polled: list[float] = field(default_factory=list)
    """When it was asked about batches, by the monotonic clock."""
    failing_rows: float = 0.0
    """Share of a batch's rows that fail."""
    seed: int = 0
    billed: int = 0
    """In billionths of a dollar."""
    answered: Counter[str] = field(default_factory=Counter)
    """Answers that were made, by what was asked."""
    delivered: Counter[str] = field(default_factory=Counter)
    seen: list[dict[str, Any]] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    files: dict[str, bytes] = field(default_factory=dict)
    batches: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._random, self._taken = random.Random(self.seed), deque[float]()

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        raw = b""
        while True:
            message = await receive()
            raw += message.get("body", b"")
            if not message.get("more_body"):
                break
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        status, told, extra = await self._handle(scope["method"], scope["path"], headers, raw)
        self.statuses[status] += 1
        if status == 0:
            return  # uvicorn closes the connection of an app that has not answered
        body = told if isinstance(told, bytes) else json.dumps(told).encode()
        kind = b"text/event-stream" if body.startswith((b"data:", b"event:")) else b"application/json"
        started = [(b"content-type", kind), (b"content-length", str(len(body)).encode()), *extra]
        await send({"type": "http.response.start", "status": status, "headers": started})
        await send({"type": "http.response.body", "body": body})

    async def _handle(self, method: str, path: str, headers: dict[str, str], raw: bytes) -> tuple[int, Any, list[Any]]:
        given = headers.get("x-api-key") or headers.get("authorization", "").removeprefix("Bearer ")
        if self.key is not None and given != self.key:
            return 401, {"error": {"message": "invalid key"}}, []
        if path.endswith(("/chat/completions", "/v1/messages")):
            return await self._complete("chat" in path, json.loads(raw))
        if method == "GET":
            self.polled.append(time.monotonic())
        if method == "GET" and self.busy_polls > 0:
            self.busy_polls -= 1
            return 429, {"error": {"message": "slow down"}}, [(b"retry-after", self.retry_after.encode())]
        return 200 if (told := self._batches(method, path, raw)) is not None else 404, told or {}, []

    async def _complete(self, is_openai: bool, body: dict[str, Any]) -> tuple[int, Any, list[Any]]:
        self.seen.append(body)
        now = time.monotonic()
        if self.limit is not None:
            while self._taken and now - self._taken[0] > self.window:
                self._taken.popleft()
            if len(self._taken) >= self.limit:
                return 429, {"error": {"message": "slow down"}}, [(b"retry-after", self.retry_after.encode())]
            self._taken.append(now)
        if self.delay:
            await asyncio.sleep(self.delay)
        trouble = self._draw()
        if trouble == "busy":
            return 429, {"error": {"message": "slow down"}}, [(b"retry-after", self.retry_after.encode())]
        if trouble == "broken":
            return 500, {"error": {"message": "internal"}}, []
        if trouble == "credit":
            code = {"code": "insufficient_quota"} if is_openai else {"type": "billing_error"}
            return 429 if is_openai else 400, {"error": code | {"message": "credit balance is too low"}}, []
        made, asked = self._make(is_openai, body, trouble), name_of(body)
        if trouble == "late":
            await asyncio.sleep(30)
        if trouble in ("drop", "late"):
            return 0, b"", []
        if trouble == "malformed":
            return 200, b'{"choices": [{"mess', []
        self.delivered[asked] += 1
        return 200, (stream(is_openai, made) if body.get("stream") else made), []

    def _draw(self) -> str | None:
        drawn = self._random.random()
        for trouble, share in self.troubles.items():
            drawn -= share
            if drawn < 0:
                return trouble
        return None

    def _make(self, is_openai: bool, body: dict[str, Any], trouble: str | None = None, share: float = 1.0) -> Any:
        text = "" if trouble == "empty" else self.answer(body)
        usage = Usage(tokens_of(body), max(1, len(text) // 4))
        self.billed += Prices(self.prices.input, self.prices.output, share).cost(usage)
        self.answered[name_of(body)] += 1
        if is_openai:
            message = {"role": "assistant", "content": text}
            if trouble == "refusal":
                message |= {"content": None, "refusal": "I cannot help with that."}
            counts = {"prompt_tokens": usage.input_tokens, "completion_tokens": usage.output_tokens}
            counts["total_tokens"] = sum(counts.values())
            choice = {"index": 0, "message": message, "finish_reason": "length" if trouble == "cut" else "stop"}
            return {"id": "c", "model": f"{body['model']}-0901", "choices": [choice], "usage": counts}
        reason = {"refusal": "refusal", "cut": "max_tokens"}.get(trouble or "", "end_turn")
        content = [{"type": "text", "text": text}] if text else []
        counts = {"input_tokens": usage.input_tokens, "output_tokens": usage.output_tokens}
        return {
            "type": "message",
            "model": f"{body['model']}-0901",
            "content": content,
            "stop_reason": reason,
            "usage": counts,
        }

    # ------------------------------------------------------------------------------------------------------ batches

    def _batches(self, method: str, path: str, raw: bytes) -> Any:
        match method, path.removeprefix("/v1").strip("/").split("/"):
            case "POST", ["files"]:
                name = f"file-{len(self.files)}"
                self.files[name] = raw.split(b"\r\n\r\n", 2)[-1].rsplit(b"\r\n--", 1)[0]
                return {"id": name}
            case "GET", ["files", name, "content"]:
                return self.files.get(name)
            case "POST", ["batches"]:
                asked = json.loads(raw)
                lines = [json.loads(line) for line in self.files[asked["input_file_id"]].splitlines() if line.strip()]
                return self._begin([(line["custom_id"], line["body"]) for line in lines], True, asked.get("metadata"))
            case "POST", ["messages", "batches"]:
                rows = json.loads(raw)["requests"]
                return self._begin([(row["custom_id"], row["params"]) for row in rows], False, None)
            case "GET", ["batches"]:
                return {"data": [batch for batch in self.batches.values() if not batch["gone"]]}
            case "GET", ["batches", name] | ["messages", "batches", name]:
                return self._poll(name)
            case "GET", ["messages", "batches", name, "results"]:
                return self.files.get(f"out-{name}")
            case _:
                return None

    def _begin(self, rows: list[tuple[str, dict[str, Any]]], is_openai: bool, metadata: Any) -> dict[str, Any]:
        name = f"batch-{len(self.batches)}"
        gone, self.lost_batches = self.lost_batches > 0, max(0, self.lost_batches - 1)
        batch = {"id": name, "metadata": metadata, "gone": gone, "polls": 0, "openai": is_openai}
        batch |= {"status": "validating"} if is_openai else {"processing_status": "in_progress"}
        self.batches[name] = batch
        lines = list[dict[str, Any]]()
        for custom_id, body in rows:
            self.seen.append(body)
            if self._random.random() < self.failing_rows:
                bad = {"response": {"status_code": 500, "body": {}}} if is_openai else {"result": {"type": "expired"}}
                lines.append({"custom_id": custom_id} | bad)
                continue
            made = self._make(is_openai, body, self._draw(), share=0.5)
            if not gone:
                self.delivered[name_of(body)] += 1
            good = (
                {"response": {"status_code": 200, "body": made}}
                if is_openai
                else {"result": {"type": "succeeded", "message": made}}
            )
            lines.append({"custom_id": custom_id} | good)
        self.files[f"out-{name}"] = b"".join(json.dumps(line).encode() + b"\n" for line in reversed(lines))
        return batch

    def _poll(self, name: str) -> dict[str, Any] | None:
        batch = self.batches.get(name)
        if batch is None or batch["gone"]:
            return None
        batch["polls"] += 1
        if batch["polls"] >= 2:
            if batch["openai"]:
                batch |= {"status": "completed", "output_file_id": f"out-{name}"}
            else:
                batch |= {"processing_status": "ended", "results_url": f"/v1/messages/batches/{name}/results"}
        return batch


def tokens_of(body: dict[str, Any]) -> int:
    """A few for each letter, and as many for each image."""
    contents = [message["content"] for message in body["messages"]]
    parts = [part for content in contents for part in (content if isinstance(content, list) else [{"text": content}])]
    return 8 + sum(len(part["text"]) // 4 if "text" in part else IMAGE_TOKENS for part in parts)


def name_of(body: dict[str, Any]) -> str:
    """Of what was asked."""
    return hashlib.sha256(json.dumps(body.get("messages")).encode()).hexdigest()[:16]


def stream(is_openai: bool, made: dict[str, Any]) -> bytes:
    """The answer as a stream of events, its usage at the end."""
    if is_openai:
        message, head = made["choices"][0]["message"], {"id": "c", "model": made["model"]}
        text, refusal = message["content"] or "", message.get("refusal")
        chunks: list[dict[str, Any]] = [
            head | {"choices": [{"index": 0, "delta": {"content": text[at : at + 9]}}]} for at in range(0, len(text), 9)
        ]
        if refusal:
            chunks.append(head | {"choices": [{"index": 0, "delta": {"refusal": refusal}}]})
        chunks.append(head | {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        chunks.append(head | {"choices": [], "usage": made["usage"]})
        return b"".join(f"data: {json.dumps(chunk)}\n\n".encode() for chunk in chunks) + b"data: [DONE]\n\n"
    text = "".join(block["text"] for block in made["content"])
    usage = made["usage"]
    pieces = ({"type": "text_delta", "text": text[at : at + 9]} for at in range(0, len(text), 9))
    ended = {"delta": {"stop_reason": made["stop_reason"]}, "usage": {"output_tokens": usage["output_tokens"]}}
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": {"model": made["model"], "usage": usage | {"output_tokens": 1}}},
        {"type": "ping"},
        *({"type": "content_block_delta", "delta": piece} for piece in pieces),
        {"type": "message_delta"} | ended,
        {"type": "message_stop"},
    ]
    return b"".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode() for event in events)
