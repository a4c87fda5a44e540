"""Samples of evaluations, read once and kept while their files stay as they are."""

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from prism.evaluation.suite.figures import SCORERS
from prism.evaluation.suite.run import scorer_of
from prism.evaluation.suite.samples import STATUSES, View
from prism.evaluation.suite.show import Shown, select
from prism.evaluation.suite.table import Cell, score_cell

KEPT = 20_000  # samples in memory, of all benchmarks that were looked at last
FILES = ("samples.jsonl", "questions.json", "verdicts.jsonl")
VERDICTS = ("right", "wrong", "masked")
__all__ = ["STATUSES", "VERDICTS", "Figures", "Wanted", "called", "figures", "matching", "samples"]


@dataclass(frozen=True)
class Wanted:
    """Which samples; what is empty asks for nothing."""

    status: str = ""
    verdict: str = ""
    words: str = ""
    question: str = ""
    sample: int | None = None

    def fits(self, shown: Shown) -> bool:
        one, question = shown.sample, shown.question
        if self.question and (one.question != self.question or self.sample not in (None, one.sample)):
            return False
        if (self.status and one.status != self.status) or (self.verdict and called(shown) != self.verdict):
            return False
        asked = (question.asked or question.text) if question else ""
        text = "\n".join((one.question, asked, one.response or "", one.gold, one.extracted or "")).lower()
        return all(word in text for word in self.words.lower().split())


def called(shown: Shown) -> str:
    """What the rule says of a sample: one of VERDICTS."""
    return {True: "right", False: "wrong", None: "masked"}[shown.sample.right]


def samples(folder: Path, benchmark: str, view: View) -> list[Shown]:
    """The newest of each question. Raises ConfigError where there are none, DataError for files of another version."""
    key = (folder, benchmark, view)
    stamp = [_stamp(folder / benchmark / name) for name in FILES]
    with _lock:
        if key in _kept and _kept[key][0] == stamp:
            _kept.move_to_end(key)
            return _kept[key][1]
    found = list(select(folder, benchmark, view=view))
    with _lock:
        _kept[key] = stamp, found
        _kept.move_to_end(key)
        while len(_kept) > 1 and sum(len(shown) for _, shown in _kept.values()) > KEPT:
            _kept.popitem(last=False)
    return found


@dataclass(frozen=True)
class Figures:
    """Of one benchmark, in %, as tables have them."""

    benchmark: str
    headline: str
    scores: dict[str, Cell]
    """By scorer, and with a blank picture."""
    responses: int
    statuses: str


def figures(result: dict[str, Any]) -> list[Figures]:
    """What an evaluation's ``result.json`` says; nothing where it says something else."""
    found: list[Figures] = []
    try:
        for name, one in result.get("benchmarks", {}).items():
            seen = one["views"]["seen"]
            scores = {who.replace("_", " "): score_cell(one, "seen", who) for who in SCORERS if who in seen["scores"]}
            scores["blank picture"] = score_cell(one, "blank", scorer_of(result))
            statuses = ", ".join(f"{count} {status}" for status, count in seen["statuses"].items() if count)
            found.append(Figures(name, str(one["headline"]), scores, int(seen["responses"]), statuses))
    except (AttributeError, KeyError, TypeError, ValueError):
        return []
    return found


def matching(found: list[Shown], wanted: Wanted) -> list[Shown]:
    return [shown for shown in found if wanted.fits(shown)]


def _stamp(file: Path) -> tuple[int, int] | None:
    try:
        known = file.stat()
    except OSError:
        return None
    return known.st_size, known.st_mtime_ns


_kept: OrderedDict[tuple[Path, str, View], tuple[object, list[Shown]]] = OrderedDict()
_lock = Lock()
