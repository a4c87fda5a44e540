"""A run's figures and rollouts as its files hold them, from where one has read before. (No torch.)"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prism.data.blobs import BlobStore
from prism.errors import ConfigError, DataError, ServiceError

METRICS, EVALUATIONS, SAMPLES = "metrics.jsonl", "evaluations.jsonl", "samples.jsonl"
VALIDATIONS, VALIDATION_SAMPLES = "validations.jsonl", "validation_samples.jsonl"
NOT_FIGURES = ("step", "time", "attempt")


@dataclass(frozen=True)
class Figures:
    """What is a number in a line, by name: ``align/perception_gap``, ``held_out/accuracy``."""

    step: int
    """Over all stages, from 1."""
    values: dict[str, float]
    held_out: bool = False
    """Measured, perhaps later than its step; the others are the learner's."""


@dataclass(frozen=True)
class Rollout:
    """A held-out question with its pictures and the policy's response."""

    step: int
    stage: str
    name: str
    pictures: list[bytes]
    texts: dict[str, str]
    """Question, gold answer, the teacher's response, the policy's, scores and verdict."""


class RunFiles:
    """``read`` are bytes that were read of each file, which the caller keeps."""

    def __init__(self, folder: Path, read: dict[str, int] | None = None) -> None:
        """Raises ConfigError if the folder holds no run."""
        self.folder, self.read = folder, dict(read or {})
        try:
            self.config: dict[str, Any] = json.loads((folder / "config.json").read_bytes())
            self._ends = _ends(self.config["stages"])
        except FileNotFoundError:
            raise ConfigError(f"{folder} holds no run: there is no config.json") from None
        except (ValueError, LookupError, TypeError) as error:
            raise ConfigError(f"{folder / 'config.json'} is no configuration of a run: {error!r}") from None

    def new_figures(self) -> list[Figures]:
        """In the order of their steps. A step that was done again is there once, as it was done last."""
        by_step: dict[tuple[str, int], Figures] = {}
        for line in self._new(METRICS):
            stage, step = str(line["stage"]), self._begin(str(line["stage"])) + int(line["step"])
            by_step[stage, step] = Figures(step, _numbers(line, stage))
        for name, prefix in ((EVALUATIONS, "held_out"), (VALIDATIONS, "validation")):
            for line in self._new(name):
                step = self._step_of(line)
                numbers = _numbers(line, prefix) | _slices(line, prefix)
                by_step[f"{prefix} {line['stage']}", step] = Figures(step, numbers, held_out=True)
        return sorted((one for one in by_step.values() if one.values), key=lambda figures: figures.step)

    def new_rollouts(self) -> list[Rollout]:
        return [self._rollout(line) for name in (SAMPLES, VALIDATION_SAMPLES) for line in self._new(name)]

    def _step_of(self, line: dict[str, Any]) -> int:
        """What was measured after a stage is of its last step."""
        stage = str(line["stage"])
        return self._begin(stage) + int(line["step"]) if "step" in line else self._ends.get(stage, (0, 0))[1]

    def _begin(self, stage: str) -> int:
        return self._ends.get(stage, (0, 0))[0]

    def _new(self, name: str) -> Iterator[dict[str, Any]]:
        """Whole lines that have come since; what is no object of a stage is left out."""
        try:
            with (self.folder / name).open("rb") as file:
                file.seek(self.read.get(name, 0))
                whole, end, _ = file.read().rpartition(b"\n")
        except FileNotFoundError:
            return
        self.read[name] = self.read.get(name, 0) + len(whole) + len(end)
        for line in whole.split(b"\n"):
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict) and "stage" in record:
                yield record

    def _rollout(self, line: dict[str, Any]) -> Rollout:
        stage = str(line["stage"])
        verdict = line.get("verdict") or {}
        scores = [f"{score['expert']} {score.get('value')}" for score in line.get("scores") or []]
        texts = {
            "question": line.get("question"),
            "gold": line.get("gold"),
            "teacher": line.get("teacher"),
            "response": line.get("response"),
            "verdict": f"{verdict.get('status')}, accuracy {verdict.get('accuracy')}" if verdict else None,
            "scores": ", ".join(scores),
        }
        return Rollout(
            self._step_of(line),
            stage,
            str(line.get("prompt_id")),
            self._pictures(line.get("images") or []),
            {name: str(text) for name, text in texts.items() if text},
        )

    def _pictures(self, names: list[str]) -> list[bytes]:
        """Those that the run's blob store still has."""
        found: list[bytes] = []
        try:
            store = BlobStore(_blobs(self.folder))
            for name in names:
                found.append(store.get(name))
        except (DataError, ServiceError, ConfigError):
            return found
        return found


def _blobs(folder: Path) -> str:
    """As services were told; the run's own folder where that is not known any more."""
    try:
        return str(json.loads((folder / "stack.json").read_text())["blobs"])
    except (OSError, ValueError, LookupError, TypeError):
        return str(folder / "blobs")


def _ends(stages: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """Of each stage the steps before it, and with it."""
    ends: dict[str, tuple[int, int]] = {}
    done = 0
    for name, stage in stages.items():
        end = done + int(stage["steps"]) + int(stage.get("warmup_steps") or 0)
        ends[name] = (done, end)
        done = end
    return ends


def _numbers(line: dict[str, Any], prefix: str) -> dict[str, float]:
    return {
        f"{prefix}/{name}": float(value)
        for name, value in line.items()
        if isinstance(value, int | float) and name not in NOT_FIGURES
    }


def _slices(line: dict[str, Any], prefix: str) -> dict[str, float]:
    """Scores of benchmarks that were asked too; one that was withheld is no number."""
    return {
        f"{prefix}/{name}/{figure}": float(value)
        for name, figures in (line.get("benchmarks") or {}).items()
        for figure in ("score", "stderr")
        if isinstance(value := figures.get(figure), int | float)
    }
