"""What the study counts by: pass@k, the hierarchical paired bootstrap, Holm's correction."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

Values = NDArray[np.float64]
CHUNK = 1_000  # resamples at once: 8 MB of weights for 1,024 questions


def pass_at(k: int, right: NDArray[np.integer], samples: int) -> Values:
    """The chance that one of k responses is right, for each question with ``right`` of ``samples`` right: without bias,
    1 - C(n - c, k) / C(n, k) (arXiv 2107.03374, section 2.1). Raises ValueError for a k that is not in 1 to n."""
    if not 1 <= k <= samples:
        raise ValueError(f"pass@{k} needs {k} responses to a question; there are {samples}")
    return np.asarray(1.0 - special.comb(samples - np.asarray(right), k) / special.comb(samples, k))


@dataclass(frozen=True)
class Difference:
    """One arm less another, in the units of what was compared."""

    mean: float
    low: float
    high: float
    p: float
    """Two-sided, of the bootstrap."""
    p_seeds: float | None
    """Two-sided, of a t test on the seeds' means: no more than as many values as seeds, but of no assumption that a
    handful of seeds stands for all. None with one seed."""
    seeds: int
    questions: int


def paired_bootstrap(splits: Sequence[Values], *, resamples: int, level: float, seed: int) -> Difference:
    """The mean over splits of differences [seeds, questions of the split], and how sure it is.

    Hierarchical: seeds are drawn with replacement, the same for all splits, then questions of each split. All seeds
    answer the same questions, so one draw of questions holds for all seeds (the pigeonhole bootstrap, Owen 2007, which
    errs towards wide intervals). Raises ValueError for no split, other numbers of seeds, or a value that is not finite.
    """
    if not splits or len({len(split) for split in splits}) != 1 or any(split.ndim != 2 for split in splits):
        raise ValueError("differences must be [seeds, questions], with the same seeds for each split")
    if not all(split.size and np.isfinite(split).all() for split in splits):
        raise ValueError("a difference is missing or not finite")
    rng, seeds = np.random.default_rng(seed), len(splits[0])
    drawn: list[Values] = []
    for begin in range(0, resamples, CHUNK):
        count = min(CHUNK, resamples - begin)
        of_seeds = rng.multinomial(seeds, np.full(seeds, 1 / seeds), count) / seeds  # [B, S]
        total = np.zeros(count)
        for split in splits:
            questions = split.shape[1]
            of_questions = rng.multinomial(questions, np.full(questions, 1 / questions), count) / questions  # [B, Q]
            total += ((of_seeds @ split) * of_questions).sum(1)
        drawn.append(total / len(splits))
    means = np.concatenate(drawn)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    beyond = min((means <= 0).sum(), (means >= 0).sum())
    of_seed = np.mean([split.mean(1) for split in splits], axis=0)  # [S]
    return Difference(
        float(of_seed.mean()),
        float(low),
        float(high),
        min(1.0, 2 * float(beyond + 1) / (resamples + 1)),
        _t_test(of_seed),
        seeds,
        sum(split.shape[1] for split in splits),
    )


def _t_test(means: Values) -> float | None:
    if len(means) < 2:
        return None
    if np.ptp(means) == 0:
        return 1.0 if means[0] == 0 else 0.0
    return float(stats.ttest_1samp(means, 0.0).pvalue)  # pyright: ignore[reportAttributeAccessIssue]


def holm(p: Sequence[float]) -> list[float]:
    """Holm's adjusted p values, in the order given (Scandinavian Journal of Statistics 6, 1979, 65-70)."""
    adjusted, least = [0.0] * len(p), 0.0
    for rank, place in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        least = max(least, min(1.0, (len(p) - rank) * p[place]))
        adjusted[place] = least
    return adjusted
