"""Learners of a preset's three stages at its model's size: memory and time of their steps, beside the estimate.

    python -m bench.adapters.learners configs/qwen3-vl-2b-lora.toml --model qwen3-vl-2b --cap-gib 24
    python -m bench.adapters.learners configs/qwen3-vl-2b-offload.toml --model qwen3-vl-2b --stages align \
        --offload optimizer,idle,false
    python -m bench.adapters.learners configs/qwen3-vl-8b-lora.toml --model qwen3-vl-8b --steps 1

Random weights, and groups of no words; services take no part. Each way and stage is a process of its own, and a line of
JSON: GiB that were in use at the most, and what torch took for them; what `prism run --dry-run` says of both; seconds
of each step. The first alignment also writes a checkpoint, and reads it again. What runs out of memory says so.
``--cap-gib`` lets a process have no more.
"""

import json
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from bench.learner.workload import NO_SAMPLER, RESPONSES, SIZES, make_model, make_samples
from bench.shared import command_line
from prism.config import AlignConfig, RunConfig, SftConfig, load_config
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
from prism.trainer.learn.policy_learner import TrainingSample
from prism.trainer.learn.policy_model import load_learner, response_logprobs
from prism.trainer.run.placement import ALLOCATOR, PROCESS, learners_of, memory_of
from prism.trainer.stages import align
from prism.trainer.stages.common import new_policy
from prism.trainer.stages.context import Context
from prism.wire.v1 import rollout_pb2 as pb


@dataclass(frozen=True)
class Task:
    """A stage, in one way."""

    preset: Path
    model: Path
    stage: str
    sets: list[str]
    steps: int
    groups: int
    prompt: int
    response: int
    cap_gib: float | None
    checkpoints: Path | None
    """Where a checkpoint is written, if one is."""


def main() -> None:
    parser = command_line("bench.adapters.learners", __doc__)
    parser.add_argument("preset", type=Path)
    parser.add_argument("--model", choices=list(SIZES), default="qwen3-vl-2b", help="whose sizes the weights have")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="another setting of the preset")
    parser.add_argument("--offload", help="ways, one after another, such as idle,optimizer,false; else the preset's")
    parser.add_argument("--stages", default="sft,align,rlvr")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--groups", type=int, default=4)
    parser.add_argument("--prompt", type=int, default=1000)
    parser.add_argument("--response", type=int, default=200)
    parser.add_argument("--cap-gib", type=float)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--folder", type=Path, help="where model and checkpoint are written; else the system's own")
    options = parser.parse_args()
    sets = [
        *options.set,
        f"device={options.device}",
        f"stack.device={options.device}",
        f"dtype={SIZES[options.model].dtype}",
    ]
    ways = options.offload.split(",") if options.offload else [None]
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        parameters = apart(make_model, folder / "model", options.model, options.device)
        checkpoints: Path | None = folder / "checkpoints"
        for way in ways:
            for stage in options.stages.split(","):
                if way == "idle" and stage != "align":
                    continue  # one learner is never idle
                offload = [f"offload={way}"] if way else []
                task = Task(options.preset, folder / "model", stage, sets + offload, options.steps, options.groups,
                            options.prompt, options.response, options.cap_gib,
                            checkpoints if stage == "align" else None)  # fmt: skip
                print(json.dumps({"model": options.model, "parameters": parameters} | apart(measure, task)), flush=True)
                checkpoints = checkpoints if stage != "align" else None


