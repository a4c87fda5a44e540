"""The policy learner: rollout groups and advantages in, one or several clipped policy-gradient updates out."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prism.config import PolicyLearnerConfig
from prism.errors import NotFiniteError
from prism.model.inputs import Example
from prism.model.packing import pack, share_by_tokens, split_by_tokens
from prism.trainer.flow.examples import GroupExamples
from prism.trainer.learn import ranks
from prism.trainer.learn.adapted import learning
from prism.trainer.learn.freeze import freeze
from prism.trainer.learn.learner import Learner
from prism.trainer.learn.losses import (
    BatchTotals,
    LossOptions,
    PackedTokens,
    PolicyLoss,
    policy_loss,
    truncated_importance_weights,
)
from prism.trainer.learn.offload import Offload
from prism.trainer.learn.optimizer import Optimizer
from prism.trainer.learn.policy_model import ResponseTokens, response_tokens
from prism.wire.v1 import rollout_pb2 as pb
from prism.wire.versions import oldest


@dataclass(frozen=True)
class TrainingSample:
    """One response with what is needed to learn from it."""

    example: Example
    logprobs: list[float]
    """The sampler's own, one a response token: π_old of the ratio, whatever its staleness."""
    advantage: float
    group: int
    policy_version: int
    """The oldest that sampled a token of it: of a newer one's tokens, those were sampled over its keys and values."""
    number: int = 0
    """Among the responses of its group."""


@dataclass(frozen=True)
class TokenView:
    """What the learner thought of a response's tokens when it first saw them, in nats."""

    logprobs: list[float]
    entropies: list[float]


@dataclass
class _MicroBatch:
    """What goes through the model together. All tensors are [T]: response tokens, sample after sample."""

    samples: list[TrainingSample]
    """Of a pass that only the other ranks need: one of theirs, from which nothing is learnt."""
    learns: bool
    sampler: Tensor
    """Log-probabilities under the policy that sampled."""
    own: Tensor | None = None
    """The same under the learner at the start of the step, where they are looked at again after it has moved."""
    reference: Tensor | None = None
    """The same under the reference policy."""


