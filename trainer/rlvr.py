"""Reinforcement learning with verifiable rewards: GRPO, DAPO, GSPO or Dr. GRPO on the grader's verdicts."""

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from prism.config import RlvrConfig, RunConfig
from prism.inputs import Example
from prism.v1 import rollout_pb2 as pb
from trainer import ranks
from trainer.advantages import Advantages, group_centred, group_normalised, soft_overlong_penalty
from trainer.checkpoint import (
    Checkpoints,
    newest_checkpoint,
    random_state,
    read_tensors,
    set_random_state,
    write_description,
)
from trainer.context import Context, open_context
from trainer.intake import POLICY, Admission, Intake, StepRollouts
from trainer.losses import Algorithm
from trainer.policy_learner import PolicyLearner, training_samples
from trainer.policy_model import load_learner, load_reference, save_policy
from trainer.recorder import Recorder
from trainer.result import start_version
from trainer.stage import (
    dump_nonfinite_groups,
    loss_options,
    mean,
    push_policy,
    rollout_figures,
    shared_step,
    usable_groups,
)

SHOWN = ("reward", "accuracy", "format_rate", "response_tokens")


def train(config: RunConfig, name: str, stage: RlvrConfig, start: Path | str, output: Path) -> dict[str, Any]:
    """Train from the model in ``start`` and write the policy to ``output``; resumes where it stopped."""
    ranks.seed(config.seed)
    context = open_context(config, name, start)
    base = start_version(start)
    model = load_learner(start, config)
    options = loss_options(stage.loss, stage.policy, stage.rollouts.max_tokens, kl_coef=stage.kl_coef)
    policy = PolicyLearner(
        model,
        stage.policy,
        stage.loss,
        options,
        temperature=stage.rollouts.temperature,
        updates=stage.steps,
        version=base,
        reference=load_reference(start, config) if stage.kl_coef else None,
    )
    intake = context.intake(stage.rollouts, (POLICY,), require=("gold",))
    saved = context.checkpoints()
    first = _resume(context, saved, policy, intake)
    publisher = context.publisher(POLICY)
    push_policy(context, publisher, policy, None)  # before a single rollout is asked for

    recorder = Recorder(config.run_dir, name, stage.steps)
    started = time.perf_counter()
    asked = first
    with saved:
        for step in range(first, stage.steps):
            began = time.perf_counter()
            saved.poll()

            def collected(step: int = step) -> tuple[list[pb.RolloutGroup], list[Example], dict[str, Any]]:
                nonlocal asked
                while asked < stage.steps and intake.admit(
                    _admission(stage, asked, base, stage.rollouts.prompts), version=policy.version, expert_version=0
                ):
                    asked += 1
                rollouts, rounds = _collect(context, intake, stage, step, base, policy.version)
                groups, prompts = usable_groups(context, intake, rollouts, policy.version)
                figures = rollout_figures(groups, rollouts, policy.version) | _rewards(groups)
                if stage.dynamic_sampling:
                    chosen = [i for i, group in enumerate(groups) if _undecided(group)][: stage.rollouts.prompts]
                    groups, prompts = [groups[i] for i in chosen], [prompts[i] for i in chosen]
                return groups, prompts, figures | {"sampling_rounds": rounds}

            groups, prompts, figures = shared_step(context, collected)
            advantages = _advantages(groups, stage)
            samples, unplaceable = training_samples(
                groups, prompts, advantages.values, advantages.keep, context.examples
            )
            with dump_nonfinite_groups(context, policy, step, groups):
                figures |= policy.update(samples, context.examples)
            figures |= {
                "masked_samples": advantages.masked_samples,
                "dropped_groups": advantages.dropped_groups,
                "flat_groups": advantages.flat_groups,
                "unplaceable_samples": unplaceable,
            }
            if ranks.is_first():
                intake.finish(step)

            figures |= push_policy(context, publisher, policy, groups[0] if groups else None)
            figures |= {"attempt": context.attempt, "step_seconds": time.perf_counter() - began}
            recorder.step(step + 1, figures, show=SHOWN, groups=groups)
            if (step + 1) % stage.checkpoint_every == 0 or step + 1 == stage.steps:
                _save(context, saved, step + 1, policy, intake)
    recorder.close()
    publisher.settle()
    save_policy(policy.model, output, context.inputs)
    return {"version": policy.version, "steps": stage.steps, "seconds": time.perf_counter() - started}


def _admission(stage: RlvrConfig, step: int, base: int, count: int) -> Admission:
    return Admission(step=step, update=base + step, count=count, n=stage.rollouts.n, experts=(), grade=True)


def _collect(
    context: Context, intake: Intake, stage: RlvrConfig, step: int, base: int, version: int
) -> tuple[StepRollouts, int]:
    """The step's groups and the rounds of sampling it took; with dynamic sampling (DAPO), more than one may be."""
    rollouts = intake.collect(step, context.say)
    rounds = 1
    while stage.dynamic_sampling and rounds < stage.max_sampling_rounds:
        missing = stage.rollouts.prompts - sum(_undecided(group) for group in rollouts.groups)
        if missing <= 0:
            break
        intake.admit(_admission(stage, step, base, missing), version=version, expert_version=0)
        waited = rollouts.wait_seconds
        rollouts = intake.collect(step, context.say)
        rollouts.wait_seconds += waited
        rounds += 1
    return rollouts, rounds


def _undecided(group: pb.RolloutGroup) -> bool:
    """Whether the group's accuracies differ: only then does it teach anything."""
    known = {s.verdict.accuracy for s in group.samples if s.verdict.HasField("reward")}
    return len(known) > 1


def _advantages(groups: Sequence[pb.RolloutGroup], stage: RlvrConfig) -> Advantages:
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
    judged = [s.verdict for group in groups for s in group.samples if s.verdict.HasField("reward")]
    return {
        "reward": mean([verdict.reward for verdict in judged]),
        "accuracy": mean([verdict.accuracy for verdict in judged]),
    }


def _save(context: Context, saved: Checkpoints, step: int, policy: PolicyLearner, intake: Intake) -> None:
    state = {
        "step": step,
        "policy_version": policy.version,
        **intake.state(),
        "attempt": context.attempt,
    }
    tensors = {POLICY: policy.state_dict(), "rng": random_state(context.config.device)}
    description = partial(write_description, context.config, {POLICY: policy.model})
    saved.save(step, state, tensors, description, intake.acknowledgement() if ranks.is_first() else None)


def _resume(context: Context, saved: Checkpoints, policy: PolicyLearner, intake: Intake) -> int:
    newest = newest_checkpoint(saved.root)
    if newest is None:
        ranks.from_first(lambda: intake.resume(None))
        return 0
    folder, state = newest
    tensors = {POLICY: policy.state_dict(), "rng": random_state(context.config.device)}
    read_tensors(folder, tensors)
    policy.load_state_dict(tensors[POLICY], state["policy_version"])
    set_random_state(tensors["rng"])
    intake.restore(state)
    kept = ranks.from_first(lambda: intake.resume(state["policy_version"]))
    context.say(f"resumed after step {state['step']} at version {policy.version}, {kept} groups taken over")
    return state["step"]