def apart(function: Any, *given: Any) -> Any:
    """The function's result, from a process whose memory is its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *given).result()


def measure(task: Task) -> dict[str, Any]:
    config = config_of(task)
    made: dict[str, Any] = {"stage": task.stage, "offload": config.offload, "torch": torch.__version__}
    if config.device == "cuda":
        card = torch.cuda.get_device_properties(0)
        made |= {"card": card.name, "cap_gib": task.cap_gib}
        if task.cap_gib:
            torch.cuda.set_per_process_memory_fraction(min(1.0, task.cap_gib * 2**30 / card.total_memory))
    try:
        return made | measure_stage(task, config)
    except torch.OutOfMemoryError as error:
        return made | {"out of memory": str(error).split(". ")[0]}


def measure_stage(task: Task, config: RunConfig) -> dict[str, Any]:
    stage: Any = config.stages[task.stage]
    inputs = InputBuilder(task.model)
    samples = make_samples(inputs, task.groups, task.prompt, task.response)
    found: dict[str, Any] = {"groups": task.groups, "tokens": sum(len(s.example.input_ids) for s in samples)}
    sized = learners_of(config, stage, task.model)
    prompts = first_of_each(samples)
    patches = sum(len(p.pixel_values) for p in prompts if p.pixel_values is not None)
    patches_per_token = patches / sum(p.prompt_length for p in prompts)
    memory = memory_of(config, stage, sized, 1, patches_per_token)
    found |= {"estimated_gib": gib(memory.total), "estimated_of_card_gib": gib(PROCESS + ALLOCATOR * memory.total)}
    learners, steps = make_steps(config, stage, task, inputs, samples)
    seconds: list[float] = []
    for _ in range(task.steps):
        began = time.perf_counter()
        for step in steps:
            step()
        if config.device == "cuda":
            torch.cuda.synchronize()
        seconds.append(round(time.perf_counter() - began, 2))
    found["step_seconds"] = seconds
    if config.device == "cuda":
        found["peak_gib"] = gib(torch.cuda.max_memory_allocated())
        found["peak_reserved_gib"] = gib(torch.cuda.max_memory_reserved())
    if learners and task.checkpoints:
        found |= checkpoint(config, learners, task.checkpoints)
        if config.device == "cuda":
            found["peak_with_checkpoint_gib"] = gib(torch.cuda.max_memory_allocated())
    return found


def make_steps(
    config: RunConfig, stage: Any, task: Task, inputs: InputBuilder, samples: list[TrainingSample]
) -> tuple[dict[str, Any], list[Callable[[], object]]]:
    """The learners whose state a checkpoint holds, if the stage has some, and what each does in a step."""
    if isinstance(stage, SftConfig):
        return {}, [sft_step(config, stage, task.model, [sample.example for sample in samples], inputs)]
    nothing: Any = None
    examples = GroupExamples(inputs, BlobStore(str(task.model.with_name("blobs"))))
    context = Context(config, task.stage, 1, nothing, nothing, inputs, examples, nothing)
    if isinstance(stage, AlignConfig):
        policy, experts = align._learners(context, stage, task.model)
        prompts = [inputs.with_ids(example, []) for example in first_of_each(samples)]
        asked = groups(inputs, len(prompts), task.response)
        learners = {POLICY: policy} | {expert.network: expert for expert in experts}
        steps: list[Callable[[], object]] = [partial(expert.update, asked, prompts, inputs) for expert in experts]
        return learners, [*steps, partial(policy.update, samples, examples)]
    lora = stage.policy.lora
    model = load_policy_adapter(task.model, config, lora) if lora else None
    offload = offload_of(config) if config.offload == "optimizer" else None
    policy = new_policy(context, stage, task.model, Algorithm.GRPO, kl_coef=stage.kl_coef, model=model, offload=offload)
    return {}, [partial(policy.update, samples, examples)]


def sft_step(
    config: RunConfig, stage: SftConfig, start: Path, examples: list[Example], inputs: InputBuilder
) -> Callable[[], object]:
    """On as many examples as one pass takes."""
    model = load_policy_adapter(start, config, stage.lora) if stage.lora else load_learner(start, config)
    offload = offload_of(config) if config.offload == "optimizer" else None
    optimizer = Optimizer(learning(model.train()).items(), stage.optimizer, stage.steps, offload)
    count = max(1, stage.micro_batch_tokens // max(len(example.input_ids) for example in examples))

    def step() -> None:
        optimizer.prepare()
        loss = -response_logprobs(model, pack(examples[:count], inputs, model.device)).mean()
        loss.backward()
        optimizer.step(loss.item())

    return step


def checkpoint(config: RunConfig, learners: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Written behind the loop, and read into the learners again."""
    models = {name: learner.model for name, learner in learners.items()}
    lent = {storage for learner in learners.values() for storage in learner.host_storages}
    began = time.perf_counter()
    with Checkpoints(folder, keep=1) as saved:
        state = {name: learner.state_dict() for name, learner in learners.items()}
        saved.save(1, {"step": 1}, state, partial(write_description, config, models), lent=lent)
        waited = time.perf_counter() - began
    written = time.perf_counter() - began
    size = sum(file.stat().st_size for file in (folder / "000001").rglob("*") if file.is_file())
    began = time.perf_counter()
    tensors = {name: learner.state_dict() for name, learner in learners.items()}
    read_tensors(folder / "000001", tensors)
    for name, learner in learners.items():
        learner.load_state_dict(tensors[name], learner.version)
    figures = {"waited": waited, "written": written, "read": time.perf_counter() - began}
    seconds = {key: round(value, 2) for key, value in figures.items()}
    return {"checkpoint_gib": gib(size), "checkpoint_seconds": seconds}


def first_of_each(samples: list[TrainingSample]) -> list[Example]:
    """An example of each group."""
    return list({sample.group: sample.example for sample in reversed(samples)}.values())[::-1]


def groups(inputs: InputBuilder, count: int, response: int) -> list[pb.RolloutGroup]:
    """Of a teacher's response and as many samples as the policy's, with about ``response`` tokens in both sections."""
    fact, step = "- a seven\n", "1 + 1 = 2. "

    def text(number: int) -> str:
        facts = fact * (response // 2 // len(inputs.text_ids(fact)))
        return f"<caption>{facts}</caption><think>{step * (response // 2 // len(inputs.text_ids(step)))}</think>" + (
            f"<answer>{number}</answer>"
        )

    return [
        pb.RolloutGroup(
            request=pb.RolloutRequest(prompt=pb.Prompt(id=str(number), teacher=text(number))),
            samples=[pb.Sample(text=text(100 + each)) for each in range(RESPONSES)],
        )
        for number in range(count)
    ]


def config_of(task: Task) -> RunConfig:
    """Of the one stage, which starts from the model."""
    values = load_config(task.preset, [*task.sets, f"model={task.model}"]).model_dump(mode="json")
    stage = values["stages"][task.stage]
    if "policy" in stage:
        stage["policy"]["max_mismatch"] = NO_SAMPLER
    return RunConfig.model_validate(values | {"stages": {task.stage: stage}, "runs_dir": str(task.model.parent)})


def gib(size: float) -> float:
    return round(size / 2**30, 2)


if __name__ == "__main__":
    main()
