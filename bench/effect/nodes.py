"""The study as jobs: a node for each step of each arm, N and seed. Arms that begin alike share what they begin with."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from configs.effect.plan import Plan, without
from prism.config import ExpertLearnerConfig
from prism.config.published import merged
from prism.errors import ConfigError

BASE = "base"
TUNED_WITH = {"rlvr": ("sft",), "teach-early": ("sft",), "align": ("sft",)}
"""What stands before a step while it is tuned."""


@dataclass(frozen=True)
class Node:
    """One training of the policy, and what came before it."""

    steps: tuple[str, ...]
    """Keys of the plan's ``steps`` after pretraining; none for the pretrained policy."""
    seed: int
    texts: int | None = None
    """N, once a step learns from the teacher's fresh texts."""
    trial: int | None = None
    """Of tuning: a place in the plan's ``tuning`` of the last step."""

    @property
    def name(self) -> str:
        """Of its folder and its results."""
        if not self.steps:
            return BASE
        texts = "" if self.texts is None else f"-n{self.texts}"
        trial = "" if self.trial is None else f"-trial{self.trial}"
        return f"s{self.seed}{texts}-{self.path}{trial}"

    @property
    def path(self) -> str:
        return "+".join(self.steps) or BASE


def node_of(plan: Plan, steps: Sequence[str], seed: int, texts: int | None, trial: int | None = None) -> Node:
    """Without the N where no step needs it, and without the seed where there is no step: so that it is one node."""
    taught = any(plan.steps[step].teacher for step in steps)
    return Node(tuple(steps), seed if steps else 0, texts if taught else None, trial)


def parent(plan: Plan, node: Node) -> Node:
    return node_of(plan, node.steps[:-1], node.seed, node.texts)


def needs(plan: Plan, node: Node) -> list[Node]:
    """Whose models must be there before it can be made: what it starts from; for RLVR the SFT policy of its seed, whose
    pass rates choose the prompts; the pretrained policy, beside which it is measured."""
    if not node.steps:
        return []
    before = [parent(plan, node)]
    if plan.steps[node.steps[-1]].stage == "rlvr":
        before.append(Node(("sft",), node.seed))
    return list(dict.fromkeys([*before, Node((), 0)]))


def with_needs(plan: Plan, wanted: Iterable[Node]) -> list[Node]:
    """Each once, after what it needs; a node's own needs as late as they may be, so that an arm ends soon."""
    found: dict[Node, None] = {}

    def add(node: Node) -> None:
        if node in found:
            return
        for one in needs(plan, node):
            add(one)
        found[node] = None

    for node in wanted:
        add(node)
    return list(found)


def of_arms(plan: Plan, arms: Sequence[str], seeds: Sequence[int], texts: Sequence[int]) -> list[Node]:
    """The last nodes of these arms. Raises ConfigError for an arm that is unknown or that this version cannot run."""
    wanted: list[Node] = []
    for seed in seeds:
        for name in arms:
            arm = known_arm(plan, name)
            refuse_missing_keys(plan, name)
            numbers = [n for n in arm.texts if n in texts] if arm.texts else [None]
            wanted += [node_of(plan, arm.steps, seed, n) for n in numbers]
    return wanted


def known_arm(plan: Plan, name: str) -> Any:
    if name not in plan.arms:
        raise ConfigError(f"the plan has no arm {name!r}; it has {', '.join(plan.arms)}")
    return plan.arms[name]


def missing_keys(plan: Plan, arm: str) -> list[str]:
    """Keys of ``stages.align.experts`` that the arm needs and that this version does not have."""
    wanted = [key for step in plan.arms[arm].steps for key in plan.steps[step].needs]
    return [key for key in wanted if key not in ExpertLearnerConfig.model_fields]


def refuse_missing_keys(plan: Plan, arm: str) -> None:
    if missing := missing_keys(plan, arm):
        raise ConfigError(
            f"arm {arm} cannot run: it needs {', '.join(missing)} under [stages.align.experts], which this version of "
            "prism/config/learners.py does not have. Leave the arm out, or name the key that replaced it in the plan"
        )


def of_gates(plan: Plan) -> list[Node]:
    """What the gates look at: pretraining, SFT, and teacher-SFT at each N, on the tuning seed."""
    seed = plan.tuning_seeds[0]
    return [node_of(plan, ["sft"], seed, None), *(node_of(plan, ["sft", "teach-early"], seed, n) for n in plan.texts)]


def of_tuning(plan: Plan) -> list[Node]:
    """A node for each trial, on each tuning seed."""
    n = plan.statistics.texts
    return [
        node_of(plan, [*TUNED_WITH[step], step], seed, n, trial)
        for step, trials in plan.tuning.items()
        for trial in range(len(trials))
        for seed in plan.tuning_seeds
    ]


def recipe(plan: Plan, size: str, node: Node) -> str:
    """A hash of all of the plan that decides what the node's model is, data and seed apart: so that a change of the
    plan elsewhere leaves models as they are. (Results know the whole plan.)"""
    parts: list[Any] = [plan.pass_rate, plan.pass_samples]
    for end in range(len(node.steps) + 1):
        last = end == len(node.steps)
        own = Node(node.steps[:end], node.seed, node.texts, node.trial if last else None)
        flags = {"stage", "teacher", "early_stop"}
        step = plan.steps[node.steps[end - 1]].model_dump(include=flags) if end else {}
        parts.append([step, stage_table(plan, size, own)])
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def stage_table(plan: Plan, size: str, node: Node) -> dict[str, Any]:
    """The configuration of a node's stage: the plan's, over it the size's, the step's, the trial's."""
    if not node.steps:
        return merged(plan.stages["pretrain"], plan.sizes[size].stages.get("pretrain", {}))
    name = node.steps[-1]
    step = plan.steps[name]
    table = merged(plan.stages[step.stage], plan.sizes[size].stages.get(step.stage, {}))
    table = merged(without(table, step.without), step.config)
    table["steps"] = max(1, round(table["steps"] * step.times))
    return table if node.trial is None else merged(table, plan.tuning[name][node.trial])
