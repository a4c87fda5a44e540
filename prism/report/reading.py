"""A run's folder, read as far as it can be read. What is missing or broken is said, and stops nothing else."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field, ValidationError

from prism.errors import DataError
from prism.report.records import (
    AnsweredPrompt,
    Disentanglement,
    Evaluation,
    Figure,
    GroupTimes,
    Record,
    StageResult,
    Step,
    StepLooks,
    looks_of,
    surviving,
    total,
    values,
)

T = TypeVar("T")
DISENTANGLED, TIMELINE = "disentanglement.jsonl", "timeline.jsonl"
NAMED_LINES = 3  # broken lines of a file that are named one by one


class Alert(Record):
    """A figure was over its bound, without a break."""

    name: str
    bound: Figure
    first: int
    last: int
    """Step."""


class StageReport(Record):
    """All that is known of one stage; ``report.json`` has it without the steps, which are its curves."""

    name: str
    kind: str
    finished: bool
    steps_done: int
    steps_planned: int | None
    policy_version: int | None
    seconds: Figure
    """What the stage took, as it says itself: after a resume, the last attempt's."""
    step_seconds: Figure
    """The sum over its surviving steps."""
    attempts: list[int]
    """Of the run, that worked on this stage."""
    alerts: list[Alert]
    steps_without_learning: int
    """In which the policy learnt nothing."""
    superseded_steps: int
    """Lines of steps that were done again after a resume."""
    evaluation: Evaluation | None
    format_rate_stderr: Figure
    """Binomial standard error of the held-out format rate."""
    disentanglement: Disentanglement | None
    """Of an alignment, if it was measured."""
    looks: list[StepLooks]
    """Of an alignment, in the order of its steps."""
    steps: list[Step] = Field(exclude=True)
    """Surviving steps, in order."""


@dataclass
class RunData:
    folder: Path
    config: dict[str, Any]
    stages: list[StageReport]
    samples: list[AnsweredPrompt]
    times: list[GroupTimes]
    problems: list[str]


def read_run(folder: Path) -> RunData:
    """Read what is there. Raises DataError when the folder is no run at all."""
    inputs = ("config.json", "metrics.jsonl", "evaluations.jsonl", "samples.jsonl")
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder: give the folder of a run, such as runs/demo")
    if not any((folder / name).is_file() for name in inputs) and not list(folder.glob("stages/*/stage.json")):
        raise DataError(f"{folder} is no run: it holds none of {', '.join(inputs)}, and no stages/*/stage.json")
    problems: list[str] = []
    config = _read(folder, "config.json", _an_object, problems) or {}
    steps = read_lines(folder / "metrics.jsonl", Step.read, problems)
    evaluations = read_lines(folder / "evaluations.jsonl", Evaluation.model_validate, problems)
    samples = read_lines(folder / "samples.jsonl", AnsweredPrompt.model_validate, problems)
    measured: list[Disentanglement] = []
    if (folder / DISENTANGLED).is_file():  # most runs do not measure it
        measured = read_lines(folder / DISENTANGLED, Disentanglement.model_validate, problems)
    times: list[GroupTimes] = []
    if (folder / TIMELINE).is_file():  # older runs have none
        times = read_lines(folder / TIMELINE, GroupTimes.model_validate, problems)
    results: dict[str, StageResult] = {}
    for path in sorted(folder.glob("stages/*/stage.json")):
        name = path.parent.name
        if name.endswith(".partial"):  # what a kill has left
            continue
        if result := _read(folder, f"stages/{name}/stage.json", StageResult.model_validate, problems):
            results[name] = result
    planned = _planned(config)
    evaluated = {evaluation.stage: evaluation for evaluation in evaluations}
    disentangled = {line.stage: line for line in measured}
    stages = [
        _stage(
            name,
            planned.get(name, {}),
            [step for step in steps if step.stage == name],
            results.get(name),
            evaluated.get(name),
            disentangled.get(name),
        )
        for name in dict.fromkeys([*planned, *(step.stage for step in steps), *evaluated, *results])
    ]
    last_of_each = {(sample.stage, sample.prompt_id): sample for sample in samples}
    return RunData(folder, config, stages, list(last_of_each.values()), times, problems)


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
            rows.append(parse_json(line, lambda value: parse(_an_object(value))))
        except DataError as error:
            broken.append(f"line {number}: {error}")
    if broken:
        named = "; ".join(broken[:NAMED_LINES]) + ("; …" if len(broken) > NAMED_LINES else "")
        lines = (
            "1 line could not be read and was"
            if len(broken) == 1
            else f"{len(broken)} lines could not be read and were"
        )
        problems.append(f"{path.name}: {lines} left out ({named})")
    return rows


