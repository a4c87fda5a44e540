"""From TOML to a configuration and back; what is wrong is said by file and key."""

import contextlib
import json
import re
import tomllib
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError

from prism.config.run import RunConfig
from prism.config.stages import RlvrConfig
from prism.errors import ConfigError
from prism.files import write_json
from prism.settings import describe

Kind = TypeVar("Kind", bound=BaseModel)


def load_config(path: Path, overrides: list[str] | None = None) -> RunConfig:
    """Read a TOML file and apply dotted overrides such as ``stages.align.steps=10``.

    Raises ConfigError that names the file, the key and what is wrong with it.
    """
    config = load_toml(path, RunConfig, overrides or [])
    for name, stage in config.stages.items():  # no run begins so; what an older one saved can still be read
        if isinstance(stage, RlvrConfig) and stage.loss == "gspo" and stage.policy.importance_cap is None:
            _refuse_rounding(config, f"{path}: stages.{name}.policy.importance_cap")
    return config


def _refuse_rounding(config: RunConfig, key: str) -> None:
    """Raises ConfigError where learner or sampler compute in 16 bits."""
    sampler = config.stack.policy_options.get("dtype", "auto")
    rounds = config.dtype, sampler if sampler != "auto" else "bfloat16" if config.stack.device == "cuda" else "float32"
    if set(rounds) != {"float32"}:
        raise ConfigError(
            f"{key}: GSPO needs one where learner ({rounds[0]}) or policy server ({rounds[1]}) round: it clips ratios "
            "3e-4 from 1, and rounding alone takes a quarter of them and more beyond that, before any update. Set "
            "importance_cap = 2, or compute both in float32"
        )


def load_toml(path: Path, kind: type[Kind], overrides: Sequence[str] = ()) -> Kind:
    """As ``load_config``, of any kind of file."""
    try:
        values = tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"config file {path} does not exist") from None
    except OSError as error:
        raise ConfigError(f"config file {path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None
    for override in overrides:
        _override(values, override)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise ConfigError("\n".join(f"{path}: {line}" for line in problems(kind, error))) from None


def load_saved(run_dir: Path) -> RunConfig:
    """What ``save_resolved`` wrote, also by an earlier version: keys that have come since have their defaults.

    Raises FileNotFoundError if there is nothing, ConfigError that names what this version does not know.
    """
    file = run_dir / "config.json"
    try:
        return parse_saved(file.read_bytes())
    except ValidationError as error:
        lines = "\n".join(f"{file}: {line}" for line in problems(RunConfig, error))
        raise ConfigError(f"{lines}\n(the run was begun by another version: use that, or begin another run)") from None


def parse_saved(content: bytes) -> RunConfig:
    """What was resolved when it was saved, whatever ``published`` has come to set since. Raises ValidationError."""
    with contextlib.suppress(ValueError, AttributeError, KeyError, TypeError):  # which pydantic names
        values = json.loads(content)
        for stage in values["stages"].values():
            if stage["kind"] == "align":
                stage["experts"].setdefault("shared", False)
        content = json.dumps(values).encode()
    return RunConfig.model_validate_json(content)


def problems(kind: type[BaseModel], error: ValidationError) -> list[str]:
    """A line for each problem that pydantic found in what should be a ``kind``; an unknown key with its nearest."""
    lines = describe(error, lambda loc: f"; did you mean {near[0]}?" if (near := _near(kind, loc)) else "")
    # Inside a stage, pydantic names its kind as well: stages.sft.sft.steps.
    return [re.sub(r"^(stages\.[^.:]+)\.(?:sft|align|rlvr)(?=[.:])", r"\1", line) for line in lines]


def _near(kind: Any, loc: Sequence[int | str]) -> list[str]:
    """The known key nearest to the last of ``loc``, of those that may stand in its place."""
    *parents, key = loc
    for part in parents:
        if get_origin(kind) in (dict, list):
            kind = get_args(kind)[-1]
            continue
        models = _models(kind)
        if len(models) > 1:  # part says which
            kind = next(model for model in models if part in get_args(model.model_fields["kind"].annotation))
        else:
            kind = models[0].model_fields[str(part)].annotation
    return get_close_matches(str(key), _models(kind)[0].model_fields, 1)


def _models(kind: Any) -> list[type[BaseModel]]:
    if isinstance(kind, type):
        return [kind] if issubclass(kind, BaseModel) else []
    return [model for part in get_args(kind) for model in _models(part)]


def _override(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not all(key.split(".")):
        raise ConfigError(f"override {override!r}: write it as dotted.key=value")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text  # a bare word is a string
    *parents, last = key.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise ConfigError(f"override {override!r}: {parent} is a value, not a table")
    values[last] = value


def save_resolved(config: RunConfig) -> Path:
    """Write what was resolved, defaults included, into the run's folder."""
    path = config.run_dir / "config.json"
    write_json(path, config.model_dump(mode="json"))
    return path


def as_toml(config: BaseModel) -> str:
    """A configuration with all its defaults, as a file that ``load_toml`` reads; a key that is None is left out."""
    lines: list[str] = []

    def table(path: str, values: dict[str, Any]) -> None:
        tables = {key: value for key, value in values.items() if isinstance(value, dict)}
        if path and (tables.keys() != values.keys() or not values):
            lines.append(f"\n[{path}]")
        lines.extend(f"{_key(key)} = {toml_value(values[key])}" for key in values if key not in tables)
        for key, value in tables.items():
            table(f"{path}.{_key(key)}" if path else _key(key), value)

    table("", config.model_dump(mode="json", exclude_none=True))
    return "\n".join(lines) + "\n"


def toml_value(value: Any) -> str:
    """A TOML inline value of what TOML gave."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(key)} = {toml_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml_value, value)) + "]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else toml_value(key)
