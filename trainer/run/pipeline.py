"""``prism run``: prepare, then each stage in turn over live services, measured after each; goes on where it stopped.

Stages train in processes of their own, so that one which dies takes nothing with it.
"""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from prism import logs
from prism.clients.endpoints import load_endpoints
from prism.config import (
    AlignConfig,
    DisentangleConfig,
    PrepareConfig,
    RunConfig,
    SftConfig,
    Stage,
    load_saved,
    read_limits,
    save_resolved,
)
from prism.data.rows import RowCheck
from prism.errors import ConfigError, ServiceError
from prism.evaluation.disentangle import disentangle, disentangled_stages, print_disentanglement
from prism.evaluation.held_out import evaluate, evaluated_stages, print_figures, refuse_bad_rows
from prism.evaluation.slices import read_slices
from prism.settings import load_settings
from prism.stack.cards import visible
from prism.stack.folder_lock import FolderLock
from prism.stack.local import RunningServices, Stack, start_process
from prism.trainer.run.expert_start import refuse_unfit_starts, served_experts
from prism.trainer.run.launch import RETRY_SECONDS, Launch
from prism.trainer.run.result import next_attempt, stage_folder, stage_result, start_of
from prism.trainer.weights.publish import open_publisher
from prism.wire.response import Network

# What may change between two starts of one run: nothing that the results depend on.
FREE_KEYS = (
    *("stack", "push", "evaluate", "threads", "keep_checkpoints", "runs_dir", "alerts", "offload", "track"),
    "rollout_log",
)
FREE_STAGE_KEYS = {"max_empty_steps", "max_flat_steps"}


def run(
    config: RunConfig,
    config_file: Path,
    overrides: list[str],
    console: Console,
    at_end: Callable[[], None] | None = None,
    *,
    attach: bool = False,
    environment: dict[str, str] | None = None,
    lock: FolderLock | None = None,
) -> None:
    """Bring the run to its end; ``at_end`` is called while the services still run.

    With ``attach`` services are not started but found by PRISM_* variables. ``environment`` goes to the stages, and so
    does the ``lock`` on the run's folder, if the caller holds it.

    Raises PrismError with what to do; the same call then resumes.
    """
    logs.about(run=config.name)
    here = of_this_machine(config, attach=attach)
    launch = of_cards(here, load_settings(Launch))
    options = ["--config", str(config_file), *(part for o in overrides for part in ("--set", o))]

    def command(name: str) -> list[str]:
        return [*launch.python(f"{config.name}-{name}"), "-m", "prism", "train", name, *options]

    def train(name: str, stack: Stack | RunningServices | None) -> None:
        console.print(f"[bold]{name}[/]: {describe_stage(config.stages[name])}")
        train_in_process(command(name), name, stack, (environment or {}) | learner_cards(here), lock)

    if not launch.is_first:
        take_part(config, command, console)
        return
    refuse_changed(config)
    save_resolved(config)
    prepare(config, console)
    if pending := [name for name in config.stages if name not in evaluated_stages(config.run_dir)]:
        refuse_bad_rows(config, question_check(config, start_of(config, pending[0])))
        read_slices(config)
        refuse_unfit_starts(config, unfinished(config), start_of(config, pending[0]))
    share = policy_share(here, launch, attach=attach)
    refuse_small_disk(here, launch)
    for name, stage in config.stages.items():
        if stage_result(config, name) or not isinstance(stage, SftConfig):
            break
        train(name, None)
    if at_end is None and not any(_is_pending(config, name) for name in config.stages):
        return
    if attach:
        services = RunningServices(config, console)
    else:
        experts = served_experts(config)
        services = Stack(config, served_model(config), console, experts=experts, policy_share=share)
    with services as stack:
        for name, stage in config.stages.items():
            if not stage_result(config, name):
                train(name, stack)
            result = stage_result(config, name)
            assert result
            if name not in evaluated_stages(config.run_dir):
                _serve(config, "policy", stage_folder(config, name), result["version"])
                check = question_check(config, stage_folder(config, name))
                print_figures(console, evaluate(config, name, stage.kind, result["version"], check=check))
            if (settings := _disentangled(config, name)) and name not in disentangled_stages(config.run_dir):
                for network in networks_of(stage):
                    folder = stage_folder(config, name) / "experts" / network
                    _serve(config, network, folder, result["expert_version"])
                print_disentanglement(console, disentangle(config, name, settings, result["expert_version"]))
        if at_end:
            at_end()


