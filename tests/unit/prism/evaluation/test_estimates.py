"""Means, errors and comparisons, against values worked out by hand."""

import math

import pytest

from prism.evaluation.benchmarks.base import Unit
from prism.evaluation.suite.estimate import averaged, bounds, compare_pairs, mcnemar, mean_of, pass_at


def units(*values: float | None, clusters: str = "", stratum: str = "") -> list[Unit]:
    names = clusters or [str(i) for i in range(len(values))]
    return [
        Unit(f"{stratum}{i}", value, name, stratum) for i, (value, name) in enumerate(zip(values, names, strict=True))
    ]


def test_the_error_of_independent_questions() -> None:
    estimate = mean_of(units(1.0, 1.0, 0.0, 1.0))
    assert estimate.value == 0.75
    assert estimate.stderr == pytest.approx(math.sqrt(4 / 3 * (3 * 0.25**2 + 0.75**2)) / 4)


def test_versions_of_one_problem_are_no_independent_questions() -> None:
    """Harnesses give MathVerse's 5 × 788 rows the error of 3,940 independent ones."""
    values = [1.0] * 10 + [0.0] * 10
    clustered = mean_of(units(*values, clusters="aaaaabbbbbcccccddddd"))
    independent = mean_of(units(*values))
    assert (clustered.value, clustered.clusters) == (0.5, 4)
    assert clustered.stderr == pytest.approx(math.sqrt(4 / 3 * 4 * (5 * 0.5) ** 2) / 20)  # as of 4 questions
    assert independent.stderr is not None
    assert clustered.stderr is not None
    assert clustered.stderr > 2 * independent.stderr


def test_what_is_masked_is_neither_right_nor_wrong() -> None:
    estimate = mean_of(units(1.0, None, 0.0, None))
    assert (estimate.value, estimate.units, estimate.masked) == (0.5, 2, 2)
    assert bounds(units(1.0, None, 0.0, None)) == (0.25, 0.75)
    assert mean_of(units(None, None)) == (None, None, 0, 2, 0)
    assert mean_of([]).value is None


def test_the_mean_of_strata() -> None:
    both = units(1.0, 1.0, 0.0, clusters="abc", stratum="standard") + units(0.0, clusters="a", stratum="vision")
    assert mean_of(both).value == (2 / 3 + 0) / 2
    assert mean_of([*both[:3], both[3]._replace(value=None)]).value is None  # half of a mean is none


def test_the_error_of_a_mean_of_strata_has_each_stratums_own_share() -> None:
    both = units(1.0, 1.0, 0.0, clusters="abc", stratum="standard") + units(0.0, 1.0, clusters="ab", stratum="vision")
    estimate = mean_of(both)
    assert estimate.value == (2 / 3 + 1 / 2) / 2
    sums = (1 / 3 / 6 - 1 / 2 / 4, 1 / 3 / 6 + 1 / 2 / 4, -2 / 3 / 6)  # of each question, over both halves
    assert estimate.stderr == pytest.approx(math.sqrt(3 / 2 * sum(one * one for one in sums)))


def test_samples_of_one_question_are_averaged() -> None:
    one, other = units(1.0, None, 1.0), units(0.0, None, None)
    assert [unit.value for unit in averaged([one, other])] == [0.5, None, 1.0]


@pytest.mark.parametrize(
    ("right", "judged", "k", "chance"), [(1, 4, 1, 0.25), (1, 4, 2, 0.5), (0, 4, 4, 0), (3, 4, 2, 1), (1, 3, 4, None)]
)
def test_pass_at_k(right: int, judged: int, k: int, chance: float | None) -> None:
    assert pass_at(right, judged, k) == chance


@pytest.mark.parametrize(("first", "second", "p"), [(0, 0, 1), (1, 8, 20 / 512), (5, 5, 1), (0, 6, 2 / 64)])
def test_mcnemars_exact_p(first: int, second: int, p: float) -> None:
    assert mcnemar(first, second) == p


def test_two_checkpoints_in_pairs() -> None:
    first = units(*([0.0] * 30 + [1.0] * 30))
    second = units(*([1.0] * 15 + [0.0] * 15 + [1.0] * 30))
    paired = compare_pairs(first, second)
    assert paired is not None
    assert (paired.difference, paired.first_only, paired.second_only, paired.pairs) == (0.25, 0, 15, 60)
    assert 0.1 < paired.low < 0.25 < paired.high < 0.4
    assert paired.p_bootstrap < 0.01
    assert paired.p_mcnemar == 2 / 2**15
    same = compare_pairs(first, first)
    assert same is not None
    assert (same.difference, same.p_bootstrap, same.p_mcnemar) == (0, 1, 1)


def test_pairs_are_drawn_by_cluster_and_only_of_what_both_have() -> None:
    first = units(*[0.0] * 20, clusters="a" * 10 + "b" * 10)
    second = units(*([1.0] * 10 + [0.0] * 9 + [None]), clusters="a" * 10 + "b" * 10)
    paired = compare_pairs(first, second)
    assert paired is not None
    assert (paired.clusters, paired.pairs, paired.unpaired) == (2, 19, 1)
    assert (paired.low, paired.high) == (0.0, 1.0)  # one of two clusters: nothing is known
    assert compare_pairs(first, []) is None


def test_a_mean_of_strata_is_compared_stratum_by_stratum() -> None:
    """MMMU-Pro's mean of two halves, of which a slice may hold more of one."""
    first = units(*[0.0] * 30, stratum="standard") + units(*[0.0] * 10, stratum="vision")
    second = units(*[1.0] * 30, stratum="standard") + units(*[0.0] * 10, stratum="vision")
    paired = compare_pairs(first, second)
    assert paired is not None
    assert paired.difference == 0.5  # not 30 of 40
    assert (paired.low, paired.high) == (0.5, 0.5)


def test_no_mcnemar_of_what_is_no_plain_right_or_wrong() -> None:
    paired = compare_pairs(units(0.5, 1.0), units(1.0, 1.0))
    assert paired is not None
    assert paired.p_mcnemar is None
