"""Losses of the learners: pure functions over packed tensors, no model and no padding in sight.

T is the number of response tokens in a call, N the number of samples they belong to, P the number of pairs.

Each policy loss is a sum over tokens, divided by a count of the *whole* batch. Give that count as ``totals`` and the
losses (and gradients) of the micro-batches add up to the whole batch's, however it is split, over ranks too.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

# Where exp() overflows, even the branch that the clip discards gives the gradient 0 · inf = NaN. Past this bound, which
# no healthy run comes near, a ratio is taken as constant.
MAX_LOG_RATIO = 20.0


class Algorithm(StrEnum):
    """The policy losses by the names that configurations use."""

    GRPO = "grpo"
    DAPO = "dapo"
    GSPO = "gspo"
    DR_GRPO = "dr_grpo"
    ALIGN = "align"


@dataclass(frozen=True)
class BatchTotals:
    """What the losses divide by: counts over the whole batch of one optimizer step, all micro-batches and ranks."""

    tokens: int
    samples: int

    def __post_init__(self) -> None:
        if self.tokens < 1 or self.samples < 1:
            raise ValueError(f"a batch needs at least one token and one sample, not {self}")

    def __add__(self, other: "BatchTotals") -> "BatchTotals":
        return BatchTotals(self.tokens + other.tokens, self.samples + other.samples)


@dataclass(frozen=True, kw_only=True)
class LossOptions:
    """Raises ValueError for values that no loss can use."""

    clip_low: float = 0.2
    """Ratios below 1 - clip_low earn nothing more; in [0, 1)."""
    clip_high: float = 0.2
    """Ratios above 1 + clip_high earn nothing more."""
    dual_clip: float | None = None
    """c: where the advantage is negative, the objective is at least c times it (arXiv 1912.09729). None: unbounded."""
    max_length: int | None = None
    """L: the constant length that Dr. GRPO divides by; tokens. The other losses have no use for it."""
    kl_coef: float = 0.0
    """Weight of the k3 estimate of KL(policy || reference), averaged over tokens as the loss is."""
    average: Literal["tokens", "responses"] | None = None
    """The mean over the batch's tokens, or over its samples of the mean over each one's. None: as the loss has it."""

    def __post_init__(self) -> None:
        if not 0 <= self.clip_low < 1:
            raise ValueError(f"clip_low must lie in [0, 1), not {self.clip_low}")
        if not self.clip_high >= 0:
            raise ValueError(f"clip_high must not be negative: {self.clip_high}")
        if self.dual_clip is not None and not self.dual_clip > 1 + self.clip_high:
            raise ValueError(f"dual_clip must exceed 1 + clip_high = {1 + self.clip_high}, not {self.dual_clip}")
        if self.max_length is not None and self.max_length < 1:
            raise ValueError(f"max_length must be at least 1, not {self.max_length}")
        if not self.kl_coef >= 0:
            raise ValueError(f"kl_coef must not be negative: {self.kl_coef}")


DEFAULT_OPTIONS = {
    Algorithm.GRPO: LossOptions(),
    Algorithm.DAPO: LossOptions(clip_high=0.28, dual_clip=10.0),
    Algorithm.GSPO: LossOptions(clip_low=3e-4, clip_high=4e-4),
    Algorithm.DR_GRPO: LossOptions(),  # max_length is the run's to say
    Algorithm.ALIGN: LossOptions(),
}


@dataclass(frozen=True)
class PackedTokens:
    """The response tokens of whole samples, one after the other; prompts and masked samples are not among them.

    Only ``logprobs`` receives a gradient. Raises ValueError if shapes differ, there is no token, or ``sample_index``
    does not count 0, 0, …, 1, 1, …, N-1: every sample has a token here, so that [N] and [T] cannot be confused.
    """

    logprobs: Tensor
    """[T] log-probabilities of the tokens under the policy that learns, in nats."""
    old_logprobs: Tensor
    """[T] the same under the policy at the start of the step, before its first minibatch."""
    advantages: Tensor
    """[N] one a sample, or [T] one a token."""
    sample_index: Tensor
    """[T] integers: which sample a token belongs to."""
    weights: Tensor | None = None
    """[T] factor on each token's policy loss (not on its KL), e.g. ``truncated_importance_weights``."""
    ref_logprobs: Tensor | None = None
    """[T] log-probabilities under the reference policy, where ``kl_coef`` is not 0."""

    def __post_init__(self) -> None:
        shape = self.logprobs.shape
        if len(shape) != 1 or shape[0] == 0:
            raise ValueError(f"logprobs must be [T] with at least one token, not {list(shape)}")
        for name in ("old_logprobs", "sample_index", "weights", "ref_logprobs"):
            tensor: Tensor | None = getattr(self, name)
            if tensor is not None and tensor.shape != shape:
                raise ValueError(f"{name} must be [T] = {list(shape)} like logprobs, not {list(tensor.shape)}")
        steps = self.sample_index.diff()
        if self.sample_index.is_floating_point() or self.sample_index[0] != 0 or ((steps != 0) & (steps != 1)).any():
            raise ValueError("sample_index must be sorted integers that count the samples from 0 without a gap")
        if self.advantages.shape != shape and self.advantages.shape != (self.samples,):
            raise ValueError(
                f"advantages must be [N] = [{self.samples}] or [T] = {list(shape)}, not {list(self.advantages.shape)}"
            )

    @property
    def tokens(self) -> int:
        return self.logprobs.shape[0]

    @cached_property
    def samples(self) -> int:
        return int(self.sample_index[-1]) + 1

    @property
    def totals(self) -> BatchTotals:
        """Of this call alone: right as the divisor only where it is the whole batch."""
        return BatchTotals(self.tokens, self.samples)

    @cached_property
    def token_advantages(self) -> Tensor:
        """[T]"""
        per_sample = self.advantages.shape[0] != self.tokens  # where T = N each sample has one token: both are one
        return (self.advantages[self.sample_index] if per_sample else self.advantages).detach()

    @cached_property
    def lengths(self) -> Tensor:
        """[T] tokens of the sample that a token belongs to: |o_i|."""
        return torch.bincount(self.sample_index)[self.sample_index]

    # The two ratios carry a graph, which a backward pass frees: they must not outlive it in a cache.
    @property
    def log_ratio(self) -> Tensor:
        """[T] log ρ = log π_θ - log π_old, in float32 or better."""
        dtype = torch.promote_types(self.logprobs.dtype, torch.float32)
        log_ratio = self.logprobs.to(dtype) - self.old_logprobs.detach().to(dtype)
        return log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)

    @property
    def sequence_log_ratio(self) -> Tensor:
        """[T] the mean of log ρ over the token's sample."""
        log_ratio = self.log_ratio
        sums = log_ratio.new_zeros(self.samples).index_add(0, self.sample_index, log_ratio)  # [N]
        return sums[self.sample_index] / self.lengths


