"""What runs inside a worker process: the comparisons that may hang, one after another.

Workers are forked from a fork server that has imported all of this, sympy included: a new one answers in milliseconds.
"""

import logging
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import forkserver
from types import FrameType

from prism.services.grader import sandbox
from prism.services.grader.kinds import compare
from prism.services.grader.verdict import AnswerPair, Outcome

log = logging.getLogger(__name__)

# In a worker this is its parent, the fork server, which imported the module before it forked.
IMPORTED_BY = os.getpid()


class TooSlow(BaseException):
    """Raised in the middle of a comparison. No Exception, so that nothing on the way takes it for one of its own."""


def set_up(memory_mib: int, niceness: int) -> None:
    """Initializer of a worker process."""
    if os.getpid() != IMPORTED_BY:
        # The fork server ends when nobody holds this pipe any more. Each worker is given it too, so that one that hangs
        # would keep both alive after the grader was killed.
        os.close(forkserver._forkserver._forkserver_alive_fd)  # pyright: ignore[reportAttributeAccessIssue]
        sandbox.die_with_parent(IMPORTED_BY)
    os.nice(niceness)
    sandbox.limit_memory(memory_mib)
    sandbox.deny_network_and_programs()


def compare_chunk(tasks: list[AnswerPair], patience: float | None, cpu_seconds: float) -> list[Outcome | None]:
    """An outcome for each task, in order. None: not begun, for the chunk had taken ``patience`` seconds twice.

    A task that takes longer than ``patience`` gets the status timeout, and the next one its turn. These are seconds of
    processor time: a busy machine makes no task a slow one. What sleeps or hangs in C code does not notice; its process
    is killed from outside. Raises MemoryError.
    """
    sandbox.limit_cpu(cpu_seconds)
    outcomes: list[Outcome | None] = []
    begun = time.process_time()
    for task in tasks:
        if patience and time.process_time() - begun > 2 * patience:
            outcomes.append(None)
            continue
        start = time.perf_counter()
        outcome = _compare(task, patience)
        outcomes.append(replace(outcome, elapsed_seconds=time.perf_counter() - start))
    return outcomes


def _compare(task: AnswerPair, patience: float | None) -> Outcome:
    try:
        with _timer(patience):
            return compare(task)
    except TooSlow:
        return Outcome("timeout", detail=f"no outcome within {patience} s")
    except MemoryError:
        raise
    except RecursionError:
        return Outcome("error", detail="the comparison nested too deep")
    except Exception as error:
        # sympy has no outcome for this pair. That is neither right nor wrong.
        log.debug("comparing raised", exc_info=True)
        return Outcome("error", detail=f"the comparison raised {type(error).__name__}")


@contextmanager
def _timer(seconds: float | None) -> Iterator[None]:
    if not seconds:
        yield
        return

    def stop(signum: int, frame: FrameType | None) -> None:
        raise TooSlow

    before = signal.signal(signal.SIGVTALRM, stop)
    # Again and again: one TooSlow may be swallowed on its way, in a destructor for example.
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
