import math
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from prism.config import RlvrConfig, load_config
from prism.errors import StreamError
from prism.trainer.flow.intake import StepRollouts
from prism.trainer.learn.advantages import (
    Advantages,
    ExpertScores,
    alignment_advantages,
    group_centred,
    group_normalised,
    soft_overlong_penalty,
)
from prism.trainer.stages import align, rlvr
from prism.trainer.stages.common import rollout_figures
from prism.wire.v1 import rollout_pb2 as pb


def close(actual: Tensor, expected: list[float], atol: float = 1e-5) -> bool:
    return torch.allclose(actual.double(), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=atol)


def all_valid(n: int) -> Tensor:
    return torch.ones(n, dtype=torch.bool)


def test_a_group_is_normalised_by_its_sample_standard_deviation() -> None:
    # Group 4: 1, 2, 3 has mean 2 and sample standard deviation 1 (the population's would be 0.8165).
    # Group 9: 0, 1 has mean 0.5 and sample standard deviation 0.70711.
    rewards = torch.tensor([1.0, 0.0, 2.0, 1.0, 3.0])
    result = group_normalised(rewards, all_valid(5), torch.tensor([4, 9, 4, 9, 4]))
    assert close(result.values, [-1.0, -0.707107, 0.0, 0.707107, 1.0])
    assert result.keep.all()
    assert (result.masked_samples, result.dropped_groups, result.flat_groups) == (0, 0, 0)


def test_centred_advantages_keep_the_rewards_scale() -> None:
    rewards = torch.tensor([1.0, 2.0, 6.0, 0.0, 1.0])
    result = group_centred(rewards, all_valid(5), torch.tensor([0, 0, 0, 1, 1]))
    assert close(result.values, [-2.0, -1.0, 3.0, -0.5, 0.5], atol=1e-12)


def test_a_masked_sample_does_not_touch_its_group_even_as_nan() -> None:
    rewards = torch.tensor([1.0, math.nan, 2.0, 3.0, math.inf])
    valid = torch.tensor([True, False, True, True, False])
    result = group_normalised(rewards, valid, torch.zeros(5, dtype=torch.long))
    assert close(result.values, [-1.0, 0.0, 0.0, 1.0, 0.0])
    assert result.keep.tolist() == valid.tolist()
    assert result.masked_samples == 2


def test_a_group_with_fewer_than_two_valid_samples_is_dropped_and_counted() -> None:
    valid = torch.tensor([True, False, False, False, True, True])
    for advantages in (group_normalised, group_centred):
        result: Advantages = advantages(
            torch.tensor([5.0, 1.0, 1.0, 1.0, 0.0, 2.0]), valid, torch.tensor([0, 0, 1, 1, 2, 2])
        )
        assert result.keep.tolist() == [False, False, False, False, True, True]
        assert result.values[:4].tolist() == [0.0, 0.0, 0.0, 0.0]
        assert (result.masked_samples, result.dropped_groups) == (3, 2)


@pytest.mark.parametrize("reward", [0.0, 0.1, -3.7, 1e8])
def test_equal_rewards_give_exact_zeros(reward: float) -> None:
    result = group_normalised(torch.full((7,), reward), all_valid(7), torch.zeros(7, dtype=torch.long))
    assert result.values.tolist() == [0.0] * 7
    assert result.keep.all()
    assert result.flat_groups == 1


def test_a_valid_reward_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        group_normalised(torch.tensor([1.0, math.nan]), all_valid(2), torch.zeros(2, dtype=torch.long))


def test_shapes_and_types_are_checked() -> None:
    with pytest.raises(ValueError, match=r"\[N\]"):
        group_normalised(torch.zeros(3), all_valid(2), torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match="must be bool"):
        group_normalised(torch.zeros(2), torch.ones(2), torch.zeros(2, dtype=torch.long))


