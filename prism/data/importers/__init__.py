"""Public data as it is: a small module for each format, and one place that makes PRISM's own row of what it read.

A file's format is found by its first rows, or named. Each row is then read by it, or refused by name.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from prism.data.importers import dataset_info, llama_factory, llava, ms_swift, openai, prism, trl, verl
from prism.data.importers.assemble import MAIN_KEYS, answer_row, own_row
from prism.data.importers.draft import Format, Tags
from prism.data.importers.keys import is_blank
from prism.errors import ConfigError, DataError

# Where several fit, the first: what the one before says of a row, the next leaves open.
FORMATS: dict[str, Format] = {
    form.name: form
    for form in (
        verl.FORMAT, llava.FORMAT, llama_factory.SHAREGPT, llama_factory.ALPACA, verl.EASYR1, ms_swift.FORMAT,
        prism.FORMAT, trl.FORMAT, openai.FORMAT,
    )
}  # fmt: skip
SAMPLED_ROWS = 100


@dataclass(frozen=True)
class Reader:
    """How the rows of one file are read. May be sent to another process."""

    format: Format
    columns: Mapping[str, str] = field(default_factory=dict)
    """The file's keys, by those of the format that they stand for."""
    tags: Tags | None = None

    def own(self, value: Any) -> dict[str, Any]:
        """PRISM's own row: see ``own_row``. Raises DataError."""
        return own_row(self._renamed(value), self.format, self.tags)

    def answer(self, value: Any) -> dict[str, Any]:
        """What there is to grade: see ``answer_row``. Raises DataError."""
        return answer_row(self._renamed(value), self.format, self.tags)

    def _renamed(self, value: Any) -> Any:
        if not self.columns or not isinstance(value, dict):
            return value
        kept = {key: one for key, one in value.items() if key not in self.columns.values()}
        for key, column in self.columns.items():
            if not is_blank(kept.get(key)):
                raise DataError(f"{key}: the row has it, and columns name {column} for it")
            if column in value:
                kept[key] = value[column]
        return kept


def find_reader(
    path: Path, rows: Iterable[Any], name: str = "auto", columns: Mapping[str, str] | None = None, dataset: str = ""
) -> Reader:
    """How a file is read: as ``name`` says, else as a dataset_info.json beside it says, else as its rows look.

    ``rows`` are values of the file, of which the first are looked at. Raises DataError where no format fits, and
    ConfigError for a name that is none.
    """
    columns = dict(columns or {})
    if name != "auto" and name not in FORMATS:
        raise ConfigError(f"format: {name!r} is none of auto, {', '.join(FORMATS)}")
    described = dataset_info.find(path, dataset) if dataset or name in ("auto", "sharegpt", "alpaca") else None
    if described and (dataset or name in ("auto", described.format)):
        return Reader(FORMATS[described.format], described.columns | columns, described.tags)
    if name != "auto":
        return Reader(FORMATS[name], columns)
    sample = [Reader(prism.FORMAT, columns)._renamed(row) for row in islice(rows, SAMPLED_ROWS)]
    sample = [row for row in sample if isinstance(row, dict)]
    mains = Counter(key for row in sample if (key := next((k for k in (*MAIN_KEYS, "response") if k in row), None)))
    if not mains:
        # Rows that fit no format are refused one by one as rows of our own, each with what it lacks.
        return Reader(prism.FORMAT, columns)
    main = mains.most_common(1)[0][0]
    of_main = [row for row in sample if main in row]
    found = next((form for form in FORMATS.values() if any(form.detect(row) for row in of_main)), prism.FORMAT)
    return Reader(found, columns)
