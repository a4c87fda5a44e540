"""The one place that writes files that must last: a kill or a power cut at any moment leaves the old or the new, whole.

A file or folder is written under another name beside its own, synced to the disk and renamed; then the folder that
holds the name is synced. JSON Lines are appended to; of a line that was being written, the torn half is dropped.
Folders that are missing on the way are made. Everything here raises OSError where the disk is full or refuses.
"""

import ctypes
import errno
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from prism.errors import DataError

AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of Linux's renameat2

_unsynced: set[Path] = set()
"""Files that were written with ``sync=False`` and not synced yet."""


def write_text(path: Path, text: str, *, mode: int | None = None) -> None:
    """Write a file whole, in UTF-8. ``mode``: as in ``write_bytes``."""
    write_bytes(path, text.encode(), mode=mode)


def write_json(path: Path, value: Any, *, mode: int | None = None) -> None:
    """Write ``value`` as an indented JSON file, whole. ``mode``: as in ``write_bytes``."""
    write_text(path, json.dumps(value, indent=1), mode=mode)


def write_bytes(path: Path, data: bytes, *, mode: int | None = None, sync: bool = True) -> None:
    """Write a file whole. Where ``mode`` is given the file gets it exactly, and nobody else can read it before.

    Without ``sync`` only a kill cannot halve it: for many small files which a reader checks and can have again. They
    are on the disk no later than the next folder that this process seals.
    """
    make_folder(path.parent)
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")  # several processes may write the same file
    try:
        opened = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666 if mode is None else 0o600)
        try:
            _write_all(opened, data)
            if mode is not None:
                os.fchmod(opened, mode)
            if sync:
                os.fsync(opened)
        finally:
            os.close(opened)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    if sync:
        _sync(path.parent)
    else:
        _unsynced.add(path)


def partial_of(target: Path) -> Path:
    """The folder in which ``sealed_folder(target)`` has the content written."""
    return target.with_name(f"{target.name}.partial")


@contextmanager
def sealed_folder(target: Path, partial: Path | None = None) -> Iterator[Path]:
    """A new, empty folder to fill, which becomes ``target`` at the end of the ``with``; after an error it is deleted.

    ``partial``: where it lies meanwhile, on the same file system; without, ``partial_of(target)``. A ``target`` that
    exists is replaced.
    """
    partial = partial or partial_of(target)
    shutil.rmtree(partial, ignore_errors=True)
    make_folder(target.parent)
    try:
        partial.mkdir(exist_ok=True)  # another rank that writes into it may be earlier
        yield partial
        seal(partial, target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def seal(partial: Path, target: Path) -> None:
    """Make the finished folder ``partial`` be ``target``, in one step, once it and all that was written is on the disk.

    A ``target`` that exists is replaced. Only a file system that cannot exchange two names (NFS) has a moment between,
    in which the old folder is called ``NAME.old``.
    """
    sync_written()
    sync_tree(partial)
    if not target.exists():
        os.rename(partial, target)
    else:
        try:
            _exchange(partial, target)
        except (AttributeError, OSError):
            aside = target.with_name(f"{target.name}.old")
            shutil.rmtree(aside, ignore_errors=True)
            os.rename(target, aside)
            os.rename(partial, target)
            os.rename(aside, partial)
    _sync(target.parent)
    shutil.rmtree(partial, ignore_errors=True)  # the old one, if there was one


def make_folder(folder: Path) -> None:
    """As ``mkdir -p``, on the disk."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        _sync(folder.parent)


def sync_tree(folder: Path) -> None:
    """Wait until every file and folder under ``folder``, and itself, is on the disk."""
    for root, _, names in os.walk(folder, topdown=False):
        for name in sorted(names):
            _sync(Path(root) / name)
        _sync(Path(root))


def append_json(path: Path, *records: Any, sync: bool = True, ensure_ascii: bool = True) -> None:
    """Append a line of JSON for each record, in one write. There must be no other writer.

    Without ``sync`` the lines are on the disk no later than the next folder that this process seals.
    """
    make_folder(path.parent)
    cut_torn_tail(path)
    lines = "".join(json.dumps(record, ensure_ascii=ensure_ascii) + "\n" for record in records)
    opened = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        _write_all(opened, lines.encode())
    finally:
        os.close(opened)
    _unsynced.add(path)
    if sync:
        sync_written()


def sync_written() -> None:
    """Wait until all that this process has written without ``sync`` is on the disk."""
    while _unsynced:
        path = _unsynced.pop()
        with suppress(FileNotFoundError):  # deleted meanwhile, with its folder
            _sync(path)
            _sync(path.parent)


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The records of a file that ``append_json`` wrote, without a torn last line; none if there is no file.

    Raises DataError that names file and line for any other line that is no JSON object.
    """
    try:
        whole, _, _ = path.read_bytes().rpartition(b"\n")
    except FileNotFoundError:
        return []
    records: list[dict[str, Any]] = []
    for number, line in enumerate(whole.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}:{number}: not JSON: {error}; delete the line to go on without it") from None
        if not isinstance(record, dict):
            raise DataError(f"{path}:{number}: not a JSON object; delete the line to go on without it")
        records.append(record)
    return records


def cut_torn_tail(path: Path) -> bool:
    """Cut off what follows the last line end: half a line, left by a writer that was killed. False if nothing did."""
    with suppress(FileNotFoundError), path.open("r+b") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return False
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            file.truncate(path.read_bytes().rfind(b"\n") + 1)
            return True
    return False


def _write_all(opened: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(opened, left) :]


def _sync(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems have no such call for a folder
            raise
    finally:
        os.close(opened)


def _exchange(one: Path, other: Path) -> None:
    """Swap two names in one step. Raises OSError or AttributeError where file system or libc cannot."""
    renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    if renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE):
        raise OSError(ctypes.get_errno(), f"{one} and {other} cannot be exchanged")
