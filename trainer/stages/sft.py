"""Supervised fine-tuning: demonstrations in, loss on the response alone."""

import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape

from prism import logs
from prism.config import DataConfig, RunConfig, SftConfig
from prism.data.mixture import data_files
from prism.data.rows import DataFile, read_rows
from prism.errors import DataError, NotFiniteError
from prism.model.inputs import InputBuilder
from prism.model.packing import pack, spare_example, split_by_tokens
from prism.trainer.checkpoint.resume import StageCheckpoints
from prism.trainer.checkpoint.saver import Checkpoints
from prism.trainer.flow.demonstrations import Demonstrations, Order, report_problems
from prism.trainer.flow.intake import POLICY
from prism.trainer.flow.lengths import max_positions, refuse_overlong
from prism.trainer.learn import ranks
from prism.trainer.learn.adapted import learning, load_policy_adapter, save_learnt
from prism.trainer.learn.learner import Learner
from prism.trainer.learn.not_finite import keep_rows
from prism.trainer.learn.offload import offload_of
from prism.trainer.learn.optimizer import Optimizer
from prism.trainer.learn.policy_model import load_learner, response_logprobs
from prism.trainer.run.recorder import Recorder
from prism.trainer.run.result import start_version


def train(config: RunConfig, name: str, stage: SftConfig, start: Path | str, output: Path) -> dict[str, Any]:
    """Train from the model in ``start`` and write the result to ``output``; resumes from its newest checkpoint.

    Returns what is worth keeping of the stage. Raises DataError for unusable data.
    """
    ranks.seed(config.seed)
    console = ranks.console()
    inputs = InputBuilder(start, config.limits.pixel_bounds)
    model = load_policy_adapter(start, config, stage.lora) if stage.lora else load_learner(start, config)
    model.train()
    data = _open_data(config, stage, inputs, console)
    offload = offload_of(config) if config.offload == "optimizer" else None
    optimizer = Optimizer(learning(model).items(), stage.optimizer, stage.steps, offload)
    learner = Learner(model, optimizer, start_version(start))
    spare = spare_example(inputs)
    order = Order(data.parts, stage.batch, config.seed)
    checkpoints = Checkpoints(config.run_dir / "checkpoints" / name, config.keep_checkpoints)
    saved = StageCheckpoints(checkpoints, config, {POLICY: learner}, partial(logs.say, console), files=data.files)
    first = saved.resume()

    recorder = Recorder(config.run_dir, name, stage.steps)
    started = time.perf_counter()
    with saved:
        for step in range(first, stage.steps):
            began = time.perf_counter()
            saved.poll()
            rows = order.at(step)
            examples = data.batch(ranks.own(rows), ahead=ranks.own(order.at(step + 1)))
            batches = split_by_tokens([[example] for example in examples], stage.micro_batch_tokens)
            own_tokens = sum(len(example.response_ids) for example in examples)
            own_images = any(example.pixel_values is not None for example in examples)
            counts, all_tokens, images = zip(*ranks.gathered((len(batches), own_tokens, own_images)), strict=True)
            tokens = sum(all_tokens)
            if not tokens:
                raise DataError(f"none of {len(rows)} rows can be used; the first: {data.source(rows[0])}")
            ranks.expect_images(model, any(images))
            own_loss = 0.0
            for indices in ranks.pad_passes(batches, max(counts)):
                batch = pack([examples[i] for i in indices] if indices else [spare], inputs, model.device)
                with torch.autocast(model.device.type, torch.bfloat16, enabled=stage.autocast_bf16):
                    loss = -response_logprobs(model, batch).sum() / tokens
                loss = loss if indices else 0 * loss
                loss.backward()
                own_loss += loss.item()
            total = sum(ranks.gathered(own_loss))
            lr = optimizer.lr
            try:
                norm, updated = optimizer.step(total)
            except NotFiniteError:
                if ranks.is_first():
                    keep_rows(config.run_dir, name, step + 1, map(data.source, rows))
                raise
            if not updated and ranks.is_first():
                file = keep_rows(config.run_dir, name, step + 1, map(data.source, rows))
                console.print(
                    f"[yellow]step {step + 1}: the update was not finite; its rows are in {escape(str(file))}[/]"
                )
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
                saved.save(step + 1)
    recorder.close()
    save_learnt(model, output, inputs)
    return {
        "version": learner.version,
        "steps": stage.steps,
        "seconds": time.perf_counter() - started,
        "rows": len(data),
        "bad_rows": data.bad_rows,
        "data": saved.data,
    }


def _open_data(config: RunConfig, stage: SftConfig, inputs: InputBuilder, console: Console) -> Demonstrations:
    def say(text: str) -> None:
        console.print(f"[yellow]{escape(text)}[/]", soft_wrap=True)

    limit = stage.max_tokens or max_positions(inputs.start)

    def read(path: Path, entry: DataConfig) -> DataFile:
        return read_rows(
            path,
            config.on_bad_row,
            (stage.target,),
            images=stage.check_images,
            say=say,
            limits=config.limits,
            check=refuse_overlong(inputs, limit, stage.target),
            entry=entry,
            every_turn=stage.target == "response",
        )

    files = ranks.from_first(lambda: [read(*one) for one in data_files(stage.data, config.path)])  # images opened once
    for file in files:
        report_problems(file, console)
    cache_bytes = int(stage.cache_gib * 2**30)
    return Demonstrations(
        files, stage.target, inputs, cache_bytes=cache_bytes, on_bad_row=config.on_bad_row, say=say, max_tokens=limit
    )
