"""A run's folder with two stages, figures, evaluations and rollouts with pictures, as a run writes it."""

import json
from pathlib import Path
from typing import Any

from prism.data.blobs import BlobStore
from prism.files import append_json
from tests.unit.prism.evaluation.benchmark_rows import png


def write_run(folder: Path) -> Path:
    """Five steps of ``sft``, then four of ``align``, one of them a warm-up."""
    stages = {"sft": {"kind": "sft", "steps": 5}, "align": {"kind": "align", "steps": 3, "warmup_steps": 1}}
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"name": folder.name, "model": "tiny", "stages": stages}))
    for step in range(1, 6):
        add_step(folder, "sft", step, loss=1 / step, note="text", nothing=None)
    add_step(folder, "align", 1, perception_gap=0.5)
    append_json(folder / "evaluations.jsonl", {"stage": "sft", "accuracy": 0.25, "by_level": {}, "time": 1.0})
    add_sample(folder, "sft", "q1")
    return folder


def add_step(folder: Path, stage: str, step: int, **figures: Any) -> None:
    append_json(folder / "metrics.jsonl", {"stage": stage, "step": step, "time": 1.0, "attempt": 1} | figures)


def add_sample(folder: Path, stage: str, name: str) -> None:
    sha256 = BlobStore(str(folder / "blobs")).put(png("red", (16, 12)))
    sample = {
        "stage": stage,
        "prompt_id": name,
        "images": [sha256],
        "question": "What is it?",
        "gold": "7",
        "teacher": "seven",
        "response": "<answer>7</answer>",
        "scores": [{"expert": "perception", "value": 1.5}],
        "verdict": {"status": "ok", "accuracy": 1.0},
    }
    append_json(folder / "samples.jsonl", sample)
