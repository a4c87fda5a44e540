"""RLVR in one process: what ``prism.trainer.stages.rlvr`` does, without its services; and the choice of its prompts."""

import fcntl
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench.effect.loop.game import SEEDS, new_policy
from bench.effect.loop.sampling import Sampler, grade, groups_of
from bench.effect.loop.setting import Prompts, Setting, stage_of
from bench.effect.nodes import Node
from prism.config import RlvrConfig
from prism.data.blobs import BlobStore
from prism.errors import ConfigError
from prism.files import append_json, write_json
from prism.model.control import vision_tokens
from prism.model.inputs import Example, InputBuilder
from prism.trainer.flow.demonstrations import Order
from prism.trainer.flow.examples import GroupExamples
from prism.trainer.learn.policy_learner import PolicyLearner, training_samples
from prism.trainer.learn.policy_model import save_policy
from prism.trainer.stages.rlvr import advantages_of, differs
from prism.wire.v1 import rollout_pb2 as pb

LOOKED_AT = 64  # groups at the start, of which the share that teaches nothing is told


def reinforce(setting: Setting, nodes: Path, node: Node, start: Path, work: Path, out: Path) -> dict[str, Any]:
    """Train on the grader's verdicts from the policy in ``start``, on prompts that the SFT policy of this seed answers
    now and then; returns figures."""
    data = setting.data("candidates.jsonl")
    config = setting.config(node, work, start, "rlvr", data)
    stage: RlvrConfig = stage_of(config)
    if stage.kl_coef:
        raise ConfigError(f"{node.name}: kl_coef is not of this study")
    inputs = InputBuilder(start)
    prompts = Prompts(data, inputs)
    chosen = pool(setting, nodes / Node(("sft",), node.seed).name, node.seed, prompts)
    policy = new_policy(config, stage, start, stage.loss)
    never = vision_tokens(policy.model.config)
    sampler = Sampler(start, inputs, getattr(torch, setting.size.dtype), setting.size.device, setting.size.batch_rows)
    examples = GroupExamples(inputs, BlobStore(str(work / "blobs")))
    order = Order(len(chosen), 1, node.seed)
    taken = 0  # of the order

    def sampled(count: int, seed: int) -> list[pb.RolloutGroup]:
        nonlocal taken
        places = [chosen[order.at(position)[0]] for position in range(taken, taken + count)]
        taken += count
        rollouts = stage.rollouts
        samples = sampler.sample(
            [prompts.prompt(place) for place in places],
            rollouts.n,
            max_tokens=rollouts.max_tokens,
            temperature=rollouts.temperature,
            seed=seed,
        )
        groups = groups_of(prompts, places, samples, policy.version)
        grade(groups, never)
        return groups

    looked_at = sampled(min(LOOKED_AT, len(chosen)), SEEDS * node.seed - 1)
    at_start = sum(not differs(group) for group in looked_at) / len(looked_at)
    taken = 0
    by_id = {prompts.row(place).id: place for place in chosen}
    figures: dict[str, Any] = {}
    for step in range(stage.steps):
        groups = sampled(stage.rollouts.prompts, SEEDS * node.seed + 1_000 * step)
        accuracy = _mean([sample.verdict.accuracy for group in groups for sample in group.samples])
        if stage.dynamic_sampling:
            groups = [group for group in groups if differs(group)]
            for round_ in range(1, stage.max_sampling_rounds):
                if (missing := stage.rollouts.prompts - len(groups)) <= 0:
                    break
                more = sampled(missing, SEEDS * node.seed + 1_000 * step + round_)
                groups += [group for group in more if differs(group)]
        figures = {"step": step + 1, "accuracy": accuracy}
        if groups:
            of_groups = [prompts.prompt(by_id[group.request.prompt.id]) for group in groups]
            figures |= learn(policy, stage, groups, of_groups, examples)
            sampler.take(policy.model)
        append_json(work / "metrics.jsonl", figures, sync=False)
    save_policy(policy.model, out, inputs)
    return {
        "steps": stage.steps,
        "updates": policy.version,
        "pool": len(chosen),
        "zero_variance_at_start": at_start,
        "accuracy": figures["accuracy"],
    }


def learn(
    policy: PolicyLearner,
    stage: RlvrConfig,
    groups: Sequence[pb.RolloutGroup],
    prompts: Sequence[Example],
    examples: GroupExamples,
) -> dict[str, Any]:
    """What the platform's stage does with a step's graded groups."""
    advantages = advantages_of(groups, stage)
    samples, _ = training_samples(groups, prompts, advantages.values, advantages.keep, examples)
    return policy.update(samples, examples) | advantages.figures()


def pool(setting: Setting, sft: Path, seed: int, prompts: Prompts) -> list[int]:
    """Places of the prompts whose pass rate under the SFT policy of this seed lies within the plan's bounds: chosen
    once, by whoever comes first, and the same for all arms of the seed.

    Raises ConfigError where there is none; a toy's policy, which can do nothing, takes all prompts then.
    """
    file = setting.root / "pools" / f"s{seed}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.with_suffix(".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        if not file.is_file():
            inputs, size = InputBuilder(sft), setting.size
            sampler = Sampler(sft, inputs, getattr(torch, size.dtype), size.device, size.batch_rows)
            places, n = list(range(len(prompts))), setting.plan.pass_samples
            sampled = [prompts.prompt(place) for place in places]
            samples = sampler.sample(sampled, n, max_tokens=setting.max_tokens, temperature=1.0, seed=SEEDS * seed - 2)
            groups = groups_of(prompts, places, samples, 0)
            grade(groups, sampler.never)
            rates = [_mean([sample.verdict.accuracy for sample in group.samples]) or 0.0 for group in groups]
            low, high = setting.plan.pass_rate
            chosen = [place for place, rate in enumerate(rates) if low <= rate <= high]
            write_json(file, {"chosen": chosen, "pass_rate": _mean(rates), "of": len(places)})
        chosen = json.loads(file.read_text())["chosen"]
    if not chosen and setting.size_name == "toy":
        return list(range(len(prompts)))
    if not chosen:
        raise ConfigError(f"{file}: no prompt has a pass rate within {setting.plan.pass_rate}: RLVR has nothing to do")
    return chosen


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