@dataclass(frozen=True)
class PolicyLoss:
    """A loss and what to watch beside it. Everything but ``loss`` is detached and is a figure over this call's tokens.

    In GSPO each token counts with its sequence's ratio, so that all algorithms' figures are means over tokens.
    """

    loss: Tensor
    """[] this call's share of the whole batch's loss."""
    clip_fraction: Tensor
    """[] share of tokens whose policy gradient the clip (or the dual clip) removes."""
    ratio_max: Tensor
    """[]"""
    approx_kl: Tensor
    """[] k3 estimate of KL(π_old || π_θ) a token, in nats."""
    tokens: int
    """How many tokens the figures are of."""
    reference_kl: Tensor | None = None
    """[] k3 estimate of KL(π_θ || reference) a token, in nats; None without a reference."""

    def detached(self) -> "PolicyLoss":
        """On the CPU, without a graph: what may travel between ranks."""
        tensors = {name: value.detach().cpu() for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **tensors)

    @classmethod
    def merged(cls, parts: Sequence["PolicyLoss"]) -> "PolicyLoss":
        """The whole batch's figures from its micro-batches', detached. Raises ValueError if there are none."""
        if not parts:
            raise ValueError("no micro-batch to merge")
        tokens = sum(part.tokens for part in parts)

        def mean(values: list[Tensor]) -> Tensor:
            return torch.stack(
                [value * (part.tokens / tokens) for value, part in zip(values, parts, strict=True)]
            ).sum()

        reference = [part.reference_kl for part in parts if part.reference_kl is not None]
        return cls(
            loss=torch.stack([part.loss.detach() for part in parts]).sum(),
            clip_fraction=mean([part.clip_fraction for part in parts]),
            ratio_max=torch.stack([part.ratio_max for part in parts]).max(),
            approx_kl=mean([part.approx_kl for part in parts]),
            tokens=tokens,
            reference_kl=mean(reference) if len(reference) == len(parts) else None,
        )


PolicyLossFunction = Callable[[PackedTokens, LossOptions, BatchTotals], PolicyLoss]


