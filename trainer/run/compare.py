"""``prism demo --compare``: the same policy steps spent in several ways, over seeds, measured on a fresh split.

The file names the arms; each is a run of its own under one folder, and can be resumed like any run. All arms of a
seed share the result of their first stage. (No torch here.)
"""

import json
import shutil
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field
from rich.console import Console

from prism.config import (
    AlignConfig,
    ConfigModel,
    DataName,
    DataNames,
    RunConfig,
    SftConfig,
    load_config,
    load_toml,
    toml_value,
)
from prism.data.files import open_rows
from prism.data.mixture import data_files
from prism.errors import ConfigError
from prism.evaluation.held_out import evaluate
from prism.files import sealed_folder, write_json
from prism.stack.folder_lock import lock_run
from prism.trainer.run.pipeline import prepare, question_check, run
from prism.trainer.run.result import stage_folder, stage_result


class ArmConfig(ConfigModel):
    """One way to spend the policy steps."""

    description: str
    """What the table calls it."""
    stages: list[str] = Field(min_length=2)
    """Stages in order, from the base configuration or from ``add``."""
    set: list[str] = Field(default_factory=list)
    """Overrides of the base configuration."""
    add: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Stages that the base configuration does not have."""


class CompareConfig(ConfigModel):
    base: Path
    """The run all arms are variants of, relative to this file."""
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """Names the folder of all arms, and the table."""
    seeds: list[int] = Field(min_length=1)
    """Every arm is trained once with each; three or more give error bars."""
    data: str
    """The split of the table: nothing was tuned on it."""
    questions: int = Field(gt=0)
    """Questions of the split that every arm is asked."""
    arms: dict[str, ArmConfig]
    """By name, in the table's order."""


def compare_arms(file: Path, overrides: Sequence[str], console: Console) -> None:
    """Train every arm with every seed and write the comparison. Resumes where it stopped."""
    from prism.report.table import print_comparison
    from prism.report.write import write_comparison

    compare = load_compare(file)
    base_file = file.parent / compare.base
    root = compare_folder(file, overrides)
    arms = {name: {"name": name, "description": arm.description, "seeds": []} for name, arm in compare.arms.items()}
    for seed in compare.seeds:
        first: RunConfig | None = None
        for name, arm in compare.arms.items():
            console.rule(f"{name}, seed {seed}: {arm.description}")
            settings = [
                f"name={name}-{seed}",
                f"runs_dir={json.dumps(str(root))}",
                f"seed={seed}",
                *stage_overrides(base_file, arm),
                *arm.set,
                *overrides,
            ]
            config = load_config(base_file, settings)
            if first is None:
                first = config
            else:
                _share_first_stage(first, config, console)
            arms[name]["seeds"].append(_train_arm(compare, config, base_file, settings, console) | {"seed": seed})
    table = {"split": compare.data, "questions": compare.questions, "arms": list(arms.values())}
    write_json(root / "comparison.json", table)
    print_comparison(write_comparison(root), console)


def compare_folder(file: Path, overrides: Sequence[str]) -> Path:
    """The folder of all arms' runs."""
    compare = load_compare(file)
    return load_config(file.parent / compare.base, list(overrides)).runs_dir / compare.name


def load_compare(file: Path) -> CompareConfig:
    """Raises ConfigError that names file and key."""
    return load_toml(file, CompareConfig)


def stage_overrides(base_file: Path, arm: ArmConfig) -> list[str]:
    """Overrides that leave this arm's stages, in its order."""
    known = tomllib.loads(base_file.read_text())["stages"] | arm.add
    missing = [name for name in arm.stages if name not in known]
    if missing:
        raise ConfigError(f"arm {arm.description!r} names stages that nobody describes: {', '.join(missing)}")
    return [f"stages={toml_value({name: known[name] for name in arm.stages})}"]


def _share_first_stage(source: RunConfig, target: RunConfig, console: Console) -> None:
    name = next(iter(target.stages))
    if next(iter(source.stages)) != name or source.stages[name] != target.stages[name]:
        return  # this arm begins differently and trains its own
    if stage_result(target, name) is None:
        prepare(target, console)
        with sealed_folder(stage_folder(target, name)) as folder:
            shutil.copytree(stage_folder(source, name), folder, dirs_exist_ok=True)


def _train_arm(
    compare: CompareConfig, config: RunConfig, base_file: Path, settings: list[str], console: Console
) -> dict[str, Any]:
    done = config.run_dir / "arm.json"
    if done.is_file():
        return json.loads(done.read_text())
    measured: dict[str, Any] = {}
    last, stage = list(config.stages.items())[-1]

    def measure() -> None:
        result = stage_result(config, last)
        assert result
        for name, temperature in (("greedy", 0.0), ("sampled", 1.0)):
            measured[name] = evaluate(
                config,
                last,
                stage.kind,
                result["version"],
                temperature=temperature,
                check=question_check(config, stage_folder(config, last)),
                data=compare.data,
                questions=compare.questions,
            )

    with lock_run(config.run_dir, "trainer", "services") as lock:
        run(config, base_file, settings, console, at_end=measure, lock=lock)
    results = [stage_result(config, name) for name in config.stages]
    row = {
        "accuracy": measured["greedy"]["accuracy"],
        "accuracy_sampled": measured["sampled"]["accuracy"],
        "caption_f1": measured["greedy"]["caption_f1"],
        "format_rate": measured["greedy"]["format_rate"],
        "policy_steps": sum(stage.steps for stage in list(config.stages.values())[1:]),
        "teacher_texts": teacher_texts(config),
        "seconds": sum(result["seconds"] for result in results if result),
        "run_dir": str(config.run_dir),
    }
    write_json(done, row)
    return row


def teacher_texts(config: RunConfig) -> int:
    """Distinct teacher responses the arm has seen: rows are taken in shuffled epochs."""
    seen: dict[Path, int] = {}
    for stage in config.stages.values():
        if isinstance(stage, AlignConfig):
            taken = stage.warmup_steps * stage.warmup_prompts + stage.steps * stage.rollouts.prompts
            names: DataNames | list[DataName] = stage.rollouts.data
        elif isinstance(stage, SftConfig) and stage.target == "teacher":
            taken, names = stage.steps * stage.batch, stage.data
        else:
            continue
        for path, _ in data_files(names, config.path):
            seen[path] = max(taken, seen.get(path, 0))
    return sum(min(taken, sum(1 for _ in open_rows(path))) for path, taken in seen.items())
