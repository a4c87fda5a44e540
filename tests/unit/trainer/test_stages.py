"""Whole stages over made-up rollouts: killed and resumed bit for bit, and ended by bad days without harm."""

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from prism.config import RunConfig
from prism.data.blobs import BlobStore
from prism.data.rows import open_image
from prism.errors import NotFiniteError
from prism.model.inputs import InputBuilder
from prism.trainer.checkpoint.checkpoint import checkpoints
from prism.trainer.flow.examples import GroupExamples
from prism.trainer.flow.intake import Admission, StepRollouts
from prism.trainer.flow.staleness import StalenessBound
from prism.trainer.stages import align, rlvr
from prism.trainer.stages.context import Context
from prism.trainer.weights.publish import PushResult
from prism.wire.section import SECTIONS
from prism.wire.v1 import rollout_pb2 as pb

TEXTS = [
    f"<caption>- a {one}</caption><think>{two}+1={two + 1}</think><answer>{two + 1}</answer>"
    for one, two in (("one", 1), ("two", 4), ("three", 7))
]


@dataclass
class Workers:
    """Answers what is asked for at once: step after step the same responses, whoever asks."""

    prompts: Sequence[pb.Prompt]
    examples: GroupExamples
    blobs: BlobStore
    killed_at: int | None = None
    spoilt_from: int = 1000
    """From this step on, the sampler's log-probabilities are no numbers."""
    bound: StalenessBound = field(default_factory=lambda: StalenessBound(0))
    asked: dict[int, Admission] = field(default_factory=dict)
    finished: list[int] = field(default_factory=list)
    attempt: int = 1

    def admit(self, admission: Admission, *, version: int, expert_version: int) -> bool:
        admitted = self.bound.admits(admission.update, version)
        if admitted:
            self.asked[admission.step] = admission
        return admitted

    def collect(self, step: int, say: Callable[[str], None]) -> StepRollouts:
        if step == self.killed_at:
            raise KeyboardInterrupt
        admission, rng = self.asked[step], random.Random(step)
        groups = [self._group(prompt, admission, rng) for prompt in self.prompts[: admission.count]]
        return StepRollouts(groups, [], 0.0)

    def _group(self, prompt: pb.Prompt, admission: Admission, rng: random.Random) -> pb.RolloutGroup:
        group = pb.RolloutGroup(
            request=pb.RolloutRequest(prompt=prompt, step=admission.step), policy_version=admission.update
        )
        group.prompt_token_ids.extend(self._prompt_ids(prompt))
        for number in range(admission.n):
            text = TEXTS[number % len(TEXTS)]
            ids = [*self.examples.inputs.text_ids(text), self.examples.inputs.end_token_id]
            logprob = float("nan") if admission.step >= self.spoilt_from else -4.0
            sample = group.samples.add(text=text, token_ids=ids, logprobs=[logprob] * len(ids))
            if admission.grade:
                sample.verdict.CopyFrom(pb.Verdict(status=pb.STATUS_OK, reward=rng.random(), accuracy=number % 2))
            for expert in admission.experts:
                sample.scores.add(expert=expert, status=pb.STATUS_OK, value=rng.gauss(0, 1), expert_version=1)
        return group

    def _prompt_ids(self, prompt: pb.Prompt) -> list[int]:
        parts = [part for message in prompt.messages for part in message.parts if part.HasField("image_sha256")]
        images = [open_image(self.blobs.get(part.image_sha256)) for part in parts]
        return self.examples.inputs.prompt(prompt.messages, images).input_ids

    def finish(self, step: int) -> None:
        self.finished.append(step)

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None: ...

    def resume(self, version: int | None) -> int:
        return 0

    def acknowledgement(self) -> Callable[[], None]:
        return lambda: None


