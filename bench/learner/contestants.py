"""The same policy update several ways: GRPO, one group of 16 at a time, fused AdamW; each in a process of its own."""

import resource
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from bench.learner.flops import attention_flops
from bench.learner.workload import RESPONSES, learner_of, make_samples
from bench.padded import collate, load_stock, response_logprobs
from prism.config import LoraConfig, OptimizerConfig, PolicyLearnerConfig, load_config
from prism.data.blobs import BlobStore
from prism.model.adapters.layers import adapter_parameters, add_adapter, peft_settings
from prism.model.inputs import Example, InputBuilder
from prism.trainer.flow.examples import GroupExamples
from prism.trainer.learn.adapted import POLICY, learning, load_policy_adapter
from prism.trainer.learn.learner_model import compile_layers
from prism.trainer.learn.losses import BatchTotals, PackedTokens, policy_loss
from prism.trainer.learn.optimizer import Optimizer
from prism.trainer.learn.policy_learner import TrainingSample
from prism.trainer.learn.policy_model import compile_head, load_policy

# Nothing is compiled that is counted, and TRL calls torch in ways its counter does not know.
UNCOUNTED = {"compiled", "packed-compiled", "trl"}
OPTIMIZER = OptimizerConfig.model_validate({"lr": 1e-6, "max_grad_norm": 1e9})

Built = tuple[dict[str, nn.Parameter], Callable[[], object]]
"""What a contestant learns, by the names that PRISM's learner has for it, and an update of it."""


@dataclass(frozen=True)
class Contest:
    """What a contestant is asked to do."""

    contestant: str
    folder: Path
    """Of the model."""
    dtype: str
    groups: int
    prompt: int
    response: int
    updates: int
    device: str
    threads: int | None
    memory_bytes: int
    """More than that, on a CPU, and it fails as if the machine had no more."""
    gradients: Path
    """Where those of the first update are written."""
    peers_take: int
    """Sequences that peers compute in one pass."""
    lora: LoraConfig | None = None
    """Adapters that learn instead of the model, which is frozen."""


@dataclass(frozen=True)
class Measured:
    seconds: list[float]
    """Of each update that was timed."""
    flops: int
    """Of an update's matrix products, forward and backward, as executed; of the UNCOUNTED 0."""
    tokens: int
    """Prompt and response tokens of the batch, each sequence with its prompt: the work that is to be done."""
    peak_bytes: int
    """The most that updates take beside what is loaded, the model and the optimizer's states."""
    whole_bytes: int
    """The most that was taken, with what is loaded."""


def measure(task: Contest) -> Measured:
    if task.threads:
        torch.set_num_threads(task.threads)
    if task.device == "cpu":
        resource.setrlimit(resource.RLIMIT_DATA, (task.memory_bytes, task.memory_bytes))
    inputs = InputBuilder(task.folder)
    samples = make_samples(inputs, task.groups, task.prompt, task.response)
    learnt, update = CONTESTANTS[task.contestant](task, inputs, samples)
    before = _reset_peak(task.device)
    counter = FlopCounterMode(display=False, custom_mapping=attention_flops())
    with nullcontext() if task.contestant in UNCOUNTED else counter:
        torch.save(gradients_of(learnt, update), task.gradients)
    _reset_peak(task.device)  # the gradients kept above do not count
    seconds: list[float] = []
    for _ in range(task.updates):
        started = time.perf_counter()
        update()
        _wait(task.device)
        seconds.append(time.perf_counter() - started)
    tokens = sum(len(sample.example.input_ids) for sample in samples)
    peak = _peak(task.device)
    return Measured(seconds, counter.get_total_flops(), tokens, peak - before, peak)


