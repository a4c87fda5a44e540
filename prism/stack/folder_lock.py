"""One trainer at a time in a run's folder, and one set of services: locks that the kernel holds.

A lock is ``flock`` on a file beside the run's folder, so that ``--fresh`` can delete the folder while it is held. It
ends with the last process that has the file open, however that process ends: a kill leaves nothing to clean up. The
file also says who holds it. On NFS it holds between machines unless the mount says ``nolock`` or ``local_lock``.
"""

import errno
import fcntl
import json
import logging
import os
import secrets
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from prism.errors import LockedError
from prism.files import make_folder

Use = Literal["trainer", "services", "curation"]

LOCKS = ".locks"
INHERITED = "PRISM_RUN_LOCK"  # a process that was started by the holder is told the holder's key
LOOK_SECONDS = 0.5
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)
DOES = {"trainer": "trains", "services": "runs its services", "curation": "curates"}

log = logging.getLogger("prism")


@dataclass(frozen=True)
class FolderLock:
    """What a process started by the holder needs in order to share the lock: the open file and the key."""

    key: str
    opened: int | None
    """None where the lock was inherited, or the file system has none."""

    @property
    def environment(self) -> dict[str, str]:
        return {INHERITED: self.key}

    @property
    def files(self) -> tuple[int, ...]:
        """To pass on: a child that outlives the holder keeps the folder locked until it ends too."""
        return () if self.opened is None else (self.opened,)


@contextmanager
def lock_run(folder: Path, *uses: Use, wait_seconds: float = 0) -> Iterator[FolderLock]:
    """Hold a run's folder for all of ``uses``; gives the lock of the first.

    A trainer that the holder has started shares the holder's. Raises LockedError, which names the holder, if another
    process has not let go after ``wait_seconds``; nothing is touched by then.
    """
    folder = folder.resolve()  # a link is another name of the same folder
    give_up = time.monotonic() + wait_seconds
    with ExitStack() as held:
        locks = []
        for use in uses:
            file = folder.parent / LOCKS / use / folder.name
            make_folder(file.parent)
            opened = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
            held.callback(os.close, opened)
            locks.append(_acquire(folder, use, opened, give_up))
        yield locks[0]


def refuse_use_below(folder: Path) -> None:
    """Raises LockedError if a run inside ``folder``, which is about to be deleted, is in use."""
    for file in folder.resolve().rglob(f"{LOCKS}/*/*"):
        opened = os.open(file, os.O_RDWR)
        try:
            if not _try(opened):
                use: Use = next(use for use in get_args(Use) if use == file.parent.name)
                raise _locked(file.parents[2] / file.name, use, _holder(opened))
        finally:
            os.close(opened)


def _acquire(folder: Path, use: Use, opened: int, give_up: float) -> FolderLock:
    told = False
    while True:
        try:
            if _try(opened):
                return FolderLock(_sign(opened), opened)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            log.warning("%s: this file system has no locks; see that nobody else uses this run", folder)
            return FolderLock(secrets.token_hex(8), None)
        holder = _holder(opened)
        if holder and holder["key"] == os.environ.get(INHERITED):
            return FolderLock(holder["key"], None)
        if time.monotonic() >= give_up:
            raise _locked(folder, use, holder)
        if not told:
            log.warning("waiting: %s", _locked(folder, use, holder))
            told = True
        time.sleep(LOOK_SECONDS)


def _try(opened: int) -> bool:
    """Whether the lock could be taken. Raises OSError where there are none."""
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _sign(opened: int) -> str:
    key = secrets.token_hex(8)
    arguments = ["prism", *sys.argv[1:3]] if len(sys.argv) > 1 else ["prism"]
    holder = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "command": " ".join(arguments),
        "key": key,
    }
    os.ftruncate(opened, 0)
    os.pwrite(opened, json.dumps(holder).encode(), 0)
    return key


def _holder(opened: int) -> dict[str, Any] | None:
    """None in the moment in which it has not said yet who it is."""
    with suppress(ValueError):
        return json.loads(os.pread(opened, 4096, 0))
    return None


def _locked(folder: Path, use: Use, holder: dict[str, Any] | None) -> LockedError:
    who = "another process"
    if holder:
        who = "`{command}` (process {pid} on {host}, since {since})".format(**holder)
    return LockedError(
        f"{folder} is in use: {who} {DOES[use]} there. Nothing was touched. Stop it or wait for it "
        "(--wait-for-lock SECONDS), or take another name with --set name=..."
    )
