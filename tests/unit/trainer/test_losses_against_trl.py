"""Losses and advantages against TRL 1.16: its own code runs, fed with the log-probabilities that a model would give.

The one thing replaced is the model's forward pass. Everything from log-probabilities to loss is
``GRPOTrainer._compute_loss`` itself; without TRL these tests fail.
"""

from collections import defaultdict
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

from prism.model import torchvision_cpu

torchvision_cpu.install()  # TRL imports torchvision, which must load beside a CPU build of torch

import pytest  # noqa: E402
import torch  # noqa: E402
from torch import Tensor  # noqa: E402
from trl.trainer.grpo_trainer import GRPOTrainer  # noqa: E402
from trl.trainer.utils import nanstd  # noqa: E402

from prism.trainer.learn.advantages import group_normalised  # noqa: E402
from prism.trainer.learn.losses import BatchTotals, LossOptions, PackedTokens, PolicyLoss, policy_loss  # noqa: E402

MAX_LENGTH = 24  # tokens; TRL's max_completion_length


@dataclass(frozen=True)
class Rollouts:
    """A padded batch as TRL wants it. Padding holds noise, so that a mask forgotten on either side shows."""

    logprobs: Tensor  # [B, L], requires gradient
    old_logprobs: Tensor  # [B, L]
    ref_logprobs: Tensor  # [B, L]
    weights: Tensor  # [B, L]
    advantages: Tensor  # [B]
    mask: Tensor  # [B, L] 1 on response tokens

    def packed(self) -> PackedTokens:
        inside = self.mask.bool()
        return PackedTokens(
            logprobs=self.logprobs[inside],
            old_logprobs=self.old_logprobs[inside],
            advantages=self.advantages,
            sample_index=torch.arange(len(self.mask)).repeat_interleave(self.mask.sum(1)),
            weights=self.weights[inside],
            ref_logprobs=self.ref_logprobs[inside],
        )

    def rows(self, rows: slice) -> "Rollouts":
        return Rollouts(**{name: getattr(self, name)[rows] for name in self.__dataclass_fields__})


def rollouts(seed: int, spread: float) -> Rollouts:
    generator = torch.Generator().manual_seed(seed)

    def noise() -> Tensor:
        return torch.randn(12, MAX_LENGTH, generator=generator)

    old = -noise().abs()
    lengths = torch.randint(1, MAX_LENGTH + 1, (12, 1), generator=generator)
    return Rollouts(
        logprobs=(old + spread * noise()).requires_grad_(),
        old_logprobs=old,
        ref_logprobs=old + 0.1 * noise(),
        weights=(0.1 * noise()).exp(),
        advantages=torch.randn(12, generator=generator),
        mask=(torch.arange(MAX_LENGTH) < lengths).long(),
    )


def trl_loss(
    batch: Rollouts,
    loss_type: str,
    *,
    options: LossOptions,
    level: str = "token",
    accumulation: int = 1,
    total_tokens: int | None = None,
    importance_sampling: bool = False,
) -> tuple[Tensor, dict[str, list[float]]]:
    """TRL's loss and the metrics it logs."""
    metrics: dict[str, dict[str, list[float]]] = {"train": defaultdict(list)}
    trainer: Any = SimpleNamespace(
        args=SimpleNamespace(delta=options.dual_clip, use_bias_correction_kl=False, steps_per_generation=accumulation),
        loss_type=loss_type,
        importance_sampling_level=level,
        epsilon_low=options.clip_low,
        epsilon_high=options.clip_high,
        beta=options.kl_coef,
        max_completion_length=MAX_LENGTH,
        current_gradient_accumulation_steps=accumulation,
        use_vllm=importance_sampling,
        vllm_importance_sampling_correction=importance_sampling,
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        _entropy_bonus_enabled=False,
        model=SimpleNamespace(training=True),
        accelerator=SimpleNamespace(
            num_processes=1, gather=lambda tensor: tensor, reduce=lambda tensor, reduction: tensor
        ),
        _metrics=metrics,
        _get_per_token_logps_and_entropies=lambda *_, **__: (batch.logprobs, torch.zeros_like(batch.logprobs), None),
    )
    prompt = torch.zeros(len(batch.mask), 3, dtype=torch.long)
    inputs = {
        "prompt_ids": prompt,
        "prompt_mask": torch.ones_like(prompt),
        "completion_ids": torch.zeros_like(batch.mask),
        "completion_mask": batch.mask,
        "advantages": batch.advantages,
        "old_per_token_logps": batch.old_logprobs,
        "ref_per_token_logps": batch.ref_logprobs,
        "importance_sampling_ratio": batch.weights,
        "num_items_in_batch": torch.tensor(float(total_tokens or batch.mask.sum())),
    }
    return GRPOTrainer._compute_loss(trainer, trainer.model, inputs), metrics["train"]


