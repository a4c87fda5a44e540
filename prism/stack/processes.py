"""Processes that end with the one that started them, and everything they started with them."""

import ctypes
import os
import signal
import subprocess
from collections.abc import Collection
from contextlib import suppress
from typing import IO

PR_SET_PDEATHSIG = 1


def start_process(
    command: list[str],
    environment: dict[str, str],
    output: IO[bytes] | None = None,
    keep: tuple[int, ...] = (),
    withheld: Collection[str] = (),
) -> subprocess.Popen[bytes]:
    """Start a process that gets SIGTERM should this thread end, however it ends.

    ``environment`` comes on top of ours, of which the variables ``withheld`` are left out; ``keep`` are open files that
    it gets beside its output.
    """
    prctl = ctypes.CDLL(None).prctl  # looked up before the fork: the child may only call what is ready
    return subprocess.Popen(
        command,
        env={name: value for name, value in os.environ.items() if name not in withheld} | environment,
        stdout=output,
        stderr=subprocess.STDOUT if output else None,
        stdin=subprocess.DEVNULL,
        pass_fds=keep,
        start_new_session=True,  # Ctrl-C comes to us alone, and we end our processes in order
        preexec_fn=lambda: prctl(PR_SET_PDEATHSIG, signal.SIGTERM),
    )


def end_group(process: subprocess.Popen[bytes], patience_seconds: float) -> None:
    """Wait for a process of ``start_process`` that was told to end, then kill it and whatever it has left behind."""
    with suppress(subprocess.TimeoutExpired):
        process.wait(patience_seconds)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
