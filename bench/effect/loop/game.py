"""Alignment in one process: what ``prism.trainer.stages.align`` does, without its services."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from bench.effect.loop.sampling import Sampler, groups_of, score, score_groups
from bench.effect.loop.setting import Prompts, Setting
from bench.effect.nodes import Node
from prism.config import AlignConfig, RunConfig
from prism.data.blobs import BlobStore
from prism.files import append_json
from prism.model.control import vision_tokens
from prism.model.expert import ExpertModel, load_expert, place
from prism.model.inputs import Example, InputBuilder
from prism.trainer.flow.demonstrations import Order
from prism.trainer.flow.examples import GroupExamples
from prism.trainer.learn.advantages import ExpertScores, alignment_advantages
from prism.trainer.learn.expert_learner import ExpertLearner
from prism.trainer.learn.learner_model import learner_model
from prism.trainer.learn.losses import Algorithm
from prism.trainer.learn.policy_learner import PolicyLearner, training_samples
from prism.trainer.learn.policy_model import load_learner, save_policy
from prism.trainer.run.expert_start import expert_start
from prism.trainer.stages.common import loss_options
from prism.wire.response import Expert, parse_response
from prism.wire.sample import sample_problems
from prism.wire.v1 import rollout_pb2 as pb

SEEDS = 1_000_003  # apart: those of a node's steps


def align(setting: Setting, nodes: Path, node: Node, start: Path, work: Path, out: Path) -> dict[str, Any]:
    """Play the game from the policy in ``start`` with the teacher's texts of the node; returns figures."""
    game = game_of(setting, node, start, work)
    figures: dict[str, Any] = {}
    while game.step < game.total:
        figures = game.play()
        append_json(work / "metrics.jsonl", figures, sync=False)
    save_policy(game.policy.model, out, game.inputs)
    shown = ("perception_pair_accuracy", "reasoning_pair_accuracy", "perception_mismatch_accuracy", "approx_kl")
    return {"steps": game.stage.steps, "updates": game.policy.version} | {n: figures.get(n) for n in shown}


def game_of(setting: Setting, node: Node, start: Path, work: Path) -> "Game":
    config = setting.config(node, work, start, "align", setting.texts(node))
    return Game(config, start, setting.size.batch_rows)


