"""Batch APIs: many questions in one upload, at half the price, answered within a day. Each may fail by itself."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx

from prism.clients.teacher.client import Teacher
from prism.clients.teacher.errors import Busy, Unusable
from prism.clients.teacher.http import failure
from prism.clients.teacher.reply import Reply

ENDED = ("completed", "expired", "cancelled", "failed")
"""States of an OpenAI batch that change no more."""


@dataclass(frozen=True)
class BatchRow:
    """What became of one question; exactly one of both is there."""

    id: str
    reply: Reply | None = None
    error: str | None = None
    billed: bool = False
    """Whether an error may be paid for: an answer that is none."""


class Lost(Exception):
    """The provider knows nothing of the batch any more. What it made may be billed."""


class Batches:
    """One provider's. Raises as ``Teacher.ask``, Busy at once: whoever polls comes again."""

    def __init__(self, teacher: Teacher) -> None:
        self._teacher, self._is_openai = teacher, teacher.config.api == "openai"
        self._url = teacher.config.url + ("/batches" if self._is_openai else "/v1/messages/batches")

    async def begin(self, name: str, rows: Iterable[tuple[str, dict[str, Any]]]) -> str:
        """Send the questions, each with its id and body; ``name`` is ours. Gives the provider's name."""
        if not self._is_openai:
            requests = [{"custom_id": id, "params": body} for id, body in rows]
            return str((await self._json("POST", self._url, json={"requests": requests}))["id"])
        lines = ({"custom_id": id, "method": "POST", "url": "/v1/chat/completions", "body": body} for id, body in rows)
        data = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode(errors="replace")
        files = {"file": (f"{name}.jsonl", data, "application/jsonl")}
        uploaded = await self._json("POST", f"{self._teacher.config.url}/files", data={"purpose": "batch"}, files=files)
        asked = {
            "input_file_id": uploaded["id"],
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
            "metadata": {"prism": name},
        }
        return str((await self._json("POST", self._url, json=asked))["id"])

    async def results(self, remote: str) -> list[BatchRow] | None:
        """What came of it, of its questions in any order, perhaps not of all; None while it is at work.

        Raises Lost if it is not there.
        """
        try:
            batch = await self._json("GET", f"{self._url}/{remote}")
        except _Missing:
            raise Lost(f"batch {remote} is not there any more") from None
        if not self._is_openai:
            if batch.get("processing_status") != "ended":
                return None
            text = await self._text(f"{self._url}/{remote}/results")
            return [self._row(line) for line in _lines(text)]
        if batch.get("status") not in ENDED:
            return None
        names = [name for key in ("output_file_id", "error_file_id") if (name := batch.get(key))]
        texts = [await self._text(f"{self._teacher.config.url}/files/{name}/content") for name in names]
        return [self._row(line) for text in texts for line in _lines(text)]

    def _row(self, line: dict[str, Any]) -> BatchRow:
        id = str(line.get("custom_id"))
        if self._is_openai:
            response = line.get("response") or {}
            body = response.get("body") if response.get("status_code") == 200 else None
            told = line.get("error") or response.get("body")
        else:
            result = line.get("result") or {}
            body = result.get("message") if result.get("type") == "succeeded" else None
            told = result
        if body is None:
            return BatchRow(id, error=str(told)[:300])
        try:
            return BatchRow(id, self._teacher.api.read(body))
        except Unusable as error:
            return BatchRow(id, error=str(error), billed=True)

    async def _json(self, method: str, url: str, **options: Any) -> dict[str, Any]:
        response = await self._request(method, url, **options)
        try:
            told = response.json()
        except (ValueError, RecursionError):
            told = None
        if not isinstance(told, dict):
            raise Busy(f"{url} answered what is no JSON object: {response.text[:200]}", billed=method == "POST")
        return told

    async def _text(self, url: str) -> str:
        try:
            return (await self._request("GET", url)).text
        except _Missing:
            raise Lost(f"{url} is not there any more") from None

    async def _request(self, method: str, url: str, **options: Any) -> httpx.Response:
        teacher = self._teacher
        try:
            response = await teacher.line.http.request(method, url, headers=teacher.line.headers, **options)
        except httpx.TransportError as error:
            unsent = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)
            raise Busy(f"{url}: {type(error).__name__}: {error}", billed=method == "POST" and not unsent) from None
        if response.status_code == 404 and method == "GET":
            raise _Missing(url)
        if not response.is_success:
            raise failure(response, teacher.api, teacher.config)
        return response


class _Missing(Exception):
    pass


def _lines(text: str) -> Iterator[dict[str, Any]]:
    """Lines that are objects; whose one that is none was nobody can say, so its question counts as not answered."""
    for line in text.split("\n"):
        try:
            told = json.loads(line) if line.strip() else None
        except (ValueError, RecursionError):
            continue
        if isinstance(told, dict):
            yield told
