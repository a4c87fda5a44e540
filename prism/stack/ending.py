"""SIGTERM ends a command as Ctrl-C does: what it started is stopped, and it leaves with 143, without a traceback.

A handler must be installed for that. Without one, the kernel discards the signal where Python is process 1 of a
container, which then lives on until it is killed.
"""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from prism import telemetry

STATUS = 128 + signal.SIGTERM

log = logging.getLogger("prism")


def end_on_sigterm() -> None:
    """From now on SIGTERM raises SystemExit(143) in the main thread, once; a further one does not disturb the end."""
    signal.signal(signal.SIGTERM, _end)


def leave(status: object) -> None:
    """Returns unless SIGTERM is what raised the SystemExit with this ``status``: then the process ends here.

    Threads that still work are not waited for: what they write is whole or not there.
    """
    if status != STATUS:
        return
    log.warning("ended by SIGTERM")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(STATUS)


@contextmanager
def ending_within(seconds: float) -> Iterator[None]:
    """SIGTERM inside ends the process after ``seconds`` at the latest, whatever its main thread is busy with.

    Python runs a handler between two of its own instructions. A long operation of torch, or one that waits for another
    rank, is none; so is what cannot be undone in time on the way out. For what may be killed at any moment.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)  # written to at once, in C

    def watch() -> None:
        while number := os.read(reading, 1):
            if number[0] == signal.SIGTERM:
                time.sleep(seconds)
                os._exit(STATUS)
        os.close(reading)

    threading.Thread(target=watch, name="ending", daemon=True).start()
    ended = False
    try:
        yield
    except SystemExit as end:
        if ended := end.code == STATUS:
            telemetry.flush()
        raise
    finally:
        if not ended:
            signal.set_wakeup_fd(before)
            os.close(writing)


def _end(number: int, frame: FrameType | None) -> None:
    # No SIG_IGN: what is started on the way out would inherit it.
    signal.signal(signal.SIGTERM, lambda *_: None)
    raise SystemExit(STATUS)
