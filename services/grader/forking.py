"""What the fork server imports first, and nobody else: it dies with the grader while it is still importing the rest.

Only then: later it ends when nobody holds its pipe any more, and the kernel's signal comes with the end of the *thread*
that started it, which may be a worker's. ``kinds/warm.py``, imported last, calls ``outlive_thread``.
"""

import os

from prism.services.grader.sandbox import STARTED_BY, die_with_parent

if (grader := os.environ.get(STARTED_BY)) and int(grader) != os.getpid():
    die_with_parent(int(grader))