def gradients_of(learnt: dict[str, nn.Parameter], update: Callable[[], object]) -> dict[str, Tensor]:
    """In float32, of one update."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[Tensor], None]:
        def hook(parameter: Tensor) -> None:
            assert parameter.grad is not None
            found[name] = parameter.grad.float().cpu().clone()  # the last one holds all micro-batches' sum

        return hook

    hooks = [p.register_post_accumulate_grad_hook(keep(name)) for name, p in learnt.items()]
    update()
    for hook in hooks:
        hook.remove()
    return found


def matrix_rate(dtype: str, device: str, threads: int | None) -> float:
    """FLOP/s of one large product of two square matrices, the best of ten."""
    if threads:
        torch.set_num_threads(threads)
    side = 8192 if device == "cuda" else 2048
    a, b = (torch.randn(side, side, dtype=getattr(torch, dtype), device=device) for _ in range(2))
    best = float("inf")
    for _ in range(10):
        _wait(device)
        started = time.perf_counter()
        torch.mm(a, b)
        _wait(device)
        best = min(best, time.perf_counter() - started)
    return 2 * side**3 / best


def _prism(
    task: Contest,
    inputs: InputBuilder,
    samples: list[TrainingSample],
    *,
    tokens: int | None = None,
    compiled: bool = False,
) -> Built:
    """The learner. ``tokens`` of a pass: without, those of a group. ``compiled``: with ``compile = true``."""
    one_group = task.prompt + RESPONSES * task.response * 3 // 2
    config = PolicyLearnerConfig.model_validate({"optimizer": OPTIMIZER, "micro_batch_tokens": tokens or one_group})
    if task.lora:
        run = load_config(Path("configs/demo.toml"), [f"device={task.device}", f"dtype={task.dtype}"])
        model = load_policy_adapter(task.folder, run, task.lora)
        fill(adapter_parameters(model, POLICY))
    else:
        model = load_policy(task.folder, dtype=getattr(torch, task.dtype), device=task.device)
    learner = learner_of(model, config, task.updates + 1)
    if compiled:
        compile_layers(model)
        compile_head(model)
    with tempfile.TemporaryDirectory() as folder:
        examples = GroupExamples(inputs, BlobStore(folder))
    return learning(model), lambda: learner.update(samples, examples)


def _packed(task: Contest, inputs: InputBuilder, samples: list[TrainingSample], *, compiled: bool = False) -> Built:
    """What verl's remove-padding and prime-rl do: sequences one after another in a row, none sees another, each with a
    prompt and a picture of its own. The learner and its attention are PRISM's, of groups of one."""
    longest = max(len(sample.example.input_ids) for sample in samples)
    return _prism(task, inputs, unshared(samples), tokens=task.peers_take * longest, compiled=compiled)


def unshared(samples: list[TrainingSample]) -> list[TrainingSample]:
    """The same, of which no two have a prompt in common, as ``packing`` tells prompts apart: by their pictures."""

    def own(example: Example) -> Example:
        assert example.pixel_values is not None
        return replace(example, pixel_values=example.pixel_values.clone())

    return [replace(sample, example=own(sample.example)) for sample in samples]


def fill(adapter: dict[str, nn.Parameter]) -> None:
    """The same numbers for all contestants, B's too: with B at 0, as adapters begin, A has no gradient to compare."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name in sorted(adapter):
            drawn = torch.randn(adapter[name].shape, generator=generator) * 0.02
            adapter[name].copy_(drawn.bfloat16())  # which float32 holds as well


def _padded(task: Contest, inputs: InputBuilder, samples: list[TrainingSample]) -> Built:
    """PRISM's loss over the stock model: every sequence whole, padded, its picture encoded with it."""
    model = load_stock(task.folder, dtype=getattr(torch, task.dtype)).to(task.device).train()
    learnt: dict[str, nn.Parameter] = dict(model.named_parameters())
    if task.lora:
        model.requires_grad_(False)
        add_adapter(model, POLICY, task.lora)
        fill(learnt := adapter_parameters(model, POLICY))
    optimizer = Optimizer(learnt.items(), OPTIMIZER, task.updates + 1)
    totals = BatchTotals(sum(len(sample.logprobs) for sample in samples), len(samples))

    def update() -> None:
        for group in _taken(samples, task.peers_take):
            logprobs = response_logprobs(model, [sample.example for sample in group], inputs)
            packed = PackedTokens(
                logprobs,
                torch.tensor([value for sample in group for value in sample.logprobs], device=task.device),
                torch.tensor([sample.advantage for sample in group], device=task.device),
                torch.tensor([i for i, sample in enumerate(group) for _ in sample.logprobs], device=task.device),
            )
            policy_loss("grpo", packed, totals=totals).loss.backward()
        optimizer.step()

    return learnt, update


