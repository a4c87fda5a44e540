"""Losses against numbers worked out by hand, and against themselves split into micro-batches."""

import dataclasses
import itertools
import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from prism.trainer.learn.losses import (
    DEFAULT_OPTIONS,
    POLICY_LOSSES,
    Algorithm,
    BatchTotals,
    LossOptions,
    PackedTokens,
    PolicyLoss,
    bradley_terry,
    k3_kl,
    policy_loss,
    score_regularisation,
    truncated_importance_weights,
)


def packed(ratios: list[list[float]], advantages: list[float]) -> PackedTokens:
    """Samples given by their tokens' ratios π_θ/π_old."""
    old = torch.linspace(-0.1, -2.0, sum(map(len, ratios)), dtype=torch.float64)
    logprobs = old + torch.tensor([r for sample in ratios for r in sample], dtype=torch.float64).log()
    index = torch.tensor([i for i, sample in enumerate(ratios) for _ in sample])
    return PackedTokens(logprobs.requires_grad_(), old, torch.tensor(advantages, dtype=torch.float64), index)


def close(actual: Tensor, expected: float | list[float], atol: float = 1e-6) -> bool:
    return torch.allclose(actual.double(), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=atol)


def gradient(result: PolicyLoss, batch: PackedTokens) -> Tensor:
    return torch.autograd.grad(result.loss, batch.logprobs)[0]


# Two samples, Â = 1 and -2. Per token, with ε = 0.2:
#   ρ   1.5   0.9 |  0.5   1.1    20
#   l   1.2   0.9 | -1.6  -2.2   -40     (1.5 and 0.5 are clipped)
#   ∂l  0     0.9 |  0    -2.2   -40     (with respect to log π_θ: ρÂ where nothing is clipped)
TOKEN_RATIOS = [[1.5, 0.9], [0.5, 1.1, 20.0]]
TOKEN_ADVANTAGES = [1.0, -2.0]


@pytest.mark.parametrize(
    ("algorithm", "options", "loss", "grads", "clip_fraction"),
    [
        # -(1/2) (2.1/2 - 43.8/3); each token's gradient divided by 2·|o|
        (Algorithm.GRPO, LossOptions(), 6.775, [0, -0.225, 0, 0.366667, 6.666667], 0.4),
        # ε_high 0.28 and c = 10: l = 1.28, 0.9 | -1.6, -2.2, -20 (dual clip); -(2.18 - 23.8)/5
        (Algorithm.DAPO, LossOptions(clip_high=0.28, dual_clip=10.0), 4.324, [0, -0.18, 0, 0.44, 0], 0.6),
        # verl's defaults, with which the published runs were made: c = 3 bounds the last l at -6; -(2.1 - 9.8)/5
        (Algorithm.GRPO, LossOptions(dual_clip=3.0, average="tokens"), 1.54, [0, -0.18, 0, 0.44, 0], 0.6),
        # and alignment's loss as GRPO's
        (Algorithm.ALIGN, LossOptions(average="responses"), 6.775, [0, -0.225, 0, 0.366667, 6.666667], 0.4),
        # -(2.1 - 43.8)/(2·10)
        (Algorithm.DR_GRPO, LossOptions(max_length=10), 2.085, [0, -0.045, 0, 0.11, 2], 0.4),
        # -(2.1 - 43.8)/5
        (Algorithm.ALIGN, LossOptions(), 8.34, [0, -0.18, 0, 0.44, 8], 0.4),
    ],
)
def test_token_ratio_losses(
    algorithm: Algorithm, options: LossOptions, loss: float, grads: list[float], clip_fraction: float
) -> None:
    batch = packed(TOKEN_RATIOS, TOKEN_ADVANTAGES)
    result = policy_loss(algorithm, batch, options)
    assert close(result.loss, loss)
    assert close(gradient(result, batch), grads)
    assert close(result.clip_fraction, clip_fraction)
    assert close(result.ratio_max, 20.0)
    # ρ - 1 - log ρ: 0.094535, 0.005361 | 0.193147, 0.004690, 16.004268
    assert close(result.approx_kl, 3.260400, atol=1e-5)
    assert result.tokens == 5
    assert result.reference_kl is None


