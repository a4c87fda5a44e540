"""``prism run`` and what else works on a run's configuration."""

import re
from typing import Literal

from pydantic import Field

from prism.config import RunConfig, as_toml
from prism.errors import ConfigError
from prism.services.console.jobs.queue import Wanted
from prism.services.console.jobs.registry import Assigned, Command, Parameters, Place

RUN_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"
SERVICES = 5  # ports of Redis, policy, both experts and grader


class RunParameters(Parameters):
    config: str
    """A file of the configurations' folder, such as demo.toml, or ``run:NAME`` for that of another run."""
    name: str = Field(pattern=RUN_NAME, max_length=100)
    """Names the run and its folder."""
    overrides: list[str] = Field(default=[], max_length=200)
    """Keys that differ from it, such as ``stages.align.steps=10``."""
    resume: bool = False
    """Go on with a run of this name that is there already."""


class RunCommand(Command[RunParameters]):
    name, title = "run", "Train a run"
    about = (
        "The whole pipeline: services, every stage, measurements, report. Started again it goes on where it stopped."
    )
    parameters = RunParameters

    def plan(self, given: RunParameters, place: Place) -> Wanted:
        config = self._config(given, place)
        if not given.resume:
            place.inside(given.name, exists=False)
        return self.wanted(
            given,
            f"run {given.name}",
            config=as_toml(config),
            run=given.name,
            gpus=cards_of(config),
            ports=SERVICES + config.stack.rollout_workers,
        )

    def arguments(self, given: RunParameters, place: Place, assigned: Assigned) -> list[str]:
        return ["run", str(assigned.config), f"--set=stack.base_port={assigned.base_port}", "--wait-for-lock=60"]

    def _config(self, given: RunParameters, place: Place) -> RunConfig:
        if any(re.match(r"\s*(name|stack\.base_port)\s*=", override) for override in given.overrides):
            raise ConfigError("overrides: name is a field of its own, and stack.base_port is assigned")
        config = place.config(given.config, [*given.overrides, f"name={given.name}"])
        return config.model_copy(update={"runs_dir": place.runs.resolve()})


class TrainParameters(Parameters):
    run: str = Field(pattern=RUN_NAME, max_length=100)
    """A run that has begun."""
    stage: str = Field(max_length=100)
    """One of its stages, by name. All but supervised fine-tuning need the run's services to be up."""


class TrainCommand(Command[TrainParameters]):
    name, title = "train", "Train one stage"
    about = "One stage of a run alone, from the result of the stage before it."
    parameters = TrainParameters

    def plan(self, given: TrainParameters, place: Place) -> Wanted:
        config = place.config(f"run:{given.run}", [])
        if given.stage not in config.stages:
            raise ConfigError(f"stage: run {given.run!r} has {', '.join(config.stages)}")
        text = as_toml(config.model_copy(update={"runs_dir": place.runs.resolve()}))
        gpus = cards_of(config) if config.device == "cuda" else 0
        return self.wanted(given, f"train {given.stage} of {given.run}", config=text, run=given.run, gpus=gpus)

    def arguments(self, given: TrainParameters, place: Place, assigned: Assigned) -> list[str]:
        return ["train", f"--config={assigned.config}", "--wait-for-lock=60", "--", given.stage]


class ExportParameters(Parameters):
    run: str = Field(max_length=200)
    """A run's folder."""
    out: str = Field(max_length=300)
    """Folder to write, from the runs folder; it must not exist yet."""
    model: Literal["policy", "perception", "reasoning"] = "policy"
    """The policy, or an expert of an alignment."""
    stage: str | None = Field(default=None, max_length=100)
    """By default the last that has anything."""


class ExportCommand(Command[ExportParameters]):
    name, title = "export", "Export a model"
    about = "A run's model as an ordinary Hugging Face folder: a stage's result, or what its newest checkpoint holds."
    parameters = ExportParameters

    def plan(self, given: ExportParameters, place: Place) -> Wanted:
        place.run(given.run)
        place.inside(given.out, exists=False)
        return self.wanted(given, f"export {given.model} of {given.run}")

    def arguments(self, given: ExportParameters, place: Place, assigned: Assigned) -> list[str]:
        stage = [f"--stage={given.stage}"] if given.stage else []
        out = place.inside(given.out)
        return ["export", f"--model={given.model}", *stage, "--", str(place.run(given.run)), str(out)]


class ReportParameters(Parameters):
    run: str = Field(max_length=200)
    """A run's folder, in which report.html and report.json are written."""


class ReportCommand(Command[ReportParameters]):
    name, title = "report", "Write a report"
    about = "A run's report as a page of its own, from what it has left so far."
    parameters = ReportParameters

    def plan(self, given: ReportParameters, place: Place) -> Wanted:
        place.run(given.run)
        return self.wanted(given, f"report of {given.run}")

    def arguments(self, given: ReportParameters, place: Place, assigned: Assigned) -> list[str]:
        return ["report", "--", str(place.run(given.run))]


class CompareCommand(Command[Parameters]):
    name, title = "compare", "Compare ways to train"
    about = "The demo beside its baseline and its control, over several seeds, in one table. Hours on a CPU."
    parameters = Parameters

    def plan(self, given: Parameters, place: Place) -> Wanted:
        if not (place.home / "configs" / "demo-compare.toml").is_file():
            raise ConfigError("configs/demo-compare.toml is not here: start the console in a checkout of PRISM")
        return self.wanted(given, "compare the demo's arms", run="demo-compare", ports=SERVICES + 1)

    def arguments(self, given: Parameters, place: Place, assigned: Assigned) -> list[str]:
        folder = place.runs.resolve()
        return ["demo", "--compare", f"--set=runs_dir={folder}", f"--set=stack.base_port={assigned.base_port}"]


def cards_of(config: RunConfig) -> int:
    """GPUs that a run needs: those its devices name, or one."""
    if "cuda" not in (config.device, config.stack.device):
        return 0
    if not (devices := config.stack.devices):
        return 1
    used = [devices.learner] if config.device == "cuda" else []
    used += [devices.policy, devices.experts] if config.stack.device == "cuda" else []
    return 1 + max(int(card) for cards in used for card in cards.split(","))


COMMANDS = (RunCommand(), TrainCommand(), ExportCommand(), ReportCommand(), CompareCommand())
