"""Updates of the learners, made by however many ranks run this; ``test_ranks`` compares what comes of them.

On a CPU in float32; with ``DEVICE=cuda`` in the environment on GPUs, in the bfloat16 that learners have there.
"""

import json
import os
import random
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal
from unittest.mock import patch

import torch
from rich.console import Console
from safetensors.torch import load_file

from prism.config import ExpertLearnerConfig, PolicyLearnerConfig, RunConfig
from prism.data.blobs import BlobStore
from prism.data.images import decode_image
from prism.data.rows import read_rows, to_prompt
from prism.model.expert import load_expert, upcycle
from prism.model.inputs import Example, InputBuilder
from prism.trainer.flow.demonstrations import prompt_of
from prism.trainer.flow.examples import GroupExamples
from prism.trainer.flow.intake import Admission, StepRollouts
from prism.trainer.flow.staleness import StalenessBound
from prism.trainer.learn import ranks
from prism.trainer.learn.adapted import WithoutAdapter, load_policy_adapter, whole_weights
from prism.trainer.learn.expert_learner import ExpertLearner
from prism.trainer.learn.learner_model import compile_layers
from prism.trainer.learn.losses import Algorithm, LossOptions
from prism.trainer.learn.policy_learner import PolicyLearner, TrainingSample
from prism.trainer.learn.policy_model import load_policy
from prism.trainer.stages import align, rlvr
from prism.trainer.stages.context import Context
from prism.trainer.weights.publish import PushTimes
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
        images = [decode_image(self.blobs.get(part.image_sha256)) for part in parts]
        return self.examples.inputs.prompt(prompt.messages, images).input_ids

    def finish(self, step: int) -> None:
        self.finished.append(step)

    def check_newest(self) -> None: ...

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None: ...

    def resume(self, version: int | None) -> int:
        return 0

    def acknowledgement(self) -> Callable[[], None]:
        return lambda: None


TEXTS = [
    f"<caption>- a {one}</caption><think>{two}+1={two + 1}</think><answer>{two + 1}</answer>"
    for one, two in (("one", 1), ("two", 4), ("three", 7), ("nine", 11))
]
DEVICE = os.environ.get("DEVICE", "cpu")
DTYPE = "bfloat16" if DEVICE == "cuda" else "float32"

GRPO, DAPO, GSPO = Algorithm.GRPO, Algorithm.DAPO, Algorithm.GSPO

# name -> algorithm, settings, groups of each of two updates: 1 leaves a rank with nothing, 3 do not divide.
POLICIES: dict[str, tuple[Algorithm, dict[str, Any], tuple[int, int]]] = {
    "grpo": (GRPO, {}, (3, 3)),
    "dapo, two minibatches, passes of one sample": (DAPO, {"minibatches": 2, "micro_batch_tokens": 1}, (4, 3)),
    "gspo, one group": (GSPO, {"epochs": 2}, (1, 1)),
    "grpo, compiled": (GRPO, {}, (3, 4)),
    "grpo, frozen tower": (GRPO, {"freeze": ["model.visual"]}, (3, 4)),
    "grpo, importance and reference": (GRPO, {"minibatches": 2, "importance_cap": 1.5}, (3, 4)),
    "grpo, adapters and reference": (GRPO, {"lora": {"rank": 4, "vision": True}, "minibatches": 2}, (3, 4)),
}
EXPERTS: dict[str, tuple[dict[str, Any], tuple[int, int]]] = {
    "dense": ({"mismatch": 0.5}, (3, 4)),
    "mixture, one group": ({"mixture": {}}, (1, 3)),
    "passes of one prompt": ({"micro_batch_tokens": 1}, (3, 1)),
}


def prompts(folder: Path, inputs: InputBuilder) -> list[Example]:
    """Of the demo's rows; the first has no image."""
    file = read_rows(folder / "data" / "teacher.jsonl", "fail", require=("teacher",))
    made = [prompt_of(file.rows[i], file, inputs) for i in range(4)]
    text = [pb.Message(role="user", parts=[pb.Part(text="How many are there?")])]
    return [inputs.prompt(text, []), *made[1:]]