@given(
    rewards=st.lists(st.floats(-100, 100), min_size=2, max_size=12),
    shift=st.floats(-10, 10),
    scale=st.floats(0.5, 10),
    order=st.randoms(use_true_random=False),
)
@settings(max_examples=50, deadline=None)
def test_advantages_do_not_depend_on_offset_scale_or_order(
    rewards: list[float], shift: float, scale: float, order: random.Random
) -> None:
    n = len(rewards)
    values = torch.tensor(rewards, dtype=torch.float64).round(decimals=2)
    group = torch.zeros(n, dtype=torch.long)
    base = group_normalised(values, all_valid(n), group).values
    assert abs(float(base.sum())) < 1e-6
    moved = group_normalised(values * scale + shift, all_valid(n), group).values
    assert torch.allclose(base, moved, atol=1e-2)  # epsilon is not scaled
    permutation = torch.tensor(order.sample(range(n), n))
    assert torch.allclose(base[permutation], group_normalised(values[permutation], all_valid(n), group).values)


def scores(*values: float | None, version: int = 3) -> ExpertScores:
    return ExpertScores(values, [version] * len(values))


def test_experts_are_normalised_apart_and_summed() -> None:
    # Perception 1, 2, 3 -> -1, 0, 1. Reasoning 0, 0, 30 around their mean clamped to -10, -10, 10: mean -10/3, sample
    # standard deviation 11.547005 -> -0.577350, -0.577350, 1.154701.
    perception, reasoning = scores(1.0, 2.0, 3.0), scores(0.0, 0.0, 30.0)
    result = alignment_advantages(perception, reasoning, [True] * 3, [0] * 3)
    assert close(result.values, [-0.788675, -0.288675, 1.077350])
    result = alignment_advantages(perception, reasoning, [True] * 3, [0] * 3, alpha=0.8)
    assert close(result.values, [-0.915470, -0.115470, 1.030940])


def test_a_malformed_response_counts_as_one_below_the_lowest_and_is_penalised_from_there() -> None:
    # Perception 2, 4 and the malformed as 1: mean 7/3, sample standard deviation 1.527525 -> -0.218218, 1.091089.
    # Reasoning 5, 5 and the malformed as 4: mean 14/3, sample standard deviation 0.577350 -> 0.577350, 0.577350.
    # The malformed: -0.872872 and -1.154701, their half -1.013786, less 1.5.
    expected = [0.179566, -2.513786, 0.834220]
    unscored = alignment_advantages(scores(2.0, None, 4.0), scores(5.0, None, 5.0), [True, False, True], [0] * 3)
    assert close(unscored.values, expected)
    assert unscored.keep.all()
    assert unscored.masked_samples == 0
    # A score it has all the same makes no difference.
    scored = alignment_advantages(scores(2.0, 9.0, 4.0), scores(5.0, -9.0, 5.0), [True, False, True], [0] * 3)
    assert close(scored.values, expected)


@pytest.mark.parametrize("offset", [-300.0, -12.0, 9.0, 40.0])
def test_what_all_scores_of_a_prompt_have_in_common_is_no_matter(offset: float) -> None:
    """Bradley-Terry leaves it free, prompt by prompt: a clamp of raw scores would make their differences vanish."""
    perception, reasoning = (1.0, 3.0, 2.0, None, 0.5, -0.5), (4.0, 2.0, 1.0, None, 0.0, 7.0)
    valid, groups = [True, True, True, False, True, True], [0, 0, 0, 0, 1, 1]

    def moved(values: tuple[float | None, ...]) -> ExpertScores:
        return scores(
            *(None if v is None else v + (offset if g == 0 else 0) for v, g in zip(values, groups, strict=True))
        )

    expected = alignment_advantages(scores(*perception), scores(*reasoning), valid, groups)
    result = alignment_advantages(moved(perception), moved(reasoning), valid, groups)
    assert close(result.values, expected.values.tolist(), atol=1e-9)
    assert result.flat_groups == 0


def test_the_lowest_score_is_taken_after_the_clamp() -> None:
    # Perception -10 (clamped from -50), 10, and the malformed as -11: mean -11/3, sample standard deviation 11.846237.
    # The same for reasoning.
    result = alignment_advantages(scores(-50.0, 50.0, None), scores(-50.0, 50.0, None), [True, True, False], [0] * 3)
    assert close(result.values, [-0.534628, 1.153672, -2.119043])


