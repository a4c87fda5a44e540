"""Policy, grader and experts as one stand-in, in the shapes that their clients read; and rows to curate."""

import asyncio
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from PIL import Image, ImageDraw

TOKEN = "token-of-the-services"
GOOD = "<caption>- a {gold}\n- b 1</caption><think>{gold} + 0 = {gold}</think><answer>{gold}</answer>"


def response(answer: str, seen: str | None = None) -> str:
    return GOOD.format(gold=answer).replace(f"- a {answer}", f"- a {seen or answer}")


class FakeServices:
    """The policy solves a question as often as the question says: "Q3 solved 0.25?" one time in four."""

    def __init__(self) -> None:
        self.sampled = 0
        self.graded = 0

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        raw, more = b"", True
        while more:
            message = await receive()
            raw, more = raw + message.get("body", b""), message.get("more_body", False)
        body = json.loads(raw)
        if scope["path"] == "/v1/chat/completions":
            data, kind = self._sample(body), b"text/event-stream"
        elif scope["path"] == "/v1/grade":
            data, kind = (
                json.dumps({"verdicts": [self._grade(item) for item in body["items"]]}).encode(),
                b"application/json",
            )
        else:
            data, kind = json.dumps(self._score(scope["path"], body)).encode(), b"application/json"
        headers = [(b"content-type", kind), (b"x-prism-policy-version", b"7"), (b"x-prism-grader-version", b"0.1+abc")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": data})

    def _sample(self, body: dict[str, Any]) -> bytes:
        self.sampled += 1
        text = next(part["text"] for part in body["messages"][-1]["content"] if part["type"] == "text")
        share, gold = float(re.findall(r"solved ([\d.]+)", text)[0]), re.findall(r"Q(\d+)", text)[0]
        right, finish = round(share * body["n"]), "length" if "long" in text else "stop"
        chunks = [
            {
                "prompt_token_ids": [1],
                "choices": [
                    {"index": n, "delta": {"content": response(gold if n < right else "999")}, "finish_reason": finish,
                     "token_ids": [5], "logprobs": {"content": [{"logprob": -0.1}]}}
                ],
            }
            for n in range(body["n"])
        ]  # fmt: skip
        return b"".join(f"data: {json.dumps(chunk)}\n\n".encode() for chunk in chunks) + b"data: [DONE]\n\n"

    def _grade(self, item: dict[str, Any]) -> dict[str, Any]:
        self.graded += 1
        golds = item["gold"] if isinstance(item["gold"], list) else [item["gold"]]
        found = re.findall(r"<answer>(.*)</answer>", item["response"])
        if item.get("kind") == "judge":
            return {
                "status": "error",
                "accuracy": None,
                "format": None,
                "reward": None,
                "extracted": "",
                "detail": "off",
            }
        right = float(bool(found) and found[-1] in golds)
        return {"status": "ok", "accuracy": right, "format": 1.0, "reward": right, "extracted": "", "detail": ""}

    def _score(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The caption's own number is seen best: a copy with another has a lower score."""
        expert = "perception" if "perception" in path else "reasoning"
        items = []
        for item in body["items"]:
            text = next(part["text"] for part in item["messages"][-1]["content"] if part["type"] == "text")
            gold = re.findall(r"Q(\d+)", text)[0]
            scores = [
                {"status": "ok", "score": 2.0 * (f"a {gold}\n" in said) + 1.0 * ("b 1<" in said), "section": expert}
                for said in item["responses"]
            ]
            items.append({"scores": scores})
        return {"expert": expert, "version": 3, "attempt": 1, "items": items}


@contextmanager
def served(app: Any) -> Iterator[str]:
    """In a thread of its own: what asks has an event loop of its own."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical", lifespan="off"))
    server.config.timeout_graceful_shutdown = 1
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()), daemon=True)
    thread.start()
    while not server.started:
        thread.join(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def write_rows(folder: Path, shares: list[float], *, kind: str = "auto", suffix: str = "") -> Path:
    """Questions about a picture each, their golds 100, 101 and so on."""
    rows = list[str]()
    for number, share in enumerate(shares):
        gold = str(100 + number)
        image = Image.new("RGB", (64, 64), (number * 37 % 256, number * 91 % 256, 40))
        ImageDraw.Draw(image).rectangle([number * 13 % 40, number * 29 % 40, 50, 60], fill=(250, number * 53 % 256, 9))
        image.save(folder / f"p{number}.png")
        content = [
            {"type": "image", "image": f"p{number}.png"},
            {"type": "text", "text": f"Q{gold} solved {share}?{suffix}"},
        ]
        row = {"id": f"r{number}", "messages": [{"role": "user", "content": content}], "gold": gold, "kind": kind}
        rows.append(json.dumps(row))
    (folder / "problems.jsonl").write_text("\n".join(rows))
    return folder / "problems.jsonl"
