"""Reinforcement learning with verifiable rewards: GRPO, DAPO, GSPO or Dr. GRPO on the grader's verdicts."""

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from prism.config import RlvrConfig, RunConfig
from prism.model.inputs import Example
from prism.trainer.flow.intake import POLICY, Admission, Intake, StepRollouts
from prism.trainer.learn import ranks
from prism.trainer.learn.adapted import load_policy_adapter, save_learnt
from prism.trainer.learn.advantages import Advantages, group_centred, group_normalised, soft_overlong_penalty
from prism.trainer.learn.losses import Algorithm
from prism.trainer.learn.offload import offload_of
from prism.trainer.learn.policy_learner import training_samples
from prism.trainer.run.alerts import Alerts
from prism.trainer.run.recorder import Recorder
from prism.trainer.stages.common import (
    dump_nonfinite_groups,
    keep_rollouts,
    mean,
    new_policy,
    push_weights,
    refuse_mismatches,
    resume_and_push,
    rollout_figures,
    settle,
    shared_step,
    usable_groups,
)
from prism.trainer.stages.context import Context, open_context
from prism.trainer.stages.empty_steps import EmptySteps
from prism.trainer.stages.validation import Validation
from prism.wire.sample import refuse_reward, sample_problems
from prism.wire.v1 import rollout_pb2 as pb

SHOWN = ("reward", "accuracy", "format_rate", "response_tokens")


def train(config: RunConfig, name: str, stage: RlvrConfig, start: Path | str, output: Path) -> dict[str, Any]:
    """Train from the model in ``start`` and write the policy to ``output``; resumes where it stopped."""
    ranks.seed(config.seed)
    context = open_context(config, name, start)
    lora = stage.policy.lora
    model = load_policy_adapter(start, config, lora) if lora else None
    offload = offload_of(config) if config.offload == "optimizer" else None
    policy = new_policy(context, stage, start, stage.loss, kl_coef=stage.kl_coef, model=model, offload=offload)
    intake = context.intake(stage.rollouts, (POLICY,), require=("gold",))
    never = context.inputs.vision_token_ids
    empty_steps, alerts = EmptySteps(stage), Alerts(config.alerts, context.say)
    counts = {"empty_steps": empty_steps, "alerts": alerts}
    saved, first, publishers = resume_and_push(context, {POLICY: policy}, intake, counts)

    validation, ended = Validation(context, stage.steps), stage.steps
    recorder = Recorder(config.run_dir, name, stage.steps, alerts=alerts)
    rollout_log = context.rollout_log()
    started = time.perf_counter()
    asked = first
    sampled: list[pb.RolloutGroup] = []  # for the step, on the first rank
    with saved:
        for step in range(first, stage.steps):
            began = time.perf_counter()
            saved.poll()
            version = policy.version

            def collected(
                step: int = step, version: int = version
            ) -> tuple[list[pb.RolloutGroup], list[Example], dict[str, Any]]:
                nonlocal asked, sampled
                while asked < stage.steps and intake.admit(
                    _admission(stage, asked, version + asked - step, stage.rollouts.prompts),
                    version=version,
                    expert_version=0,
                ):
                    asked += 1
                rollouts, rounds = _collect(context, intake, stage, step, version)
                sampled = rollouts.groups
                groups, prompts = usable_groups(context, intake, rollouts, version)
                figures = rollout_figures(groups, rollouts, version, never) | _rewards(groups)
                if stage.dynamic_sampling:
                    chosen = [i for i, group in enumerate(groups) if differs(group)][: stage.rollouts.prompts]
                    groups, prompts = [groups[i] for i in chosen], [prompts[i] for i in chosen]
                return groups, prompts, figures | {"sampling_rounds": rounds}

            groups, prompts, figures = shared_step(context, collected)
            advantages = advantages_of(groups, stage)
            samples, unplaceable = training_samples(
                groups, prompts, advantages.values, advantages.keep, context.examples
            )
            with dump_nonfinite_groups(context, policy, step, groups):
                figures |= policy.update(samples, context.examples, watch=rollout_log.groups)
            refuse_mismatches(context, policy, groups)
            figures |= advantages.figures() | {"unplaceable_samples": unplaceable}
            figures |= empty_steps.policy(samples, figures)
            if ranks.is_first():
                intake.finish(step)

            if policy.version > version:
                figures |= push_weights(context, publishers, [policy], groups[0])
            figures |= {"attempt": context.attempt, "step_seconds": time.perf_counter() - began}
            recorder.step(step + 1, figures, show=SHOWN, groups=groups)
            keep_rollouts(context, rollout_log, step, groups, version, advantages, policy)
            empty_steps.end_if_nothing_learnt(context, intake, step, policy.version, sampled)
            validation.begin(step + 1, policy.version)
            if (step + 1) % stage.checkpoint_every == 0 or step + 1 == stage.steps:
                saved.save(step + 1)
                if validation.is_over():
                    context.say(f"{name} ends after step {step + 1}: evaluate.stop_after")
                    ended = step + 1
                    break
        validation.close()
    recorder.close()
    settle(publishers)
    save_learnt(policy.model, output, context.inputs)
    if ranks.is_first():
        intake.check_newest()
    return {
        "version": policy.version,
        "steps": ended,
        "seconds": time.perf_counter() - started,
        "data": saved.data,
    }


