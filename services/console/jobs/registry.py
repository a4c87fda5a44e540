"""Which ``prism`` commands can be jobs. Each is a file in ``commands/``: a schema, and how arguments follow from it.

A new command needs that file alone: queue, form, page and API come from its schema.
"""

import importlib
import json
import pkgutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from prism.config import RunConfig, as_toml, load_config, load_saved, load_toml
from prism.errors import ConfigError
from prism.services.console.jobs.queue import Wanted
from prism.settings import describe


class Parameters(BaseModel):
    """Of a command. The docstring under a field is its description, in API and form."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


Given = TypeVar("Given", bound=Parameters)
Kind = TypeVar("Kind", bound=BaseModel)


@dataclass(frozen=True)
class Place:
    """Where jobs may read and write: all that a person can name lies below ``runs``; configurations in ``configs``."""

    runs: Path
    configs: Path
    home: Path
    """Working directory of jobs, which configurations name their scripts from."""

    def inside(self, name: str, *, exists: bool | None = None) -> Path:
        """A path below the runs folder, links followed. Raises ConfigError for one that leads out of it.

        ``exists``: whether there must be something, or nothing, by that name.
        """
        root = self.runs.resolve()
        try:
            path = (root / name).resolve()
        except (ValueError, OSError, RuntimeError):
            raise ConfigError(f"{name!r} is no path") from None
        if "\0" in name or path == root or not path.is_relative_to(root):
            raise ConfigError(
                f"{name!r} is not below the runs folder: name it from there, such as demo/data/test.jsonl"
            )
        if exists is True and not path.exists():
            raise ConfigError(f"{name!r} does not exist in the runs folder")
        if exists is False and path.exists():
            raise ConfigError(f"{name!r} exists already: choose another name")
        return path

    def run(self, name: str) -> Path:
        """The folder of an existing run. Raises ConfigError."""
        path = self.inside(name, exists=True)
        if not path.is_dir():
            raise ConfigError(f"{name!r} is no run's folder")
        return path

    def config_names(self) -> list[str]:
        """What may stand for a run's configuration, besides ``run:NAME``."""
        return self.files(RunConfig)

    def files(self, kind: type[BaseModel]) -> list[str]:
        """Files of the configurations' folder that are of this kind, and as they should be."""
        found = []
        for file in sorted(self.configs.glob("*.toml")):
            try:
                load_toml(file, kind)
            except ConfigError:
                continue  # of another kind, or one that is being written
            found.append(file.name)
        return found

    def load(self, kind: type[Kind], name: str, overrides: list[str]) -> Kind:
        """A file of the configurations' folder, by its name. Raises ConfigError."""
        if name not in {file.name for file in self.configs.glob("*.toml")}:
            there = ", ".join(self.files(kind)) or "none of that kind"
            raise ConfigError(f"there is no configuration {name!r}: there is {there}")
        return load_toml(self.configs / name, kind, overrides)

    def services(self, run: str) -> dict[str, Any]:
        """Where the services of a run that is up are, and the tokens that they take. Raises ConfigError."""
        try:
            noted = json.loads((self.run(run) / "stack.json").read_bytes())
        except (OSError, ValueError):
            noted = None
        if not isinstance(noted, dict):
            raise ConfigError(f"run: the services of {run!r} are not up")
        return noted

    def begun_runs(self) -> list[str]:
        return sorted(str(file.parent.relative_to(self.runs)) for file in self.runs.glob("*/config.json"))

    def served_runs(self) -> list[str]:
        """Runs whose services are up."""
        return sorted(str(file.parent.relative_to(self.runs)) for file in self.runs.glob("*/stack.json"))

    def config(self, name: str, overrides: list[str]) -> RunConfig:
        """A configuration by its file's name, or another run's by ``run:NAME``, with overrides. Raises ConfigError."""
        refuse_unsafe(overrides)
        kind, _, run = name.partition(":")
        if kind != "run":
            if name not in {file.name for file in self.configs.glob("*.toml")}:
                raise ConfigError(f"there is no configuration {name!r}: choose one of {', '.join(self.config_names())}")
            return load_config(self.configs / name, overrides)
        try:
            saved = load_saved(self.run(run))
        except FileNotFoundError:
            raise ConfigError(f"run {run!r} has no config.json") from None
        return reload(saved, overrides)


