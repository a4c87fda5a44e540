"""Demonstrations: rows from disk, in an order of the seed's own, as examples that are made when they are needed."""

from array import array
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal

from cachetools import LRUCache
from rich.console import Console
from rich.markup import escape

from prism.data.mixture import Epochs
from prism.data.rows import ROW_ERRORS, DataFile, DataRow, Mixture, what_is_wrong
from prism.errors import DataError
from prism.model.inputs import Example, InputBuilder
from prism.trainer.flow.lengths import too_long
from prism.wire.messages import from_json


class Demonstrations:
    """The rows of all files as examples. As many of those last used as ``cache_bytes`` hold are kept."""

    def __init__(
        self,
        files: Sequence[DataFile],
        target: str,
        inputs: InputBuilder,
        *,
        cache_bytes: int,
        on_bad_row: Literal["skip", "fail"],
        say: Callable[[str], None],
        max_tokens: int | None = None,
    ) -> None:
        self.files, self._target, self._inputs, self._max_tokens = files, target, inputs, max_tokens
        self._rows = Mixture(files)
        self._cache: LRUCache[int, Example] = LRUCache(cache_bytes, getsizeof=lambda example: example.nbytes)
        self._on_bad_row, self._say = on_bad_row, say
        self._said: set[int] = set()
        self._background = ThreadPoolExecutor(1, "demonstrations")
        self._ahead: tuple[list[int], Future[list[Example]]] = [], self._background.submit(self._make, [])

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def parts(self) -> list[tuple[int, float]]:
        """Rows and weight of each file, for their order."""
        return self._rows.parts

    @property
    def bad_rows(self) -> int:
        """Of the files, and those found bad since."""
        return sum(file.bad_rows for file in self.files) + len(self._said)

    def batch(self, indices: list[int], ahead: list[int]) -> list[Example]:
        """The examples of ``indices``, without those that turn out to be bad. Those of ``ahead``, the next batch,
        are made in the background until then.

        Raises DataError if, with ``on_bad_row="fail"``, one is bad.
        """
        expected, made = self._ahead[0], self._ahead[1].result()  # waited for in any case: one thread uses the cache
        if expected != indices:
            made = self._make(indices)
        self._ahead = ahead, self._background.submit(self._make, ahead)
        return made

    def source(self, index: int) -> dict[str, str]:
        """Where an example comes from."""
        file, row = self._rows.at(index)
        return {"file": str(file.path), "id": row.id}

    def _make(self, indices: list[int]) -> list[Example]:
        return [example for index in indices if (example := self._example(index)) is not None]

    def _example(self, index: int) -> Example | None:
        if (known := self._cache.get(index)) is not None:
            return known
        try:
            file, row = self._rows.at(index)
            example = self._inputs.with_text(prompt_of(row, file, self._inputs), getattr(row, self._target))
            if self._max_tokens and len(example.input_ids) > self._max_tokens:
                raise DataError(f"row {row.id} of {file.path}: {too_long(len(example.input_ids), self._max_tokens)}")
        except ROW_ERRORS as error:
            if self._on_bad_row == "fail":
                raise DataError(what_is_wrong(error)) from None
            if index not in self._said:
                self._said.add(index)
                self._say(f"left out: {what_is_wrong(error)}")
            return None
        if example.nbytes <= self._cache.maxsize:
            self._cache[index] = example
        return example


class Order:
    """Which examples a step sees: shuffled anew each epoch, a function of seed and step alone, so resume is exact."""

    def __init__(self, rows: int | Sequence[tuple[int, float]], batch: int, seed: int) -> None:
        """``rows``: how many there are, or those of each file with their weight."""
        self._epochs, self._batch = Epochs([(rows, 1.0)] if isinstance(rows, int) else rows, f"{seed}"), batch
        self._epoch, self._shuffled = -1, array("q")

    def at(self, step: int) -> list[int]:
        return [self._one(position) for position in range(step * self._batch, (step + 1) * self._batch)]

    def _one(self, position: int) -> int:
        epoch, offset = divmod(position, len(self._epochs))
        if epoch != self._epoch:
            self._epoch, self._shuffled = epoch, self._epochs.order(epoch)
        return self._shuffled[offset]


def prompt_of(row: DataRow, file: DataFile, inputs: InputBuilder) -> Example:
    """Raises DataError that names row and file."""
    try:
        return inputs.prompt(from_json(row.messages, str), [file.decode_image(name) for name in row.image_paths])
    except DataError as error:
        raise DataError(f"row {row.id} of {file.path}: {error}") from None


def report_problems(file: DataFile, console: Console) -> None:
    """Say which rows were skipped: the first few, and how many."""
    for problem in file.problems[:5]:
        console.print(f"[yellow]skipped[/] {escape(problem)}", soft_wrap=True)
    if file.bad_rows:
        name = escape(str(file.path))
        console.print(f"[yellow]{file.bad_rows} rows of {name} skipped[/], {len(file.rows)} used")