@given(
    scored=st.lists(st.tuples(st.floats(-30, 30), st.floats(-30, 30), st.booleans()), min_size=2, max_size=16).filter(
        lambda group: len({valid for _, _, valid in group}) == 2
    ),
    alpha=st.floats(0, 1),
)
@settings(max_examples=100, deadline=None)
def test_a_well_formed_response_is_never_below_a_malformed_one(
    scored: list[tuple[float, float, bool]], alpha: float
) -> None:
    perception, reasoning, valid = zip(*scored, strict=True)
    values = alignment_advantages(
        scores(*perception), scores(*reasoning), valid, [0] * len(valid), alpha=alpha
    ).values.tolist()
    worst = min(value for value, well_formed in zip(values, valid, strict=True) if well_formed)
    malformed = {value for value, well_formed in zip(values, valid, strict=True) if not well_formed}
    assert len(malformed) == 1
    assert malformed.pop() <= worst - 1.5 + 1e-9


def test_a_failed_score_masks_the_sample_for_both_experts() -> None:
    # The third has no reasoning score: its perception score of 100 must not move the others' mean.
    result = alignment_advantages(scores(1.0, 3.0, 100.0, 2.0), scores(4.0, 4.0, None, 1.0), [True] * 4, [7, 7, 7, 7])
    # Perception 1, 3, 2 -> -1, 1, 0. Reasoning 4, 4, 1: mean 3, standard deviation 1.732051.
    assert close(result.values, [-0.211325, 0.788675, 0.0, -0.577350])
    assert result.keep.tolist() == [True, True, False, True]
    assert result.masked_samples == 1


def test_groups_that_cannot_be_compared_are_dropped() -> None:
    # Group 0: all malformed. Group 1: one scored, one failed. Group 2: one scored, one malformed: kept.
    result = alignment_advantages(
        scores(None, None, 1.0, None, 1.0, None),
        scores(None, None, 1.0, 1.0, 1.0, None),
        [False, False, True, True, True, False],
        [0, 0, 1, 1, 2, 2],
    )
    assert result.keep.tolist() == [False, False, False, False, True, True]
    assert close(result.values, [0.0, 0.0, 0.0, 0.0, 0.707107, -2.207107])
    assert (result.masked_samples, result.dropped_groups, result.flat_groups) == (1, 2, 0)


def test_equal_scores_give_zeros() -> None:
    result = alignment_advantages(scores(2.0, 2.0, 1.0, 2.0), scores(3.0, 3.0, 1.0, 2.0), [True] * 4, [0, 0, 1, 1])
    assert result.values[:2].tolist() == [0.0, 0.0]
    assert result.flat_groups == 1


def test_scores_of_different_versions_in_one_group_are_refused() -> None:
    mixed = ExpertScores([1.0, 2.0, 3.0, 4.0], [5, 5, 6, 6])
    apart = scores(1.0, 2.0, 3.0, 4.0, version=8)
    with pytest.raises(StreamError, match="group 0 holds reasoning scores of versions 5 and 6"):
        alignment_advantages(apart, mixed, [True] * 4, [0, 0, 0, 1])
    # Two groups may differ, two experts may, and so may a version that stands where there is no score.
    alignment_advantages(apart, mixed, [True] * 4, [0, 0, 1, 1])
    absent = ExpertScores([1.0, 2.0, None, 4.0], [5, 5, 0, 5])
    assert alignment_advantages(apart, absent, [True] * 4, [0] * 4).masked_samples == 1


def test_a_score_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        alignment_advantages(scores(math.nan, 1.0), scores(1.0, 2.0), [True] * 2, [0] * 2)


def test_lengths_and_alpha_are_checked() -> None:
    with pytest.raises(ValueError, match="each of the 2 samples"):
        alignment_advantages(scores(1.0), scores(1.0, 2.0), [True] * 2, [0] * 2)
    with pytest.raises(ValueError, match="alpha"):
        alignment_advantages(scores(1.0, 2.0), scores(1.0, 2.0), [True] * 2, [0] * 2, alpha=1.5)