def test_gspo_uses_one_ratio_a_sequence() -> None:
    # s = (4·1)^(1/2) = 2 -> clipped to 1.0004; (0.5·2·1)^(1/3) = 1; (1.5·1.5)^(1/2) = 1.5 with Â < 0: not clipped.
    # -(1.0004·1 - 1·2 - 1.5·1)/3; gradient of a token: -(1/3) s Â/|o|
    batch = packed([[4.0, 1.0], [0.5, 2.0, 1.0], [1.5, 1.5]], [1.0, -2.0, -1.0])
    result = policy_loss("gspo", batch)
    assert close(result.loss, 0.833200)
    assert close(gradient(result, batch), [0, 0, 0.222222, 0.222222, 0.222222, 0.25, 0.25])
    assert close(result.clip_fraction, 2 / 7)
    assert close(result.ratio_max, 2.0)
    # Over all 7 tokens: -(2·1.0004 - 3·2 - 2·1.5)/7.
    assert close(
        policy_loss("gspo", batch, LossOptions(clip_low=3e-4, clip_high=4e-4, average="tokens")).loss, 0.999886
    )


def test_on_policy_the_ratio_is_one_and_gspo_is_grpo() -> None:
    batch = packed([[1.0] * 4, [1.0], [1.0] * 2], [0.7, -1.1, 0.4])
    grpo, gspo = policy_loss("grpo", batch), policy_loss("gspo", batch)
    # loss = -mean Â = 0; gradient = -Â/(G |o|)
    expected = [-0.7 / 12] * 4 + [1.1 / 3] + [-0.4 / 6] * 2
    for result in (grpo, gspo):
        assert close(result.loss, 0.0)
        assert close(gradient(result, batch), expected)
        assert close(result.clip_fraction, 0.0)
        assert close(result.approx_kl, 0.0)


def test_advantages_may_be_given_a_token() -> None:
    a_sample = packed(TOKEN_RATIOS, TOKEN_ADVANTAGES)
    a_token = packed(TOKEN_RATIOS, [1.0, 1.0, -2.0, -2.0, -2.0])
    assert torch.equal(policy_loss("dapo", a_sample).loss, policy_loss("dapo", a_token).loss)


def test_importance_weights_scale_the_policy_loss_alone() -> None:
    # GRPO with weights 2, 1 | 1, 0.5, 0.1: -(1/2) ((2.4 + 0.9)/2 + (-1.6 - 1.1 - 4)/3)
    weights = torch.tensor([2.0, 1.0, 1.0, 0.5, 0.1], dtype=torch.float64)
    batch = dataclasses.replace(packed(TOKEN_RATIOS, TOKEN_ADVANTAGES), weights=weights)
    assert close(policy_loss("grpo", batch).loss, 0.291667)
    # KL: reference = policy shifted by log 2 in each token: r = 2, k3 = 2 - 1 - 0.693147 = 0.306853, weighed 0.1
    batch = dataclasses.replace(batch, ref_logprobs=batch.logprobs.detach() + math.log(2))
    result = policy_loss("grpo", batch, LossOptions(kl_coef=0.1))
    assert close(result.loss, 0.291667 + 0.0306853)
    assert result.reference_kl is not None
    assert close(result.reference_kl, 0.306853)
    # its gradient: (1 - r)·kl_coef/(G |o|), on the clipped first token alone
    assert close(gradient(result, batch)[0], -0.1 / 4)


def test_truncated_importance_weights() -> None:
    old = torch.tensor([-1.0, -1.0, -1.0, -1.0], requires_grad=True)
    sampler = old.detach() - torch.tensor([0.5, 1.0, 1.5, 1e30]).log()
    weights = truncated_importance_weights(old, sampler, cap=1.2)
    assert close(weights, [0.5, 1.0, 1.2, 1.2])
    assert not weights.requires_grad
    with pytest.raises(ValueError, match="cap"):
        truncated_importance_weights(old, sampler, cap=0.0)


