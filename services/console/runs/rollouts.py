"""Rollouts that a run has kept, found by what they were like. (``trainer/flow/rollout_log.py`` writes them.)"""

import gzip
import itertools
import time
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

FOUND = 60  # groups that a search gives at most
SEARCH_SECONDS = 5.0
FILTERS = {
    "wrong": "a response is wrong",
    "flat": "all responses are alike",
    "truncated": "a response was cut off",
    "unjudged": "a score or verdict is missing",
    "disagree": "the experts disagree",
    "hacking": "an expert likes best what is wrong",
}
GAPS, ENTROPIES, ADVANTAGES = (0.01, 0.05, 0.2, 0.5), (0.1, 0.5, 1.0, 2.0), (0.0, 0.5, 1.5)
"""From which on a token is painted by the next of its colours."""


class Kept(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class Score(Kept):
    expert: str
    status: str
    value: float | None = None
    expert_version: int = 0
    detail: str = ""


class Verdict(Kept):
    status: str
    accuracy: float | None = None
    reward: float | None = None
    extracted: str = ""
    detail: str = ""


class Sample(Kept):
    """A response."""

    text: str
    finish_reason: str = ""
    versions: list[tuple[int, int]] = []
    """(policy version, tokens that it sampled), in order; empty in logs of older versions of PRISM."""
    token_count: int = 0
    tokens: list[str] = []
    logprobs: list[float | None] = []
    learner_logprobs: list[float | None] | None = None
    entropies: list[float | None] | None = None
    advantage: float | None = None
    """None where it was not learnt from."""
    scores: list[Score] = []
    verdict: Verdict | None = None

    def score(self, expert: str) -> float | None:
        return next((score.value for score in self.scores if score.expert == expert), None)


class Group(Kept):
    """A prompt and its responses."""

    prompt_id: str
    position: int = 0
    messages: list[dict[str, Any]] = []
    images: list[str] = []
    gold: str | None = None
    teacher: str | None = None
    teacher_scores: list[Score] = []
    policy_version: int
    worker: str = ""
    generate_seconds: float | None = None
    judge_seconds: float | None = None
    samples: list[Sample]

    @cached_property
    def prompt_texts(self) -> list[str]:
        parts = [part for message in self.messages for part in message.get("parts", ()) if isinstance(part, dict)]
        return [part["text"] for part in parts if isinstance(part.get("text"), str)]

    @property
    def newest(self) -> int:
        """The newest policy version that sampled a token of it; ``policy_version`` is the oldest."""
        return max([self.policy_version, *(version for sample in self.samples for version, _ in sample.versions)])

    def sampled_by(self, sample: Sample) -> str:
        """Which policy versions sampled which tokens of a response, counted from 0; empty where one sampled all of the
        group's."""
        if self.newest == self.policy_version or not sample.versions:
            return ""
        if len(sample.versions) == 1:
            return f"version {sample.versions[0][0]}"
        ends = itertools.accumulate(tokens for _, tokens in sample.versions)
        spans = (
            f"{version} ({end - tokens}–{end - 1})"
            for (version, tokens), end in zip(sample.versions, ends, strict=True)
        )
        return f"versions {', '.join(spans)}"

    @property
    def reward(self) -> float | None:
        """The mean of those that are known."""
        known = [s.verdict.reward for s in self.samples if s.verdict and s.verdict.reward is not None]
        return fmean(known) if known else None

    @property
    def is_flat(self) -> bool:
        """It teaches nothing: no advantage, or the same reward throughout."""
        known = [sample.advantage for sample in self.samples if sample.advantage is not None]
        if known:
            return not any(known)
        rewards = [sample.verdict.reward if sample.verdict else None for sample in self.samples]
        return len(rewards) > 1 and rewards[0] is not None and len(set(rewards)) == 1

    @property
    def is_wrong(self) -> bool:
        return any(_accuracy(sample) not in (None, 1) for sample in self.samples)

    @property
    def is_truncated(self) -> bool:
        return any(sample.finish_reason == "length" for sample in self.samples)

    @property
    def lacks_judgement(self) -> bool:
        graded = any(sample.verdict for sample in self.samples)
        scored = {score.expert for sample in self.samples for score in sample.scores}
        return any(
            (graded and _accuracy(sample) is None) or any(sample.score(expert) is None for expert in scored)
            for sample in self.samples
        )

    @property
    def experts(self) -> list[str]:
        return sorted({score.expert for sample in self.samples for score in sample.scores})

    @property
    def experts_disagree(self) -> bool:
        """Of pairs of responses, more are ordered the other way round by two experts than the same way."""
        for one, other in itertools.combinations(self.experts, 2):
            pairs = [
                (a, b)
                for sample in self.samples
                if (a := sample.score(one)) is not None and (b := sample.score(other)) is not None
            ]
            signs = [(a - c) * (b - d) for (a, b), (c, d) in itertools.combinations(pairs, 2)]
            if sum(sign < 0 for sign in signs) > sum(sign > 0 for sign in signs):
                return True
        return False

    def liked_and_wrong(self) -> list[int]:
        """Wrong responses that an expert likes better than all right ones, of which there must be one."""
        found: set[int] = set()
        for expert in self.experts:
            scored = [
                (value, n) for n, sample in enumerate(self.samples) if (value := sample.score(expert)) is not None
            ]
            right = [value for value, n in scored if _accuracy(self.samples[n]) == 1]
            if right:
                found |= {
                    n for value, n in scored if _accuracy(self.samples[n]) not in (None, 1) and value > max(right)
                }
        return sorted(found)

    def is_like(self, kind: str) -> bool:
        """``kind``: one of FILTERS, or nothing."""
        match kind:
            case "wrong":
                return self.is_wrong
            case "flat":
                return self.is_flat
            case "truncated":
                return self.is_truncated
            case "unjudged":
                return self.lacks_judgement
            case "disagree":
                return self.experts_disagree
            case "hacking":
                return bool(self.liked_and_wrong())
            case _:
                return True

    def says(self, words: list[str]) -> bool:
        """Whether all ``words``, in lower case, are in its prompt, gold, teacher's response or responses."""
        texts = [self.prompt_id, *self.prompt_texts, self.gold or "", self.teacher or ""]
        text = "\n".join([*texts, *(sample.text for sample in self.samples)]).lower()
        return all(word in text for word in words)


class Step(Kept):
    stage: str
    step: int
    version: int
    """Of the policy that learnt from it."""
    attempt: int = 0
    groups: list[Group]


@dataclass(frozen=True)
class Found:
    stage: str
    step: int
    number: int
    group: Group


@dataclass(frozen=True)
class Token:
    """A token with the class of colour that each way to paint gives it, and what stands beside it."""

    text: str
    gap: str
    entropy: str
    advantage: str
    said: str


def stages(folder: Path) -> dict[str, list[int]]:
    """Steps that were kept, ascending, of each stage in the order in which they were written."""
    found: dict[str, list[int]] = {}
    for file in sorted(folder.glob("rollouts/*/*.json.gz")):
        if (number := file.name.split(".")[0]).isdecimal():
            found.setdefault(file.parent.name, []).append(int(number))
    return dict(sorted(found.items(), key=lambda item: _written(folder, item[0], item[1][0])))


def read_step(folder: Path, stage: str, step: int) -> Step | None:
    """None if it is not there, or cannot be read. ``stage``: one of ``stages``."""
    try:
        data = gzip.decompress(_file(folder, stage, step).read_bytes())
        return Step.model_validate_json(data)
    except (OSError, EOFError, zlib.error, ValidationError):
        return None


def search(folder: Path, kind: str, text: str, stage: str = "") -> tuple[list[Found], int]:
    """Groups that fit, the newest first, and how many steps were looked at until there were enough, or time was up."""
    words = text.lower().split()
    until = time.monotonic() + SEARCH_SECONDS
    found: list[Found] = []
    looked = 0
    for name, steps in reversed(stages(folder).items()):
        for number in reversed(steps if name == stage or not stage else []):
            if len(found) >= FOUND or time.monotonic() > until:
                return found[:FOUND], looked
            looked += 1
            if kept := read_step(folder, name, number):
                groups = enumerate(kept.groups)
                found += [Found(name, number, n, g) for n, g in groups if g.is_like(kind) and g.says(words)]
    return found[:FOUND], looked


def strip(sample: Sample) -> list[Token]:
    """Its tokens, those whose figures were kept."""
    found: list[Token] = []
    advantage = sample.advantage or 0.0
    sign = "p" if advantage > 0 else "m"
    painted = f"{sign}{level}" if (level := _level(abs(advantage), ADVANTAGES)) else ""
    for n, text in enumerate(sample.tokens):
        sampler, learner, entropy = (
            values[n] if values and n < len(values) else None
            for values in (sample.logprobs, sample.learner_logprobs, sample.entropies)
        )
        gap = abs(sampler - learner) if sampler is not None and learner is not None else None
        named = (("log-probability", sampler), ("learner's", learner), ("entropy", entropy))
        said = ", ".join(f"{name} {value:.3f}" for name, value in named if value is not None)
        found.append(Token(text, _tone(gap, GAPS), _tone(entropy, ENTROPIES), painted, said))
    return found


def _tone(value: float | None, bounds: tuple[float, ...]) -> str:
    return f"t{level}" if value is not None and (level := _level(value, bounds)) else ""


def _level(value: float, bounds: tuple[float, ...]) -> int:
    return sum(value > bound for bound in bounds)


def _accuracy(sample: Sample) -> float | None:
    return sample.verdict.accuracy if sample.verdict else None


def _file(folder: Path, stage: str, step: int) -> Path:
    return folder / "rollouts" / stage / f"{step:08d}.json.gz"


def _written(folder: Path, stage: str, step: int) -> float:
    try:
        return _file(folder, stage, step).stat().st_mtime
    except OSError:  # dropped meanwhile
        return 0.0
