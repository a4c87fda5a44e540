"""A run's folder, read as far as it can be read. What is missing or broken is said, and stops nothing else."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from prism.errors import DataError
from prism.report.records import AnsweredPrompt, Disentanglement, Evaluation, StageResult, Step, surviving

T = TypeVar("T")
DISENTANGLED = "disentanglement.jsonl"
NAMED_LINES = 3  # broken lines of a file that are named one by one


@dataclass
class StageData:
    """All that is known of one stage."""

    name: str
    kind: str
    planned_steps: int | None = None
    result: StageResult | None = None
    evaluation: Evaluation | None = None
    steps: list[Step] = field(default_factory=list)
    """Surviving steps, in order."""
    attempts: list[int] = field(default_factory=list)
    """Of the run, that worked on this stage."""
    superseded: int = 0
    """Lines of steps that were done again after a resume."""
    disentanglement: Disentanglement | None = None


@dataclass
class RunData:
    folder: Path
    config: dict[str, Any]
    stages: list[StageData]
    samples: list[AnsweredPrompt]
    problems: list[str]

    @property
    def name(self) -> str:
        name = self.config.get("name")
        return name if isinstance(name, str) else self.folder.resolve().name


def read_run(folder: Path) -> RunData:
    """Read what is there. Raises DataError when the folder is no run at all."""
    inputs = ("config.json", "metrics.jsonl", "evaluations.jsonl", "samples.jsonl")
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder: give the folder of a run, such as runs/demo")
    if not any((folder / name).is_file() for name in inputs) and not list(folder.glob("stages/*/stage.json")):
        raise DataError(f"{folder} is no run: it holds none of {', '.join(inputs)}, and no stages/*/stage.json")
    problems: list[str] = []
    config = _read_object(folder / "config.json", problems) or {}
    steps = read_lines(folder / "metrics.jsonl", Step.read, problems)
    evaluations = read_lines(folder / "evaluations.jsonl", Evaluation.model_validate, problems)
    samples = read_lines(folder / "samples.jsonl", AnsweredPrompt.model_validate, problems)
    measured: dict[str, Disentanglement] = {}
    if (folder / DISENTANGLED).is_file():  # most runs do not measure it
        lines = read_lines(folder / DISENTANGLED, Disentanglement.model_validate, problems)
        measured = {line.stage: line for line in lines}
    results = _read_results(folder, problems)
    planned = _planned(config)
    names = [*planned, *(step.stage for step in steps), *(e.stage for e in evaluations), *results]
    stages = [
        _stage(name, planned.get(name, {}), [s for s in steps if s.stage == name], results.get(name), evaluations)
        for name in dict.fromkeys(names)
    ]
    for stage in stages:
        stage.disentanglement = measured.get(stage.name)
    return RunData(folder, config, stages, list(_last_of_each(samples).values()), problems)


def read_lines(path: Path, parse: Callable[[dict[str, Any]], T], problems: list[str]) -> list[T]:
    """Every line that parses; the others are counted and named, as is a missing file."""
    if not path.is_file():
        problems.append(f"{path.name} is missing")
        return []
    rows: list[T] = []
    broken: list[str] = []
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
            if not isinstance(value, dict):
                raise ValueError("not a JSON object")
            rows.append(parse(value))
        except ValidationError as error:
            broken.append(f"line {number}: {_first(error)}")
        except (ValueError, RecursionError) as error:
            broken.append(f"line {number}: {_short(error)}")
    if broken:
        named = "; ".join(broken[:NAMED_LINES]) + ("; …" if len(broken) > NAMED_LINES else "")
        lines = "1 line" if len(broken) == 1 else f"{len(broken)} lines"
        problems.append(f"{path.name}: {lines} could not be read and {_was(len(broken))} left out ({named})")
    return rows


def read_json(path: Path) -> Any:
    """Raises DataError, with the file's name."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{path} is missing") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: {_short(error)}") from None


def _read_object(path: Path, problems: list[str]) -> dict[str, Any] | None:
    if not path.is_file():
        problems.append(f"{path.name} is missing")
        return None
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        problems.append(f"{path.name} could not be read: {_short(error)}")
        return None
    if isinstance(value, dict):
        return value
    problems.append(f"{path.name} could not be read: not a JSON object")
    return None


def _read_results(folder: Path, problems: list[str]) -> dict[str, StageResult]:
    results: dict[str, StageResult] = {}
    for path in sorted(folder.glob("stages/*/stage.json")):
        name = path.parent.name
        if name.endswith(".partial"):  # what a kill has left
            continue
        try:
            results[name] = StageResult.model_validate(json.loads(path.read_bytes()))
        except ValidationError as error:
            problems.append(f"stages/{name}/stage.json could not be read: {_first(error)}")
        except (ValueError, RecursionError) as error:
            problems.append(f"stages/{name}/stage.json could not be read: {_short(error)}")
    return results


def _planned(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    stages = config.get("stages")
    return {name: s for name, s in stages.items() if isinstance(s, dict)} if isinstance(stages, dict) else {}


def _stage(
    name: str,
    planned: dict[str, Any],
    lines: Sequence[Step],
    result: StageResult | None,
    evaluations: Sequence[Evaluation],
) -> StageData:
    steps = surviving(lines)
    evaluation = next((e for e in reversed(evaluations) if e.stage == name), None)
    configured = planned.get("kind")
    kind = (
        (isinstance(configured, str) and configured)
        or (result and result.kind)
        or (evaluation and evaluation.kind)
        or _guess(steps)
    )
    wanted = [planned.get("steps"), planned.get("warmup_steps", 0) if kind == "align" else 0]
    counts = [count for count in wanted if isinstance(count, int)]
    total = sum(counts) if len(counts) == len(wanted) else None
    attempts = sorted({line.attempt for line in lines if line.attempt is not None})
    return StageData(name, str(kind), total, result, evaluation, steps, attempts, len(lines) - len(steps))


def _guess(steps: Sequence[Step]) -> str:
    figures = {name for step in steps[:1] for name in step.figures}
    if "reward" in figures:
        return "rlvr"
    return "align" if any(name.endswith("_gap") for name in figures) else "sft"


def _last_of_each(samples: Sequence[AnsweredPrompt]) -> dict[tuple[str, str], AnsweredPrompt]:
    return {(sample.stage, sample.prompt_id): sample for sample in samples}


def _first(error: ValidationError) -> str:
    problem = error.errors()[0]
    where = ".".join(str(part) for part in problem["loc"])
    return f"{where}: {problem['msg']}" if where else problem["msg"]


def _short(error: Exception) -> str:
    return str(error).splitlines()[0][:120] if str(error) else type(error).__name__


def _was(count: int) -> str:
    return "was" if count == 1 else "were"
