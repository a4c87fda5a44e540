"""A process between a worker and a job's command: it sees that nothing of the job outlives its right to run.

The worker writes to its standard input: first a line of JSON that says what to run, then, after each heartbeat, the
steady clock's time before it was sent, or ``cancel``. The command and all that it starts end when the input ends (the
worker died), when no heartbeat has come for ``keep_seconds`` (the job may be queued again elsewhere soon), when it is
cancelled, and when the command itself ends. What ignores SIGTERM is killed, and so is what left its process group:
this process is the one that orphans below it are handed to. (Imports little: it starts in a tenth of a second.)
"""

import ctypes
import json
import math
import os
import select
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import psutil

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
LOOK_SECONDS = 0.1
MARK = "PRISM_JOB"


def main() -> None:
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1)
    first, pending = b"", b""
    while b"\n" not in pending:  # no reader of Python's own, whose buffer would keep what comes with the first line
        data = os.read(0, 65536)
        if not data:
            return  # the worker died before it said what to run
        pending += data
    first, _, pending = pending.partition(b"\n")
    spec = json.loads(first)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # the worker says when, by closing the pipe
    beat = spec["beat"]
    # Looked up before the fork: the child may only call what is ready.
    prctl, term = libc.prctl, {signal.SIGTERM, signal.SIGINT}

    def prepare() -> None:
        for number in term:
            signal.signal(number, signal.SIG_DFL)
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

    with open(spec["log"], "ab") as log:
        process = subprocess.Popen(
            spec["command"],
            cwd=spec["cwd"],
            env=spec["environment"] | {MARK: spec["mark"]},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=prepare,
        )
    why, give_up = "", math.inf
    while process.poll() is None and time.monotonic() < give_up:
        before = why
        *lines, pending = pending.split(b"\n")
        for line in lines:
            if line == b"cancel":
                why = "cancel"
            else:
                beat = max(beat, float(line))
        readable, _, _ = select.select([0] if why in ("", "cancel") else [], [], [], 0 if lines else LOOK_SECONDS)
        if readable:
            data = os.read(0, 65536)
            pending += data
            why = why if data else "worker"
        now = time.monotonic()
        if not readable and now - beat > spec["keep_seconds"]:
            why = "lease"
        if why != before:
            give_up = min(give_up, now + spec["grace_seconds" if why == "cancel" else "kill_seconds"])
            if not before:
                process.send_signal(signal.SIGTERM)
    status = kill_all(process)
    if why in ("", "cancel"):  # else another attempt may go on, and this one has no word in it
        write(Path(spec["exit"]), {"status": status, "cancelled": why == "cancel"})


def kill_all(process: subprocess.Popen[bytes]) -> int:
    """Kill the command and all below us, until nothing is left; returns the command's status."""
    if process.poll() is None:
        process.kill()
    me = psutil.Process()
    while left := [child for child in me.children(recursive=True) if child.pid != process.pid]:
        for child in left:
            with suppress(psutil.NoSuchProcess):
                child.kill()
        _reap(process.pid)
        time.sleep(0.01)
    return process.wait()


def _reap(but: int) -> None:
    """Take leave of orphans that have ended; the command's own end is its Popen's to learn."""
    for child in psutil.Process().children():
        if child.pid != but and child.status() == psutil.STATUS_ZOMBIE:
            with suppress(ChildProcessError):
                os.waitpid(child.pid, os.WNOHANG)


def write(file: Path, value: object) -> None:
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(value))
    os.replace(partial, file)


if __name__ == "__main__":
    main()
