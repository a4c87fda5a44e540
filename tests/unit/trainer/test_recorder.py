"""What a run leaves to look at: every line is JSON, and no data is not a number."""

import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY
from rich.console import Console

from prism.config import AlertsConfig
from prism.trainer.run.alerts import FIGURES, Alerts
from prism.trainer.run.recorder import Recorder
from prism.wire.v1 import rollout_pb2 as pb


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=200, highlight=False)


def lines(run_dir: Path) -> list[dict[str, Any]]:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON")

    return [json.loads(line, parse_constant=refuse) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def printed(console: Console) -> list[str]:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_each_step_is_a_line_at_once_and_a_resumed_run_adds_to_them(tmp_path: Path, console: Console) -> None:
    recorder = Recorder(tmp_path, "align", 3, console=console)
    recorder.step(1, {"loss": 0.5, "warmup": True, "gap": None})
    assert len(lines(tmp_path)) == 1  # before the file is closed
    recorder.step(2, {"loss": 0.25})
    recorder.close()
    again = Recorder(tmp_path, "align", 3, console=console)
    again.step(2, {"loss": 0.125})
    again.close()
    found = lines(tmp_path)
    assert [(line["stage"], line["step"], line["loss"]) for line in found] == [
        ("align", 1, 0.5),
        ("align", 2, 0.25),
        ("align", 2, 0.125),
    ]
    assert (found[0]["warmup"], found[0]["gap"]) == (True, None)
    assert found[0]["time"] <= found[1]["time"]


def test_when_groups_were_made_stands_beside_the_figures(tmp_path: Path, console: Console) -> None:
    recorder = Recorder(tmp_path, "align", 3, console=console)
    recorder.step(1, {"loss": 0.5})
    group = pb.RolloutGroup(generate_seconds=2.5, judge_seconds=0.5, judged_at=1_000.0)
    recorder.step(2, {"loss": 0.25}, groups=[group, group])
    recorder.close()
    (line,) = [json.loads(line) for line in (tmp_path / "timeline.jsonl").read_text().splitlines()]
    assert line == {"stage": "align", "step": 2, "groups": [[997.0, 999.5, 1_000.0]] * 2}


def test_a_torn_last_line_is_not_glued_to_the_next(tmp_path: Path, console: Console) -> None:
    file = tmp_path / "metrics.jsonl"
    Recorder(tmp_path, "sft", 3, console=console).step(1, {"loss": 0.5})
    file.write_bytes(file.read_bytes() + b'{"stage": "sft", "st')
    Recorder(tmp_path, "sft", 3, console=console).step(2, {"loss": 0.25})
    assert [line["step"] for line in lines(tmp_path)] == [1, 2]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_no_data(tmp_path: Path, console: Console, value: float) -> None:
    recorder = Recorder(tmp_path, "finite", 1, console=console)
    recorder.step(1, {"loss": value, "reward": 1.0}, show=("loss", "reward"))
    recorder.close()
    assert (lines(tmp_path)[0]["loss"], lines(tmp_path)[0]["reward"]) == (None, 1.0)
    assert "loss no data  reward 1.000" in printed(console)[0]
    assert REGISTRY.get_sample_value("prism_trainer_value", {"stage": "finite", "figure": "loss"}) is None


def test_the_newest_value_of_each_figure_is_a_gauge(tmp_path: Path, console: Console) -> None:
    recorder = Recorder(tmp_path, "gauged", 2, console=console)
    for step, reward in ((1, 0.25), (2, 0.75)):
        recorder.step(step, {"reward": reward, "accuracy": None})
    recorder.close()
    assert REGISTRY.get_sample_value("prism_trainer_value", {"stage": "gauged", "figure": "reward"}) == 0.75
    assert REGISTRY.get_sample_value("prism_trainer_value", {"stage": "gauged", "figure": "accuracy"}) is None


def test_progress_is_printed_at_first_and_last_but_not_at_every_step(tmp_path: Path, console: Console) -> None:
    recorder = Recorder(tmp_path, "sft", 50, console=console)
    for step in range(11, 51):  # resumed after step 10
        recorder.step(step, {"loss": 1 / step, "steps": step}, show=("loss", "steps"))
    recorder.close()
    first, last = printed(console)
    assert "11/50" in first
    assert "loss 0.091  steps 11" in first
    assert "50/50" in last
    assert "0:00 left" in last


def test_a_bound_that_is_crossed_is_said_once_recorded_and_exported_until_it_is_back(tmp_path: Path) -> None:
    said: list[str] = []
    alerts = Alerts(AlertsConfig.model_validate({"steps": 2, "entropy_below": 0.05}), said.append)
    recorder = Recorder(tmp_path, "watched", 7, console=Console(file=io.StringIO()), alerts=alerts)
    gauges: list[float | None] = []
    for step, entropy in enumerate([0.01, 0.04, 0.02, None, 0.04, 0.2, 0.2], 1):
        recorder.step(step, {"entropy": entropy, "format_rate": 0.9})
        labels = {"stage": "watched", "alert": "entropy_below"}
        gauges.append(REGISTRY.get_sample_value("prism_trainer_alert", labels))
    assert [line.get("alerts") for line in lines(tmp_path)] == [None, *[{"entropy_below": 0.05}] * 4, None, None]
    assert gauges == [0, 1, 1, 1, 1, 0, 0]
    assert said == [
        "step 2: entropy 0.025 over 2 steps crosses alerts.entropy_below = 0.05",
        "step 6: entropy 0.12 is back within alerts.entropy_below = 0.05",
    ]


@pytest.mark.parametrize("alert", FIGURES)
def test_every_bound_is_watched_and_off_at_its_end(tmp_path: Path, alert: str) -> None:
    """``steps`` aside, each key of the section is an alert."""
    assert set(AlertsConfig.model_fields) == {"steps", *FIGURES}
    bad = -1.0 if alert.endswith("_below") else 1e9
    alerts = Alerts(AlertsConfig.model_validate({"steps": 1}), lambda _: None)
    recorder = Recorder(tmp_path, "each", 2, console=Console(file=io.StringIO()), alerts=alerts)
    recorder.step(1, {FIGURES[alert]: bad})
    assert alert in lines(tmp_path)[0]["alerts"]
    labels = {"stage": "each", "alert": alert}
    assert REGISTRY.get_sample_value("prism_trainer_alert", labels) == 1
    recorder.close()
    assert REGISTRY.get_sample_value("prism_trainer_alert", labels) == 0


def test_a_resumed_stage_says_nothing_twice() -> None:
    said: list[str] = []
    before, after = (Alerts(AlertsConfig.model_validate({}), said.append) for _ in range(2))
    for step in (1, 2, 3):
        on = before.step(step, {"truncated": 0.8})
    after.restore(json.loads(json.dumps(before.state())))
    assert after.step(4, {"truncated": 0.9}) == on == {"truncated_above": 0.5}
    assert len(said) == 1
    assert after.step(5, {"truncated": -1.0}) == {}, "the mean reaches over the resume"