def parse_json(data: bytes, parse: Callable[[Any], T]) -> T:
    """Raises DataError that says in a line what is wrong."""
    try:
        return parse(json.loads(data))
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise DataError(f"{where}: {problem['msg']}" if where else problem["msg"]) from None
    except (ValueError, RecursionError) as error:
        raise DataError(str(error).splitlines()[0][:120] if str(error) else type(error).__name__) from None


def _an_object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value


def _read(folder: Path, name: str, parse: Callable[[Any], T], problems: list[str]) -> T | None:
    if not (folder / name).is_file():
        problems.append(f"{name} is missing")
        return None
    try:
        return parse_json((folder / name).read_bytes(), parse)
    except DataError as error:
        problems.append(f"{name} could not be read: {error}")
        return None


def _planned(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    stages = config.get("stages")
    return {name: s for name, s in stages.items() if isinstance(s, dict)} if isinstance(stages, dict) else {}


def _stage(
    name: str,
    planned: dict[str, Any],
    lines: Sequence[Step],
    result: StageResult | None,
    evaluation: Evaluation | None,
    disentanglement: Disentanglement | None,
) -> StageReport:
    steps = surviving(lines)
    configured = planned.get("kind")
    kind = (
        (isinstance(configured, str) and configured)
        or (result and result.kind)
        or (evaluation and evaluation.kind)
        or _guess(steps)
    )
    wanted = [planned.get("steps"), planned.get("warmup_steps", 0) if kind == "align" else 0]
    counts = [count for count in wanted if isinstance(count, int)]
    return StageReport(
        name=name,
        kind=str(kind),
        finished=result is not None,
        steps_done=steps[-1].step if steps else (result.steps if result else 0),
        steps_planned=sum(counts) if len(counts) == len(wanted) else None,
        policy_version=result.version if result else (evaluation.policy_version if evaluation else None),
        seconds=result.seconds if result else None,
        step_seconds=total(steps, "step_seconds") or total(steps, "update_seconds"),
        attempts=sorted({line.attempt for line in lines if line.attempt is not None}),
        alerts=_alerts(steps),
        steps_without_learning=sum(count > 0 for count in values(steps, "flat_steps")),
        superseded_steps=len(lines) - len(steps),
        evaluation=evaluation,
        format_rate_stderr=_binomial(evaluation.format_rate, evaluation.questions) if evaluation else None,
        disentanglement=disentanglement,
        looks=looks_of(steps),
        steps=steps,
    )


def _alerts(steps: Sequence[Step]) -> list[Alert]:
    """In the order in which they began."""
    found: list[Alert] = []
    going: dict[str, Alert] = {}
    for step in steps:
        before, going = going, {}
        for name, bound in step.alerts.items():
            if name in before and before[name].bound == bound:
                going[name] = before[name].model_copy(update={"last": step.step})
                found[found.index(before[name])] = going[name]
            else:
                going[name] = Alert(name=name, bound=bound, first=step.step, last=step.step)
                found.append(going[name])
    return found


def _binomial(rate: float | None, count: int) -> float | None:
    # At 0 and 1 the estimate would be 0, which says too much.
    return math.sqrt(rate * (1 - rate) / count) if rate is not None and 0 < rate < 1 and count else None


def _guess(steps: Sequence[Step]) -> str:
    figures = {name for step in steps[:1] for name in step.figures}
    if "reward" in figures:
        return "rlvr"
    return "align" if any(name.endswith("_gap") for name in figures) else "sft"
