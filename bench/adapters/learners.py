"""Learners of all three stages at a real size, with adapters or whole and offloaded: memory and time of their steps.

    python -m bench.adapters.learners --model qwen3-vl-2b --lora --cap-gib 24
    python -m bench.adapters.learners --model qwen3-vl-2b --offload idle,optimizer,false --stages align --steps 3
    python -m bench.adapters.learners --model qwen3-vl-8b --lora --steps 1

Random weights, and groups of no words; services take no part. For each way and stage, printed as JSON: GiB that were
in use at the most and what `prism run --dry-run` would say, seconds of each step; of alignment also the seconds and
bytes of a checkpoint, which is read again. A way that runs out of memory says so. ``--cap-gib`` lets the process have
no more. Each way is a process of its own.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench.learner.workload import SIZES, make_model, make_samples
from prism.config import AlignConfig, RunConfig, load_config
from prism.data.blobs import BlobStore
from prism.model.inputs import Example, InputBuilder
from prism.model.packing import pack
from prism.trainer.checkpoint.folder import write_description
from prism.trainer.checkpoint.saver import Checkpoints
from prism.trainer.checkpoint.tensors import read_tensors
from prism.trainer.flow.examples import GroupExamples
from prism.trainer.learn.adapted import POLICY, learning, load_policy_adapter
from prism.trainer.learn.losses import Algorithm
from prism.trainer.learn.offload import offload_of
from prism.trainer.learn.optimizer import Optimizer
from prism.trainer.learn.policy_model import load_learner, response_logprobs
from prism.trainer.run.placement import learners_of, memory_of
from prism.trainer.stages import align
from prism.trainer.stages.common import new_policy
from prism.trainer.stages.context import Context
from prism.wire.v1 import rollout_pb2 as pb

CONFIG = Path("configs/qwen3-vl-2b-lora.toml")
LORA = ("stages.sft", "stages.align.policy", "stages.align.experts", "stages.rlvr.policy")
TEXTS = [
    f"<caption>- a {one}</caption><think>{'1 + 1 = 2. ' * 20}</think><answer>{one}</answer>"
    for one in ("one", "two", "three", "four")
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(SIZES), default="qwen3-vl-2b")
    parser.add_argument("--lora", action="store_true", help="adapters; without, everything is trained")
    parser.add_argument("--mixture", action="store_true", help="experts' adapters are mixtures")
    parser.add_argument("--offload", default="false", help="ways, one after another: idle,optimizer,false")
    parser.add_argument("--stages", default="sft,align,rlvr")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--groups", type=int, default=4)
    parser.add_argument("--prompt", type=int, default=1000)
    parser.add_argument("--response", type=int, default=200)
    parser.add_argument("--cap-gib", type=float)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--one", help="a way, in this process")
    options = parser.parse_args()
    if options.one:
        print(json.dumps({"offload": options.one} | measure(options)), flush=True)
        return
    for way in options.offload.split(","):
        subprocess.run([sys.executable, "-m", "bench.adapters.learners", *sys.argv[1:], "--one", way], check=True)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    cuda = options.device == "cuda"
    if cuda and options.cap_gib:
        whole = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, options.cap_gib * 2**30 / whole))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parameters = make_model(folder / "model", options.model, options.device)
        found: dict[str, Any] = {"model": options.model, "parameters": parameters, "torch": torch.__version__}
        found |= {"card": torch.cuda.get_device_name() if cuda else "CPU", "cap_gib": options.cap_gib}
        for stage in options.stages.split(","):
            if cuda:
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            try:
                found[stage] = measure_stage(options, folder, stage)
            except torch.OutOfMemoryError as error:
                found[stage] = {"out of memory": str(error).split(". ")[0]}
    return found


def measure_stage(options: argparse.Namespace, folder: Path, name: str) -> dict[str, Any]:
    config = run_config(options, folder)
    stage: Any = config.stages[name]
    inputs = InputBuilder(folder / "model")
    examples = GroupExamples(inputs, BlobStore(str(folder / "blobs")))
    samples = make_samples(inputs, options.groups, options.prompt, options.response)
    prompts = list({sample.group: sample.example for sample in reversed(samples)}.values())[::-1]
    prompts = [inputs.with_ids(prompt, []) for prompt in prompts]
    nothing: Any = None
    context = Context(config, name, 1, nothing, nothing, inputs, examples, nothing)
    learners: dict[str, Any] = {}
    steps: list[Callable[[], object]] = []
    if isinstance(stage, AlignConfig):
        policy, experts = align._learners(context, stage, folder / "model")
        learners = {POLICY: policy} | {expert.expert: expert for expert in experts}
        steps += [partial(expert.update, groups(len(prompts)), prompts, inputs) for expert in experts]
        steps.append(partial(policy.update, samples, examples))
    elif name == "rlvr":
        model = load_policy_adapter(folder / "model", config, stage.policy.lora) if stage.policy.lora else None
        offload = offload_of(config) if config.offload == "optimizer" else None
        policy = new_policy(
            context, stage, folder / "model", Algorithm.GRPO, kl_coef=stage.kl_coef, model=model, offload=offload
        )
        steps.append(partial(policy.update, samples, examples))
    else:
        steps.append(sft_step(config, stage, folder, [sample.example for sample in samples], inputs))
    seconds: list[float] = []
    for _ in range(options.steps):
        began = time.perf_counter()
        for step in steps:
            step()
        if options.device == "cuda":
            torch.cuda.synchronize()
        seconds.append(round(time.perf_counter() - began, 2))
    sized = learners_of(config, stage, folder / "model")
    made: dict[str, Any] = {"step_seconds": seconds, "estimated_gib": gib(memory_of(config, stage, sized, 1, 0).total)}
    if options.device == "cuda":
        made["peak_gib"] = gib(torch.cuda.max_memory_allocated())
    return made | (checkpoint(config, learners, folder) if learners else {})


def sft_step(
    config: RunConfig, stage: Any, folder: Path, examples: list[Example], inputs: InputBuilder
) -> Callable[[], object]:
    start = folder / "model"
    model = load_policy_adapter(start, config, stage.lora) if stage.lora else load_learner(start, config)
    offload = offload_of(config) if config.offload == "optimizer" else None
    optimizer = Optimizer(learning(model.train()).items(), stage.optimizer, stage.steps, offload)

    def step() -> None:
        loss = -response_logprobs(model, pack(examples[:8], inputs, model.device)).mean()
        loss.backward()
        optimizer.step(loss.item())

    return step


def checkpoint(config: RunConfig, learners: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Written behind the loop, and read into the learners again."""
    models = {name: learner.model for name, learner in learners.items()}
    lent = {storage for learner in learners.values() for storage in learner.host_storages}
    began = time.perf_counter()
    with Checkpoints(folder / "checkpoints", keep=1) as saved:
        state = {name: learner.state_dict() for name, learner in learners.items()}
        saved.save(1, {"step": 1}, state, partial(write_description, config, models), lent=lent)
        waited = time.perf_counter() - began
    written = time.perf_counter() - began
    size = sum(file.stat().st_size for file in (folder / "checkpoints/000001").rglob("*") if file.is_file())
    began = time.perf_counter()
    tensors = {name: learner.state_dict() for name, learner in learners.items()}
    read_tensors(folder / "checkpoints/000001", tensors)
    for name, learner in learners.items():
        learner.load_state_dict(tensors[name], learner.version)
    figures = {"waited": waited, "written": written, "read": time.perf_counter() - began}
    seconds = {key: round(value, 2) for key, value in figures.items()}
    return {"checkpoint_gib": gib(size), "checkpoint_seconds": seconds}