def grpo(batch: PackedTokens, options: LossOptions, totals: BatchTotals) -> PolicyLoss:
    """-(1/G) Σ_i (1/|o_i|) Σ_t min(ρÂ, clip(ρ, 1-ε_low, 1+ε_high)Â): the mean over samples of the mean over tokens.

    Source: DeepSeekMath, arXiv 2402.03300, eq. 3. G counts the samples of the whole batch. A sample must lie whole in
    one micro-batch.
    """
    return _clipped_policy_gradient(batch, batch.log_ratio, _mean(batch, options, totals, "responses"), options)


def dapo(batch: PackedTokens, options: LossOptions, totals: BatchTotals) -> PolicyLoss:
    """-(1/Σ|o_i|) Σ_i Σ_t l: the mean over tokens, with ε_high > ε_low (clip-higher) and the dual clip at c = 10.

    Source: DAPO, arXiv 2503.14476, eq. 8; dual clip arXiv 1912.09729. The paper writes the sum over one
    prompt's group; here, as in its authors' code, it goes over the whole batch, so each token weighs the same.
    """
    return _clipped_policy_gradient(batch, batch.log_ratio, _mean(batch, options, totals, "tokens"), options)


def gspo(batch: PackedTokens, options: LossOptions, totals: BatchTotals) -> PolicyLoss:
    """-(1/G) Σ_i min(s_i Â, clip(s_i, 1-ε_low, 1+ε_high)Â), s_i = exp((1/|o_i|) Σ_t log ρ): one ratio a sequence.

    Source: GSPO, arXiv 2507.18071, eq. 5 and 7. A sample must lie whole in one micro-batch.
    """
    scale = _mean(batch, options, totals, "responses")
    return _clipped_policy_gradient(batch, batch.sequence_log_ratio, scale, options)


def dr_grpo(batch: PackedTokens, options: LossOptions, totals: BatchTotals) -> PolicyLoss:
    """-(1/(L·G)) Σ_i Σ_t l with the constant L = ``options.max_length``: no bias towards short or long samples.

    Source: Understanding R1-Zero-like training, arXiv 2503.20783; its advantages are ``group_centred``.
    Raises ValueError without ``max_length``.
    """
    if options.max_length is None:
        raise ValueError("Dr. GRPO divides by a constant length: set max_length to the longest response allowed")
    return _clipped_policy_gradient(batch, batch.log_ratio, 1 / (totals.samples * options.max_length), options)


def align(batch: PackedTokens, options: LossOptions, totals: BatchTotals) -> PolicyLoss:
    """-(1/Σ|o_i|) Σ_i Σ_t l: the alignment stage's clipped policy gradient, clip 0.2, mean over tokens.

    Source: PRISM, arXiv 2604.28123; the objective is PPO's, arXiv 1707.06347, eq. 7. Advantages are
    ``alignment_advantages``.
    """
    return _clipped_policy_gradient(batch, batch.log_ratio, _mean(batch, options, totals, "tokens"), options)


POLICY_LOSSES: dict[Algorithm, PolicyLossFunction] = {
    Algorithm.GRPO: grpo,
    Algorithm.DAPO: dapo,
    Algorithm.GSPO: gspo,
    Algorithm.DR_GRPO: dr_grpo,
    Algorithm.ALIGN: align,
}


def policy_loss(
    algorithm: Algorithm | str,
    batch: PackedTokens,
    options: LossOptions | None = None,
    totals: BatchTotals | None = None,
) -> PolicyLoss:
    """The loss of that name, with its published options unless given others. Without ``totals``, ``batch`` is whole.

    Raises ValueError for an unknown name.
    """
    if algorithm not in list(Algorithm):
        raise ValueError(f"no policy loss is named {algorithm!r}: choose one of {', '.join(Algorithm)}")
    algorithm = Algorithm(algorithm)
    return POLICY_LOSSES[algorithm](batch, options or DEFAULT_OPTIONS[algorithm], totals or batch.totals)


def _mean(
    batch: PackedTokens, options: LossOptions, totals: BatchTotals, of_loss: Literal["tokens", "responses"]
) -> Tensor | float:
    """What a token counts in the mean that the options ask for, else ``of_loss``; [T], or one number for all."""
    return 1 / totals.tokens if (options.average or of_loss) == "tokens" else 1 / (batch.lengths * totals.samples)


