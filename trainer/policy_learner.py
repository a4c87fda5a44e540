"""The policy learner: rollout groups and advantages in, one or several clipped policy-gradient updates out."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from prism.config import PolicyLearnerConfig
from prism.inputs import Example
from prism.v1 import rollout_pb2 as pb
from trainer.examples import GroupExamples
from trainer.losses import LossOptions, PackedTokens, PolicyLoss, Totals, policy_loss
from trainer.optimizer import Optimizer
from trainer.policy_model import load_policy, response_logprobs


@dataclass(frozen=True)
class TrainingSample:
    """One response with what is needed to learn from it."""

    example: Example
    logprobs: list[float]
    """The sampler's own, one a response token: π_old of the ratio, whatever its staleness."""
    advantage: float
    group: int
    policy_version: int


class PolicyLearner:
    """Owns the policy's weights, their optimizer and their version: the number of updates made in the run."""

    def __init__(
        self,
        model: Any,
        config: PolicyLearnerConfig,
        algorithm: str,
        options: LossOptions,
        *,
        temperature: float,
        updates: int,
        version: int,
    ) -> None:
        self.model, self.config, self.version = model, config, version
        self._temperature = temperature
        self._algorithm, self._options = algorithm, options
        self._optimizer = Optimizer(model.parameters(), config.optimizer, updates * config.minibatches * config.epochs)

    def update(self, samples: Sequence[TrainingSample], examples: GroupExamples) -> dict[str, Any]:
        """Learn from one step's samples and count the version up. Without a sample nothing is learnt, but counted."""
        started = time.perf_counter()
        lr = self._optimizer.lr
        parts: list[PolicyLoss] = []
        norms: list[float] = []
        skipped = 0
        mismatch = _Mean()
        ratios_at_start = True  # only before the first update do equal weights mean equal logprobs
        self.model.train()
        for _ in range(self.config.epochs):
            for minibatch in _split(samples, self.config.minibatches):
                if not minibatch:
                    continue
                totals = Totals(sum(len(sample.logprobs) for sample in minibatch), len(minibatch))
                for micro in _micro_batches(minibatch, self.config.micro_batch):
                    loss, logprobs, old = self._loss(micro, examples, totals)
                    loss.loss.backward()
                    parts.append(loss)
                    if ratios_at_start:
                        current = torch.tensor(
                            [s.policy_version == self.version for s in micro for _ in s.logprobs], device=old.device
                        )
                        mismatch.add((logprobs.detach() - old).abs()[current])
                ratios_at_start = False
                norm, updated = self._optimizer.step()
                if updated:
                    norms.append(norm)
                skipped += not updated
        self.version += 1
        merged = PolicyLoss.merged(parts) if parts else None
        return {
            "policy_version": self.version,
            "policy_loss": float(merged.loss) if merged else None,
            "policy_grad_norm": sum(norms) / len(norms) if norms else None,
            "policy_skipped": skipped,
            "policy_lr": lr,
            "clip_fraction": float(merged.clip_fraction) if merged else None,
            "ratio_max": float(merged.ratio_max) if merged else None,
            "approx_kl": float(merged.approx_kl) if merged else None,
            "logprob_mismatch": mismatch.value(),
            "trained_samples": len(samples),
            "trained_tokens": sum(len(sample.logprobs) for sample in samples),
            "policy_update_seconds": time.perf_counter() - started,
        }

    def _loss(
        self, samples: Sequence[TrainingSample], examples: GroupExamples, totals: Totals
    ) -> tuple[PolicyLoss, torch.Tensor, torch.Tensor]:
        device = self.model.device
        batch = examples.inputs.collate([sample.example for sample in samples], device)
        logprobs = response_logprobs(self.model, batch, self._temperature)  # [T]
        old = torch.tensor([logprob for sample in samples for logprob in sample.logprobs], device=device)  # [T]
        index = torch.tensor([i for i, sample in enumerate(samples) for _ in sample.logprobs], device=device)  # [T]
        advantages = torch.tensor([sample.advantage for sample in samples], device=device)  # [N]
        packed = PackedTokens(logprobs, old, advantages, index)
        return policy_loss(self._algorithm, packed, self._options, totals), logprobs, old

    def save(self, folder: Path) -> None:
        self.model.save_pretrained(folder)
        torch.save(self._optimizer.state_dict(), folder / "optimizer.pt")

    def load(self, folder: Path, version: int) -> None:
        loaded = load_policy(folder, dtype=self.model.dtype, attention="eager")
        self.model.load_state_dict(loaded.state_dict())
        self._optimizer.load_state_dict(torch.load(folder / "optimizer.pt", weights_only=True))
        self.version = version


def training_samples(
    groups: Sequence[pb.RolloutGroup],
    prompts: Sequence[Example],
    advantages: torch.Tensor,
    keep: torch.Tensor,
    examples: GroupExamples,
) -> tuple[list[TrainingSample], int]:
    """Samples to train on, group after group, from advantages [N] and keep [N] in the order of groups and samples.

    Also returns how many could not be placed because they hold a vision token.
    """
    samples: list[TrainingSample] = []
    unplaceable = position = 0
    for number, (group, prompt) in enumerate(zip(groups, prompts, strict=True)):
        for sample in group.samples:
            advantage, kept = float(advantages[position]), bool(keep[position])
            position += 1
            if not kept:
                continue
            example = examples.sampled(prompt, sample)
            if example is None:
                unplaceable += 1
                continue
            samples.append(TrainingSample(example, list(sample.logprobs), advantage, number, group.policy_version))
    return samples, unplaceable


def _split(samples: Sequence[TrainingSample], count: int) -> list[list[TrainingSample]]:
    """``count`` minibatches of whole groups, in order."""
    groups = sorted({sample.group for sample in samples})
    size = -(-len(groups) // count) or 1
    return [
        [sample for sample in samples if sample.group in set(groups[start : start + size])]
        for start in range(0, len(groups), size)
    ]


def _micro_batches(samples: Sequence[TrainingSample], size: int) -> list[list[TrainingSample]]:
    """Batches of like lengths: little padding. The loss does not depend on how samples are split."""
    ordered = sorted(samples, key=lambda sample: len(sample.example.input_ids))
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


class _Mean:
    def __init__(self) -> None:
        self._sum, self._count = 0.0, 0

    def add(self, values: torch.Tensor) -> None:
        self._sum += float(values.sum())
        self._count += values.numel()

    def value(self) -> float | None:
        """None where there was nothing to compare."""
        return self._sum / self._count if self._count else None
