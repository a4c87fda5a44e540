"""What every row of a file is held against, whoever reads it."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from prism.data.checks import Size, check_request, image_check
from prism.data.files import Found
from prism.data.importers import Reader
from prism.data.index import at_turn, learnt_turns
from prism.data.row import DataRow, validated
from prism.errors import DataError
from prism.wire.response import parse_response

if TYPE_CHECKING:
    from prism.data.rows import DataFile

Seen = tuple[Any, list[int], list[tuple[DataRow, list[Size]]]]
"""A row's id, which of its turns are learnt from, and it at each of them with the sizes of its images."""


@dataclass(frozen=True)
class Look:
    """May be sent to another process."""

    reader: Reader
    require: tuple[str, ...]
    turns: str | None
    images: Literal["decode", "exist"]
    data: "DataFile"

    def __call__(self, found: Found) -> Seen:
        """Raises one of ROW_ERRORS for a row that cannot be used."""
        if found.problem:
            raise found.problem
        own = self.reader.own(found.value)
        learnt, seen = learnt_turns(own, self.turns), []
        for turn in learnt:
            row = validated(at_turn(own, turn))
            _refuse_unusable(row, self.require)
            names = row.image_paths
            if len(names) > self.data.limits.max_images:
                raise DataError(f"{len(names)} images, over the limit of {self.data.limits.max_images} (max_images)")
            sizes = [size for name in names if (size := self._size_of(name))]
            check_request(row, sizes, self.data)
            seen.append((row, sizes))
        return own["id"], learnt, seen

    @cached_property
    def _size_of(self) -> Any:
        return image_check(self.data, decode=self.images == "decode")

    def __reduce__(self) -> tuple[Any, ...]:
        return Look, (self.reader, self.require, self.turns, self.images, self.data)


def _refuse_unusable(row: DataRow, require: tuple[str, ...]) -> None:
    """Raises DataError unless the row has each of these texts, and the teacher's has its three sections."""
    if missing := [key for key in require if getattr(row, key) is None]:
        raise DataError(f"{', '.join(missing)} is missing or empty, which this stage needs")
    if "teacher" in require and (problems := parse_response(row.teacher or "").problems):
        raise DataError(f"the teacher's text is not in the response format: {', '.join(problems)}")
