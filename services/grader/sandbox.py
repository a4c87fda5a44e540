"""What a worker process may do: compute, for a while, in little memory. Linux only, and no privileges needed.

Answers are never evaluated; this is for the day one of the libraries that read them does it after all.
"""

import ctypes
import math
import os
import platform
import resource
import signal
import struct
import sys

PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 22, 38
SECCOMP_MODE_FILTER = 2
EPERM_RETURNED, ALLOWED, KILLED = 0x00050001, 0x7FFF0000, 0x80000000

# socket, connect, accept, bind, listen, accept4, execve, execveat, ptrace, io_uring_setup
_DENIED = {
    "x86_64": (0xC000003E, (41, 42, 43, 49, 50, 288, 59, 322, 101, 425)),
    "aarch64": (0xC00000B7, (198, 203, 202, 200, 201, 242, 221, 281, 117, 425)),
}
CPU_GRACE_SECONDS = 2


def die_with_parent(parent: int) -> None:
    """Let the kernel kill this process when ``parent`` ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)


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
    """No sockets and no other programs, for good. False without seccomp, or on a processor that is not known here."""
    if sys.platform != "linux" or platform.machine() not in _DENIED:
        return False
    architecture, denied = _DENIED[platform.machine()]
    # struct seccomp_data: the system call's number at offset 0, the architecture at 4.
    jump_equal, load, give = 0x15, 0x20, 0x06
    program = [(load, 0, 0, 4), (jump_equal, 1, 0, architecture), (give, 0, 0, KILLED), (load, 0, 0, 0)]
    for place, number in enumerate(denied):
        program.append((jump_equal, len(denied) - place, 0, number))
    program += [(give, 0, 0, ALLOWED), (give, 0, 0, EPERM_RETURNED)]
    code = b"".join(struct.pack("HBBI", *instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(code)
    header = struct.pack("HP", len(program), ctypes.addressof(buffer))
    libc = ctypes.CDLL(None)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        return False
    return libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.create_string_buffer(header), 0, 0) == 0