def gib(size: float) -> float:
    return round(size / 2**30, 2)


def groups(count: int) -> list[pb.RolloutGroup]:
    return [
        pb.RolloutGroup(
            request=pb.RolloutRequest(prompt=pb.Prompt(id=str(number), teacher=TEXTS[number % len(TEXTS)])),
            samples=[pb.Sample(text=text) for text in TEXTS],
        )
        for number in range(count)
    ]


def run_config(options: argparse.Namespace, folder: Path) -> RunConfig:
    lora = ["{ rank = 16, alpha = 32 }"] if options.lora else []
    sets = [f"{key}.lora={each}" for key in LORA for each in lora]
    sets += [] if options.one == "false" else [f"offload={options.one}"]
    sets += ["stages.align.policy.max_mismatch=999", "stages.rlvr.policy.max_mismatch=999"]
    sets += ["stages.align.experts.mixture.experts=4"] if options.mixture else []
    sets += ["stages.rlvr.kl_coef=0.01"] if options.lora else []  # without adapters it would take a second model
    sets += [f"model={folder / 'model'}", f"device={options.device}", f"stack.device={options.device}"]
    plain = (
        CONFIG.read_text()
        .replace(", lora = { rank = 16, alpha = 32 }", "")
        .replace("lora = { rank = 16, alpha = 32 }\n", "")
    )
    file = folder / "run.toml"
    file.write_text(plain)
    return load_config(file, sets)


if __name__ == "__main__":
    main()
