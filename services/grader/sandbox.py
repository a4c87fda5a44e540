"""What a worker process may do: compute, for a while, in little memory. Linux only, and no privileges needed.

Answers are never evaluated; this is for the day one of the libraries that read them does it after all.
"""

import ctypes
import errno
import math
import os
import resource
import signal
import sys
from concurrent.futures import ThreadPoolExecutor

try:
    import pyseccomp
except RuntimeError:  # libseccomp is not on this machine
    pyseccomp = None

STARTED_BY = "GRADER_PROCESS"
"""Tells the fork server whose it is. Every process that the grader's starts inherits it."""
PR_SET_PDEATHSIG = 1
# What opens a connection (io_uring can, by itself), starts a program, or reaches into another process.
DENIED = (
    *("socket", "socketpair", "connect", "accept", "accept4", "bind", "listen", "io_uring_setup"),
    *("execve", "execveat", "ptrace", "process_vm_readv", "process_vm_writev", "pidfd_getfd"),
)
CPU_GRACE_SECONDS = 2


def die_with_parent(parent: int) -> None:
    """Let the kernel kill this process when ``parent`` ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)


def outlive_thread() -> None:
    """Take ``die_with_parent`` back, whose signal also comes when the thread ends that started this process."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, 0)


def limit_memory(mib: int) -> None:
    """Address space of ``mib`` MiB, no core dumps, no files written."""
    resource.setrlimit(resource.RLIMIT_AS, (mib * 2**20, mib * 2**20))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def limit_cpu(seconds: float) -> None:
    """SIGXCPU ends this process once it has used ``seconds`` more of processor time, and a grace: whoever should have
    killed it by then does not work."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    limit = math.ceil(used.ru_utime + used.ru_stime + seconds + CPU_GRACE_SECONDS)
    resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))


def deny_network_and_programs() -> bool:
    """No sockets and no other programs, for good, in this thread. False without libseccomp or the kernel's seccomp.

    What is denied raises PermissionError; a system call of another architecture (x32, i386), whose numbers would pass
    the list, kills the process.
    """
    if not pyseccomp:
        return False
    try:
        rules = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
        rules.set_attr(pyseccomp.Attr.ACT_BADARCH, pyseccomp.KILL_PROCESS)
        for name in DENIED:
            rules.add_rule(pyseccomp.ERRNO(errno.EPERM), name)
        rules.load()
    except OSError:
        return False
    return True


def can_deny() -> bool:
    """Whether ``deny_network_and_programs`` works here. A thread of its own tries it, and ends with what was denied."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(deny_network_and_programs).result()
