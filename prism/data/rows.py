"""Data files: which of their rows can be used, what is wrong with the others, and the rows as prompts."""

import json
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from prism.config import DataConfig, LimitsConfig
from prism.data.blobs import BlobStore
from prism.data.checks import CHECKED_IMAGES, RowCheck, Size
from prism.data.files import ROW_ERRORS, open_rows
from prism.data.halves import SecondHalf
from prism.data.image_folder import ImageFolder
from prism.data.images import canonical_image, decode_image, naming_image
from prism.data.importers import Reader, find_reader
from prism.data.importers.assemble import content_id
from prism.data.index import LazyRows, RowIndex, at_turn, id_digest
from prism.data.look import Look
from prism.data.row import MAX_EQUIVALENT, DataRow, validated, what_is_wrong
from prism.errors import DataError
from prism.wire.messages import from_json, is_data_uri
from prism.wire.v1 import rollout_pb2 as pb

__all__ = [
    "MAX_EQUIVALENT",
    "ROW_ERRORS",
    "DataFile",
    "DataRow",
    "Mixture",
    "Prompts",
    "RowCheck",
    "RowParser",
    "read_rows",
    "to_prompt",
    "validated",
    "what_is_wrong",
]

KEPT_PROBLEMS = 1_000  # texts; beyond them problems are counted
SAY_SECONDS = 10


@dataclass
class DataFile:
    """The usable rows of one file, and what was wrong with the others, each with file and line."""

    path: Path
    rows: Sequence[DataRow] = ()
    problems: list[str] = field(default_factory=list)
    """Of the first rows that cannot be used."""
    bad_rows: int = 0
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    image_root: Path | None = None
    """Folder that images must lie in; None: the file's."""
    format: str = ""
    """Of its rows, and how the file holds them."""
    container: str = ""
    weight: float = 1.0
    """How often an epoch sees each row."""

    @cached_property
    def images(self) -> ImageFolder:
        return ImageFolder(self.path.parent, self.image_root)

    def image(self, name: str) -> bytes:
        """Raises DataError that names the image."""
        return self.images.read(name)

    def decode_image(self, name: str) -> Image.Image:
        """Raises DataError that names the image."""
        data = self.image(name)
        with naming_image(name):
            return decode_image(data, self.limits.max_image_pixels)

    def canonical_image(self, name: str) -> bytes:
        """What ``decode_image`` sees, for other readers. Raises DataError that names the image."""
        data = self.image(name)
        with naming_image(name):
            return canonical_image(data, self.limits.max_image_pixels)


def _nothing(*_: object) -> None:
    pass


def read_rows(
    path: Path,
    on_bad_row: Literal["skip", "fail"],
    require: tuple[str, ...] = (),
    *,
    images: Literal["decode", "exist"] = "decode",
    say: Callable[[str], None] = lambda _: None,
    limits: LimitsConfig | None = None,
    check: RowCheck | None = None,
    entry: DataConfig | None = None,
    every_turn: bool = False,
    tell: Callable[[int, DataRow, Sequence[Size]], None] = _nothing,
    refused: Callable[[str], None] = lambda _: None,
) -> DataFile:
    """Check every row and keep where it stands: 8 bytes a row, which is read again when it is asked for.

    An image that is missing or no image counts as a bad row; with ``images="exist"`` none is opened, so that only a
    missing one does. ``require`` names optional keys that this use needs, such as ``("teacher",)``; a teacher's text
    that is needed must be in the response format, or nobody can learn from it. ``say`` is told of progress, where it
    takes long. ``limits`` are of every prompt; ``check`` is this use's own; with ``images="exist"`` it is given no
    sizes. ``entry`` says what the configuration says of the file. With ``every_turn`` a row stands there once for each
    assistant's turn that is learnt from, as its format or ``entry.turns`` has it. ``tell`` is told each good one with
    its line, ``refused`` what is wrong with each other.
    Raises DataError if the file is missing, holds no good row or, with ``on_bad_row="fail"``, a bad one.
    """
    if not path.is_file():
        raise DataError(f"data file {path} does not exist")
    entry = entry or DataConfig(path=str(path))
    result = DataFile(path, limits=limits or LimitsConfig(), image_root=entry.image_root, weight=entry.weight)

    def bad(number: int, text: str) -> None:
        result.bad_rows += 1
        refused(f"{path}:{number}: {text}")
        if len(result.problems) < KEPT_PROBLEMS:
            result.problems.append(f"{path}:{number}: {text}")
        if on_bad_row == "fail":
            raise DataError(f'{path}:{number}: {text}\n(set on_bad_row = "skip" to count and skip such rows)')

    file = open_rows(path)
    reader = find_reader(path, (found.value for found in file), entry.format, entry.columns, entry.dataset)
    result.format, result.container = reader.format.name, file.container
    turns = (reader.format.turns if entry.turns == "format" else entry.turns) if every_turn else None
    look = Look(reader, require, turns, images, result)
    index, said, told = RowIndex(RowParser(reader)), time.monotonic(), tell is not _nothing
    with SecondHalf(file, look, check, wanted=images == "exist" and not told) as half:
        for found in half.first():
            if time.monotonic() - said > SAY_SECONDS:
                said = time.monotonic()
                say(f"checking {path}: {found.number:,} rows, {file.progress:.0%}")
            try:
                given, learnt, seen = look(found)
                for row, sizes in seen:
                    if check:
                        check(row, sizes)
                    tell(found.number, row, sizes)
            except ROW_ERRORS as error:
                bad(found.number, found.note + what_is_wrong(error))
                continue
            index.add(found, given, learnt)
        for number, problem in half.join(index):
            bad(number, problem)
    for number, problem in index.repeated(file):
        bad(number, problem)
    if not len(index):
        first = f"; the first problem: {result.problems[0]}" if result.problems else ""
        raise DataError(f"data file {path} holds no usable row{first}")
    result.rows = LazyRows(file, index.examples, index.parser)
    return result


