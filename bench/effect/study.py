"""The results of a study by arm, N and seed, and the figures that tables and plots are made of."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bench.effect.results import Results
from bench.effect.statistics import Difference, paired_bootstrap, pass_at
from configs.effect.plan import ArmPlan, Contrast, Plan

Figure = Callable[[Results], float | None]


@dataclass(frozen=True)
class ArmResults:
    """An arm at one N: its results of all seeds that are there, by seed."""

    name: str
    arm: ArmPlan
    texts: int | None
    seeds: dict[int, Results]

    def mean(self, figure: Figure) -> tuple[float, float] | None:
        """Mean and standard deviation over seeds; None where no seed has the figure."""
        known = [value for result in self.seeds.values() if (value := figure(result)) is not None]
        if not known:
            return None
        return float(np.mean(known)), float(np.std(known, ddof=1)) if len(known) > 1 else float("nan")


class Study:
    """All results of the plan's seeds, by steps, N and seed."""

    def __init__(self, plan: Plan, results: Sequence[Results]) -> None:
        self.plan = plan
        self._by_path: dict[tuple[str, int | None], dict[int, Results]] = defaultdict(dict)
        for result in results:
            about = result.about
            if about.path == "base" or about.seed in plan.seeds:
                self._by_path[about.path, about.texts][about.seed] = result

    def at(self, steps: Sequence[str], texts: int | None) -> dict[int, Results]:
        """By seed. Before a step learns from the teacher, N does not matter."""
        taught = any(self.plan.steps[step].teacher for step in steps)
        return self._by_path.get(("+".join(steps) or "base", texts if taught else None), {})

    def arms(self, kind: str) -> list[ArmResults]:
        """Those with a result, by the plan's order and N."""
        found = [
            ArmResults(name, arm, texts, self.at(arm.steps, texts))
            for name, arm in self.plan.arms.items()
            if arm.kind == kind
            for texts in (arm.texts or [None])
        ]
        return [arm for arm in found if arm.seeds]

    def differences(self, contrast: Contrast, texts: int) -> Difference | None:
        """None unless both arms have a seed in common."""
        one, other = (self.at(self.plan.arms[arm].steps, texts) for arm in (contrast.arm, contrast.against))
        seeds = sorted(one.keys() & other.keys())
        if not seeds:
            return None
        splits = [
            np.array([_shares(one[seed], split) - _shares(other[seed], split) for seed in seeds])
            for split in self.plan.statistics.splits
        ]
        of = self.plan.statistics
        return paired_bootstrap(splits, resamples=of.resamples, level=of.level, seed=of.seed)


def _shares(results: Results, split: str) -> NDArray[np.float64]:
    """[questions] accuracy at temperature 1."""
    return results.values(split, "right") / results.about.samples


def t1(results: Results, splits: Sequence[str]) -> float:
    """Accuracy at temperature 1, the mean of the splits."""
    return float(np.mean([_shares(results, split).mean() for split in splits]))


def accuracy(split: str) -> Figure:
    return lambda results: _or_none(_shares(results, split))


def greedy(split: str) -> Figure:
    return lambda results: _or_none(results.values(split, "greedy"))


def passing(split: str, k: int) -> Figure:
    def figure(results: Results) -> float | None:
        right = results.values(split, "right").astype(int)
        return _or_none(pass_at(k, right, results.about.samples)) if k <= results.about.samples else None

    return figure


def mean_of(split: str, name: str) -> Figure:
    return lambda results: _or_none(results.values(split, name))


def right_when_seen(split: str) -> Figure:
    """Accuracy of the responses whose captions are right in full."""

    def figure(results: Results) -> float | None:
        seen = results.values(split, "seen").sum()
        return float(results.values(split, "seen_right").sum() / seen) if seen else None

    return figure


def figure_of_training(name: str) -> Figure:
    return lambda results: results.about.figures.get(name)


def _or_none(values: NDArray[np.float64]) -> float | None:
    return float(values.mean()) if len(values) else None