@pytest.fixture
def stage(
    tiny_model: Path,
    blobs: BlobStore,
    teacher_prompts: list[pb.Prompt],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., Path]:
    """Runs a stage in a folder of its own, as often as it is called; returns the folder."""
    inputs = InputBuilder(tiny_model)

    def run(kind: str, name: str, *, killed_at: int | None = None, spoilt_from: int = 1000, **values: Any) -> Path:
        rollouts = {"data": "x", "prompts": 3, "n": 3, "max_tokens": 64}
        policy = {"optimizer": {"lr": 1e-3, "max_skipped": 2}}
        settings: dict[str, Any] = {"kind": kind, "steps": 4, "checkpoint_every": 2, "rollouts": rollouts}
        if kind == "align":
            experts = {"optimizer": {"lr": 1e-3}, "mixture": {}}
            settings |= {"warmup_steps": 1, "warmup_prompts": 3, "experts": experts}
        config = RunConfig.model_validate(
            {
                "name": name,
                "runs_dir": tmp_path,
                "model": str(tiny_model),
                "stages": {"it": settings | {"policy": policy} | values},
                "evaluate": {"data": "x", "max_tokens": 8},
                "stack": {"max_model_len": 256},
            }
        )
        config.run_dir.mkdir(exist_ok=True)
        examples = GroupExamples(inputs, blobs)
        workers = Workers(teacher_prompts, examples, blobs, killed_at, spoilt_from)
        pushes = SimpleNamespace(push=lambda *_: PushResult(0.0, 0.0, 0, 0), settle=lambda: None)
        endpoints: Any = None
        context: Any = Context(config, "it", 1, endpoints, blobs, inputs, examples, Console(quiet=True))
        context.intake = lambda rollouts, learners, require: workers
        context.publisher = lambda model: pushes
        module: Any = {"rlvr": rlvr, "align": align}[kind]
        monkeypatch.setattr(module, "open_context", lambda *_: context)
        module.train(config, "it", config.stages["it"], tiny_model, config.run_dir / "out")
        return config.run_dir

    return run


def figures(folder: Path) -> dict[int, dict[str, Any]]:
    """Of each step, the last that was written, without times."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: {k: v for k, v in line.items() if "seconds" not in k and k != "time"} for line in lines}


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {
        f"{file.parent.name}/{name}": tensor
        for file in sorted((folder / "out").rglob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("rlvr", {}),
        ("rlvr", {"loss": "gspo", "kl_coef": 0.1}),
        ("align", {}),
    ],
)
def test_a_stage_that_was_killed_ends_bit_for_bit_as_one_that_was_not(
    stage: Callable[..., Path], kind: str, values: dict[str, Any], tmp_path: Path
) -> None:
    whole = stage(kind, "whole", **values)
    with pytest.raises(KeyboardInterrupt):
        stage(kind, "killed", killed_at=3, **values)
    assert [folder.name for folder in checkpoints(tmp_path / "killed" / "checkpoints" / "it")] == ["000002"]
    killed = stage(kind, "killed", **values)
    assert figures(killed) == figures(whole)
    assert len(figures(whole)) == (4 if kind == "rlvr" else 5)
    ours, theirs = tensors(killed), tensors(whole)
    assert ours.keys() == theirs.keys()
    assert len({name.split("/")[0] for name in ours}) == (1 if kind == "rlvr" else 1 + len(SECTIONS))
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    last = figures(whole)[max(figures(whole))]
    assert last["policy_grad_norm"] > 0
    assert (last["reference_kl"] is not None) is ("kl_coef" in values)
    if "kl_coef" in values:
        assert figures(whole)[1]["reference_kl"] == 0  # still the model it started from
        assert last["reference_kl"] > 0


def test_a_frozen_part_is_not_trained_nor_written_again(stage: Callable[..., Path], tiny_model: Path) -> None:
    before = load_file(tiny_model / "model.safetensors")
    run = stage("rlvr", "frozen", policy={"optimizer": {"lr": 1e-3}, "freeze": ["model.visual"]})
    after = load_file(run / "out" / "model.safetensors")
    equal = {name for name, tensor in after.items() if torch.equal(tensor, before[name])}
    assert equal == {name for name in after if name.startswith("model.visual.")}


def test_updates_that_are_not_finite_end_the_stage_with_checkpoint_and_groups_kept(
    stage: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(NotFiniteError, match="2 updates in a row"):
        stage("rlvr", "spoilt", spoilt_from=2)
    run = tmp_path / "spoilt"
    assert [folder.name for folder in checkpoints(run / "checkpoints" / "it")] == ["000002"]
    assert [file.name for file in sorted((run / "not-finite").iterdir())] == ["it-000003.jsonl", "it-000004.jsonl"]
    assert len((run / "not-finite" / "it-000003.jsonl").read_text().splitlines()) == 3
    assert figures(run)[3]["policy_skipped"] == 1
    assert figures(run)[3]["policy_loss"] is None
    assert 4 not in figures(run)
    # With good rollouts the same command goes on from the checkpoint and ends as if nothing had been.
    whole, mended = stage("rlvr", "whole"), stage("rlvr", "spoilt")
    assert all(torch.equal(tensors(mended)[name], tensor) for name, tensor in tensors(whole).items())
