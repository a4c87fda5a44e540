"""Rows of data files, as a stage would read them: good ones, and what is wrong with the others, by file and line."""

import json
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from prism.config import DataConfig, data_configs, load_saved
from prism.data.checks import Size
from prism.data.files import ROW_ERRORS, Found, RowFile, open_rows
from prism.data.files.lines import JsonLines
from prism.data.importers import find_reader
from prism.data.look import Look
from prism.data.mixture import SUFFIXES, data_files
from prism.data.rows import DataFile, DataRow, what_is_wrong
from prism.errors import ConfigError, DataError
from prism.services.console.jobs.registry import Place

MOST_FILES = 200
SEARCH_SECONDS = 4.0
LONGEST = 20_000  # characters of a row that cannot be read which are shown


@dataclass(frozen=True)
class Source:
    """A file of rows."""

    name: str
    """From the runs folder."""
    path: Path
    entry: DataConfig
    bytes: int
    used_by: tuple[str, ...] = ()
    """Keys of the run's configuration."""


@dataclass(frozen=True)
class Row:
    number: int
    """Its line, or its row where the file has no lines."""
    place: int
    row: DataRow | None
    sizes: list[Size]
    problem: str
    """With file and line; empty for a good row."""
    raw: str
    """What a bad row holds."""


@dataclass
class Rows:
    """Some rows of a file."""

    format: str
    container: str
    rows: list[Row] = field(default_factory=list)
    looked: int = 0
    after: tuple[int, int] | None = None
    """Place and number of the row that comes next; None at the end."""


def sources(place: Place, folder: Path) -> list[Source]:
    """Files of rows in a run's, or a curation's folder, and those of the runs folder that its configuration names."""
    root, named = place.runs.resolve(), dict[Path, tuple[DataConfig, list[str]]]()
    with suppress(FileNotFoundError, ConfigError):
        for key, entry in _entries("", load_saved(folder)):
            with suppress(DataError):
                for path, one in data_files([entry], lambda name: _in_run(folder, name)):
                    named.setdefault(path.resolve(), (one, []))[1].append(key)
    lying = [*folder.glob("data/**/*"), *(folder.glob("*.jsonl") if (folder / "curation.db").exists() else ())]
    for path in sorted(lying)[: 50 * MOST_FILES]:
        if path.suffix in SUFFIXES and path.is_file():
            named.setdefault(path.resolve(), (DataConfig(path=str(path)), []))
    found = []
    for path, (entry, keys) in named.items():
        if path.is_relative_to(root) and path.is_file() and not _is_hidden(path, root):
            found.append(Source(str(path.relative_to(root)), path, entry, path.stat().st_size, tuple(keys)))
    return found[:MOST_FILES]


def read(place: Place, source: Source, *, at: int, number: int, limit: int, bad: bool, words: str) -> Rows:
    """``limit`` rows that fit, from place ``at`` on, which is row ``number``; fewer when time is up.

    Raises DataError for a file that is none of rows, ConfigError where a package is missing that reads it.
    """
    file, look = _open(place, source)
    found = Rows(look.reader.format.name, file.container)
    until, wanted = time.monotonic() + SEARCH_SECONDS, words.lower().split()
    for one in _from(file, at, number):
        if len(found.rows) >= limit or (found.looked and time.monotonic() > until):
            found.after = one.place, one.number
            return found
        found.looked += 1
        row = _row(source, look, one)
        text = row.raw or json.dumps(one.value, ensure_ascii=False, default=str)
        if (not bad or row.problem) and (not wanted or all(word in text.lower() for word in wanted)):
            found.rows.append(row)
    return found


def picture(place: Place, source: Source, at: int, image: int) -> bytes:
    """An image of the row at a place. Raises DataError where there is none."""
    file, look = _open(place, source)
    try:
        row = look(Found(at, 0, file.read(at)))[2][0][0]
        return look.data.image(row.image_paths[image])
    except (*ROW_ERRORS, IndexError, OSError) as error:
        raise DataError(f"{source.name}: no such image: {error}") from None


def _open(place: Place, source: Source) -> tuple[RowFile, Look]:
    try:
        file, entry = open_rows(source.path), source.entry
        reader = find_reader(source.path, (one.value for one in file), entry.format, entry.columns, entry.dataset)
    except (OSError, *ROW_ERRORS) as error:
        raise DataError(f"{source.name} cannot be read: {error}") from None
    # A configuration may name a folder of images elsewhere: to the console nothing is outside of the runs folder.
    images = entry.image_root.resolve() if entry.image_root else None
    if images and not images.is_relative_to(place.runs.resolve()):
        images = None
    return file, Look(reader, (), None, "decode", DataFile(source.path, image_root=images))


def _row(source: Source, look: Look, one: Found) -> Row:
    try:
        _, _, seen = look(one)
    except (*ROW_ERRORS, OSError) as error:
        text = one.text.decode(errors="replace") if one.text else json.dumps(one.value, default=str, ensure_ascii=False)
        problem = f"{source.name}:{one.number}: {one.note}{what_is_wrong(error)}"
        return Row(one.number, one.place, None, [], problem, text[:LONGEST])
    row, sizes = seen[-1]
    return Row(one.number, one.place, row, sizes, "", "")


def _from(file: RowFile, at: int, number: int) -> Iterator[Found]:
    if isinstance(file, JsonLines) and at:
        for one in file.part(at):
            yield one._replace(number=one.number + number - 1)
    else:
        yield from (one for one in file if one.place >= at)


def _entries(path: str, value: Any) -> Iterator[tuple[str, DataConfig]]:
    """Data that a configuration names anywhere, by its key."""
    if isinstance(value, BaseModel):
        value = {name: getattr(value, name) for name in type(value).model_fields}
    for name, one in value.items() if isinstance(value, dict) else ():
        key = f"{path}.{name}" if path else str(name)
        if name in ("data", "validation") and one and isinstance(one, str | list | DataConfig):
            yield from ((key, entry) for entry in data_configs(one))
        else:
            yield from _entries(key, one)


def _in_run(folder: Path, name: str) -> Path:
    inside = folder / name
    return inside if inside.exists() else Path(name)


def _is_hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)