def same(batch: Rollouts, ours: PolicyLoss | Tensor, theirs: Tensor) -> None:
    """Loss and gradient agree within 1e-5."""
    loss = ours.loss if isinstance(ours, PolicyLoss) else ours
    assert torch.allclose(loss, theirs, rtol=1e-5, atol=1e-5)
    gradient, expected = (torch.autograd.grad(each, batch.logprobs, retain_graph=True)[0] for each in (loss, theirs))
    assert expected.abs().max() > 1e-4  # or there was nothing to compare
    assert torch.allclose(gradient, expected, rtol=1e-5, atol=1e-5)


# Ours, TRL's loss_type, its importance_sampling_level, and the clip.
PAIRS = [
    ("grpo", "grpo", "token", LossOptions()),
    ("dapo", "dapo", "token", LossOptions(clip_high=0.28)),
    ("dapo", "bnpo", "token", LossOptions(clip_high=0.28)),
    ("dapo", "dapo", "token", LossOptions(clip_high=0.28, dual_clip=1.6)),  # TRL's delta; low, so that it is reached
    ("dr_grpo", "dr_grpo", "token", LossOptions(max_length=MAX_LENGTH)),
    ("align", "bnpo", "token", LossOptions()),
    ("gspo", "grpo", "sequence", LossOptions(clip_low=3e-4, clip_high=4e-4)),
    ("gspo", "grpo", "sequence", LossOptions(clip_low=0.1, clip_high=0.1)),
]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("spread", [0.0, 0.02, 0.4], ids=["on-policy", "near", "far"])
@pytest.mark.parametrize(("algorithm", "loss_type", "level", "options"), PAIRS)
def test_loss_and_gradient(
    algorithm: str, loss_type: str, level: str, options: LossOptions, spread: float, seed: int
) -> None:
    batch = rollouts(seed, spread)
    plain = replace(batch.packed(), weights=None, ref_logprobs=None)
    theirs, metrics = trl_loss(batch, loss_type, options=options, level=level)
    ours = policy_loss(algorithm, plain, options)
    same(batch, ours, theirs)
    if level == "token" and options.dual_clip is None:  # else TRL counts other things
        assert float(ours.clip_fraction) == pytest.approx(metrics["clip_ratio/region_mean"][0], abs=1e-6)


@pytest.mark.parametrize(("algorithm", "loss_type", "level", "options"), PAIRS)
def test_with_a_reference_and_importance_sampling(
    algorithm: str, loss_type: str, level: str, options: LossOptions
) -> None:
    batch = rollouts(7, 0.3)
    options = replace(options, kl_coef=0.04)
    theirs, metrics = trl_loss(batch, loss_type, options=options, level=level, importance_sampling=True)
    ours = policy_loss(algorithm, batch.packed(), options)
    same(batch, ours, theirs)
    assert float(ours.reference_kl) == pytest.approx(metrics["kl"][0], abs=1e-6)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(("algorithm", "loss_type", "level", "options"), [pair for pair in PAIRS if pair[1] != "bnpo"])
def test_accumulated_over_micro_batches(algorithm: str, loss_type: str, level: str, options: LossOptions) -> None:
    """bnpo is left out: TRL means over each micro-batch, so that its gradient depends on the split."""
    batch = rollouts(11, 0.3)
    tokens = int(batch.mask.sum())
    ours, theirs = torch.zeros(()), torch.zeros(())
    for rows in (slice(0, 4), slice(4, 8), slice(8, 12)):
        part = batch.rows(rows)
        plain = replace(part.packed(), weights=None, ref_logprobs=None)
        ours = ours + policy_loss(algorithm, plain, options, BatchTotals(tokens, samples=12)).loss
        theirs = (
            theirs + trl_loss(part, loss_type, options=options, level=level, accumulation=3, total_tokens=tokens)[0]
        )
    same(batch, ours, theirs)


def test_advantages_divide_by_trls_standard_deviation() -> None:
    generator = torch.Generator().manual_seed(3)
    rewards = torch.rand(6, 8, generator=generator).double()
    valid = torch.rand(6, 8, generator=generator) > 0.2
    unscored = torch.where(valid, rewards, torch.nan)
    expected = (unscored - unscored.nanmean(1, keepdim=True)) / (nanstd(unscored, dim=1, keepdim=True) + 1e-4)
    groups = torch.arange(6).repeat_interleave(8)
    ours = group_normalised(rewards.flatten(), valid.flatten(), groups, epsilon=1e-4)
    # TRL's n/(n - 1) is a division of integers, hence float32 whatever the rewards are: 2e-8 off.
    assert torch.allclose(ours.values, expected.nan_to_num(0.0).flatten(), rtol=0, atol=1e-6)