class Game:
    """Policy, experts, and the texts they play with; one step at a time."""

    def __init__(self, config: RunConfig, start: Path, batch_rows: int) -> None:
        """``config``: of a run of one alignment, as the platform would be given it."""
        ((name, stage),) = config.stages.items()
        assert isinstance(stage, AlignConfig)
        self.config, self.stage = config, stage
        self.inputs = InputBuilder(start)
        self.prompts = Prompts(Path(str(stage.rollouts.data)), self.inputs, ("teacher",))
        self.policy = new_policy(config, stage, start, Algorithm.ALIGN)
        self.never = vision_tokens(self.policy.model.config)
        self.total, self.step = stage.warmup_steps + stage.steps, 0
        self.experts = [  # they start as the platform has it, upcycled and grounded by its own commands
            ExpertLearner(
                network,
                new_expert(config, stage, expert_start(config, name, stage, network)),
                stage.experts,
                self.total,
            )
            for network in stage.experts.networks
        ]
        self.judging: dict[Expert, ExpertLearner] = {e: learner for learner in self.experts for e in learner.experts}
        self.sampler = Sampler(start, self.inputs, getattr(torch, config.dtype), config.device, batch_rows)
        self.examples = GroupExamples(self.inputs, BlobStore(str(config.run_dir / "blobs")))
        self._warmup = Order(len(self.prompts), stage.warmup_prompts, config.seed)
        self._order = Order(len(self.prompts), stage.rollouts.prompts, config.seed + 1)

    def play(self) -> dict[str, Any]:
        """One step. The policy's responses are scored before the experts' update, as where they are served."""
        warming_up = self.step < self.stage.warmup_steps
        places = self._warmup.at(self.step) if warming_up else self._order.at(self.step - self.stage.warmup_steps)
        n = self.stage.warmup_n if warming_up else self.stage.rollouts.n
        prompts = [self.prompts.prompt(place) for place in places]
        groups = self.sampled(self.prompts, places, n, SEEDS * self.config.seed + self.step)
        scores: dict[Expert, ExpertScores] | None = None
        if not warming_up:
            judging = self.judging.items()
            scores = {expert: score_groups(one, expert, groups, prompts, self.inputs) for expert, one in judging}
        return self.learn(groups, prompts, scores)

    def learn(
        self,
        groups: Sequence[pb.RolloutGroup],
        prompts: Sequence[Example],
        scores: Mapping[Expert, ExpertScores] | None,
    ) -> dict[str, Any]:
        """What the platform's stage does with a step's groups; ``scores`` is None while the experts warm up."""
        figures: dict[str, Any] = {"step": self.step + 1, "warmup": scores is None}
        for expert in self.experts:
            figures |= expert.update(groups, prompts, self.inputs, warming_up=scores is None)
        if scores is not None:
            advantages = alignment_advantages(
                scores["perception"],
                scores["reasoning"],
                [not sample_problems(sample, self.never) for group in groups for sample in group.samples],
                [number for number, group in enumerate(groups) for _ in group.samples],
                alpha=self.stage.alpha,
            )
            samples, _ = training_samples(groups, prompts, advantages.values, advantages.keep, self.examples)
            figures |= self.policy.update(samples, self.examples) | advantages.figures()
            self.sampler.take(self.policy.model)
        self.step += 1
        return figures

    def sampled(self, prompts: Prompts, places: Sequence[int], n: int, seed: int) -> list[pb.RolloutGroup]:
        """n responses of the policy to each of these prompts."""
        rollouts = self.stage.rollouts
        samples = self.sampler.sample(
            [prompts.prompt(place) for place in places],
            n,
            max_tokens=rollouts.max_tokens,
            temperature=rollouts.temperature,
            seed=seed,
        )
        return groups_of(prompts, places, samples, self.policy.version)


def new_policy(config: RunConfig, stage: Any, start: Path, algorithm: str) -> PolicyLearner:
    model = load_learner(start, config)
    return PolicyLearner(
        model,
        stage.policy,
        algorithm,
        loss_options(algorithm, stage.policy, stage.rollouts.max_tokens),
        temperature=stage.rollouts.temperature,
        updates=stage.steps,
        version=0,
        never=vision_tokens(model.config),
    )


def new_expert(config: RunConfig, stage: AlignConfig, start: Path | str) -> ExpertModel:
    def load(dtype: torch.dtype) -> ExpertModel:
        model = load_expert(start, seed=config.seed, dropout=stage.experts.dropout, dtype=dtype)
        return place(model, config.device, move=False)

    return learner_model(load, config)


def told_apart(game: Game, groups: list[pb.RolloutGroup], beside: list[Example]) -> dict[Expert, float | None]:
    """The share of pairs, teacher's and policy's response, of which each expert prefers the teacher's when it sees the
    prompts ``beside``: the groups' own, or others'. Pairs that do not differ in what it is shown are left out (their
    scores differ by rounding); None where none is left."""
    told: dict[Expert, float | None] = {}
    for expert, learner in game.judging.items():
        wins = total = 0
        teachers = [group.request.prompt.teacher for group in groups]
        of_teacher = score(learner, expert, teachers, beside, game.inputs)
        of_policy = score_groups(learner, expert, groups, beside, game.inputs).values
        samples = [(number, sample.text) for number, group in enumerate(groups) for sample in group.samples]
        for (number, text), value in zip(samples, of_policy, strict=True):
            own, section = of_teacher[number], learner.config.section
            if value is None or own is None:
                continue
            one, other = (parse_response(each).judged(expert, section) for each in (teachers[number], text))
            if one != other:
                wins, total = wins + (own > value), total + 1
        told[expert] = wins / total if total else None
    return told
