"""Samples as they are kept: one JSON line each, and found again by what was asked, never by where they stand."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from prism.errors import DataError
from prism.files import append_json, read_jsonl

Status = Literal["ok", "truncated", "refused", "unparsed", "failed"]
STATUSES: tuple[Status, ...] = ("ok", "truncated", "refused", "unparsed", "failed")
View = Literal["seen", "blank"]
"""Which pictures: the question's own, or white ones."""


class Key(NamedTuple):
    """What a sample answers."""

    question: str
    sample: int
    view: View
    request: str
    """sha256 of all that was asked: texts, pictures, sampling, model."""


class Sample(BaseModel):
    """A line of ``samples.jsonl``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    benchmark: str
    question: str
    sample: int
    view: View
    request: str
    status: Status
    detail: str = ""
    response: str | None = None
    finish_reason: str | None = None
    gold: str
    extracted: str | None = None
    right: bool | None = None
    """What the rule says; null unless the status is ok."""
    prompt_tokens: int | None = None
    tokens: int | None = None
    image_sizes: list[tuple[int, int]] = []
    """Width and height of each picture as it was sent."""
    images: list[str] = []
    """sha256 of each, under ``images/``."""
    model: str
    """The name that was asked for; ``served`` is what the server called it."""
    served: str | None = None
    policy_version: int | None = None
    sampling: dict[str, Any]
    prompt_version: str
    scorer_version: str
    against: str
    """sha256 of what the rule compared with: a gold answer that was corrected is compared again."""
    seconds: float | None = None
    time: float

    @property
    def key(self) -> Key:
        return Key(self.question, self.sample, self.view, self.request)


class Verdict(BaseModel):
    """A line of ``verdicts.jsonl``: what the judge said of an answer."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    benchmark: str
    question: str
    sample: int
    view: View
    asked: str
    """sha256 of all that the judge was asked: model, version, question, reference, answer."""
    status: Literal["ok", "failed"]
    verdict: Literal["correct", "incorrect", "unclear"] | None = None
    detail: str = ""
    judge: str
    judge_version: str
    time: float


def digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


class Store:
    """What one benchmark has in its folder."""

    def __init__(self, folder: Path) -> None:
        """Raises DataError for lines that are no samples."""
        self._samples, self._verdicts = folder / "samples.jsonl", folder / "verdicts.jsonl"
        self.samples: dict[Key, Sample] = {one.key: one for one in _read(self._samples, Sample)}
        self.verdicts: dict[str, Verdict] = {one.asked: one for one in _read(self._verdicts, Verdict)}

    def add(self, *samples: Sample) -> None:
        append_json(self._samples, *(one.model_dump(mode="json") for one in samples), ensure_ascii=False)
        self.samples |= {one.key: one for one in samples}

    def add_verdicts(self, *verdicts: Verdict) -> None:
        append_json(self._verdicts, *(one.model_dump(mode="json") for one in verdicts), ensure_ascii=False)
        self.verdicts |= {one.asked: one for one in verdicts}


def read_samples(folder: Path) -> Iterable[Sample]:
    """The newest of each key. Raises DataError."""
    return {one.key: one for one in _read(folder / "samples.jsonl", Sample)}.values()


def read_verdicts(folder: Path) -> Iterable[Verdict]:
    """Raises DataError."""
    return {one.asked: one for one in _read(folder / "verdicts.jsonl", Verdict)}.values()


def _read(path: Path, kind: type[Any]) -> list[Any]:
    out: list[Any] = []
    for number, record in enumerate(read_jsonl(path), 1):
        try:
            out.append(kind.model_validate(record))
        except ValidationError as error:
            raise DataError(
                f"{path}: record {number} is no {kind.__name__.lower()} of this version ({error.errors()[0]['loc']}): "
                "name another folder as out, or add --fresh"
            ) from None
    return out