def of_this_machine(config: RunConfig, *, attach: bool) -> RunConfig:
    """The same; without ``stack.devices`` where whoever started the services has shared the cards out already."""
    return config.model_copy(update={"stack": config.stack.model_copy(update={"devices": None})}) if attach else config


def of_cards(config: RunConfig, launch: Launch) -> Launch:
    """With a rank on each of the learner's cards, where the configuration names them. Raises ConfigError."""
    if config.device != "cuda" or not config.stack.devices:
        return launch
    cards = len(config.stack.devices.learner.split(","))
    if launch.node_processes not in (1, cards):
        raise ConfigError(
            f"PRISM_NODE_PROCESSES is {launch.node_processes}, stack.devices.learner names {cards} cards, a rank for "
            "each: leave the variable out"
        )
    return launch.model_copy(update={"node_processes": cards})


def learner_cards(config: RunConfig) -> dict[str, str]:
    """The variable by which the learners see their cards alone."""
    return visible(config.stack.devices.learner) if config.device == "cuda" and config.stack.devices else {}


def policy_share(config: RunConfig, launch: Launch, *, attach: bool) -> float | None:
    """vLLM's share of its card, beside the stages that are not finished; None where nothing says, or the run does.

    Raises ConfigError for a stage that cannot fit its cards.
    """
    pending = {name: stage for name, stage in config.stages.items() if _is_pending(config, name)}
    folder = Path(start_of(config, next(iter(pending)))) if pending else None
    if "cuda" not in (config.device, config.stack.device) or folder is None or not folder.is_dir():
        return None
    from prism.trainer.run import placement  # with torch

    ranks = launch.nodes * launch.node_processes
    return placement.share_for_policy(config, folder, pending, ranks, served=not attach)


def refuse_small_disk(config: RunConfig, launch: Launch) -> None:
    """Raises ConfigError if checkpoints, results and weights of what is not finished cannot all be written."""
    left = unfinished(config)
    folder = Path(start_of(config, next(iter(left)))) if left else None
    if folder is None or not folder.is_dir():
        return
    from prism.trainer.run import placement  # with torch

    if problem := placement.disk_of(config, folder, left, launch.nodes * launch.node_processes).problem:
        raise ConfigError(problem)


def take_part(config: RunConfig, command: Callable[[str], list[str]], console: Console) -> None:
    """On a node that is not the first: its ranks of each stage, until the first node has written the stage's result.

    Ranks that do not meet the first's, because it is about something else, or that end with it, are started again.
    """
    for name in config.stages:
        while not stage_result(config, name):
            try:
                train_in_process(command(name), name, None)
            except ServiceError as error:
                logs.say(console, str(error))
                time.sleep(RETRY_SECONDS)


def prepare(config: RunConfig, console: Console) -> None:
    """Run the configuration's own script, which makes model and data, and write down what services read of the run.

    Raises ConfigError if the script fails.
    """
    refuse_missing_script(config)
    if config.prepare:
        _run_script(config, config.prepare, console)
    config.run_limits.write(config.run_dir)


def is_prepared(config: RunConfig) -> bool:
    return read_limits(config.run_dir) == config.run_limits


def _run_script(config: RunConfig, settings: PrepareConfig, console: Console) -> None:
    options = [f"--{key.replace('_', '-')}={value}" for key, value in settings.options.items()]
    command = [sys.executable, str(settings.script), "--out", str(config.run_dir), "--seed", str(config.seed)]
    began = time.monotonic()
    if logs.run([*command, *options]):
        raise ConfigError(f"{settings.script} failed; its message stands above")
    console.print(f"data and model in {config.run_dir} ({time.monotonic() - began:.0f} s)")


def question_check(config: RunConfig, model: Path | str) -> RowCheck:
    """What refuses a held-out question that leaves no room for its response, as training's check does its prompts."""
    from prism.model.inputs import InputBuilder  # the learner's own, and with it torch
    from prism.trainer.flow.examples import refuse_unservable

    inputs = InputBuilder(model, config.limits.pixel_bounds)
    return refuse_unservable(inputs, config.stack.max_model_len, config.evaluate.max_tokens)


def refuse_missing_script(config: RunConfig) -> None:
    """Raises ConfigError."""
    if config.prepare and not config.prepare.script.is_file():
        raise ConfigError(
            f"prepare.script: {config.prepare.script} does not exist; run from the folder it is named from"
        )


