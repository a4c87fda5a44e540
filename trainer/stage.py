"""What a step of alignment and a step of RLVR have in common: checked prompts, figures, pushes, stage results."""

import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from prism.config import PolicyLearnerConfig
from prism.errors import DataError, StreamError
from prism.inputs import Example
from prism.response import caption_f1, parse_response
from prism.v1 import rollout_pb2 as pb
from trainer.context import Context
from trainer.intake import Intake, StepRollouts
from trainer.losses import DEFAULT_OPTIONS, Algorithm, LossOptions
from trainer.policy_learner import PolicyLearner
from trainer.probe import make_probe
from trainer.publish import Publisher
from trainer.staleness import staleness


def loss_options(algorithm: str, config: PolicyLearnerConfig, max_tokens: int) -> LossOptions:
    """The options published for the algorithm, with the clip that the configuration sets, if it does."""
    clip = {"clip_low": config.clip_low, "clip_high": config.clip_high}
    given = {name: value for name, value in clip.items() if value is not None}
    return replace(DEFAULT_OPTIONS[Algorithm(algorithm)], max_length=max_tokens, **given)


def usable_groups(
    context: Context, intake: Intake, rollouts: StepRollouts
) -> tuple[list[pb.RolloutGroup], list[Example]]:
    """The groups that can be trained on, and their prompts as the learner builds them; the others are buried."""
    groups: list[pb.RolloutGroup] = []
    prompts: list[Example] = []
    for group in rollouts.groups:
        try:
            prompts.append(context.examples.prompt(group))
            groups.append(group)
        except (StreamError, DataError) as error:
            context.say(f"group of prompt {group.request.prompt.id} buried: {error}")
            intake.bury(group, str(error))
    return groups, prompts


def rollout_figures(groups: Sequence[pb.RolloutGroup], rollouts: StepRollouts, version: int) -> dict[str, Any]:
    """Figures of what was sampled, before anything is learnt from it."""
    samples = [(group, sample) for group in groups for sample in group.samples]
    lengths = [len(sample.token_ids) for _, sample in samples]
    ages = [staleness(group.policy_version, version) for group in groups]
    facts = [
        f1
        for group, sample in samples
        if group.request.prompt.teacher and (f1 := caption_f1(sample.text, group.request.prompt.teacher)) is not None
    ]
    return {
        "positions": [group.request.position for group in groups],
        "groups": len(groups),
        "lost_groups": len(rollouts.lost) + len(rollouts.groups) - len(groups),
        "wait_seconds": rollouts.wait_seconds,
        "generate_seconds": mean([group.generate_seconds for group in groups]),
        "judge_seconds": mean([group.judge_seconds for group in groups]),
        "response_tokens": mean(lengths),
        "sampled_tokens": sum(lengths),
        "truncated": mean([float(sample.finish_reason == "length") for _, sample in samples]),
        "format_rate": mean([float(parse_response(sample.text).valid) for _, sample in samples]),
        "caption_f1": mean(facts),
        "staleness_mean": mean(ages),
        "staleness_max": max(ages, default=None),
    }


def push_policy(
    context: Context, publisher: Publisher, policy: PolicyLearner, group: pb.RolloutGroup | None
) -> dict[str, Any]:
    """Publish the policy; ``group`` gives the prompt and the text of the probe."""
    probe = None
    if group is not None:
        text = next((sample.text for sample in group.samples if sample.text), group.request.prompt.teacher)
        tolerance = context.config.push.probe_tolerance
        probe = make_probe(policy.model, context.inputs, group.request.prompt, text, context.blobs, tolerance)
    result = publisher.push(policy.version, policy.model.save_pretrained, probe)
    return {"sync_total_seconds": result.total_seconds, "sync_paused_seconds": result.paused_seconds}


def mean(values: Sequence[float]) -> float | None:
    """None where there is nothing to average: no data is no number."""
    return statistics.fmean(values) if values else None
