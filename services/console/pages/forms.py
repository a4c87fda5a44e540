"""Forms from schemas: fields of a command's parameters, and every key of a run's configuration."""

import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from prism.config import RunConfig, toml_value
from prism.services.console.jobs.registry import SEALED

LONG = 60  # characters, from which on a value gets a box of several lines


@dataclass(frozen=True)
class Field:
    """One input."""

    name: str
    label: str
    kind: Literal["text", "long", "number", "choice", "flag", "many"]
    value: Any
    choices: tuple[str, ...] = ()
    about: str = ""
    required: bool = False
    suggested: tuple[str, ...] = ()
    """What there is to be named, where anything may be written."""
    sealed: bool = False
    """Shown, and not to be changed here."""


def parameter_fields(
    model: type[BaseModel], given: Mapping[str, Any], suggested: Mapping[str, Sequence[str]] | None = None
) -> list[Field]:
    """Of a command's parameters; ``given`` are values so far."""
    found = []
    for name, field in model.model_fields.items():
        default = None if field.is_required() else field.get_default(call_default_factory=True)
        value = given.get(name, default)
        kind, choices = _kind(field.annotation)
        found.append(
            Field(
                name,
                name.replace("_", " "),
                kind,
                _filled(kind, choices, value),
                choices,
                field.description or "",
                field.is_required(),
                tuple((suggested or {}).get(name, ())),
            )
        )
    return found


def _filled(kind: str, choices: tuple[str, ...], value: Any) -> Any:
    """A list without choices is written one a line."""
    if kind == "many":
        return list(value or ()) if choices else "\n".join(value or ())
    return "" if value is None else value


def read_parameters(model: type[BaseModel], form: Mapping[str, list[str]]) -> dict[str, Any]:
    """What was filled in, by name; what was left empty is left to its default."""
    found: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        kind, _ = _kind(field.annotation)
        given = [text.strip() for text in form.get(name, []) if text.strip()]
        if kind == "flag":
            found[name] = bool(given)
        elif kind == "many":
            if given:
                found[name] = [line.strip() for text in given for line in text.splitlines() if line.strip()]
        elif given:
            found[name] = given[0]
    return found


@dataclass(frozen=True)
class Section:
    """A table of the configuration."""

    name: str
    about: str
    keys: list[Field]


def config_sections(config: RunConfig) -> list[Section]:
    """Every key of a configuration with its value, in its tables; ``name`` and what is assigned are left out."""
    found: list[Section] = []
    _walk("", config, "The run itself.", found)
    return [section for section in found if section.keys]


LEFT_OUT = ("name", "runs_dir", "stack.base_port")


def _walk(path: str, model: BaseModel, about: str, found: list[Section]) -> None:
    keys: list[Field] = []
    found.append(Section(path or "run", about, keys))
    for name, field in type(model).model_fields.items():
        value, key = getattr(model, name), f"{path}.{name}" if path else name
        if key in LEFT_OUT:
            continue
        if isinstance(value, BaseModel):
            _walk(key, value, field.description or "", found)
        elif isinstance(value, dict) and value and all(isinstance(item, BaseModel) for item in value.values()):
            for part, item in value.items():
                _walk(f"{key}.{part}", item, f"{field.description or ''}", found)
        else:
            keys.append(_key(key, field.annotation, value, field.description or ""))


def _key(key: str, annotation: Any, value: Any, about: str) -> Field:
    kind, choices = _kind(annotation)
    text = shown(value)
    if kind == "flag":
        kind, choices = "choice", ("true", "false")
    if kind == "choice" and (value is None or text not in choices):
        choices = ("", *choices)
    if kind in ("text", "many"):
        kind = "long" if len(text) > LONG else "text"
    sealed = any(key == seal or key.startswith(f"{seal}.") for seal in (*SEALED, "stages.kind")) or key.endswith(
        ".kind"
    )
    return Field(key, key.rpartition(".")[2], kind, text, choices, about, sealed=sealed)


def shown(value: Any) -> str:
    """As it stands in an input: a text as it is, all else as TOML; nothing for None."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json", exclude_none=True)
    if isinstance(value, list | tuple):
        value = [v.model_dump(mode="json", exclude_none=True) if isinstance(v, BaseModel) else v for v in value]
    return toml_value(value if isinstance(value, str | int | float | bool | list | dict) else str(value))


def overrides(config: RunConfig, form: Mapping[str, list[str]]) -> tuple[list[str], list[str]]:
    """What of the form differs from ``config``, as overrides; and what is wrong with it, in words."""
    found: list[str] = []
    problems: list[str] = []
    for section in config_sections(config):
        for key in section.keys:
            given = form.get(f"key.{key.name}")
            if key.sealed or given is None or given[0].strip() == str(key.value).strip():
                continue
            text = given[0].strip()
            if not text:
                problems.append(f"{key.name}: it cannot be left empty; its value was {key.value}")
            elif isinstance(_value(config, key.name), str) and not text.startswith(("[", "{")):
                found.append(f"{key.name}={toml_value(text)}")
            else:
                found.append(f"{key.name}={text}")
    return found, problems


def _value(config: BaseModel, key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = value[part] if isinstance(value, dict) else getattr(value, part)
    return value


def _kind(annotation: Any) -> tuple[Any, tuple[str, ...]]:
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        parts = [part for part in get_args(annotation) if part is not type(None)]
        return _kind(parts[0]) if len(parts) == 1 else ("text", ())
    if origin is Literal:
        return "choice", tuple(map(shown, get_args(annotation)))
    if annotation is bool:
        return "flag", ()
    if annotation in (int, float):
        return "number", ()
    if origin is list:
        kind, choices = _kind(get_args(annotation)[0])
        return "many", choices if kind == "choice" else ()
    return "text", ()