@dataclass(frozen=True)
class RowParser:
    """A row again, from its file's value. May be sent to another process."""

    reader: Reader
    shared: frozenset[int] = frozenset()
    """Digests of ids that several rows have."""

    def __call__(self, value: Any, turn: int) -> DataRow:
        """Raises one of ROW_ERRORS."""
        own = self.reader.own(value)
        if self.shared and id_digest(own["id"]) in self.shared:
            own["id"] = f"{own['id']}-{content_id(own)}"
        return validated(at_turn(own, turn))


def to_prompt(row: DataRow, data: DataFile, blobs: BlobStore) -> pb.Prompt:
    """The row as it travels: its images put into the blob store, as the learner sees them, and named by sha256."""
    return _to_prompt(row, lambda name: blobs.put(data.canonical_image(name)))


def _to_prompt(row: DataRow, name_image: Callable[[str], str]) -> pb.Prompt:
    return pb.Prompt(
        id=row.id,
        messages=from_json(row.messages, name_image),
        gold=row.gold or "",
        equivalent_answers=row.equivalent_answers,
        kind=row.kind,
        teacher=row.teacher or "",
        meta_json=json.dumps(row.meta),
        options_json=row.options.model_dump_json(exclude_unset=True) if row.options else "",
    )


class Mixture:
    """The rows of several files, by one number each."""

    def __init__(self, files: Sequence[DataFile]) -> None:
        self.files = list(files)
        self._ends = list(accumulate(len(file.rows) for file in files))

    def __len__(self) -> int:
        return self._ends[-1]

    def at(self, index: int) -> tuple[DataFile, DataRow]:
        """Raises what reading a row raises."""
        number = bisect_right(self._ends, index)
        file = self.files[number]
        return file, file.rows[index - self._ends[number] + len(file.rows)]

    def number(self, index: int) -> int:
        """Of the file that a row stands in, from 0."""
        return bisect_right(self._ends, index)

    @property
    def parts(self) -> list[tuple[int, float]]:
        """Rows and weight of each file."""
        return [(len(file.rows), file.weight) for file in self.files]

    @property
    def bad_rows(self) -> int:
        return sum(file.bad_rows for file in self.files)

    @property
    def problems(self) -> list[str]:
        return [problem for file in self.files for problem in file.problems]


class Prompts(Sequence[pb.Prompt]):
    """Rows as they travel, each made when it is asked for; its images are stored then, once.

    An id names one prompt: where there are several files, their numbers stand before the ids.
    """

    def __init__(self, data: DataFile | Sequence[DataFile], blobs: BlobStore) -> None:
        self._rows = Mixture([data] if isinstance(data, DataFile) else data)

        def stored(number: int, name: str) -> str:
            return blobs.put(self._rows.files[number].canonical_image(name))

        self._stored, self._remembered = stored, lru_cache(CHECKED_IMAGES)(stored)

    @property
    def parts(self) -> list[tuple[int, float]]:
        """Rows and weight of each file, for their order."""
        return self._rows.parts

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> pb.Prompt:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Raises DataError for an image that has gone since it was checked, ServiceError where the store is away."""
        number, (_, row) = self._rows.number(index), self._rows.at(index)

        def name(image: str) -> str:
            return self._stored(number, image) if is_data_uri(image) else self._remembered(number, image)

        prompt = _to_prompt(row, name)
        if len(self._rows.files) > 1:
            prompt.id = f"{number + 1}:{prompt.id}"
        return prompt
