"""Raw results: a compressed file for each step of each arm and seed, one JSON line a question.

The first line says what it is of: the plan's hash, the data's fingerprint, arm's steps, N, seed, size. A question's
line holds short keys (``Answered``), so that the whole study is a few MB.
"""

import gzip
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from configs.effect.plan import Plan
from prism.errors import DataError
from prism.files import write_bytes

SUFFIX = ".jsonl.gz"


@dataclass(frozen=True)
class About:
    """What a file of results is of."""

    plan: str
    """The plan's hash."""
    data: str
    """The fingerprint of model and data."""
    size: str
    path: str
    """The steps so far, joined by ``+``."""
    texts: int | None
    seed: int
    samples: int
    """Responses to each question at temperature 1."""
    figures: dict[str, Any]
    """Of the training that led here."""


@dataclass(frozen=True)
class Answered:
    """One question. ``n`` is About.samples."""

    split: str
    id: str
    family: int
    greedy: int
    """1 if the greedy response is right."""
    f1: float
    """Of the greedy caption's facts."""
    right: int
    """Of the n responses."""
    seen: int
    """Of the n responses: those with all facts right and none wrong."""
    seen_right: int
    """Of these, those whose answer is right."""
    formed: int
    """Of the n responses, the well-formed ones."""
    tokens: float
    """Of a response, in the mean."""
    entropy: float
    """Nats a token, in the mean over the n responses' tokens."""
    kl: float
    """Nats a response: the mean of log π(y) - log π_base(y) over sampled y, an unbiased estimate of the KL to the
    policy before SFT."""


@dataclass(frozen=True)
class Results:
    about: About
    answers: list[Answered]

    def values(self, split: str, name: str) -> NDArray[np.float64]:
        """[questions] in the order of their ids."""
        return np.array([getattr(a, name) for a in self.of_split(split)], dtype=np.float64)

    def of_split(self, split: str) -> list[Answered]:
        return sorted((a for a in self.answers if a.split == split), key=lambda a: a.id)


NAMES = [field.name for field in fields(Answered)]


def write_results(file: Path, about: About, answers: Sequence[Answered]) -> None:
    """The same results are the same bytes."""
    held = io.BytesIO()
    with gzip.GzipFile(fileobj=held, mode="wb", mtime=0) as packed:
        lines = [asdict(about) | {"columns": NAMES}, *([_short(getattr(a, name)) for name in NAMES] for a in answers)]
        packed.write("".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines).encode())
    write_bytes(file, held.getvalue())


def _short(value: Any) -> Any:
    return round(value, 4) if isinstance(value, float) else value


def read_results(file: Path) -> Results:
    """Raises DataError for a file that holds no results."""
    try:
        first, *lines = gzip.decompress(file.read_bytes()).decode().splitlines()
        head = json.loads(first)
        columns = head.pop("columns")
        answers = [Answered(**dict(zip(columns, json.loads(line), strict=True))) for line in lines]
        return Results(About(**head), answers)
    except (OSError, EOFError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{file} holds no results of the study: {error}") from None


def load_all(folder: Path, plan: Plan, size: str) -> list[Results]:
    """Of one size. Raises DataError for results of another plan, or of two kinds of data: they cannot be compared."""
    found = [read_results(file) for file in sorted(folder.glob(f"*{SUFFIX}"))]
    other = [result.about for result in found if result.about.plan != plan.sha256]
    if other:
        raise DataError(
            f"{len(other)} of {len(found)} results in {folder} are of another plan ({other[0].plan[:12]}, this one is "
            f"{plan.sha256[:12]}), such as {other[0].path} of seed {other[0].seed}: results are reported with the plan "
            "that was committed before they were made"
        )
    of_size = [result for result in found if result.about.size == size]
    if len(data := {result.about.data for result in of_size}) > 1:
        raise DataError(f"results in {folder} are of {len(data)} different data sets or models: one study has one")
    return of_size