def _clipped_policy_gradient(
    batch: PackedTokens, log_ratio: Tensor, scale: Tensor | float, options: LossOptions
) -> PolicyLoss:
    """-Σ_t scale · min(ρÂ, clip(ρ)Â), all [T]; the algorithms differ in ``log_ratio`` (log ρ) and ``scale``, which may
    be one number for all tokens."""
    ratio = log_ratio.exp()
    advantages = batch.token_advantages.to(ratio.dtype)
    clipped = ratio.clamp(1 - options.clip_low, 1 + options.clip_high)
    objective = torch.minimum(ratio * advantages, clipped * advantages)
    removed = ((advantages > 0) & (ratio > 1 + options.clip_high)) | ((advantages < 0) & (ratio < 1 - options.clip_low))
    if options.dual_clip is not None:
        objective = torch.where(advantages < 0, objective.maximum(options.dual_clip * advantages), objective)
        removed |= (advantages < 0) & (ratio > options.dual_clip)
    if batch.weights is not None:
        objective = objective * batch.weights.detach()
    token_loss = -objective

    reference_kl = None
    if batch.ref_logprobs is not None:
        token_kl = k3_kl(batch.logprobs.to(ratio.dtype), batch.ref_logprobs.detach().to(ratio.dtype))
        reference_kl = token_kl.detach().mean()
        if options.kl_coef:
            token_loss = token_loss + options.kl_coef * token_kl
    elif options.kl_coef:
        raise ValueError("kl_coef is set, but the batch has no ref_logprobs")

    loss = (scale * token_loss).sum()
    with torch.no_grad():
        token_log_ratio = batch.log_ratio
        return PolicyLoss(
            loss=loss,
            clip_fraction=removed.to(ratio.dtype).mean(),
            ratio_max=ratio.max(),
            approx_kl=(token_log_ratio.exp() - 1 - token_log_ratio).mean(),
            tokens=batch.tokens,
            reference_kl=reference_kl,
        )


def k3_kl(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """[T], [T] -> [T]: r - 1 - log r with r = π_ref/π: KL(π || π_ref) in nats, estimated from tokens that π sampled.

    Unbiased, never negative. Source: Schulman, "Approximating KL divergence" (2020), k3; GRPO, arXiv 2402.03300, eq. 4.
    """
    log_ratio = (ref_logprobs - logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return log_ratio.exp() - 1 - log_ratio


def truncated_importance_weights(old_logprobs: Tensor, sampler_logprobs: Tensor, *, cap: float = 2.0) -> Tensor:
    """[T], [T] -> [T]: min(π_old/π_sampler, cap), detached: corrects for a sampler unlike the trainer (TIS).

    Source: Yao et al., "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training" (2025).
    Raises ValueError unless ``cap`` is positive.
    """
    if not cap > 0:
        raise ValueError(f"cap must be positive, not {cap}")
    return (old_logprobs - sampler_logprobs).detach().clamp(max=MAX_LOG_RATIO).exp().clamp(max=cap)


def bradley_terry(
    teacher: Tensor,
    student: Tensor,
    *,
    label_smoothing: float = 0.0,
    margin: float = 0.0,
    total_pairs: int | None = None,
) -> Tensor:
    """Scores [P], [P] -> []: the mean of -log σ(teacher - student - margin), an expert's loss on pairs to one prompt.

    With label smoothing ε, the expected loss where the two are swapped with probability ε: (1-ε) × the above +
    ε × -log σ(student - teacher - margin). ``total_pairs``: the pairs of the whole batch, where this is a micro-batch.

    Source: PRISM, arXiv 2604.28123; margin as in Llama 2, arXiv 2307.09288, eq. 2; smoothing as in conservative DPO.
    Raises ValueError for other shapes, no pair, or a smoothing outside [0, 0.5).
    """
    if teacher.dim() != 1 or teacher.shape != student.shape or teacher.shape[0] == 0:
        raise ValueError(
            f"teacher and student must be [P], at least one pair, not {list(teacher.shape)}, {list(student.shape)}"
        )
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing must lie in [0, 0.5), not {label_smoothing}")
    gap = teacher - student  # [P]
    losses = -(1 - label_smoothing) * F.logsigmoid(gap - margin)
    if label_smoothing:
        losses = losses - label_smoothing * F.logsigmoid(-gap - margin)
    return losses.sum() / (total_pairs or teacher.shape[0])


def score_regularisation(scores: Tensor, *, total_scores: int | None = None) -> Tensor:
    """Raw scores, any shape -> []: the mean of their squares, which keeps an expert's scores near 0.

    ``total_scores``: the scores of the whole batch, where this is a micro-batch. Raises ValueError without a score.
    """
    if scores.numel() == 0:
        raise ValueError("no scores to regularise")
    return scores.square().sum() / (total_scores or scores.numel())