def test_a_sample_that_was_cut_off_or_holds_a_picture_is_penalised_as_malformed_ones_are() -> None:
    text = "<caption>- a</caption><think>x</think><answer>1</answer>"

    def sample(score: float, finish: str = "stop", tokens: tuple[int, ...] = (1, 2)) -> pb.Sample:
        by = [pb.Score(expert=expert, status=pb.STATUS_OK, value=score) for expert in ("perception", "reasoning")]
        return pb.Sample(text=text, token_ids=tokens, finish_reason=finish, scores=by)

    group = pb.RolloutGroup(samples=[sample(1), sample(3), sample(9, "length"), sample(9, tokens=(1, 90))])
    result = align._advantages([group], 0.5, never=frozenset({90}))
    # 1, 3 and twice 0, one below the lowest: mean 1, sample standard deviation 1.414214.
    assert close(result.values, [0.0, 1.414214, -2.207107, -2.207107])
    assert result.keep.all()
    figures = rollout_figures([group], StepRollouts([group], [], 0.0), 0, frozenset({90}))
    assert (figures["malformed_samples"], figures["truncated_samples"], figures["format_rate"]) == (2, 1, 0.5)


def test_a_picture_in_an_answer_earns_nothing() -> None:
    """The sampler's text is without it, so the grader could not know."""
    verdict = pb.Verdict(status=pb.STATUS_OK, accuracy=1, format=1, reward=1)
    text = "<caption>- a</caption><think>x</think><answer>1</answer>"
    samples = [pb.Sample(text=text, token_ids=ids, verdict=verdict) for ids in ([1, 2], [1, 90])]

    class OneStep:
        inputs = SimpleNamespace(vision_token_ids=frozenset({90}))
        say = None

        def collect(self, *_: Any) -> StepRollouts:
            return StepRollouts([pb.RolloutGroup(samples=samples)], [], 0.0)

    step: Any = OneStep()
    (group,) = rlvr._collected(step, step, 0).groups
    assert [sample.verdict.reward for sample in group.samples] == [1, 0]
    assert rlvr.differs(group), "dynamic sampling keeps it: there is something to learn"


def test_overlong_responses_are_penalised_softly() -> None:
    lengths = torch.tensor([0, 4096, 4097, 5120, 6144, 8192, 9000])
    penalty = soft_overlong_penalty(lengths, max_length=8192, buffer=4096)
    assert close(penalty, [0.0, 0.0, -1 / 4096, -0.25, -0.5, -1.0, -1.0], atol=1e-12)


@pytest.mark.parametrize("buffer", [0, -1, 11])
def test_an_impossible_buffer_is_refused(buffer: int) -> None:
    with pytest.raises(ValueError, match="buffer"):
        soft_overlong_penalty(torch.tensor([5]), max_length=10, buffer=buffer)


@pytest.mark.parametrize("loss", ["grpo", "dr_grpo"])
def test_a_masked_verdict_is_left_out_and_never_a_number(loss: str) -> None:
    """The grader says unparseable_answer without a reward; a wrong answer and a broken format have theirs."""
    stage = load_config(Path("configs/demo.toml"), [f"stages.rlvr.loss={loss}", "stages.rlvr.overlong_buffer=2"])
    rlvr_stage = stage.stages["rlvr"]
    assert isinstance(rlvr_stage, RlvrConfig)
    wrong = pb.Verdict(status=pb.STATUS_OK, accuracy=0, format=1, reward=0.2)
    right = pb.Verdict(status=pb.STATUS_OK, accuracy=1, format=1, reward=1)
    broken = pb.Verdict(status=pb.STATUS_INVALID_FORMAT, accuracy=0, format=0, reward=0)
    masked = pb.Verdict(status=pb.STATUS_UNPARSEABLE_ANSWER)
    lost = pb.Verdict(status=pb.STATUS_UNPARSEABLE_GOLD)

    def group(*verdicts: pb.Verdict) -> pb.RolloutGroup:
        return pb.RolloutGroup(samples=[pb.Sample(token_ids=[1], verdict=verdict) for verdict in verdicts])

    with_masked, without = [group(right, masked, wrong, broken), group(masked, right)], [group(right, wrong, broken)]
    result, judged = rlvr.advantages_of(with_masked, rlvr_stage), rlvr.advantages_of(without, rlvr_stage)
    assert result.keep.tolist() == [True, False, True, True, False, False]
    assert result.values[[0, 2, 3]].tolist() == judged.values.tolist()
    assert (result.masked_samples, result.dropped_groups) == (2, 1)
    figures = rlvr._rewards([*with_masked, group(lost, masked)])
    assert (figures["unreadable_samples"], figures["unjudged_samples"], figures["unparseable_golds"]) == (3, 1, 1)
    assert figures["accuracy"] == 0.5
