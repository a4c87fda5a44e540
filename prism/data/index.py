"""Where rows stand: 8 bytes for each, from which it is read again."""

from array import array
from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from typing import Any, TypeVar, overload

import numpy as np

from prism.data.files import Found, RowFile
from prism.data.importers.assemble import content_id
from prism.errors import DataError

RowT = TypeVar("RowT")
TURN_BITS = 10
"""Of the 64: which of a row's turns is learnt from; the rest is its place, in files of up to 8 petabytes."""
MAX_TURNS = 2**TURN_BITS - 1


class LazyRows(Sequence[RowT]):
    """Rows of a file, each read and parsed when it is asked for. Thread-safe; may be sent to another process."""

    def __init__(self, file: RowFile, places: array, parse: Callable[[Any, int], RowT]) -> None:
        self._file, self._places, self._parse = file, places, parse

    def __reduce__(self) -> tuple[Any, ...]:
        return LazyRows, (self._file, self._places, self._parse)

    def __len__(self) -> int:
        return len(self._places)

    @property
    def nbytes(self) -> int:
        """Of memory, for all of them."""
        return len(self._places) * self._places.itemsize

    @overload
    def __getitem__(self, index: int) -> RowT: ...
    @overload
    def __getitem__(self, index: slice) -> list[RowT]: ...
    def __getitem__(self, index: int | slice) -> RowT | list[RowT]:
        """Raises what reading a row raises, should the file have been written to since its rows were found."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place, turn = self._places[index] >> TURN_BITS, self._places[index] & MAX_TURNS
        return self._parse(self._file.read(place), turn)


def learnt_turns(own: dict[str, Any], turns: str | None) -> list[int]:
    """Which turns of a row of PRISM's own are learnt from, for ``at_turn``: "all", the "last", or the row as it is.

    Raises DataError if there are none.
    """
    if turns is None or "learnt" not in own:
        return [0]
    last = len(own["messages"])
    learnt = own["learnt"]
    if turns == "last":
        learnt = [place for place in learnt if place == last]
    if not learnt:
        raise DataError("nothing is learnt from it: each of the assistant's turns has weight 0 (or loss false)")
    if learnt == [last]:
        return [0]
    if last >= MAX_TURNS:
        raise DataError(f"{last + 1} turns, over the limit of {MAX_TURNS}")
    for place in learnt:
        if place < last and not own["messages"][place]["content"].strip():
            raise DataError(f"messages.{place}: a turn of the assistant that is learnt from is blank")
    return [place + 1 for place in learnt]


def at_turn(own: dict[str, Any], turn: int) -> dict[str, Any]:
    """The row up to one of its turns, which is then the response; 0 stands for the row as it is."""
    if not turn:
        return own
    place, messages = turn - 1, own["messages"]
    response = own["response"] if place == len(messages) else messages[place]["content"]
    number = 1 + sum(message["role"] == "assistant" for message in messages[:place])
    return own | {"id": f"{own['id']}/{number}", "messages": messages[:place], "response": response}


def id_digest(given: Any) -> int:
    """64 bits, which differ if ids do."""
    return int.from_bytes(blake2b(str(given).encode(errors="surrogatepass"), digest_size=8).digest())


class RowIndex:
    """The good rows of a file, as they are found."""

    def __init__(self, parser: Any) -> None:
        """``parser`` is a RowParser, or None where nothing is read again."""
        self.parser = parser
        self.examples = array("q")
        """What LazyRows takes, one for each turn that is learnt from."""
        self.places, self.numbers, self.ids = array("q"), array("q"), array("Q")
        """Of each row: where it is read again, its line, its id's digest."""

    def __len__(self) -> int:
        return len(self.examples)

    def add(self, found: Found, given: Any, turns: Sequence[int]) -> None:
        self.places.append(found.place)
        self.numbers.append(found.number)
        self.ids.append(id_digest(given))
        self.examples.extend(found.place << TURN_BITS | turn for turn in turns)

    def at(self, row: int) -> tuple[int, int]:
        """Place and line of a row."""
        return self.places[row], self.numbers[row]

    def extend(self, other: "RowIndex", lines: int) -> None:
        """By the rows of another, which stand behind these ``lines``."""
        self.places.extend(other.places)
        self.numbers.extend(number + lines for number in other.numbers)
        self.ids.extend(other.ids)
        self.examples.extend(other.examples)

    def leave_out(self, places: Sequence[int]) -> None:
        """Take out the rows of these places."""
        if not places:
            return
        kept = ~np.isin(np.array(self.places), places)
        for of_rows in (self.places, self.numbers, self.ids):
            of_rows[:] = array(of_rows.typecode, np.array(of_rows)[kept].tobytes())
        self._leave_out_examples(places)

    def _leave_out_examples(self, places: Sequence[int]) -> None:
        found = np.array(self.examples)
        self.examples = array("q", found[~np.isin(found >> TURN_BITS, places)].tobytes())

    def repeated(self, file: RowFile) -> Iterator[tuple[int, str]]:
        """Line and problem of each row that stands there again, which is taken out.

        Where ids are no names, rows that share one and differ both stay, and get ids of their own.
        """
        values = np.frombuffer(self.ids, np.uint64)
        order = np.argsort(values, kind="stable")
        same = values[order[1:]] == values[order[:-1]]
        several = np.concatenate((same, [False])) | np.concatenate(([False], same)) if len(order) else same
        seen: dict[int, dict[str, int]] = {}  # by an id's digest: the first row of each content
        unique = self.parser.reader.format.unique_ids
        out: list[int] = []
        for index in np.sort(order[several]).tolist():
            own = self.parser.reader.own(file.read(self.places[index]))
            first = seen.setdefault(self.ids[index], {}).setdefault("" if unique else content_id(own), index)
            if first != index:
                out.append(self.places[index])
                again = " in this file" if unique else f": it is the row of line {self.numbers[first]} again"
                yield self.numbers[index], f"id {str(own['id'])!r} stands twice{again}"
        if out:
            self._leave_out_examples(out)
        if shared := frozenset(digest for digest, contents in seen.items() if len(contents) > 1):
            self.parser = type(self.parser)(self.parser.reader, shared)
