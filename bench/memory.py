"""What learners take of a GPU beside what ``prism run --dry-run`` says they will: three learners of each size, as many
as alignment has, each with one update of full passes. Each size in a process of its own:

    python -m bench.memory --models larger,qwen3-vl-2b
"""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from bench.learner.workload import SIZES, make_learner, make_model, make_samples
from bench.shared import command_line, console
from prism.config import PolicyLearnerConfig, load_config
from prism.data.blobs import BlobStore
from prism.model.inputs import InputBuilder
from prism.trainer.flow.examples import GroupExamples
from prism.trainer.run.estimate import learners_memory, policy_size
from prism.trainer.run.placement import ALLOCATOR, PROCESS

GROUPS = 3


def main() -> None:
    parser = command_line("bench.memory", __doc__)
    parser.add_argument("--models", default="larger,qwen3-vl-2b")
    parser.add_argument("--learners", type=int, default=3)
    parser.add_argument("--one", choices=list(SIZES), help="in this process")
    options = parser.parse_args()
    if options.one:
        measure(options.one, options.learners)
        return
    for model in options.models.split(","):
        command = [sys.executable, "-m", "bench.memory", "--one", model, "--learners", str(options.learners)]
        subprocess.run(command, check=True)


def measure(model: str, count: int) -> None:
    config = load_config(Path("configs/demo.toml"), ["device=cuda", "dtype=bfloat16"])
    learner_config = PolicyLearnerConfig.model_validate({"optimizer": {"lr": 1e-6}, "max_mismatch": 99})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder / "model", model, "cuda")
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        inputs = InputBuilder(folder / "model")
        examples = GroupExamples(inputs, BlobStore(str(folder / "blobs")))
        samples: list[Any] = make_samples(inputs, GROUPS, 1000, 200)
        learners = [make_learner(folder / "model", "bfloat16", "cuda", learner_config, 1) for _ in range(count)]
        for learner in learners:
            learner.update(samples, examples)
        first = {sample.group: sample.example for sample in reversed(samples)}.values()
        tokens = sum(example.prompt_length for example in first) + sum(len(s.logprobs) for s in samples)
        patches = sum(len(example.pixel_values) for example in first if example.pixel_values is not None)
        size = policy_size(folder / "model", [])
    memory = learners_memory(config, [(size, tokens)] * count, patches_per_token=patches / tokens)
    said = PROCESS + ALLOCATOR * memory.total
    free, whole = torch.cuda.mem_get_info()
    used, held = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    taken = whole - free
    console.print(f"{count} x {model}, {size.parameters / 1e9:.2f}B, {tokens} tokens, {patches} patches in GiB:")
    console.print(
        f"  estimated {said / 2**30:.1f}, taken of the card {taken / 2**30:.1f} ({said / taken - 1:+.0%}), "
        f"held by torch {held / 2**30:.1f}, in use {used / 2**30:.1f}"
    )


if __name__ == "__main__":
    main()