def refuse_changed(config: RunConfig) -> None:
    """Raises ConfigError if the run's folder holds results of other settings, or of unknown ones."""
    if not ((config.run_dir / "stages").exists() or (config.run_dir / "checkpoints").exists()):
        return
    try:
        before, now = _binding(load_saved(config.run_dir)), _binding(config)
    except FileNotFoundError:
        return
    if changed := list(_changed(before, now)):
        raise ConfigError(
            f"{config.run_dir} was begun with other settings ({', '.join(changed)}): use another name with "
            "--set name=..., or start over with --fresh"
        )


def _changed(before: Any, now: Any, path: str = "") -> Iterator[str]:
    """The keys that differ, dotted; a table that is new or gone by its own."""
    if isinstance(before, dict) and isinstance(now, dict) and before.keys() == now.keys():
        for key in sorted(now):
            yield from _changed(before[key], now[key], f"{path}.{key}" if path else key)
    elif before != now:
        yield path


def _binding(config: RunConfig) -> dict[str, Any]:
    """What a run that goes on must have begun with."""
    free = {"stages": {name: FREE_STAGE_KEYS for name in config.stages}} | dict.fromkeys(FREE_KEYS, True)
    return config.model_dump(exclude=free)


def unfinished(config: RunConfig) -> dict[str, Stage]:
    return {name: stage for name, stage in config.stages.items() if not stage_result(config, name)}


def _is_pending(config: RunConfig, name: str) -> bool:
    if not stage_result(config, name) or name not in evaluated_stages(config.run_dir):
        return True
    return _disentangled(config, name) is not None and name not in disentangled_stages(config.run_dir)


def networks_of(stage: Stage) -> tuple[Network, ...]:
    """That score in a stage."""
    return stage.experts.networks if isinstance(stage, AlignConfig) else ()


def _disentangled(config: RunConfig, name: str) -> DisentangleConfig | None:
    """How the experts of the stage are to be measured; None if they are not."""
    return config.evaluate.disentangle if isinstance(config.stages[name], AlignConfig) else None


def describe_stage(stage: Any) -> str:
    if isinstance(stage, SftConfig):
        return f"supervised fine-tuning, {stage.steps} steps of {stage.batch}"
    batch = f"{stage.rollouts.prompts} prompts × {stage.rollouts.n}"
    if stage.kind == "align":
        return f"adversarial alignment, {stage.warmup_steps} warm-up + {stage.steps} steps of {batch}"
    return f"verifiable rewards with {stage.loss.upper()}, {stage.steps} steps of {batch}"


def served_model(config: RunConfig) -> Path:
    """The folder services start from: the result of the first stage, whose architecture is everyone's."""
    first = next(iter(config.stages))
    folder = stage_folder(config, first) if stage_result(config, first) else Path(start_of(config, first))
    if not folder.is_dir():
        raise ConfigError(no_model(folder))
    return folder


def no_model(name: Path | str) -> str:
    """What to do where `model` is neither a folder nor a model of the hub's that is on this machine."""
    download = f"hf download NAME --local-dir {name}" if Path(name).is_absolute() else f"hf download {name}"
    return f"model: {name} is no folder; download a hub model first: {download}"


def train_in_process(
    command: list[str],
    name: str,
    stack: Stack | RunningServices | None,
    environment: dict[str, str] | None = None,
    lock: FolderLock | None = None,
) -> None:
    """Train one stage in a process of its own, which shares ``lock``, and end it should a service stay dead.

    Raises ServiceError.
    """
    variables = (environment or {}) | (stack.environment() if stack else {}) | (lock.environment if lock else {})
    process = start_process(command, variables, keep=lock.files if lock else ())
    try:
        while process.poll() is None:
            if stack:
                stack.check()
            time.sleep(0.5)
    except BaseException:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
        raise
    if process.returncode:
        raise ServiceError(
            f"stage {name} ended with status {process.returncode}; the same command goes on from its last checkpoint"
        )


def _serve(config: RunConfig, model: str, folder: Path, version: int) -> None:
    """Give finished weights to their server, whatever it serves now."""
    endpoints = load_endpoints(config.run_dir / "stack.json")
    open_publisher(config, endpoints, model, next_attempt(config.run_dir)).push_folder(version, folder)
