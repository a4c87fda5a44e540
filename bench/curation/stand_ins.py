"""A closed teacher and a judge for the demo's prompts, on this machine, behind OpenAI's API.

    python -m bench.curation.stand_ins teacher --rows runs/x/data/prompts.jsonl --port 8190
    python -m bench.curation.stand_ins judge --port 8191

The teacher knows the grids, and errs at known rates in one section alone: a digit of the caption, a computation of the
steps, or the answer. The judge reads each picture by itself, with networks trained on handwriting that no prompt
shows, and is told a statement; it says "no" where it is sure, "unclear" where it is not.
"""

import argparse
import base64
import hashlib
import io
import json
import random
import re
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import uvicorn
from numpy.typing import NDArray
from PIL import Image
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier

from configs.demo import task
from configs.demo.task import Puzzle
from prism.data.images import canonical_image

Error = Literal["caption", "steps", "answer"]
ERRORS: tuple[Error, ...] = ("caption", "steps", "answer")
RATE = 0.1
"""Of each error, among answers."""
SURE, LIKELY = 0.015, 0.5
"""Probability of the digit that a statement names, up to which it is false; from which on it is true."""
SIDE = 16


def planted(name: str, rate: float = RATE) -> Error | None:
    """The error in the answer to the problem of this name: a function of it, so that it can be told afterwards."""
    drawn = random.Random(f"planted {name}").random()
    return ERRORS[int(drawn / rate)] if drawn < rate * len(ERRORS) else None


def respond(puzzle: Puzzle, error: Error | None, seed: str) -> str:
    """The truth, but for one section."""
    rng = random.Random(f"respond {seed}")
    digits = list(puzzle.digits)
    steps, answer = task.reason(puzzle, digits)
    if error == "caption":
        cell = rng.randrange(len(digits))
        digits[cell] = rng.choice([digit for digit in range(10) if digit != digits[cell]])
    elif error == "steps":
        last = steps[-1]
        head, _, result = last.rpartition("=")
        steps[-1] = f"{head}={int(result) + rng.choice((-2, -1, 1, 2))}"
    elif error == "answer":
        answer += rng.choice((-2, -1, 1, 2))
    return task.write(task.caption_bullets(digits), steps, answer)


def labelled_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of rows whose puzzle is known: the truth and each error in turn, with what is right about it."""
    found = list[dict[str, Any]]()
    for number, row in enumerate(rows):
        error = (None, None, *ERRORS)[number % 5]
        labels = {part: part != error for part in ERRORS}
        response = respond(puzzle_of(row), error, row["id"])
        found.append(
            {key: row[key] for key in ("id", "messages", "gold", "kind")} | {"response": response, "labels": labels}
        )
    return found


def puzzle_of(row: dict[str, Any]) -> Puzzle:
    meta = row["meta"]
    return Puzzle(**{**meta, "digits": tuple(meta["digits"])})


def make_teacher(rows: Path) -> Callable[[dict[str, Any]], str]:
    known = dict[tuple[str, str], tuple[Puzzle, str]]()
    for line in rows.read_text().splitlines():
        row = json.loads(line)
        picture, asked = row["messages"][0]["content"]
        data = canonical_image((rows.parent / picture["image"]).read_bytes())
        known[hashlib.sha256(data).hexdigest(), asked["text"]] = puzzle_of(row), row["id"]

    def answer(body: dict[str, Any]) -> str:
        image, text = _last_turn(body)
        puzzle, name = known[hashlib.sha256(image).hexdigest(), text]
        return respond(puzzle, planted(name), name)

    return answer


@cache
def _readers() -> list[Any]:
    """Two networks trained on the held-out handwriting, in the grids of its own puzzles."""
    _, held_out = task.split_scans(0)
    rng, cells, digits = random.Random("judge"), list[NDArray[np.float32]](), list[int]()
    for _ in range(2000):
        puzzle = task.draw_puzzle(rng, rng.choice(task.LEVELS))
        cells += _cells(task.render(puzzle, held_out, rng))
        digits += puzzle.digits
    networks = [MLPClassifier((256,), alpha=0.1, max_iter=20, random_state=seed) for seed in (0, 1)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # they are stopped early: they shall not be too sure
        return [network.fit(np.array(cells), digits) for network in networks]


def _cells(image: Image.Image) -> list[NDArray[np.float32]]:
    """Each cell's ink, row by row. [SIDE * SIDE]"""
    ink = np.asarray(image.convert("L"), dtype=np.float32) / 255
    rows, columns = ink.shape[0] // task.CELL, ink.shape[1] // task.CELL
    step = task.CELL // SIDE
    return [
        ink[row * task.CELL :, column * task.CELL :][: task.CELL, : task.CELL]
        .reshape(SIDE, step, SIDE, step)
        .mean((1, 3))
        .ravel()
        for row in range(rows)
        for column in range(columns)
    ]


def judge(body: dict[str, Any]) -> str:
    image, text = _last_turn(body)
    case = json.loads(text)
    if "statement" not in case:
        is_same = str(case["candidate"]).strip() in [str(one).strip() for one in case["references"]]
        return json.dumps({"verdict": "yes" if is_same else "no"})
    stated = re.fullmatch(rf"([{task.LETTERS}]) ({'|'.join(task.DIGIT_NAMES)})", case["statement"].strip())
    cells = _cells(Image.open(io.BytesIO(image)))
    if not stated or task.LETTERS.index(stated[1]) >= len(cells):
        return json.dumps({"verdict": "unclear"})
    cell, digit = [cells[task.LETTERS.index(stated[1])]], task.DIGIT_NAMES.index(stated[2])
    likely = np.mean([reader.predict_proba(cell)[0][digit] for reader in _readers()])
    return json.dumps({"verdict": "no" if likely < SURE else "yes" if likely > LIKELY else "unclear"})


def _last_turn(body: dict[str, Any]) -> tuple[bytes, str]:
    """Its picture, empty if there is none, and its text."""
    image, text = b"", ""
    for part in body["messages"][-1]["content"]:
        if part["type"] == "text":
            text = part["text"]
        else:
            image = base64.b64decode(part["image_url"]["url"].partition(",")[2])
    return image, text


class Api:
    """Chat completions, an ASGI app."""

    def __init__(self, answer: Callable[[dict[str, Any]], str]) -> None:
        self._answer = answer

    async def __call__(self, scope: Mapping[str, Any], receive: Any, send: Any) -> None:
        raw, more = b"", True
        while more:
            message = await receive()
            raw, more = raw + message.get("body", b""), message.get("more_body", False)
        status, told = 200, {"status": "ok"}
        if scope["method"] == "POST":
            told = self._complete(json.loads(raw))
        body = json.dumps(told).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _complete(self, body: dict[str, Any]) -> dict[str, Any]:
        text = self._answer(body)
        asked = [part for message in body["messages"] for part in message["content"]]
        sent = sum(len(part["text"]) // 4 if part["type"] == "text" else 300 for part in asked)
        usage = {"prompt_tokens": sent, "completion_tokens": len(text) // 4 + 1}
        usage["total_tokens"] = sum(usage.values())
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return {"model": body["model"], "choices": [choice], "usage": usage}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("which", choices=["teacher", "judge"])
    parser.add_argument("--rows", type=Path, help="JSON Lines of the prompts that the teacher knows")
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args()
    if options.which == "teacher":
        app = Api(make_teacher(options.rows))
    else:
        _readers()
        app = Api(judge)
    uvicorn.run(app, port=options.port, log_level="warning", lifespan="off")


if __name__ == "__main__":
    main()
