"""What runs inside a worker process. It imports little: every replacement of a killed worker pays for it."""

import ctypes
import os
import resource
import signal
import sys
import time
from dataclasses import replace

from services.grader.grading import Item, RewardWeights, Verdict, grade

_PR_SET_PDEATHSIG = 1


def limit_process(parent: int, memory_mib: int) -> None:
    """Initializer of a worker: it dies with the server (process id ``parent``) and has ``memory_mib`` MiB at most."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # the server died before the line above
        os._exit(1)
    resource.setrlimit(resource.RLIMIT_AS, (memory_mib * 2**20, memory_mib * 2**20))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def grade_chunk(items: list[Item], weights: RewardWeights) -> list[Verdict]:
    """A verdict for each item, in order, with the seconds it took."""
    verdicts: list[Verdict] = []
    for item in items:
        start = time.perf_counter()
        verdict = grade(item, weights)
        verdicts.append(replace(verdict, elapsed_seconds=time.perf_counter() - start))
    return verdicts