class PolicyLearner(Learner):
    """The policy's learner: an update a step, over the step's groups."""

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
        reference: Any = None,
        never: Sequence[int] = (),
        offload: Offload | None = None,
    ) -> None:
        """``reference``: the model that ``options.kl_coef`` keeps the policy near to. ``never``: tokens that no request
        samples.
        """
        freeze(model, config.freeze)
        steps = updates * config.minibatches * config.epochs
        super().__init__(model, Optimizer(learning(model).items(), config.optimizer, steps, offload), version)
        self.config = config
        self.not_finite: list[int] = []
        """The groups of the last update whose loss was not finite; all of a minibatch's if its gradient alone was."""
        self.mismatched: dict[int, float] = {}
        """The groups that the last update left out, with the mean absolute difference, in nats a token, between their
        sampler's log-probabilities and the learner's."""
        self.all_mismatched = 0
        """Groups left out so far."""
        self.seen: dict[tuple[int, int], TokenView] = {}
        """Of the last update's first ``watch`` groups, by group and number among its responses."""
        self._temperature, self._reference, self._never = temperature, reference, never
        self._algorithm, self._options = algorithm, options

    def update(self, samples: Sequence[TrainingSample], examples: GroupExamples, *, watch: int = 0) -> dict[str, Any]:
        """Learn from one step's samples. An update counts the version up; without one it stays, as the weights do.

        A minibatch whose advantages are all 0 has no gradient, and makes no update: momentum alone would move the
        weights. With ``kl_coef`` it has one.

        All ranks are given the same samples; each computes a share of them, and all return the figures of the whole.

        A group whose log-probabilities the learner finds far from the sampler's teaches nothing: ``mismatched``.
        Raises NotFiniteError as the optimizer does; ``not_finite`` says whose fault it was.
        """
        started = time.perf_counter()
        lr = self._optimizer.lr
        parts: list[PolicyLoss] = []
        norms: list[float] = []
        skipped = 0
        mismatch, entropy = _Mean(), _Mean()
        self.not_finite, self.mismatched, self.seen = [], {}, {}
        self._optimizer.prepare()
        self.model.train()
        minibatches = [
            (minibatch, self._micro_batches(minibatch, examples))
            for minibatch in _split(samples, self.config.minibatches)
            if minibatch
        ]
        at_start = True  # only before the first update do equal weights mean equal logprobs
        for epoch in range(self.config.epochs):
            for minibatch, micro_batches in minibatches:
                totals = BatchTotals(sum(len(sample.logprobs) for sample in minibatch), len(minibatch))
                ranks.expect_images(self.model, any(s.example.pixel_values is not None for s in minibatch))
                losses: list[PolicyLoss] = []
                blamed: list[int] = []
                for micro in micro_batches:
                    tokens = self._tokens(self.model, micro, examples)
                    if micro.learns and (at_start or (micro.own is not None and not epoch)):
                        self.mismatched |= self._mismatches(micro, tokens.logprobs.detach())
                    if micro.learns and watch and not epoch:
                        self.seen |= _views(micro.samples, tokens, watch)
                    loss = self._loss(micro, tokens.logprobs, totals)
                    if not micro.learns:
                        (0 * loss.loss).backward()
                        continue
                    loss.loss.backward()
                    losses.append(loss.detached())
                    blamed += [] if loss.loss.isfinite() else [sample.group for sample in micro.samples]
                    entropy.add(tokens.entropy)
                    if at_start:
                        current = torch.tensor(
                            [s.policy_version == self.version for s in micro.samples for _ in s.logprobs]
                        )
                        mismatch.add((tokens.logprobs.detach() - micro.sampler).abs()[current.to(micro.sampler.device)])
                at_start = False
                of_ranks = ranks.gathered((losses, blamed, [*self.mismatched]))
                losses = [loss for own, _, _ in of_ranks for loss in own]
                # Where each loss is finite, a gradient alone was not.
                suspects = [group for _, own, _ in of_ranks for group in own] or [sample.group for sample in minibatch]
                parts += losses
                left_out = {group for _, _, own in of_ranks for group in own}
                if not self._options.kl_coef and not any(s.advantage and s.group not in left_out for s in minibatch):
                    self._optimizer.clear()
                    continue
                try:
                    norm, updated = self._optimizer.step(sum(float(loss.loss) for loss in losses))
                except NotFiniteError:
                    self.not_finite += sorted(set(suspects))
                    raise
                if updated:
                    norms.append(norm)
                else:
                    skipped += 1
                    self.not_finite += sorted(set(suspects))
        self.mismatched = dict(sorted(pair for own in ranks.gathered(self.mismatched) for pair in own.items()))
        self.all_mismatched += len(self.mismatched)
        if watch:
            self.seen = {key: view for own in ranks.gathered(self.seen) for key, view in own.items()}
        self.version += bool(norms)
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
            "reference_kl": float(merged.reference_kl) if merged and merged.reference_kl is not None else None,
            "entropy": entropy.of_ranks(),
            "logprob_mismatch": mismatch.of_ranks(),
            "mismatched_groups": len(self.mismatched),
            "trained_samples": len(samples),
            "trained_tokens": sum(len(sample.logprobs) for sample in samples),
            "policy_update_seconds": time.perf_counter() - started,
        }

    def _micro_batches(self, samples: Sequence[TrainingSample], examples: GroupExamples) -> list[_MicroBatch]:
        """This rank's share, in as many passes as every rank makes.

        What the loss needs beside the samples is computed here, before the first step moves the weights.
        """
        made: list[_MicroBatch] = []
        moves = self.config.minibatches * self.config.epochs > 1
        for part in self._passes(samples):
            used = part or [min(samples, key=lambda sample: len(sample.example.input_ids))]
            sampler = torch.tensor([logprob for s in used for logprob in s.logprobs], device=self.model.device)
            micro = _MicroBatch(used, bool(part), sampler)
            with torch.no_grad():
                if moves and self.config.importance_cap is not None:
                    micro.own = self._tokens(self.model, micro, examples).logprobs
                if self._reference is not None:
                    micro.reference = self._tokens(self._reference, micro, examples).logprobs
            made.append(micro)
        return made

    def _passes(self, samples: Sequence[TrainingSample]) -> list[list[TrainingSample] | None]:
        """Whole groups are dealt to the ranks: a prompt is computed once."""
        groups = [[s for s in samples if s.group == number] for number in sorted({s.group for s in samples})]
        batches: list[list[list[TrainingSample]]] = []  # rank, pass, sample
        for share in share_by_tokens([[s.example for s in group] for group in groups], ranks.world()):
            own = [sample for index in share for sample in groups[index]]
            passes = split_by_tokens([[sample.example] for sample in own], self.config.micro_batch_tokens)
            batches.append([[own[index] for index in indices] for indices in passes])
        return ranks.pad_passes(batches[ranks.rank()], max(map(len, batches)))

    def _tokens(self, model: Any, micro: _MicroBatch, examples: GroupExamples) -> ResponseTokens:
        batch = pack([sample.example for sample in micro.samples], examples.inputs, self.model.device)
        return response_tokens(model, batch, self._temperature, self._never)

    def _mismatches(self, micro: _MicroBatch, logprobs: Tensor) -> dict[int, float]:
        """The groups of a pass that were sampled from something else than the learner computes.

        Asked before the step's first update: what an update changes is none of the sampler's fault.
        """
        apart = ((logprobs if micro.own is None else micro.own) - micro.sampler).abs()
        groups = torch.tensor([s.group for s in micro.samples for _ in s.logprobs], device=apart.device)
        means = {number: float(apart[groups == number].mean()) for number in {s.group for s in micro.samples}}
        return {number: mean for number, mean in means.items() if mean > self.config.max_mismatch}

    def _loss(self, micro: _MicroBatch, logprobs: Tensor, totals: BatchTotals) -> PolicyLoss:
        device, cap = logprobs.device, self.config.importance_cap
        old, weights = micro.sampler, None
        if cap is not None:
            old = logprobs.detach() if micro.own is None else micro.own
            weights = truncated_importance_weights(old, micro.sampler, cap=cap)
        advantages = [0.0 if sample.group in self.mismatched else sample.advantage for sample in micro.samples]
        packed = PackedTokens(
            logprobs=logprobs,
            old_logprobs=old,
            advantages=torch.tensor(advantages, device=device),  # [N]
            sample_index=torch.tensor([i for i, s in enumerate(micro.samples) for _ in s.logprobs], device=device),
            weights=weights,
            ref_logprobs=micro.reference,
        )
        return policy_loss(self._algorithm, packed, self._options, totals)