def test_k3_kl_and_its_gradient() -> None:
    logprobs = torch.tensor([-1.0, -2.0, -0.5], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([-1.0, -1.0, -1.5], dtype=torch.float64)
    kl = k3_kl(logprobs, reference)
    # log r = 0, 1, -1: e - 2, 1/e; derivative 1 - r
    assert close(kl, [0.0, 0.718282, 0.367879])
    assert close(torch.autograd.grad(kl.sum(), logprobs)[0], [0.0, -1.718282, 0.632121])


def test_a_ratio_past_any_float_gives_no_nan() -> None:
    old = torch.tensor([-300.0, -0.1])
    batch = PackedTokens(torch.tensor([-0.1, -300.0], requires_grad=True), old, torch.ones(2), torch.tensor([0, 0]))
    for algorithm in Algorithm:
        result = policy_loss(algorithm, batch, LossOptions(max_length=5))
        assert result.loss.isfinite()
        assert gradient(result, batch).isfinite().all()


def test_half_precision_is_computed_in_float32() -> None:
    logprobs = torch.tensor([-1.0, -2.0], dtype=torch.bfloat16, requires_grad=True)
    batch = PackedTokens(logprobs, logprobs.detach(), torch.ones(1), torch.tensor([0, 0]))
    assert policy_loss("grpo", batch).loss.dtype == torch.float32


@st.composite
def batches(draw: st.DrawFn) -> tuple[PackedTokens, list[int]]:
    """A float32 batch, and where to cut its samples into micro-batches."""
    lengths = draw(st.lists(st.integers(1, 9), min_size=1, max_size=10))
    cuts = draw(st.lists(st.booleans(), min_size=len(lengths) - 1, max_size=len(lengths) - 1))
    seed = draw(st.integers(0, 2**31))
    generator = torch.Generator().manual_seed(seed)
    tokens = sum(lengths)
    old = -torch.rand(tokens, generator=generator) * 3
    batch = PackedTokens(
        logprobs=(old + torch.randn(tokens, generator=generator) * 0.3).requires_grad_(),
        old_logprobs=old,
        advantages=torch.randn(len(lengths), generator=generator),
        sample_index=torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths)),
        weights=torch.rand(tokens, generator=generator) + 0.5,
        ref_logprobs=old + torch.randn(tokens, generator=generator) * 0.1,
    )
    return batch, [0, *(i + 1 for i, cut in enumerate(cuts) if cut), len(lengths)]


def samples_of(batch: PackedTokens, first: int, end: int) -> PackedTokens:
    inside = (batch.sample_index >= first) & (batch.sample_index < end)
    assert batch.weights is not None
    assert batch.ref_logprobs is not None
    return PackedTokens(
        logprobs=batch.logprobs[inside],
        old_logprobs=batch.old_logprobs[inside],
        advantages=batch.advantages[first:end],
        sample_index=batch.sample_index[inside] - first,
        weights=batch.weights[inside],
        ref_logprobs=batch.ref_logprobs[inside],
    )


@pytest.mark.parametrize("algorithm", list(Algorithm))
@given(batch_and_cuts=batches())
@settings(max_examples=25, deadline=None)
def test_micro_batches_add_up_to_the_whole_batch(
    algorithm: Algorithm, batch_and_cuts: tuple[PackedTokens, list[int]]
) -> None:
    batch, cuts = batch_and_cuts
    options = dataclasses.replace(DEFAULT_OPTIONS[algorithm], max_length=12, kl_coef=0.05)
    whole = policy_loss(algorithm, batch, options)
    expected = gradient(whole, batch)

    parts = []
    for first, end in itertools.pairwise(cuts):
        part = policy_loss(algorithm, samples_of(batch, first, end), options, batch.totals)
        part.loss.backward()
        parts.append(part)

    assert batch.logprobs.grad is not None
    assert torch.allclose(batch.logprobs.grad, expected, rtol=0, atol=1e-6)
    merged = PolicyLoss.merged(parts)
    for name in ("loss", "clip_fraction", "ratio_max", "approx_kl", "reference_kl"):
        assert torch.allclose(getattr(merged, name), getattr(whole, name), rtol=1e-6, atol=1e-6), name
    assert merged.tokens == whole.tokens


def test_the_order_of_samples_does_not_matter() -> None:
    ratios, advantages = [[1.1, 0.7], [0.9], [1.4, 1.0, 0.95]], [0.5, -1.0, 2.0]
    order = random.Random(0).sample(range(3), 3)
    for algorithm in Algorithm:
        options = dataclasses.replace(DEFAULT_OPTIONS[algorithm], max_length=12)
        one = policy_loss(algorithm, packed(ratios, advantages), options)
        other = policy_loss(algorithm, packed([ratios[i] for i in order], [advantages[i] for i in order]), options)
        assert torch.allclose(one.loss, other.loss)


def test_totals_add() -> None:
    assert BatchTotals(5, 2) + BatchTotals(7, 1) == BatchTotals(12, 3)
    with pytest.raises(ValueError, match="at least one"):
        BatchTotals(0, 0)


def test_every_algorithm_has_a_loss_and_options() -> None:
    assert set(POLICY_LOSSES) == set(DEFAULT_OPTIONS) == set(Algorithm)
    with pytest.raises(ValueError, match=r"'ppo'.*grpo, dapo, gspo, dr_grpo, align"):
        policy_loss("ppo", packed([[1.0]], [1.0]))


