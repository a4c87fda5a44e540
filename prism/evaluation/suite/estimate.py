"""Means with their errors: clustered, of strata, and compared in pairs."""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from prism.evaluation.benchmarks.base import Unit

RESAMPLES = 10_000
AT_ONCE = 500


class Estimate(NamedTuple):
    value: float | None
    """None if nothing was judged."""
    stderr: float | None
    """Clustered; None of fewer than two clusters."""
    units: int
    """Judged ones."""
    masked: int
    clusters: int


def mean_of(units: Sequence[Unit]) -> Estimate:
    """The mean of the judged units, or of their strata's means, and its standard error over clusters.

    Deviations are summed within each cluster before they are squared: what is alike in a cluster counts once.
    """
    judged = [(unit, unit.value) for unit in units if unit.value is not None]
    masked = len(units) - len(judged)
    strata: dict[str, list[float]] = defaultdict(list)
    for unit, value in judged:
        strata[unit.stratum].append(value)
    clusters = len({unit.cluster for unit, _ in judged})
    if not judged or {unit.stratum for unit in units} != strata.keys():
        return Estimate(None, None, len(judged), masked, clusters)
    means = {name: sum(values) / len(values) for name, values in strata.items()}
    value = sum(means.values()) / len(means)
    sums: dict[str, float] = defaultdict(float)
    for unit, own in judged:
        sums[unit.cluster] += (own - means[unit.stratum]) / (len(means) * len(strata[unit.stratum]))
    stderr = None
    if clusters > 1:
        stderr = math.sqrt(clusters / (clusters - 1) * sum(one * one for one in sums.values()))
    return Estimate(value, stderr, len(judged), masked, clusters)


def bounds(units: Sequence[Unit]) -> tuple[float | None, float | None]:
    """The mean if everything masked were wrong, and if it were all right."""
    low, high = (
        mean_of([unit._replace(value=value) if unit.value is None else unit for unit in units]).value
        for value in (0.0, 1.0)
    )
    return low, high


def averaged(samples: Sequence[Sequence[Unit]]) -> list[Unit]:
    """Units of several samples of the same questions as one: avg@k. Masked is what is masked in every sample."""
    values: dict[str, list[float]] = defaultdict(list)
    units: dict[str, Unit] = {}
    for sample in samples:
        for unit in sample:
            units[unit.id] = unit
            if unit.value is not None:
                values[unit.id].append(unit.value)
    return [unit._replace(value=sum(own) / len(own) if (own := values[name]) else None) for name, unit in units.items()]


def pass_at(right: int, judged: int, k: int) -> float | None:
    """The chance that one of k responses is right, unbiased (Chen et al., 2021); None of fewer than k judged."""
    if judged < k:
        return None
    return 1 - math.comb(judged - right, k) / math.comb(judged, k)


class Paired(NamedTuple):
    """The second's mean minus the first's, over what both were judged on."""

    difference: float
    low: float
    """Of the 95 % interval, over clusters that were drawn again."""
    high: float
    p_bootstrap: float
    pairs: int
    unpaired: int
    """Units that one of the two lacks, or that are masked in one."""
    clusters: int
    first_only: int
    """Questions that the first alone has right, where both have one response."""
    second_only: int
    p_mcnemar: float | None
    """Exact; None where units are no plain right or wrong. It takes questions for independent."""


def compare_pairs(first: Sequence[Unit], second: Sequence[Unit], seed: int = 0) -> Paired | None:
    """None if there is no pair."""
    others = {unit.id: unit for unit in second if unit.value is not None}
    pairs = [
        (unit, unit.value, other.value)
        for unit in first
        if unit.value is not None and (other := others.get(unit.id)) and other.value is not None
    ]
    everything = {unit.id for unit in (*first, *second)}
    if not pairs:
        return None
    clusters = {name: index for index, name in enumerate(dict.fromkeys(unit.cluster for unit, _, _ in pairs))}
    strata = {name: index for index, name in enumerate(dict.fromkeys(unit.stratum for unit, _, _ in pairs))}
    sums, counts = np.zeros((2, len(clusters), len(strata)))
    for unit, one, other in pairs:
        place = clusters[unit.cluster], strata[unit.stratum]
        sums[place] += other - one
        counts[place] += 1
    difference = float((sums.sum(0) / counts.sum(0)).mean())
    drawn = _drawn(sums, counts, np.random.default_rng(seed))
    low, high = (float(one) for one in np.quantile(drawn, (0.025, 0.975)))
    below, above = (int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    p_bootstrap = min(1.0, 2 * (min(below, above) + 1) / (len(drawn) + 1))
    plain = all({one, other} <= {0.0, 1.0} for _, one, other in pairs)
    first_only = sum(one > other for _, one, other in pairs)
    second_only = sum(other > one for _, one, other in pairs)
    return Paired(
        difference,
        low,
        high,
        p_bootstrap,
        len(pairs),
        len(everything) - len(pairs),
        len(clusters),
        first_only,
        second_only,
        mcnemar(first_only, second_only) if plain else None,
    )


def _drawn(sums: np.ndarray, counts: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """The difference in each of RESAMPLES draws of as many clusters as there are."""
    clusters = len(sums)
    out: list[np.ndarray] = []
    for _ in range(RESAMPLES // AT_ONCE):
        weights = random.multinomial(clusters, np.full(clusters, 1 / clusters), size=AT_ONCE).astype(np.float64)
        with np.errstate(invalid="ignore"):
            means = (weights @ sums) / (weights @ counts)
        out.append(np.nanmean(means, axis=1))
    return np.concatenate(out)


def mcnemar(first_only: int, second_only: int) -> float:
    """Two-sided and exact: how likely so uneven a split of what differs is, were both equally good."""
    differing, fewer = first_only + second_only, min(first_only, second_only)
    if not differing:
        return 1.0
    return min(1.0, 2 * sum(math.comb(differing, i) for i in range(fewer + 1)) / 2**differing)