SEALED = ("prepare", "runs_dir", "stack.policy_options")
"""Keys that name programs, their flags or the folder of all runs: whoever keeps the configuration files sets them."""


def refuse_unsafe(overrides: list[str]) -> None:
    """Raises ConfigError for an override that would run other programs, or read and write outside the runs folder."""
    for override in overrides:
        key, _, text = override.partition("=")
        parts = key.split(".")
        if any(parts[: len(sealed.split("."))] == sealed.split(".") for sealed in SEALED):
            raise ConfigError(f"{key} can be set in a configuration file alone")
        value = text.replace("\\", "/")
        if "../" in value or value.rstrip("\"'}] ").endswith("..") or "~" in value or "://" in value:
            raise ConfigError(f"{key}: a path in a job's configuration stays in the run's folder")
        if any(piece.strip(" \"'[{=").startswith("/") for piece in value.replace("=", ",").split(",")):
            raise ConfigError(
                f"{key}: a path in a job's configuration stays in the run's folder, so it has no leading /"
            )


def reload(config: RunConfig, overrides: list[str]) -> RunConfig:
    """A configuration with overrides, checked as a file is. Raises ConfigError."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.toml"
        file.write_text(as_toml(config))
        try:
            return load_config(file, overrides)
        except ConfigError as error:
            raise ConfigError(str(error).replace(f"{file}: ", "")) from None


@dataclass(frozen=True)
class Assigned:
    """What an attempt was given, and where its own folder is."""

    folder: Path
    config: Path | None
    """The job's configuration, as a file."""
    cards: list[str]
    base_port: int | None


class Command(ABC, Generic[Given]):
    """A ``prism`` command as a job."""

    name: ClassVar[str]
    title: ClassVar[str]
    about: ClassVar[str]
    parameters: type[Given]

    @abstractmethod
    def plan(self, given: Given, place: Place) -> Wanted:
        """The job that would be queued. Raises ConfigError for what cannot work, before anything starts."""

    @abstractmethod
    def arguments(self, given: Given, place: Place, assigned: Assigned) -> list[str]:
        """What follows ``prism``. Raises ConfigError where the place has changed since."""

    def environment(self, given: Given, place: Place, own: Mapping[str, str]) -> dict[str, str]:
        """PRISM_* variables that it is given; ``own`` are the worker's, of which it gets none unasked."""
        return {}

    def suggestions(self, place: Place) -> dict[str, list[str]]:
        """Of fields that name something, what there is."""
        return {}

    def wanted(self, given: Given, title: str, **needs: Any) -> Wanted:
        return Wanted(command=self.name, title=title, parameters=given.model_dump(mode="json"), **needs)


@cache
def commands() -> dict[str, Command[Any]]:
    """By name, in the order of the files' names."""
    from prism.services.console.jobs import commands as package

    found: dict[str, Command[Any]] = {}
    for module in sorted(pkgutil.iter_modules(package.__path__), key=lambda module: module.name):
        for command in importlib.import_module(f"{package.__name__}.{module.name}").COMMANDS:
            found[command.name] = command
    return found


def command_of(name: str) -> Command[Any]:
    """Raises ConfigError."""
    try:
        return commands()[name]
    except KeyError:
        raise ConfigError(f"there is no command {name!r}: there are {', '.join(commands())}") from None


def plan(name: str, parameters: dict[str, Any], place: Place) -> Wanted:
    """The job that these parameters ask for. Raises ConfigError that names each that is wrong."""
    command = command_of(name)
    try:
        given = command.parameters.model_validate(parameters)
    except ValidationError as error:
        raise ConfigError("\n".join(describe(error))) from None
    return command.plan(given, place)
