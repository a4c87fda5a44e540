"""A benchmark's files as questions and their pictures: Parquet, JSON Lines, JSON, TSV, pictures inside or by path.

Texts are kept, pictures are read again when a question is asked.
"""

import csv
import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import Any

from PIL import Image

from prism.config import BenchmarkConfig, DataConfig
from prism.data.files import Found, RowFile, open_rows
from prism.data.image_folder import ImageFolder
from prism.data.images import canonical_image, decode_image, encode_canonical, naming_image
from prism.data.mixture import data_files
from prism.data.rows import DataFile, read_rows
from prism.errors import DataError
from prism.evaluation.benchmarks import BENCHMARKS
from prism.evaluation.benchmarks.base import Picture, Question
from prism.wire.messages import TextPart

NAMED = 20  # bad rows that an error names
KEPT_ROWS = 64


class QuestionSet:
    """The questions of one benchmark, in the files' order."""

    def __init__(self, name: str, kind: str, config: BenchmarkConfig) -> None:
        """Raises DataError for files that cannot be read, rows that are no question, and ids that stand twice."""
        self.name, self.benchmark = name, BENCHMARKS[kind]
        self.questions: list[Question] = []
        self.total = 0
        """Questions of the files, of which ``questions`` may be the first."""
        self._places: list[tuple[_Source, int]] = []
        self._number: dict[str, int] = {}
        problems: list[str] = []
        for path in _paths(config):
            source = _OwnRows(path, config) if kind == "own" else _Rows(path, config)
            for number, place, row in source.rows():
                try:
                    self._add(self.benchmark.question(row), source, place)
                except DataError as error:
                    problems.append(f"{path}:{number}: {error}")
        if problems:
            more = f"\nand {len(problems) - NAMED} more" if len(problems) > NAMED else ""
            raise DataError("\n".join(problems[:NAMED]) + more)
        if not self.questions:
            raise DataError(f"benchmark {name}: its files hold no question")
        self.total = len(self.questions)
        del self.questions[config.questions or self.total :]

    def _add(self, question: Question, source: "_Source", place: int) -> None:
        if question.id in self._number:
            raise DataError(f"question {question.id} stands twice")
        self._number[question.id] = len(self.questions)
        self.questions.append(question)
        self._places.append((source, place))

    def by_id(self, name: str) -> Question:
        """Raises KeyError."""
        return self.questions[self._number[name]]

    def picture(self, question: Question, picture: Picture) -> bytes:
        """Its pixels, as a PNG of 8-bit RGB that holds all of them: nothing is scaled. Raises DataError."""
        source, place = self._places[self._number[question.id]]
        data = source.picture(place, picture.column)
        with naming_image(f"{picture.column} of question {question.id}"):
            return canonical_image(data, None)


def blank(picture: bytes) -> bytes:
    """A white picture of the same size."""
    return encode_canonical(Image.new("RGB", decode_image(picture, None).size, "white"))


class _Source(ABC):
    """Rows of one file, and their pictures."""

    @abstractmethod
    def rows(self) -> Iterator[tuple[int, int, Any]]:
        """Each row's number for people, its place, and what it holds."""

    @abstractmethod
    def picture(self, place: int, column: str) -> bytes: ...


class _Rows(_Source):
    def __init__(self, path: Path, config: BenchmarkConfig) -> None:
        self._file = _open(path)
        self._folder = ImageFolder(path.parent, config.image_root)
        self._row = lru_cache(KEPT_ROWS)(self._file.read)

    def rows(self) -> Iterator[tuple[int, int, Any]]:
        for found in self._file:
            if found.problem or not isinstance(found.value, dict):
                raise DataError(f"{self._file.path}:{found.number}: {found.problem or 'the row is no object'}")
            yield found.number, found.place, found.value

    def picture(self, place: int, column: str) -> bytes:
        return self._folder.read(self._row(place)[column])


class _OwnRows(_Source):
    """Rows in PRISM's own form, or in that of a public trainer."""

    def __init__(self, path: Path, config: BenchmarkConfig) -> None:
        self._data: DataFile = read_rows(
            path, "fail", ("gold",), images="exist", entry=DataConfig(path=str(path), image_root=config.image_root)
        )

    def rows(self) -> Iterator[tuple[int, int, Any]]:
        for index, row in enumerate(self._data.rows):
            pictures = count()
            turns = [
                (
                    message.role,
                    [
                        {"text": part.text} if isinstance(part, TextPart) else {"image": str(next(pictures))}
                        for part in message.parts
                    ],
                )
                for message in row.messages
            ]
            options = row.options.model_dump(exclude_unset=True) if row.options else {}
            own = row.model_dump(include={"id", "gold", "equivalent_answers", "kind", "meta"})
            yield index + 1, index, own | {"turns": turns, "options": options}

    def picture(self, place: int, column: str) -> bytes:
        return self._data.image(self._data.rows[place].image_paths[int(column)])


def _paths(config: BenchmarkConfig) -> list[Path]:
    """Raises DataError for a path that stands for no file."""
    paths: list[Path] = []
    for name in [config.path] if isinstance(config.path, str) else config.path:
        if Path(name).is_dir() and (tables := sorted(Path(name).rglob("*.tsv"))):
            paths += tables
        else:
            paths += [path for path, _ in data_files(name, Path)]
    if missing := [path for path in paths if not path.is_file()]:
        raise DataError(f"{missing[0]} does not exist: download the benchmark's files, or add --download")
    return paths


def _open(path: Path) -> RowFile:
    if path.suffix == ".tsv":
        return _Table(path, _tsv_rows(path))
    if path.suffix == ".json" and path.read_bytes()[:64].lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
        rows = _by_key(path)
        if rows is not None:
            return _Table(path, rows)
    return open_rows(path)


class _Table(RowFile):
    """Rows that are all in memory. A row's place is its number, from 0."""

    container = "table"

    def __init__(self, path: Path, rows: Sequence[dict[str, Any]]) -> None:
        super().__init__(path)
        self._rows = rows

    def __iter__(self) -> Iterator[Found]:
        return (Found(index, index + 1, row) for index, row in enumerate(self._rows))

    def read(self, place: int) -> Any:
        return self._rows[place]

    @property
    def progress(self) -> float:
        return 1.0


def _by_key(path: Path) -> list[dict[str, Any]] | None:
    """The rows of one object of rows, as MathVista's repository has them; None if it is JSON Lines of one row."""
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return None
    if isinstance(value, dict) and value and all(isinstance(row, dict) for row in value.values()):
        return [{"pid": key} | row for key, row in value.items()]
    return None


def _tsv_rows(path: Path) -> list[dict[str, Any]]:
    """Columns by the header; what looks like JSON is read as such, a picture in base64 becomes a data URI."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    with path.open(encoding="utf-8-sig", newline="") as file:
        return [
            {name: _cell(name, text) for name, text in row.items() if name and text not in (None, "")}
            for row in csv.DictReader(file, delimiter="\t")
        ]


def _cell(name: str, text: str) -> Any:
    if "image" in name and len(text) > 256 and not text.startswith("data:") and "." not in text[:256]:
        return f"data:;base64,{text}"
    if text[:1] in "[{":
        try:
            return json.loads(text)
        except ValueError:
            return text
    return text
