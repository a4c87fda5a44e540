"""The study's single-process loop learns what the platform's stages learn: the same weights from the same groups.

The stages run over real streams, checkpoints and pushes; what their worker answers is what the loop is given.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import test_stages
import torch
from safetensors.torch import load_file
from test_stages import COUNT, Stage

from bench.effect.loop.game import Game, new_policy
from bench.effect.loop.reinforce import learn
from prism.config import RlvrConfig, RunConfig
from prism.data.blobs import BlobStore
from prism.model.inputs import InputBuilder
from prism.trainer.flow.examples import GroupExamples
from prism.trainer.learn import ranks
from prism.trainer.learn.advantages import ExpertScores
from prism.wire.response import EXPERTS, Expert
from prism.wire.v1 import rollout_pb2 as pb

inputs, stage = test_stages.inputs, test_stages.stage  # fixtures
POLICY = {"optimizer": {"lr": 1e-3, "schedule": "linear"}, "max_mismatch": 99}  # the worker makes logprobs up


class Taken:
    """The groups that the stage was given, by step, in the order in which they were asked for."""

    def __init__(self) -> None:
        self._groups: dict[int, pb.RolloutGroup] = {}

    def take(self, group: pb.RolloutGroup) -> None:
        kept = pb.RolloutGroup()
        kept.CopyFrom(group)
        self._groups[group.request.position] = kept

    def at(self, step: int) -> list[pb.RolloutGroup]:
        return [group for _, group in sorted(self._groups.items()) if group.request.step == step]


def config_of(kind: str, model: Path, data: Path, runs: Path, values: dict[str, Any]) -> RunConfig:
    rollouts = {"data": str(data), "prompts": COUNT, "n": 3, "max_tokens": 64}
    return RunConfig.model_validate(
        {
            "name": "loop",
            "runs_dir": runs,
            "model": str(model),
            "stages": {"it": {"kind": kind, "steps": 4, "rollouts": rollouts} | values},
            "evaluate": {"data": "x", "max_tokens": 8},
            "stack": {"max_model_len": 256},
        }
    )


def scores_of(groups: Sequence[pb.RolloutGroup], expert: Expert) -> ExpertScores:
    scores = [next(s for s in sample.scores if s.expert == expert) for group in groups for sample in group.samples]
    return ExpertScores([score.value for score in scores], [score.expert_version for score in scores])


def assert_same_weights(model: Any, folder: Path, start: Path) -> None:
    own, theirs = model.state_dict(), load_file(folder / "model.safetensors")
    before = load_file(start / "model.safetensors")
    for name, weight in theirs.items():
        torch.testing.assert_close(own[name], weight, rtol=0, atol=1e-7)
    assert any(not torch.equal(theirs[name], before[name]) for name in before)


@pytest.mark.parametrize("shared", [False, True])
def test_alignment(stage: Stage, tiny_model: Path, demo_folder: Path, tmp_path: Path, shared: bool) -> None:
    experts = {"shared": shared, "optimizer": {"lr": 1e-3, "schedule": "linear"}, "dropout": 0.0, "mismatch": 1.0}
    values = {"policy": POLICY, "experts": experts, "warmup_steps": 1, "warmup_prompts": COUNT, "warmup_n": 2}
    taken = Taken()
    stage("align", "stage", spoil=taken.take, **values)
    config = config_of("align", tiny_model, demo_folder / "data/teacher.jsonl", tmp_path, values)
    ranks.seed(config.seed)
    game = Game(config, tiny_model, 8)
    prompts = GroupExamples(game.inputs, BlobStore(str(tmp_path / "blobs")))
    for step in range(5):
        groups = taken.at(step)
        assert len(groups) == COUNT
        scores: dict[Expert, ExpertScores] = {expert: scores_of(groups, expert) for expert in EXPERTS if step}
        game.learn(groups, [prompts.prompt(group) for group in groups], scores or None)
    out = tmp_path / "stage" / "out"
    assert_same_weights(game.policy.model, out, tiny_model)
    assert [expert.network for expert in game.experts] == (["discriminator"] if shared else list(EXPERTS))
    for expert in game.experts:
        assert_same_weights(expert.model, out / "experts" / expert.network, tiny_model)


@pytest.mark.parametrize("loss", ["grpo", "dapo", "gspo"])
def test_rlvr(loss: str, stage: Stage, tiny_model: Path, demo_folder: Path, tmp_path: Path) -> None:
    values = {"policy": POLICY, "loss": loss}
    taken = Taken()
    stage("rlvr", "stage", spoil=taken.take, **values)
    config = config_of("rlvr", tiny_model, demo_folder / "data/teacher.jsonl", tmp_path, values)
    (of_run,) = config.stages.values()
    assert isinstance(of_run, RlvrConfig)
    ranks.seed(config.seed)
    policy = new_policy(config, of_run, tiny_model, loss)
    examples = GroupExamples(InputBuilder(tiny_model), BlobStore(str(tmp_path / "blobs")))
    for step in range(4):
        groups = taken.at(step)
        learn(policy, of_run, groups, [examples.prompt(group) for group in groups], examples)
    assert_same_weights(policy.model, tmp_path / "stage" / "out", tiny_model)
