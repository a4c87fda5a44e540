"""Pairs of responses to one prompt that people can vote on, out of what runs have kept. No server is needed."""

import hashlib
import itertools
import json
import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from prism.report.reading import read_lines
from prism.report.records import AnsweredPrompt, ScoreRecord
from prism.services.console.runs import rollouts
from prism.wire.messages import well_formed

Source = Literal["answers", "rollouts", "asked"]
TEACHER = "teacher"
STEPS = 6  # of rollouts, drawn at random, that are read for one pair


@dataclass(frozen=True)
class Side:
    """A response and whose it is."""

    name: str
    """Such as ``demo after align``."""
    version: int | None
    """Of the policy; None for the teacher."""
    text: str
    judge: str
    """The run whose experts gave the scores."""
    scores: list[dict[str, Any]]
    """expert, version, status, and value, which is None unless the status is ok."""


@dataclass(frozen=True)
class Pair:
    source: Source
    run: str
    """In whose blobs the pictures are."""
    question: str
    gold: str | None
    images: list[str]
    one: Side
    other: Side

    @property
    def prompt(self) -> str:
        return digest(self.question, self.images)

    @property
    def key(self) -> str:
        """The same whichever way round."""
        sides = sorted((side.name, side.text) for side in (self.one, self.other))
        return digest(self.question, self.images, sides)


def digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, ensure_ascii=True).encode()).hexdigest()


def of_answers(root: Path, runs: Sequence[str]) -> list[Pair]:
    """Held-out answers to the same question after other stages, of other runs, and the teacher's.

    Texts that are the same to the letter are no pair.
    """
    by_prompt: defaultdict[str, dict[str, tuple[str, AnsweredPrompt]]] = defaultdict(dict)
    for run in runs:
        for sample in read_lines(root / run / "samples.jsonl", AnsweredPrompt.model_validate, []):
            # The newest answer counts where a stage was evaluated again.
            by_prompt[digest(sample.question, sample.images)][f"{run} after {sample.stage}"] = run, sample
    found: list[Pair] = []
    for answers in by_prompt.values():
        for (name, (run, sample)), (name2, (run2, sample2)) in itertools.combinations(answers.items(), 2):
            found += _pair("answers", run, sample, _answer(name, run, sample), _answer(name2, run2, sample2))
        for name, (run, sample) in answers.items():
            if sample.teacher:
                teacher = Side(TEACHER, None, as_text(sample.teacher), run, _scores(sample.teacher_scores))
                found += _pair("answers", run, sample, _answer(name, run, sample), teacher)
    return found


def of_rollouts(root: Path, runs: Sequence[str], chance: random.Random) -> list[Pair]:
    """Responses of one group, which one version of each expert scored in one call: of a few steps drawn at random."""
    kept = [
        (run, stage, step) for run in runs for stage, steps in rollouts.stages(root / run).items() for step in steps
    ]
    found: list[Pair] = []
    for run, stage, step in chance.sample(kept, min(STEPS, len(kept))):
        read = rollouts.read_step(root / run, stage, step)
        for group in read.groups if read else ():
            question = as_text("\n".join(group.prompt_texts))
            sides = [
                Side(f"{run} in {stage}", group.policy_version, as_text(sample.text), run, _kept_scores(sample.scores))
                for sample in group.samples
            ]
            gold = None if group.gold is None else as_text(group.gold)
            found += [
                Pair("rollouts", run, question, gold, group.images, one, other)
                for one, other in itertools.combinations(sides, 2)
                if one.text != other.text
            ]
    return found


def as_json(side: Side) -> dict[str, Any]:
    return asdict(side)


def _pair(source: Source, run: str, sample: AnsweredPrompt, one: Side, other: Side) -> list[Pair]:
    if one.text == other.text:
        return []
    gold = None if sample.gold is None else as_text(sample.gold)
    return [Pair(source, run, as_text(sample.question), gold, sample.images, one, other)]


def _answer(name: str, run: str, sample: AnsweredPrompt) -> Side:
    return Side(name, sample.policy_version, as_text(sample.response), run, _scores(sample.scores))


def _scores(given: Iterable[ScoreRecord]) -> list[dict[str, Any]]:
    return [{"expert": s.expert, "version": s.version, "status": s.status, "value": s.value} for s in given]


def _kept_scores(given: Iterable[rollouts.Score]) -> list[dict[str, Any]]:
    return [{"expert": s.expert, "version": s.expert_version, "status": s.status, "value": s.value} for s in given]


def as_text(text: str) -> str:
    """As a database can hold it."""
    return well_formed(text).replace("\x00", "\ufffd")