def test_dr_grpo_needs_its_length() -> None:
    with pytest.raises(ValueError, match="max_length"):
        policy_loss("dr_grpo", packed([[1.0]], [1.0]))


def test_a_kl_without_a_reference_is_refused() -> None:
    with pytest.raises(ValueError, match="ref_logprobs"):
        policy_loss("grpo", packed([[1.0]], [1.0]), LossOptions(kl_coef=0.1))


def test_nothing_merges_to_nothing() -> None:
    with pytest.raises(ValueError, match="no micro-batch"):
        PolicyLoss.merged([])


@pytest.mark.parametrize(
    ("index", "advantages", "old", "message"),
    [
        ([0, 1, 0], [1.0, 1.0], 3, "sorted"),
        ([1, 1, 2], [1.0, 1.0], 3, "from 0"),
        ([0, 0, 2], [1.0, 1.0, 1.0], 3, "without a gap"),
        ([0, 0, 1], [1.0], 3, r"\[N\] = \[2\] or \[T\] = \[3\]"),
        ([0, 0, 1], [1.0, 1.0], 2, r"old_logprobs must be \[T\] = \[3\]"),
        ([0, 1], [1.0, 1.0], 3, "sample_index must be"),
    ],
)
def test_shapes_are_checked(index: list[int], advantages: list[float], old: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PackedTokens(torch.zeros(3), torch.zeros(old), torch.tensor(advantages), torch.tensor(index))


def test_no_tokens_are_refused() -> None:
    empty = torch.zeros(0)
    with pytest.raises(ValueError, match="at least one token"):
        PackedTokens(empty, empty, empty, empty.long())


@pytest.mark.parametrize(
    "option", [{"clip_low": 1.0}, {"clip_high": -0.1}, {"dual_clip": 1.1}, {"max_length": 0}, {"kl_coef": math.nan}]
)
def test_impossible_options_are_refused(option: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(option))):
        LossOptions(**option)  # pyright: ignore[reportArgumentType]


def test_bradley_terry() -> None:
    teacher = torch.tensor([2.0, 0.0], dtype=torch.float64, requires_grad=True)
    student = torch.tensor([1.0, 1.0], dtype=torch.float64)
    # -log σ(1) = 0.313262, -log σ(-1) = 1.313262
    loss = bradley_terry(teacher, student)
    assert close(loss, 0.813262)
    # gradient (σ(gap) - 1)/2
    assert close(torch.autograd.grad(loss, teacher)[0], [-0.134471, -0.365529])
    # margin 1: gaps 0 and -2: 0.693147, 2.126928
    assert close(bradley_terry(teacher, student, margin=1.0), 1.410038)
    # smoothing 0.1: the swapped pairs have gaps -1 and 1: 0.9·0.813262 + 0.1·(1.313262 + 0.313262)/2
    assert close(bradley_terry(teacher, student, label_smoothing=0.1), 0.813262)
    # both on the first pair: 0.9·(-log σ(0)) + 0.1·(-log σ(-2))
    assert close(bradley_terry(teacher[:1], student[:1], label_smoothing=0.1, margin=1.0), 0.836525)


def test_bradley_terry_over_micro_batches_is_the_whole_batchs() -> None:
    teacher, student = torch.randn(7).double(), torch.randn(7).double()
    parts = [bradley_terry(teacher[s], student[s], total_pairs=7) for s in (slice(0, 2), slice(2, 7))]
    assert torch.allclose(parts[0] + parts[1], bradley_terry(teacher, student))


def test_bradley_terry_refuses_what_makes_no_pairs() -> None:
    with pytest.raises(ValueError, match="at least one pair"):
        bradley_terry(torch.zeros(0), torch.zeros(0))
    with pytest.raises(ValueError, match=r"\[P\]"):
        bradley_terry(torch.zeros(2), torch.zeros(2, 1))  # would broadcast to 4 pairs
    with pytest.raises(ValueError, match="label_smoothing"):
        bradley_terry(torch.zeros(1), torch.zeros(1), label_smoothing=0.5)


def test_score_regularisation() -> None:
    assert close(score_regularisation(torch.tensor([1.0, -2.0, 3.0])), 14 / 3)
    assert close(score_regularisation(torch.tensor([1.0, -2.0]), total_scores=3), 5 / 3)
    with pytest.raises(ValueError, match="no scores"):
        score_regularisation(torch.zeros(0))
