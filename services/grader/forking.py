"""What the fork server imports first: it dies with the grader while it is still importing all the rest.

Only then: later it ends when nobody holds its pipe any more, and the kernel's signal comes with the end of the *thread*
that started it, which may be a worker's. ``kinds/warm.py``, imported last, calls ``outlive_thread``.
"""

import ctypes
import os
import sys

from prism.services.grader.sandbox import PR_SET_PDEATHSIG, die_with_parent

STARTED_BY = "GRADER_PROCESS"


def outlive_thread() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, 0)


if (grader := os.environ.get(STARTED_BY)) and int(grader) != os.getpid():
    die_with_parent(int(grader))
