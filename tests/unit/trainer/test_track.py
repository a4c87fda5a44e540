"""Trackers read a run's files: each line once, whatever fails, and never in the run's way."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
from rich.console import Console

from prism.errors import ConfigError, ServiceError
from prism.files import append_json
from prism.trainer.track import beside, send, trackers
from prism.trainer.track.beside import trackers_beside
from prism.trainer.track.run_files import Figures, Rollout, RunFiles
from tests.unit.trainer.tracked_run import add_sample, add_step, write_run


class FakeTracker:
    def __init__(self) -> None:
        self.sent: list[tuple[int, dict[str, float]]] = []
        self.shown: list[Rollout] = []
        self.opened: list[tuple[str, str, str]] = []
        self.away = False
        self.finished = 0
        self.run_id = ""

    def open(
        self, name: str, project: str, run: str, folder: Path, run_id: str, config: dict[str, Any]
    ) -> "FakeTracker":
        self.opened.append((name, run, run_id))
        self.run_id = run_id
        return self

    def figures(self, figures: Sequence[Figures]) -> None:
        if self.away:
            raise ConnectionError("away")
        self.sent += [(one.step, one.values) for one in figures]

    def rollouts(self, rollouts: Sequence[Rollout]) -> None:
        self.shown += rollouts

    def finish(self) -> None:
        self.finished += 1


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeTracker:
    tracker = FakeTracker()
    monkeypatch.setattr(send, "open_tracker", tracker.open)
    return tracker


def test_every_figure_has_its_name_and_its_step_over_all_stages(tmp_path: Path) -> None:
    figures = RunFiles(write_run(tmp_path / "run")).new_figures()
    assert [(one.step, one.values) for one in figures] == [
        *((step, {"sft/loss": 1 / step}) for step in range(1, 5)),
        (5, {"sft/loss": 0.2}),
        (5, {"held_out/accuracy": 0.25}),
        (6, {"align/perception_gap": 0.5}),
    ]


def test_rollouts_come_with_their_pictures(tmp_path: Path) -> None:
    (rollout,) = RunFiles(write_run(tmp_path / "run")).new_rollouts()
    assert (rollout.step, rollout.name, rollout.texts["response"]) == (5, "q1", "<answer>7</answer>")
    assert rollout.texts["scores"] == "perception 1.5"
    assert rollout.pictures[0].startswith(b"\x89PNG")


def test_a_line_is_sent_once_and_half_a_line_not_yet(fake: FakeTracker, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    assert send.send(run, "tensorboard", "prism") == 8
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "align", "step": 2, "perc')
    assert send.send(run, "tensorboard", "prism") == 0
    with (run / "metrics.jsonl").open("a") as file:
        file.write('eption_gap": 0.75}\n')
    assert send.send(run, "tensorboard", "prism") == 1
    assert fake.sent[-1] == (7, {"align/perception_gap": 0.75})
    assert len(fake.opened) == 2
    assert fake.opened[0] == fake.opened[1]  # the same run goes on


def test_a_step_that_was_done_again_is_sent_once(fake: FakeTracker, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    send.send(run, "wandb", "prism")
    for step, gap in ((2, 0.1), (3, 0.2)):
        add_step(run, "align", step, perception_gap=gap)
    send.send(run, "wandb", "prism")
    for step, gap in ((2, 0.3), (3, 0.4), (4, 0.5)):  # after a resume
        add_step(run, "align", step, perception_gap=gap)
    send.send(run, "wandb", "prism")
    steps = [step for step, values in fake.sent if "align/perception_gap" in values]
    assert sorted(set(steps)) == [6, 7, 8, 9]
    assert steps.count(7) == 1


def test_an_evaluation_that_comes_later_than_its_step_is_sent(fake: FakeTracker, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    send.send(run, "tensorboard", "prism")
    append_json(run / "evaluations.jsonl", {"stage": "sft", "step": 3, "accuracy": 0.2})
    send.send(run, "tensorboard", "prism")
    assert fake.sent[-1] == (3, {"held_out/accuracy": 0.2})


def test_slices_of_benchmarks_are_figures_and_a_withheld_score_is_none(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    slices = {"mmmu": {"score": 0.5, "stderr": 0.1, "why": None}, "own": {"score": None, "stderr": None, "why": "x"}}
    line = {"stage": "align", "step": 1, "accuracy": 0.75, "benchmarks": slices}
    append_json(run / "validations.jsonl", line)
    values = {"validation/accuracy": 0.75, "validation/mmmu/score": 0.5, "validation/mmmu/stderr": 0.1}
    assert (6, values) in [(one.step, one.values) for one in RunFiles(run).new_figures()]


def test_what_a_tracker_did_not_take_is_sent_again(fake: FakeTracker, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    fake.away = True
    with pytest.raises(ServiceError, match="ConnectionError: away; the same command goes on"):
        send.send(run, "mlflow", "prism")
    fake.away = False
    assert send.send(run, "mlflow", "prism") == 8


def test_two_trackers_stand_where_each_stands(fake: FakeTracker, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    assert send.send(run, "mlflow", "prism") == 8
    assert send.send(run, "wandb", "prism") == 8


def test_following_sends_what_comes_until_the_end(
    fake: FakeTracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_run(tmp_path / "run")
    monkeypatch.setattr(send, "FIRST_WAIT", 0.01)
    polls = {"n": 0}
    original = send.Sender.poll

    def poll(sender: send.Sender) -> int:
        polls["n"] += 1
        if polls["n"] == 1:
            fake.away = True
        elif polls["n"] == 2:
            fake.away = False
        elif polls["n"] == 3:
            add_sample(run, "align", "q2")
            os.kill(os.getpid(), signal.SIGTERM)
        return original(sender)

    monkeypatch.setattr(send.Sender, "poll", poll)
    before = signal.getsignal(signal.SIGTERM)
    try:
        send.follow(run, "trackio", "prism", every_seconds=0.01)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert len(fake.sent) == 7
    assert [one.name for one in fake.shown] == ["q1", "q2"]
    assert fake.finished == 1


def test_a_tracker_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "swanlab", None)
    with pytest.raises(ConfigError, match=r"swanlab is not installed.*pip install swanlab"):
        trackers.open_tracker("swanlab", "prism", "run", tmp_path, "1", {})
    with pytest.raises(ConfigError, match="holds no run"):
        send.send(tmp_path, "wandb", "prism")


@pytest.mark.parametrize("name", ["trackio", "swanlab", "wandb"])
def test_rollouts_with_pictures_go_to_libraries_that_have_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The libraries are stood in for; what is asked of them is what their documentation has."""
    logged: list[tuple[dict[str, Any], int | None]] = []
    run = SimpleNamespace(
        log=lambda values, step=None: logged.append((values, step)), define_metric=lambda *_, **__: None, config={}
    )
    begun: list[dict[str, Any]] = []

    def init(**settings: Any) -> SimpleNamespace:
        begun.append(settings)
        return run

    config = MagicMock()
    library = SimpleNamespace(
        init=init,
        config=config,
        Image=lambda image, caption: (image.size, caption),
        finish=lambda: None,
    )
    monkeypatch.setitem(sys.modules, name, library)
    monkeypatch.setenv("WANDB_MODE", "offline")
    files = RunFiles(write_run(tmp_path / "run"))
    tracker = trackers.open_tracker(name, "mine", "run", tmp_path / "kept", "the-id", files.config)
    tracker.figures(files.new_figures()[:1])
    tracker.rollouts(files.new_rollouts())
    (figures, _), (rollouts, _) = logged
    assert figures["sft/loss"] == 1.0
    size, caption = rollouts["rollouts/sft/q1/0"]
    assert size == (16, 12)
    assert "**response**: <answer>7</answer>" in caption
    assert begun[0]["project"] == "mine"
    assert begun[0]["resume"] == "allow"
    assert config.update.call_args.args[0]["stages.align.warmup_steps"] == 1


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("import time; print('hangs', flush=True); time.sleep(60)", "did not finish within 1 s"),
        ("raise SystemExit(3)", "ended with status 3"),
        ("import signal, sys, time; signal.signal(15, lambda *_: sys.exit(0)); time.sleep(60)", ""),
    ],
)
def test_a_tracker_that_hangs_or_fails_does_not_disturb_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, said: str
) -> None:
    hang = "import signal; signal.signal(15, signal.SIG_IGN); " if "hangs" in script else ""

    def start(command: list[str], environment: dict[str, str], output: Any) -> subprocess.Popen[bytes]:
        assert command[2:] == [
            *("prism", "track", str(tmp_path / "run"), "--to", "wandb", "--follow", "--project=mine", "--every=10.0")
        ]
        return subprocess.Popen([sys.executable, "-c", hang + script], stdout=output, stderr=subprocess.STDOUT)

    monkeypatch.setattr(beside, "start_process", start)
    track = SimpleNamespace(to=["wandb"], project="mine", every_seconds=10.0, finish_seconds=1.0)
    config: Any = SimpleNamespace(run_dir=tmp_path / "run", track=track)
    console = Console(record=True, width=400, file=open(os.devnull, "w"))  # noqa: SIM115
    with trackers_beside(config, console):
        time.sleep(0.3)
    text = console.export_text()
    assert said in text
    assert ("prism track" in text) == bool(said)
