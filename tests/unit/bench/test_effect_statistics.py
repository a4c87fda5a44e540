"""What the study counts by, against enumeration, scipy and cases worked out by hand."""

from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from bench.effect.statistics import holm, paired_bootstrap, pass_at

SETTINGS = {"resamples": 2_000, "level": 0.95, "seed": 0}


@pytest.mark.parametrize("right", range(6))
@pytest.mark.parametrize("k", [1, 2, 5])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_response(right: int, k: int) -> None:
    subsets = list(combinations([1] * right + [0] * (5 - right), k))
    assert pass_at(k, np.array([right]), 5) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_pass_at_more_than_was_sampled_is_refused() -> None:
    with pytest.raises(ValueError, match="pass@16"):
        pass_at(16, np.array([1]), 4)


def test_equal_differences_leave_no_doubt() -> None:
    found = paired_bootstrap([np.full((3, 50), 0.1), np.full((3, 80), 0.3)], **SETTINGS)
    assert (found.mean, found.low, found.high) == pytest.approx((0.2, 0.2, 0.2))
    assert found.p == pytest.approx(2 / 2_001)
    assert (found.seeds, found.questions, found.p_seeds) == (3, 130, 0.0)


def test_splits_count_alike_however_many_questions_they_have() -> None:
    assert paired_bootstrap([np.ones((2, 10)), np.zeros((2, 1_000))], **SETTINGS).mean == pytest.approx(0.5)


def test_one_seed_is_the_ordinary_bootstrap_over_questions() -> None:
    values = np.random.default_rng(1).normal(0.1, 1, 400)
    found = paired_bootstrap([values[None]], **SETTINGS)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=4_000, method="percentile", rng=2).confidence_interval
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=0.02)
    assert found.p_seeds is None


def test_seeds_that_disagree_widen_the_interval() -> None:
    """With 1,000 questions each, what is left of doubt is between seeds: +0.3, +0.3 and -0.3 do not exclude 0."""
    noise = np.random.default_rng(3).normal(0, 0.1, (3, 1_000))
    apart = paired_bootstrap([noise + np.array([[0.3], [0.3], [-0.3]])], **SETTINGS)
    alike = paired_bootstrap([noise + 0.1], **SETTINGS)
    assert apart.mean == pytest.approx(alike.mean, abs=1e-6)
    assert apart.low < 0 < apart.high
    assert alike.low > 0.08
    assert apart.p > 0.05 > alike.p
    assert apart.p_seeds == pytest.approx(stats.ttest_1samp(noise.mean(1) + np.array([0.3, 0.3, -0.3]), 0)[1])


def test_questions_are_shared_by_seeds() -> None:
    """What a question adds is the same in every seed, so more seeds do not average it away."""
    of_questions = np.random.default_rng(4).normal(0, 1, 100)
    found = paired_bootstrap([np.tile(of_questions, (50, 1))], **SETTINGS)
    assert found.high - found.low == pytest.approx(2 * 1.96 * of_questions.std() / 10, rel=0.1)


def test_without_a_difference_the_interval_holds_0_as_often_as_it_says() -> None:
    rng = np.random.default_rng(5)
    held = 0
    for trial in range(100):
        values = rng.normal(0, 0.3, (20, 1)) + rng.normal(0, 1, (20, 60))
        found = paired_bootstrap([values], resamples=200, level=0.9, seed=trial)
        held += found.low <= 0 <= found.high
    assert held / 100 >= 0.84


@pytest.mark.parametrize(
    "splits",
    [[], [np.ones(3)], [np.ones((2, 3)), np.ones((3, 3))], [np.array([[np.nan]])], [np.ones((2, 0))]],
)
def test_what_cannot_be_compared_is_refused(splits: list[np.ndarray]) -> None:
    with pytest.raises(ValueError, match="difference"):
        paired_bootstrap(splits, **SETTINGS)


def test_holm_as_worked_out_by_hand() -> None:
    """Sorted 0.01, 0.02, 0.04, 0.5: 4 × 0.01, 3 × 0.02, 2 × 0.04, 0.5; none below the one before it."""
    assert holm([0.04, 0.01, 0.5, 0.02]) == pytest.approx([0.08, 0.04, 0.5, 0.06])
    assert holm([0.03, 0.031, 0.032]) == pytest.approx([0.09, 0.09, 0.09])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
