"""A job that is hard to end: it forks a process that leaves its group and, like itself, ignores SIGTERM."""

import fcntl
import os
import signal
import sys
import time
from pathlib import Path


def main() -> None:
    journal, job, seconds = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    lock = os.open(journal / f"{job}.lock", os.O_RDWR | os.O_CREAT)
    os.set_inheritable(lock, True)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        note(journal, job, "twice")  # another attempt, or what it has left, is alive
        sys.exit(3)
    note(journal, job, "start")
    if os.fork() == 0:
        os.setsid()
        time.sleep(3600)
        os._exit(0)
    time.sleep(seconds)
    note(journal, job, "end")


def note(journal: Path, job: str, what: str) -> None:
    with (journal / "journal").open("a") as file:
        file.write(f"{job} {what}\n")


if __name__ == "__main__":
    main()