def _admission(stage: RlvrConfig, step: int, update: int, count: int) -> Admission:
    return Admission(step=step, update=update, count=count, n=stage.rollouts.n, experts=(), grade=True)


def _collect(context: Context, intake: Intake, stage: RlvrConfig, step: int, version: int) -> tuple[StepRollouts, int]:
    """The step's groups and the rounds of sampling it took; with dynamic sampling (DAPO), more than one may be."""
    rollouts = _collected(context, intake, step)
    rounds = 1
    while stage.dynamic_sampling and rounds < stage.max_sampling_rounds:
        missing = stage.rollouts.prompts - sum(differs(group) for group in rollouts.groups)
        if missing <= 0:
            break
        intake.admit(_admission(stage, step, version, missing), version=version, expert_version=0)
        waited = rollouts.wait_seconds
        rollouts = _collected(context, intake, step)
        rollouts.wait_seconds += waited
        rounds += 1
    return rollouts, rounds


def _collected(context: Context, intake: Intake, step: int) -> StepRollouts:
    rollouts = intake.collect(step, context.say)
    for sample in (sample for group in rollouts.groups for sample in group.samples):
        refuse_reward(sample, context.inputs.vision_token_ids)
    return rollouts


def differs(group: pb.RolloutGroup) -> bool:
    """Whether the group's accuracies differ: only then does it teach anything."""
    known = {s.verdict.accuracy for s in group.samples if s.verdict.HasField("reward")}
    return len(known) > 1


def _all_equal(group: pb.RolloutGroup) -> bool:
    """Whether the group might have taught something: two answers can be compared, and one keeps the format."""
    judged = [sample for sample in group.samples if sample.verdict.HasField("reward")]
    return len(judged) > 1 and not differs(group) and any(not sample_problems(sample) for sample in judged)


def advantages_of(groups: Sequence[pb.RolloutGroup], stage: RlvrConfig) -> Advantages:
    """Of all samples, group after group, as the stage's loss has them; those without a verdict are masked."""
    samples = [sample for group in groups for sample in group.samples]
    valid = torch.tensor([sample.verdict.HasField("reward") for sample in samples], dtype=torch.bool)  # [N]
    rewards = torch.tensor([sample.verdict.reward for sample in samples], dtype=torch.float64)  # [N]
    if stage.overlong_buffer:
        lengths = torch.tensor([len(sample.token_ids) for sample in samples])
        rewards += soft_overlong_penalty(lengths, max_length=stage.rollouts.max_tokens, buffer=stage.overlong_buffer)
    index = torch.tensor([number for number, group in enumerate(groups) for _ in group.samples], dtype=torch.long)
    within = group_centred if Algorithm(stage.loss) is Algorithm.DR_GRPO else group_normalised
    return within(rewards, valid, index)


def _rewards(groups: Sequence[pb.RolloutGroup]) -> dict[str, Any]:
    """Of everything sampled and judged, before dynamic sampling picks the groups that differ."""
    verdicts = [sample.verdict for group in groups for sample in group.samples]
    judged = [verdict for verdict in verdicts if verdict.HasField("reward")]
    without = Counter(verdict.status for verdict in verdicts if not verdict.HasField("reward"))
    masked = without.pop(pb.STATUS_UNPARSEABLE_ANSWER, 0)  # as grader.unparseable asks for
    return {
        "unjudged_samples": without.total(),
        "unreadable_samples": masked,
        "unparseable_golds": without[pb.STATUS_UNPARSEABLE_GOLD],
        "undecided_groups": sum(map(_all_equal, groups)),
        "reward": mean([verdict.reward for verdict in judged]),
        "accuracy": mean([verdict.accuracy for verdict in judged]),
    }
