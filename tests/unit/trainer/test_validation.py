"""Measured while a stage learns: on other data, of one version, without the learner waiting; the best is kept."""

import asyncio
import io
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import test_stages
from pydantic import ValidationError
from rich.console import Console
from test_stages import Stage

from prism.config import EvaluateConfig
from prism.errors import ConfigError, ServiceError
from prism.evaluation import validation as measuring
from prism.evaluation.validation import validate
from prism.files import read_jsonl
from prism.trainer.checkpoint.folder import best_checkpoint, checkpoints
from prism.trainer.checkpoint.kept import Kept, spared
from prism.trainer.run.export import export
from prism.trainer.stages import validation
from prism.wire.v1 import rollout_pb2 as pb

stage, inputs = test_stages.stage, test_stages.inputs  # fixtures
SETTINGS = {"every": 1, "validation": "validation.jsonl"}


class Inline:
    """A thread that has ended when it was started."""

    def __init__(self, target: Callable[..., None], args: tuple[Any, ...], **_: Any) -> None:
        self._target, self._args = target, args

    def start(self) -> None:
        self._target(*self._args)

    def is_alive(self) -> bool:
        return False

    def join(self) -> None: ...


@pytest.fixture
def accuracies(monkeypatch: pytest.MonkeyPatch) -> dict[int, Any]:
    """By step: what a measurement gives, or raises. Measurements end at once."""
    given: dict[int, Any] = {}

    def fake(config: Any, name: str, step: int, version: int, *_: Any) -> dict[str, Any]:
        assert version == step
        if isinstance(given[step], Exception):
            raise given[step]
        return {"accuracy": given[step], "judged": 4, "other_versions": 0}

    monkeypatch.setattr(validation, "validate", fake)
    monkeypatch.setattr(validation, "read_questions", lambda *_: "rows")
    monkeypatch.setattr(validation, "threading", SimpleNamespace(Thread=Inline))
    return given


def test_the_best_checkpoint_stays_beside_the_newest(
    stage: Stage,
    accuracies: dict[int, Any],
    tmp_path: Path,
) -> None:
    accuracies |= {1: 0.5, 2: 0.9, 3: None, 4: ServiceError("the policy is away"), 5: KeyError("x")}
    stage("rlvr", "best", steps=6, checkpoint_every=1, evaluate=SETTINGS | {"keep_best": "accuracy"})
    root = tmp_path / "best" / "checkpoints" / "it"
    assert [folder.name for folder in checkpoints(root)] == ["000002", "000005", "000006"]
    found = best_checkpoint(root)
    assert found
    assert found[1]["step"] == 2
    out = tmp_path / "model"
    console = Console(record=True, file=io.StringIO(), width=400)
    export(tmp_path / "best", out, stage="it", model="policy", console=console, best=True)
    assert "the policy of it, best, after step 2" in console.export_text()
    assert (out / "model.safetensors").exists()
    with pytest.raises(ConfigError, match="holds no best perception"):
        export(tmp_path / "best", tmp_path / "other", stage=None, model="perception", console=console, best=True)


def test_a_stage_ends_early_by_a_rule_and_its_groups_are_kept_with_its_checkpoint(
    stage: Stage,
    accuracies: dict[int, Any],
    tmp_path: Path,
) -> None:
    accuracies |= {1: 0.5, 2: 0.9, 3: 0.8, 4: 0.9}
    evaluate = SETTINGS | {"keep_best": "accuracy", "stop_after": 2}
    journal = stage("rlvr", "early", steps=9, checkpoint_every=1, evaluate=evaluate)
    root = tmp_path / "early" / "checkpoints" / "it"
    assert [folder.name for folder in checkpoints(root)] == ["000002", "000003", "000004"]
    assert [event.kind for event in journal.events][-1] == "acknowledged"
    assert (tmp_path / "early" / "out" / "config.json").exists()


def context(tmp_path: Path, said: list[str], **evaluate: Any) -> Any:
    settings = EvaluateConfig.model_validate({"data": "x", "max_tokens": 8} | SETTINGS | evaluate)
    return SimpleNamespace(config=SimpleNamespace(evaluate=settings, run_dir=tmp_path), stage="it", say=said.append)


def test_the_learner_does_not_wait_and_a_step_that_comes_too_soon_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, steps, said = threading.Event(), list[int](), list[str]()

    def slow(config: Any, name: str, step: int, version: int, *_: Any) -> dict[str, Any]:
        steps.append(step)
        assert go_on.wait(20)
        return {"accuracy": 0.5, "judged": 4, "other_versions": 3}

    monkeypatch.setattr(validation, "validate", slow)
    monkeypatch.setattr(validation, "read_questions", lambda *_: "rows")
    own = validation.Validation(context(tmp_path, said, every=2), 8)
    for step in range(1, 5):
        own.begin(step, step)
    assert said == ["validation is still at work: step 4 is not measured; raise evaluate.every"]
    go_on.set()
    own.close()
    own.begin(8, 8)  # the stage's last step is measured after it
    assert steps == [2]
    assert said[1] == "validation after step 2: accuracy 50.0% of 4, 3 of newer weights left out"


def test_checkpoints_that_are_being_measured_stay_until_they_were(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    kept.hold(3)
    kept.hold(5)
    assert spared(tmp_path) == {3, 5}
    assert kept.release(3, "accuracy", 0.4)
    assert not kept.release(5, "accuracy", 0.4)  # no better
    assert (spared(tmp_path), kept.since_best) == ({3}, 1)
    kept.hold(7)
    again = Kept(tmp_path)  # after a kill
    assert (spared(tmp_path), again.since_best) == ({3}, 1)
    assert not again.release(9)
    assert again.since_best == 1  # nothing was measured


def test_figures_are_of_one_version_and_others_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def group(version: int, accuracy: float) -> pb.RolloutGroup:
        sample = pb.Sample(text="x", verdict=pb.Verdict(status=pb.STATUS_OK, accuracy=accuracy))
        return pb.RolloutGroup(policy_version=version, samples=[sample])

    async def ask(*_: Any) -> tuple[Any, list[pb.RolloutGroup], list[Any]]:
        await asyncio.sleep(0)
        return None, [group(4, 1.0), group(4, 0.0), group(5, 1.0)], []

    monkeypatch.setattr(measuring, "ask", ask)
    rows: Any = SimpleNamespace(bad_rows=0, problems=[])
    figures = validate(context(tmp_path, []).config, "it", 8, 4, rows)
    assert (figures["accuracy"], figures["judged"], figures["other_versions"]) == (0.5, 2, 1)
    assert figures["versions"] == {"4": 2, "5": 1}
    assert read_jsonl(tmp_path / "validations.jsonl") == [figures]
    samples = read_jsonl(tmp_path / "validation_samples.jsonl")
    assert [(sample["step"], sample["policy_version"]) for sample in samples] == [(8, 4), (8, 4), (8, 5)]
    assert not (tmp_path / "evaluations.jsonl").exists()  # the stage does not count as evaluated


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"every": 2}, "name data for `every`"),
        ({"validation": "x"}, "set it, or nothing is measured"),
        ({"every": 2, "validation": ["y", {"path": "x"}]}, "must not be picked on evaluate.data"),
        (SETTINGS | {"stop_after": 2}, "name the figure"),
        (SETTINGS | {"keep_best": "reward"}, "Input should be"),
    ],
)
def test_a_checkpoint_is_not_picked_on_what_is_reported(values: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        EvaluateConfig.model_validate({"data": "x", "max_tokens": 8} | values)
