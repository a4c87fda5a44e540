"""Many files as one: patterns, folders, shards, weights; and the order in which an epoch sees their rows."""

import glob
import random
import re
from array import array
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from prism.config import DataConfig, DataNames, data_configs
from prism.data.importers import dataset_info
from prism.errors import DataError

SUFFIXES = (".jsonl", ".json", ".parquet")
NO_ROWS = {dataset_info.NAME, "dataset_infos.json", "dataset_dict.json", "state.json", "config.json", "README.json"}
SHARD = re.compile(r"(?P<split>.*)-(?P<number>\d{3,})-of-(?P<count>\d{3,})(?P<rest>.*)")


def data_files(names: DataNames, resolve: Callable[[str], Path]) -> list[tuple[Path, DataConfig]]:
    """Each file that a configuration names, in order, with what it says of it; ``resolve`` gives a path by its name.

    Raises DataError for a name that stands for no file, and for shards of which one is missing.
    """
    return [(path, entry) for entry in data_configs(names) for path in _files(entry, resolve)]


def _files(entry: DataConfig, resolve: Callable[[str], Path]) -> list[Path]:
    path = resolve(entry.path)
    if path.name == dataset_info.NAME and path.is_file():
        known = dataset_info.read(path)
        if not entry.dataset:
            raise DataError(f"{path} describes {', '.join(sorted(known))}: name one of them as dataset")
        return [path.parent / dataset_info.described(path, known, entry.dataset).file]
    if path.is_dir():
        found = sorted(file for file in path.rglob("*") if _may_hold_rows(file, path))
        if not found:
            raise DataError(f"data folder {path} holds no {', '.join(SUFFIXES)}")
        splits = {match["split"] for file in found if (match := SHARD.fullmatch(file.stem))}
        if len(splits) > 1 or len({file.suffix == ".parquet" for file in found}) > 1:
            names = ", ".join(sorted(splits) or sorted({f"*{file.suffix}" for file in found}))
            raise DataError(f"data folder {path} holds several things ({names}): name one with a pattern, {path}/…*")
    elif path.exists() or not glob.has_magic(entry.path):
        return [path]  # whoever reads it says so if it is not there
    else:
        found = sorted(Path(name) for name in glob.glob(str(path), recursive=True) if Path(name).is_file())
        if not found:
            raise DataError(f"no data file matches {path}")
    _refuse_missing_shards(found)
    return found


def _may_hold_rows(file: Path, folder: Path) -> bool:
    hidden = any(part.startswith((".", "_")) for part in file.relative_to(folder).parts)
    return file.suffix in SUFFIXES and file.name not in NO_ROWS and not hidden and file.is_file()


def _refuse_missing_shards(files: Iterable[Path]) -> None:
    shards: dict[tuple[Path, str, str, int], set[int]] = {}
    for file in files:
        if match := SHARD.fullmatch(file.name):
            key = (file.parent, match["split"], match["rest"], int(match["count"]))
            shards.setdefault(key, set()).add(int(match["number"]))
    for (folder, split, _, count), found in shards.items():
        if missing := sorted(set(range(count)) - found):
            raise DataError(
                f"{folder}: {len(missing)} of {count} shards of {split} are missing, number {missing[0]} first"
            )


class Epochs:
    """Which rows an epoch sees, in which order: a function of seed and epoch alone, so resume is exact."""

    def __init__(self, parts: Sequence[tuple[int, float]], seed: str) -> None:
        """``parts``: rows and weight of each file. A weight's fraction sees other rows in each epoch, until all are."""
        self._parts, self._seed = parts, seed
        self._some = [max(1, round(rows * (weight % 1))) if rows and weight % 1 else 0 for rows, weight in parts]
        self._length = sum(int(weight) * rows + some for (rows, weight), some in zip(parts, self._some, strict=True))

    def __len__(self) -> int:
        """Of one epoch."""
        return self._length

    def order(self, epoch: int) -> array:
        """Indices, 8 bytes each."""
        found, first = array("q"), 0
        for number, (rows, weight) in enumerate(self._parts):
            for _ in range(int(weight)):
                found.extend(range(first, first + rows))
            if some := self._some[number]:
                found.extend(first + row for row in self._fraction(number, rows, epoch * some, (epoch + 1) * some))
            first += rows
        random.Random(f"{self._seed}/{epoch}").shuffle(found)
        return found

    def _fraction(self, number: int, rows: int, start: int, end: int) -> array:
        """A stretch of one file's rows, shuffled anew each time that all have been seen."""
        found = array("q")
        while start < end:
            turn, offset = divmod(start, rows)
            order = array("q", range(rows))
            random.Random(f"{self._seed}/file {number}/{turn}").shuffle(order)
            found.extend(order[offset : offset + end - start])
            start = min(end, (turn + 1) * rows)
        return found