def samples(prompts: Sequence[Example], inputs: InputBuilder, version: int) -> list[TrainingSample]:
    """Two or three of each prompt."""
    generator = torch.Generator().manual_seed(len(prompts))
    made: list[TrainingSample] = []
    for number, prompt in enumerate(prompts):
        for text in TEXTS[: 2 + number % 2]:
            example = inputs.with_text(prompt, text)
            logprobs = (-6 + torch.rand(len(example.response_ids), generator=generator)).tolist()
            advantage = float(torch.randn((), generator=generator))
            made.append(TrainingSample(example, logprobs, advantage, number, version))
    return made


def groups(count: int) -> list[pb.RolloutGroup]:
    return [
        pb.RolloutGroup(
            request=pb.RolloutRequest(prompt=pb.Prompt(id=str(number), teacher=TEXTS[number])),
            samples=[pb.Sample(text=text) for text in TEXTS[number + 1 :] + TEXTS[: number // 2]],
        )
        for number in range(count)
    ]


def policy_learner(folder: Path, name: str) -> PolicyLearner:
    algorithm, settings, _ = POLICIES[name]
    config = PolicyLearnerConfig.model_validate(
        {"max_mismatch": 99, "optimizer": {"lr": 1e-3, "weight_decay": 0.1}} | settings
    )

    def load(dtype: torch.dtype) -> Any:
        return load_policy(folder / "model", dtype=dtype)

    if config.lora:
        model = load_policy_adapter(folder / "model", run_config(folder, {"kind": "rlvr"}), config.lora)
    else:
        model = ranks.shard_model(load, DEVICE, getattr(torch, DTYPE))
    if "compiled" in name:
        compile_layers(model, backend="inductor" if DEVICE == "cuda" else "aot_eager")
    reference = (
        ranks.shard_model(load, DEVICE, getattr(torch, DTYPE)).requires_grad_(False).eval()
        if "reference" in name
        else None
    )
    reference = WithoutAdapter(model) if config.lora else reference
    options = LossOptions(kl_coef=0.1 if reference else 0.0)
    return PolicyLearner(model, config, algorithm, options, temperature=1.0, updates=2, version=0, reference=reference)


def expert_learner(folder: Path, name: str) -> ExpertLearner:
    settings, _ = EXPERTS[name]
    config = ExpertLearnerConfig.model_validate({"optimizer": {"lr": 1e-3}, "dropout": 0.0} | settings)

    def load(dtype: torch.dtype) -> Any:
        if config.mixture:
            return upcycle(folder / "model", dtype=dtype, **config.mixture.model_dump())
        return load_expert(folder / "model", dtype=dtype)

    return ExpertLearner("perception", ranks.shard_model(load, DEVICE, getattr(torch, DTYPE)), config, 2)


def work(folder: Path, out: Path) -> dict[str, dict[str, Any]]:
    """The figures of two updates each and the weights after them; weights on the first rank alone."""
    made: dict[str, dict[str, Any]] = {}
    inputs = InputBuilder(folder / "model")
    all_prompts = prompts(folder, inputs)
    examples: Any = type("", (), {"inputs": inputs})
    for name, (_, _, counts) in POLICIES.items():
        learner = policy_learner(folder, name)
        figures = [learner.update(samples(all_prompts[:count], inputs, learner.version), examples) for count in counts]
        made[name] = {"figures": figures, "weights": whole_weights(learner.model)}
    for name, (_, counts) in EXPERTS.items():
        expert = expert_learner(folder, name)
        figures = [expert.update(groups(count), all_prompts[:count], inputs) for count in counts]
        made[name] = {"figures": figures, "weights": ranks.full_weights(expert.model)}
    for kind in ("rlvr", "align", "adapters"):
        made[kind] = whole_stage(folder, out, kind)
    made["spoilt"] = spoilt(folder, samples(all_prompts[:3], inputs, 0), examples)
    return made


def run_config(folder: Path, settings: dict[str, Any], **values: Any) -> RunConfig:
    """Of one stage, ``it``."""
    stage: dict[str, Any] = {
        "steps": 2,
        "checkpoint_every": 1,
        "rollouts": {"data": "x", "prompts": 3, "n": 3, "max_tokens": 64},
        "policy": {"max_mismatch": 99, "optimizer": {"lr": 1e-3}},
    }
    of_run = {
        "name": "run",
        "device": DEVICE,
        "dtype": DTYPE,
        "model": str(folder / "model"),
        "stages": {"it": stage | settings},
        "evaluate": {"data": "x", "max_tokens": 8},
        "stack": {"max_model_len": 256},
    }
    return RunConfig.model_validate(of_run | values)


def whole_stage(folder: Path, out: Path, kind: Literal["rlvr", "align", "adapters"]) -> dict[str, Any]:
    """Of two steps, an alignment's after one of warm-up; checkpoints after each. "adapters" is an alignment's too."""
    inputs, blobs = InputBuilder(folder / "model"), BlobStore(str(out / "blobs"))
    file = read_rows(folder / "data" / "teacher.jsonl", "fail", require=("teacher",))
    rows = [to_prompt(row, file, blobs) for row in file.rows] if ranks.is_first() else []
    examples = GroupExamples(inputs, blobs)
    workers = Workers(rows, examples, blobs)
    settings: dict[str, Any] = {"kind": "rlvr" if kind == "rlvr" else "align"}
    experts: dict[str, Any] = {"optimizer": {"lr": 1e-3}, "dropout": 0.0}
    if kind != "rlvr":
        settings |= {"warmup_steps": 1, "warmup_prompts": 3, "experts": experts}
    if kind == "adapters":
        experts |= {"lora": {"rank": 2}, "mixture": {"experts": 3}, "load_balance": 0.0}  # which is of each pass
        settings["policy"] = {"max_mismatch": 99, "optimizer": {"lr": 1e-3}, "lora": {"rank": 4}}
    config = run_config(folder, settings, name=kind, runs_dir=out)
    config.run_dir.mkdir(exist_ok=True)
    pushed: list[int] = []

    def push(version: int, tensors: Iterable[tuple[str, torch.Tensor]], *_: Any) -> PushTimes:
        pushed.append(len([tensor.shape for _, tensor in tensors]))
        return PushTimes(0.0, 0.0, 0, 0)

    def push_adapter(version: int, base: Path, tensors: dict[str, torch.Tensor], *_: Any) -> PushTimes:
        return push(version, tensors.items())

    away: Any = None
    context: Any = Context(config, "it", 1, away, blobs, inputs, examples, Console(quiet=True))
    context.intake = lambda rollouts, learners, require: workers
    context.publisher = lambda model: SimpleNamespace(push=push, push_adapter=push_adapter, settle=lambda: None)
    module: Any = rlvr if kind == "rlvr" else align
    nothing_served = patch.object(align, "refuse_other_judging", lambda *_: None)
    with patch.object(module, "open_context", lambda *_: context), nothing_served:  # others' tests may run here
        module.train(config, "it", config.stages["it"], folder / "model", config.run_dir / "out")
    calls = {"pushed": sorted(pushed), "finished": workers.finished, "asked": sorted(workers.asked)}
    everywhere = ranks.gathered(calls)
    lines = (config.run_dir / "metrics.jsonl").read_text().splitlines() if ranks.is_first() else []
    figures = [{k: v for k, v in json.loads(line).items() if k != "time"} for line in lines]
    weights = load_file(config.run_dir / "out" / "model.safetensors") if ranks.is_first() else {}
    return {"figures": figures, "weights": weights, "everywhere": everywhere}


def spoilt(folder: Path, samples: list[TrainingSample], examples: GroupExamples) -> dict[str, Any]:
    """One sample that one rank has is no number: no rank learns."""
    learner = policy_learner(folder, "grpo")
    figures = learner.update([*samples[:-1], replace(samples[-1], advantage=float("nan"))], examples)
    everywhere = ranks.gathered((figures["policy_skipped"], learner.not_finite, learner._optimizer.steps))
    return {"figures": [figures], "weights": ranks.full_weights(learner.model), "everywhere": everywhere}


if __name__ == "__main__":
    torch.set_num_threads(1)
    with ranks.started(DEVICE):
        result = work(Path(sys.argv[1]), Path(sys.argv[2]))
        if ranks.is_first():
            out = Path(sys.argv[2])
            torch.save({name: case["weights"] for name, case in result.items()}, out / "weights.pt")
            for case in result.values():
                del case["weights"]
            (out / "figures.json").write_text(json.dumps(result))