def _trl(task: Contest, inputs: InputBuilder, samples: list[TrainingSample]) -> Built:
    """TRL's GRPOTrainer, given what it would have sampled; without gradient checkpointing, its slower default."""
    from datasets import Dataset
    from peft import LoraConfig as PeftConfig
    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.grpo_trainer import GRPOTrainer

    model = load_stock(task.folder, dtype=getattr(torch, task.dtype))
    groups = _taken(samples, task.peers_take)
    args = GRPOConfig(
        output_dir=str(task.folder / "trl"),
        use_cpu=task.device == "cpu",
        bf16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=task.peers_take,
        gradient_accumulation_steps=len(groups),
        num_generations=RESPONSES,
        loss_type="grpo",
        beta=0.0,
        report_to=[],
    )
    trainer: Any = GRPOTrainer(
        model=model,
        reward_funcs=lambda completions, **_: [0.0 for _ in completions],
        args=args,
        train_dataset=Dataset.from_dict({"prompt": ["?"]}),
        processing_class=inputs.processor,
        peft_config=PeftConfig(**peft_settings(model, task.lora)) if task.lora else None,
    )
    model = trainer.model
    learnt: dict[str, nn.Parameter] = dict(model.named_parameters())
    if task.lora:
        learnt = adapter_parameters(model.get_base_model(), "default")
        for parameter in learnt.values():  # PEFT holds them in float32: slower, without autocast, than as all do
            parameter.data = parameter.data.to(getattr(torch, task.dtype))
        fill(learnt)
    trainer.current_gradient_accumulation_steps = len(groups)  # as its training loop sets it
    optimizer = Optimizer(learnt.items(), OPTIMIZER, task.updates + 1)
    batches = [_trl_batch(group, inputs, task.device) for group in groups]

    def update() -> None:
        model.train()
        for batch in batches:
            trainer.compute_loss(model, batch).backward()
        optimizer.step()

    return learnt, update


def _taken(samples: list[TrainingSample], size: int) -> list[list[TrainingSample]]:
    return [samples[start : start + size] for start in range(0, len(samples), size)]


def _trl_batch(group: list[TrainingSample], inputs: InputBuilder, device: str) -> dict[str, Any]:
    """Prompts of one length, responses padded on the right."""
    start = group[0].example.prompt_length
    whole = collate([sample.example for sample in group], inputs)
    ids, mask = whole["input_ids"], whole["attention_mask"]
    old = torch.zeros(len(group), ids.shape[1] - start)
    for row, sample in enumerate(group):
        old[row, : len(sample.logprobs)] = torch.tensor(sample.logprobs)
    tensors = {
        "prompt_ids": ids[:, :start],
        "prompt_mask": mask[:, :start],
        "completion_ids": ids[:, start:],
        "completion_mask": mask[:, start:],
        "advantages": torch.tensor([sample.advantage for sample in group]),
        "old_per_token_logps": old,
        "num_items_in_batch": mask[:, start:].sum(),
        "pixel_values": whole["pixel_values"],
        "image_grid_thw": whole["image_grid_thw"],
        "mm_token_type_ids": whole["mm_token_type_ids"],
    }
    return {name: tensor.to(device) for name, tensor in tensors.items()} | {"num_images": [1] * len(group)}


CONTESTANTS: dict[str, Callable[[Contest, InputBuilder, list[TrainingSample]], Built]] = {
    "prism": _prism,
    "compiled": partial(_prism, compiled=True),
    "packed": _packed,
    "packed-compiled": partial(_packed, compiled=True),
    "padded": _padded,
    "trl": _trl,
}


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def _reset_peak(device: str) -> int:
    """Start to watch; returns the bytes taken now."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")  # the kernel's high-water mark of resident memory begins anew
    return _status("VmRSS")


def _peak(device: str) -> int:
    return _status("VmHWM") if device == "cpu" else torch.cuda.max_memory_allocated()


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))
