"""A stage that learns nothing says why and ends: consecutive steps that taught a learner nothing, and the reasons.

An *empty* step holds nothing to learn from: no response with a valid format, no verdict, no score, no pair. Three in a
row are a fault of model, data or services. A *flat* step taught nothing, but might have: some group could be compared,
and its rewards were all equal. Rare success makes such steps by chance, so more of them are borne.

Updates that are skipped because they are not finite are neither: they have a limit of their own, ``max_skipped``.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prism.config import AlignConfig, RlvrConfig
from prism.errors import NothingLearntError
from prism.trainer.flow.intake import POLICY, Intake
from prism.trainer.learn import ranks
from prism.trainer.learn.not_finite import keep_groups
from prism.trainer.learn.policy_learner import TrainingSample
from prism.trainer.stages.context import Context
from prism.wire.response import EXPERTS
from prism.wire.v1 import rollout_pb2 as pb

FOLDER = "nothing-learnt"
# Figure of a step -> what it counts, and what to do about it.
REASONS = {
    "malformed_samples": ("samples without a valid format", "teach the format by SFT first"),
    "truncated_samples": ("samples cut off", "raise rollouts.max_tokens"),
    "unparseable_golds": ("samples whose gold answer the grader cannot read", "mend gold or kind of their rows"),
    "unreadable_samples": (
        "samples whose answer cannot be read, which grader.unparseable masks",
        "teach the answer's form by SFT, or see grader.extract",
    ),
    "unjudged_samples": ("samples without a verdict", "the grader's log says why"),
    "masked_samples": ("samples of a valid format without a score", "the experts' logs say why"),
    "unplaceable_samples": ("samples that begin with an image's token", "teach the policy by SFT to write none"),
    "dropped_groups": ("groups with fewer than two samples to compare", "see their samples"),
    "undecided_groups": ("groups whose answers are all right or all wrong", "take harder or easier prompts, or more n"),
    "flat_groups": ("groups whose rewards are all equal", "raise n or temperature, or take other prompts"),
    "lost_groups": ("groups lost", "the reason stands with each in the run's dead letters"),
}


@dataclass
class Streak:
    """Consecutive steps of one kind."""

    steps: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    """Of samples, groups and REASONS over these steps."""

    def add(self, figures: Mapping[str, Any], *, goes_on: bool) -> None:
        if not goes_on:
            self.steps = 0
            self.counts.clear()
            return
        self.steps += 1
        self.counts.update({name: figures.get(name) or 0 for name in ("samples", "groups", *REASONS)})


class EmptySteps:
    """Counts a stage's steps that taught nothing, and ends it. Figures are of all ranks, so all ranks agree.

    ``state`` belongs into the checkpoint: however often a run is started again, the limit is the same.
    """

    def __init__(self, stage: AlignConfig | RlvrConfig) -> None:
        self._stage = stage
        self._streaks: dict[str, Streak] = {}

    def policy(self, samples: Sequence[TrainingSample], figures: Mapping[str, Any]) -> dict[str, int]:
        """Count a step of the policy, which was given ``samples``; returns the two counts as figures."""
        taught = any(sample.advantage for sample in samples)
        # In alignment a group that is compared has a scored sample; for RLVR one that breaks the format has a verdict.
        comparable = figures["undecided_groups" if isinstance(self._stage, RlvrConfig) else "flat_groups"] > 0
        empty, flat = self._streak(POLICY), self._streak("flat")
        empty.add(figures, goes_on=not taught and not comparable)
        flat.add(figures, goes_on=not taught)
        return {"empty_steps": empty.steps, "flat_steps": flat.steps}

    def expert(self, expert: str, figures: Mapping[str, Any], *, warming_up: bool) -> None:
        """Count a step of an expert: empty without a pair, whatever was done with those it had."""
        self._streak(expert).add(figures, goes_on=figures[f"{expert}_loss"] is None)
        self._streak(f"{expert} idle").add(figures, goes_on=warming_up and not figures[f"{expert}_updated"])

    def end_if_nothing_learnt(
        self, context: Context, intake: Intake, step: int, version: int, groups: Sequence[pb.RolloutGroup]
    ) -> None:
        """After step ``step`` (0-based) was recorded and before it is saved. Raises NothingLearntError.

        ``groups`` are all that were sampled for the step, on the first rank.
        """
        found = self._found(step)
        if not found:
            return
        file = context.config.run_dir / FOLDER / f"{context.stage}-{step + 1:06d}.jsonl"
        if ranks.is_first():
            keep_groups(context.config.run_dir, context.stage, step + 1, groups, folder=FOLDER)
            # No checkpoint holds the groups of these steps. Without them a resume samples their prompts anew, and does
            # not end at what a service that has been mended since said of them.
            intake.acknowledgement()()
        streak, reason = self._streak(found[0]), self._reason(found[0])
        counts = streak.counts
        began = step + 2 - streak.steps
        steps = f"step {began}" if streak.steps == 1 else f"steps {began} to {step + 1}"
        lines = [f"  {counts[name]} {what}: {do}" for name, (what, do) in self._reasons().items() if counts[name]]
        raise NothingLearntError(
            f"stage {context.stage}: {' and '.join(map(_who, found))} learnt nothing in {steps} ({reason}). Of "
            f"{counts['samples']} samples in {counts['groups']} groups:\n"
            + "\n".join(lines or ["  nothing was wrong with any of them"])
            + f"\nThe last step's groups are in {file}. The policy is at version {version}; the same command goes on "
            "from the last checkpoint."
        )

    def state(self) -> dict[str, Any]:
        """For ``restore``."""
        return {name: {"steps": s.steps, "counts": dict(s.counts)} for name, s in self._streaks.items() if s.steps}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._streaks = {name: Streak(s["steps"], Counter(s["counts"])) for name, s in state.items()}

    def _found(self, step: int) -> list[str]:
        """The streaks that end the stage, those of the same steps alone, the policy's first."""
        at = self._stage.warmup_steps if isinstance(self._stage, AlignConfig) else 0
        limits = {POLICY: self._stage.max_empty_steps, "flat": self._stage.max_flat_steps}
        limits |= dict.fromkeys(EXPERTS, self._stage.max_empty_steps)
        if step == at - 1:
            limits |= {f"{expert} idle": at for expert in EXPERTS}
        over = [name for name, limit in limits.items() if self._streak(name).steps >= limit]
        return [name for name in over if self._streak(name) == self._streak(over[0])]

    def _reason(self, name: str) -> str:
        if name.endswith("idle"):
            return "the warm-up: experts that know nothing teach nothing"
        key = "max_flat_steps" if name == "flat" else "max_empty_steps"
        return f"{key} = {getattr(self._stage, key)}"

    def _reasons(self) -> dict[str, tuple[str, str]]:
        """Those of the stage's kind. (To the grader all that is malformed is 0: such groups are flat as well.)"""
        other = ("masked_samples", "flat_groups") if isinstance(self._stage, RlvrConfig) else ()
        return {name: words for name, words in REASONS.items() if name not in other}

    def _streak(self, name: str) -> Streak:
        return self._streaks.setdefault(name, Streak())


def _who(streak: str) -> str:
    name = streak.removesuffix(" idle")
    return f"the {name} expert" if name in EXPERTS else "the policy"
