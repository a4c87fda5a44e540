"""``prism experts warmup``: an expert's first training, on text that is there already.

What an expert learns from is the learner of alignment: a pair is a group of one response, the teacher's text alone a
group of none.
"""

import json
import math
import shutil
import time
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import Field, ValidationError, model_validator
from rich.console import Console
from rich.markup import escape

from prism.config import ConfigModel, DataConfig, ExpertLearnerConfig
from prism.data.rows import DataFile, DataRow, read_rows
from prism.errors import ConfigError, DataError
from prism.files import partial_of, sealed_folder, write_json
from prism.model.expert import load_expert, place, save_expert
from prism.model.inputs import InputBuilder
from prism.settings import describe
from prism.trainer.checkpoint.resume import StageCheckpoints
from prism.trainer.checkpoint.saver import Checkpoints
from prism.trainer.flow.demonstrations import Order, prompt_of, report_problems
from prism.trainer.learn.expert_learner import ExpertLearner
from prism.trainer.run.make_experts import refuse_existing
from prism.trainer.run.recorder import Recorder
from prism.wire.response import DISCRIMINATOR, Network, parse_response
from prism.wire.v1 import rollout_pb2 as pb
from prism.wire.weights import file_sha256

KEEP_CHECKPOINTS = 2


class WarmupConfig(ConfigModel):
    """Everything that the result depends on: a run that goes on must have begun with the same."""

    model: str
    pairs: Path
    expert: Network
    epochs: float = Field(gt=0)
    batch: int = Field(gt=0)
    learner: ExpertLearnerConfig
    checkpoint_every: int = Field(gt=0)
    on_bad_row: Literal["skip", "fail"]
    seed: int
    device: Literal["cpu", "cuda"]
    dtype: Literal["float32", "bfloat16"]
    image_root: Path | None = None
    """Folder that images of the pairs must lie in; without it, the folder of the pairs."""

    @model_validator(mode="after")
    def _device_computes_dtype(self) -> Self:
        if self.device == "cuda" and self.dtype != "bfloat16":
            raise ValueError("dtype: on a GPU the learners' attention computes in bfloat16")
        return self

    @model_validator(mode="after")
    def _learns(self) -> Self:
        if self.learner.frozen:
            raise ValueError("learner.frozen: is for the game; a warm-up is there to learn")
        if self.learner.shared != (self.expert == DISCRIMINATOR):
            raise ValueError(f"learner.shared: is of the {DISCRIMINATOR}, which is both experts in one")
        return self

    @classmethod
    def of(cls, **values: Any) -> Self:
        """Raises ConfigError that names each value that is impossible."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ConfigError("\n".join(describe(error))) from None


def warm_up(config: WarmupConfig, out: Path, console: Console) -> None:
    """Train and write ``out``; goes on from the newest checkpoint in ``out``.partial.

    Raises ConfigError if ``out`` exists or was begun with other settings, DataError for pairs that cannot be used.
    """
    refuse_existing(out)
    required = ("teacher",) if config.learner.mismatch else ("teacher", "response")
    entry = DataConfig(path=str(config.pairs), image_root=config.image_root)
    file = read_rows(config.pairs, config.on_bad_row, required, entry=entry)
    report_problems(file, console)
    _refuse_unusable(file, console)
    work = partial_of(out)
    _refuse_other_settings(config, work)

    torch.manual_seed(config.seed)
    inputs = InputBuilder(config.model)
    model = load_expert(
        config.model,
        seed=config.seed,
        dropout=config.learner.dropout,
        dtype=getattr(torch, config.dtype),
    )
    pairs = round(config.epochs * len(file.rows))
    total = max(1, math.ceil(pairs / config.batch))
    learner = ExpertLearner(config.expert, place(model, config.device), config.learner, total)
    order = Order(len(file.rows), config.batch, config.seed)
    checkpoints = Checkpoints(work / "checkpoints", KEEP_CHECKPOINTS)
    saved = StageCheckpoints(checkpoints, config, {config.expert: learner}, console.print)
    first = saved.resume()
    recorder = Recorder(work, config.expert, total, console=console)
    paired = any(row.response is not None for row in file.rows)
    shown = ("pair_accuracy", "gap") if paired else ("mismatch_accuracy",)
    with saved:
        for step in range(first, total):
            began = time.perf_counter()
            saved.poll()
            rows = [file.rows[i] for i in order.at(step)[: max(1, pairs - step * config.batch)]]
            prompts = [prompt_of(row, file, inputs) for row in rows]
            figures = learner.update([_group(row) for row in rows], prompts, inputs, warming_up=True)
            figures["step_seconds"] = time.perf_counter() - began
            recorder.step(
                step + 1, figures, show=tuple(f"{expert}_{name}" for expert in learner.experts for name in shown)
            )
            if (step + 1) % config.checkpoint_every == 0 and step + 1 < total:
                saved.save(step + 1)
    recorder.close()
    with sealed_folder(out, work / "expert") as folder:
        save_expert(learner.model, folder, inputs)
        for name in ("metrics.jsonl", "settings.json"):
            shutil.copyfile(work / name, folder / name.replace("settings", "warmup"))
    shutil.rmtree(work)
    whose = "discriminator, both experts in one" if config.learner.shared else f"{config.expert} expert"
    console.print(f"the {whose}, warmed up on {pairs:,} rows, is in {escape(str(out))}")


def _refuse_unusable(file: DataFile, console: Console) -> None:
    """Say how many rows hold a text that cannot be judged; raises DataError if all do."""
    usable = sum(
        all(text is None or parse_response(text).valid for text in (row.teacher, row.response)) for row in file.rows
    )
    if not usable:
        raise DataError(f"{file.path}: no row has texts in the response format: nothing to learn")
    if usable < len(file.rows):
        console.print(f"[yellow]{len(file.rows) - usable} of {len(file.rows)} rows break the response format[/]")


def _refuse_other_settings(config: WarmupConfig, work: Path) -> None:
    settings = config.model_dump(mode="json") | {"pairs_sha256": file_sha256(config.pairs)}
    file = work / "settings.json"
    if file.is_file():
        before = json.loads(file.read_text())
        before["learner"] = _with_defaults(before["learner"])
        changed = [key for key in settings if before.get(key) != settings[key]]
        if changed:
            raise ConfigError(
                f"{work} was begun with other settings ({', '.join(changed)}): delete it, or choose another folder"
            )
    write_json(file, settings)


def _with_defaults(learner: dict[str, Any]) -> dict[str, Any]:
    """Of an earlier release: keys that have come since with a default are no change."""
    try:
        return ExpertLearnerConfig.model_validate(learner).model_dump(mode="json")
    except ValidationError:
        return learner


def _group(row: DataRow) -> pb.RolloutGroup:
    return pb.RolloutGroup(
        request=pb.RolloutRequest(prompt=pb.Prompt(id=row.id, teacher=row.teacher or "")),
        samples=[] if row.response is None else [pb.Sample(text=row.response)],
    )
