"""What TensorBoard, MLflow and Weights & Biases (offline) hold after a run was sent: `make test-trackers`.

Apart from the other tests because MLflow's pins fight with those of this checkout.
"""

import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from prism.config import load_config, save_resolved
from tests.unit.trainer.tracked_run import add_step, write_run

LOSSES = {step: 1 / step for step in range(1, 6)}


def send(run: Path, name: str, **environment: str) -> None:
    command = [sys.executable, "-m", "prism", "track", str(run), "--to", name]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = write_run(tmp_path / "runs" / "small")
    config = load_config(Path("configs/demo.toml"), ["name=small", f"runs_dir={tmp_path / 'runs'}"])
    save_resolved(config)
    resolved = json.loads((folder / "config.json").read_text())
    for name, steps in (("sft", 5), ("align", 3)):
        resolved["stages"][name]["steps"] = steps
    resolved["stages"]["align"]["warmup_steps"] = 1
    (folder / "config.json").write_text(json.dumps(resolved))
    return folder


def test_tensorboard(run: Path) -> None:
    accumulator: Any = import_module("tensorboard.backend.event_processing.event_accumulator")

    send(run, "tensorboard")
    add_step(run, "align", 2, perception_gap=0.75)
    send(run, "tensorboard")
    events = accumulator.EventAccumulator(str(run / "track" / "small"))
    events.Reload()
    losses = {event.step: event.value for event in events.Scalars("sft/loss")}
    assert losses == {step: pytest.approx(loss) for step, loss in LOSSES.items()}
    assert [(event.step, event.value) for event in events.Scalars("align/perception_gap")] == [(6, 0.5), (7, 0.75)]
    assert events.Scalars("held_out/accuracy")[0].value == 0.25
    (picture,) = events.Images("rollouts_sft/q1/0")
    assert (picture.width, picture.height, picture.step) == (16, 12, 5)
    assert "<answer>7</answer>" in events.Tensors("rollouts_sft/q1/text_summary")[0].tensor_proto.string_val[0].decode()


def test_mlflow(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow: Any = import_module("mlflow")

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    send(run, "mlflow")
    add_step(run, "align", 2, perception_gap=0.75)
    send(run, "mlflow")
    client = mlflow.MlflowClient((run / "track" / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("prism")
    assert experiment
    (found,) = client.search_runs([experiment.experiment_id])  # one run, though it was sent twice
    history = {metric.step: metric.value for metric in client.get_metric_history(found.info.run_id, "sft/loss")}
    assert history == LOSSES
    gaps = client.get_metric_history(found.info.run_id, "align/perception_gap")
    assert sorted((metric.step, metric.value) for metric in gaps) == [(6, 0.5), (7, 0.75)]
    names = {file.path for file in client.list_artifacts(found.info.run_id, "rollouts/sft/5")}
    assert names == {"rollouts/sft/5/00-0.png", "rollouts/sft/5/00.json"}
    assert found.data.params["stages.align.warmup_steps"] == "1"


def test_wandb_offline(run: Path) -> None:
    send(run, "wandb", WANDB_MODE="offline")
    folders = list((run / "track" / "wandb").glob("offline-run-*"))
    assert len(folders) == 1
    assert list(folders[0].glob("run-*.wandb"))
    assert list(folders[0].rglob("*.png"))


def test_a_server_that_is_away_is_no_number_and_no_traceback(run: Path) -> None:
    command = [sys.executable, "-m", "prism", "track", str(run), "--to", "mlflow"]
    away = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    done = subprocess.run(command, env=os.environ | away, capture_output=True, text=True)
    assert done.returncode == 1
    assert "the same command goes on" in done.stderr
    send(run, "mlflow")
