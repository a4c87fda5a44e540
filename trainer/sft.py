"""Supervised fine-tuning: demonstrations in, loss on the response alone."""

import contextlib
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape

from prism import logs
from prism.config import RunConfig, SftConfig
from prism.data import read_rows
from prism.errors import NotFiniteError
from prism.inputs import InputBuilder
from prism.packing import pack, split_by_tokens
from trainer.checkpoint import newest_checkpoint, save_checkpoint
from trainer.demonstrations import Demonstrations, Order, report_problems
from trainer.not_finite import keep_rows
from trainer.optimizer import Optimizer
from trainer.policy_model import load_learner, load_policy, response_logprobs, save_policy
from trainer.recorder import Recorder
from trainer.result import start_version


def train(config: RunConfig, name: str, stage: SftConfig, start: Path | str, output: Path) -> dict[str, Any]:
    """Train from the model in ``start`` and write the result to ``output``; resumes from its newest checkpoint.

    Returns what is worth keeping of the stage. Raises DataError for unusable data.
    """
    torch.manual_seed(config.seed)
    console = logs.console()
    inputs = InputBuilder(start)
    model = load_learner(start, config).train()
    data = _open_data(config, stage, inputs, console)
    optimizer = Optimizer(model.parameters(), stage.optimizer, stage.steps)
    order = Order(len(data), stage.batch, config.seed)
    root = config.run_dir / "checkpoints" / name
    first = _resume(root, model, optimizer)

    recorder = Recorder(config.run_dir, name, stage.steps)
    started = time.perf_counter()
    for step in range(first, stage.steps):
        began = time.perf_counter()
        examples = data.batch(order.at(step), ahead=order.at(step + 1))
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
        "bad_rows": data.bad_rows,
    }


def _open_data(config: RunConfig, stage: SftConfig, inputs: InputBuilder, console: Console) -> Demonstrations:
    def say(text: str) -> None:
        console.print(f"[yellow]{escape(text)}[/]", soft_wrap=True)

    paths = [config.path(name) for name in stage.data]
    files = [
        read_rows(path, config.on_bad_row, require=(stage.target,), images=stage.check_images, say=say)
        for path in paths
    ]
    for file in files:
        report_problems(file, console)
    cache_bytes = int(stage.cache_gib * 2**30)
    return Demonstrations(files, stage.target, inputs, cache_bytes=cache_bytes, on_bad_row=config.on_bad_row, say=say)


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
