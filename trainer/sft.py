"""Supervised fine-tuning: demonstrations in, loss on the response alone."""

import contextlib
import random
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape

from prism import logs
from prism.config import RunConfig, SftConfig
from prism.data import DataFile, Row, open_image, read_rows
from prism.errors import NotFiniteError
from prism.inputs import Example, InputBuilder
from prism.packing import pack, split_by_tokens
from prism.v1 import rollout_pb2 as pb
from trainer.checkpoint import newest_checkpoint, save_checkpoint
from trainer.not_finite import keep_rows
from trainer.optimizer import Optimizer
from trainer.policy_model import load_learner, load_policy, response_logprobs, save_policy
from trainer.recorder import Recorder
from trainer.result import start_version


class Demonstrations:
    """The rows of all files as examples; each row and each image is processed once and kept."""

    def __init__(self, files: list[DataFile], target: str, inputs: InputBuilder) -> None:
        self._rows: list[tuple[DataFile, Row]] = [(file, row) for file in files for row in file.rows]
        self._target, self._inputs = target, inputs
        self._images: dict[tuple[Path, str], tuple[torch.Tensor, torch.Tensor]] = {}
        self._examples: dict[int, Example] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def example(self, index: int) -> Example:
        if index not in self._examples:
            self._examples[index] = self._build(index)
        return self._examples[index]

    def source(self, index: int) -> dict[str, str]:
        """Where an example comes from."""
        file, row = self._rows[index]
        return {"file": str(file.path), "id": row.id}

    def _build(self, index: int) -> Example:
        file, row = self._rows[index]
        text: str = getattr(row, self._target)
        processed = [self._image(file, name) for name in row.image_paths]
        pixels = torch.cat([pixels for pixels, _ in processed]) if processed else None
        grids = torch.cat([grid for _, grid in processed]) if processed else None
        return self._inputs.with_text(self._inputs.prompt_of(row_messages(row), pixels, grids), text)

    def _image(self, file: DataFile, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        key = (file.path.parent, name)
        if key not in self._images:
            self._images[key] = self._inputs.images([open_image(file.image(name))])
        return self._images[key]


def row_messages(row: Row) -> list[pb.Message]:
    """The prompt of a row; its images are named by their paths."""
    return [
        pb.Message(
            role=message.role,
            parts=[
                pb.Part(text=part.text) if part.type == "text" else pb.Part(image_sha256=part.image)
                for part in message.parts
            ],
        )
        for message in row.messages
    ]


class Order:
    """Which examples a step sees: shuffled anew each epoch, a function of seed and step alone, so resume is exact."""

    def __init__(self, count: int, batch: int, seed: int) -> None:
        self._count, self._batch, self._seed = count, batch, seed
        self._epoch, self._shuffled = -1, list[int]()

    def at(self, step: int) -> list[int]:
        return [self._one(position) for position in range(step * self._batch, (step + 1) * self._batch)]

    def _one(self, position: int) -> int:
        epoch, offset = divmod(position, self._count)
        if epoch != self._epoch:
            self._epoch, self._shuffled = epoch, list(range(self._count))
            random.Random(f"{self._seed}/{epoch}").shuffle(self._shuffled)
        return self._shuffled[offset]


def train(config: RunConfig, name: str, stage: SftConfig, start: Path | str, output: Path) -> dict[str, Any]:
    """Train from the model in ``start`` and write the result to ``output``; resumes from its newest checkpoint.

    Returns what is worth keeping of the stage. Raises DataError for unusable data.
    """
    torch.manual_seed(config.seed)
    console = logs.console()
    inputs = InputBuilder(start)
    model = load_learner(start, config).train()
    files = [read_rows(config.path(path), config.on_bad_row, require=(stage.target,)) for path in stage.data]
    for file in files:
        report_problems(file, console)
    data = Demonstrations(files, stage.target, inputs)
    optimizer = Optimizer(model.parameters(), stage.optimizer, stage.steps)
    order = Order(len(data), stage.batch, config.seed)
    root = config.run_dir / "checkpoints" / name
    first = _resume(root, model, optimizer)

    recorder = Recorder(config.run_dir, name, stage.steps)
    started = time.perf_counter()
    for step in range(first, stage.steps):
        began = time.perf_counter()
        examples = [data.example(i) for i in order.at(step)]
        tokens = sum(len(example.response_ids) for example in examples)
        total = 0.0
        for indices in split_by_tokens([[example] for example in examples], stage.micro_batch_tokens):
            batch = pack([examples[i] for i in indices], inputs, model.device)
            with torch.autocast(model.device.type, torch.bfloat16) if stage.autocast_bf16 else contextlib.nullcontext():
                loss = -response_logprobs(model, batch).sum() / tokens
            loss.backward()
            total += loss.item()
        lr = optimizer.lr
        try:
            norm, updated = optimizer.step(total)
        except NotFiniteError:
            keep_rows(config.run_dir, name, step + 1, map(data.source, order.at(step)))
            raise
        if not updated:
            file = keep_rows(config.run_dir, name, step + 1, map(data.source, order.at(step)))
            console.print(f"[yellow]step {step + 1}: the update was not finite; its rows are in {escape(str(file))}[/]")
        figures = {
            "loss": total if updated else None,
            "grad_norm": norm if updated else None,
            "skipped": int(not updated),
            "lr": lr,
            "response_tokens": tokens,
            "update_seconds": time.perf_counter() - began,
        }
        recorder.step(step + 1, figures, show=("loss",))
        if (step + 1) % stage.checkpoint_every == 0 and step + 1 < stage.steps:
            save_checkpoint(
                root, step + 1, {"step": step + 1}, lambda folder: _write(folder, model, optimizer),
                keep=config.keep_checkpoints,
            )  # fmt: skip
    recorder.close()
    save_policy(model, output, inputs)
    return {
        "version": start_version(start),
        "steps": stage.steps,
        "seconds": time.perf_counter() - started,
        "rows": len(data),
        "bad_rows": sum(len(file.problems) for file in files),
    }


def report_problems(file: DataFile, console: Console) -> None:
    """Say which rows were skipped: the first few, and how many."""
    for problem in file.problems[:5]:
        console.print(f"[yellow]skipped[/] {escape(problem)}", soft_wrap=True)
    if file.problems:
        name = escape(str(file.path))
        console.print(f"[yellow]{len(file.problems)} rows of {name} skipped[/], {len(file.rows)} used")


def _write(folder: Path, model: Any, optimizer: Optimizer) -> None:
    model.save_pretrained(folder / "policy")
    torch.save({"optimizer": optimizer.state_dict(), "rng": torch.get_rng_state()}, folder / "training.pt")


def _resume(root: Path, model: Any, optimizer: Optimizer) -> int:
    newest = newest_checkpoint(root)
    if newest is None:
        return 0
    folder, state = newest
    loaded = load_policy(folder / "policy", dtype=model.dtype)
    model.load_state_dict(loaded.state_dict())
    training = torch.load(folder / "training.pt", weights_only=True)
    optimizer.load_state_dict(training["optimizer"])
    torch.set_rng_state(training["rng"])
    return state["step"]