def training_samples(
    groups: Sequence[pb.RolloutGroup],
    prompts: Sequence[Example],
    advantages: torch.Tensor,
    keep: torch.Tensor,
    examples: GroupExamples,
) -> tuple[list[TrainingSample], int]:
    """Samples to train on, group after group, from advantages [N] and keep [N] in the order of groups and samples.

    Of a sample with a vision token, which is malformed, what stands before it is learnt from: that led to it. Also
    returns how many could not be placed, because nothing does.
    """
    samples: list[TrainingSample] = []
    unplaceable = position = 0
    for number, (group, prompt) in enumerate(zip(groups, prompts, strict=True)):
        for index, sample in enumerate(group.samples):
            advantage, kept = float(advantages[position]), bool(keep[position])
            position += 1
            if not kept:
                continue
            example = examples.sampled(prompt, sample)
            if example is None:
                unplaceable += 1
                continue
            version = oldest(group, sample)
            logprobs = list(sample.logprobs)[: len(example.response_ids)]
            samples.append(TrainingSample(example, logprobs, advantage, number, version, index))
    return samples, unplaceable


def _views(samples: Sequence[TrainingSample], tokens: ResponseTokens, watch: int) -> dict[tuple[int, int], TokenView]:
    """Of a pass's samples in the first ``watch`` groups."""
    found: dict[tuple[int, int], TokenView] = {}
    end = 0
    for sample in samples:
        start, end = end, end + len(sample.logprobs)
        if sample.group < watch:
            logprobs, entropies = tokens.logprobs[start:end].tolist(), tokens.entropy[start:end].tolist()
            found[sample.group, sample.number] = TokenView(logprobs, entropies)
    return found


def _split(samples: Sequence[TrainingSample], count: int) -> list[list[TrainingSample]]:
    """``count`` minibatches of whole groups, in order."""
    groups = sorted({sample.group for sample in samples})
    size = -(-len(groups) // count) or 1
    return [
        [sample for sample in samples if sample.group in set(groups[start : start + size])]
        for start in range(0, len(groups), size)
    ]


class _Mean:
    def __init__(self) -> None:
        self._sum, self._count = 0.0, 0

    def add(self, values: torch.Tensor) -> None:
        self._sum += float(values.sum())
        self._count += values.numel()

    def of_ranks(self) -> float | None:
        """Over what all ranks added. None where there was nothing to compare."""
        sums, counts = zip(*ranks.gathered((self._sum, self._count)), strict=True)
        return sum(sums) / sum(counts) if sum(counts) else None
