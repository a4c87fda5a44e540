"""What a sandboxed process is refused, by system calls as code that means ill would make them."""

import platform
import signal
import socket
import subprocess
import sys

import pytest

from prism.services.grader import sandbox

SANDBOXED = """
import ctypes, errno, mmap, threading, pyseccomp
from prism.services.grader import sandbox
libc = ctypes.CDLL(None, use_errno=True)
def call(number):
    ctypes.set_errno(0)
    libc.syscall(number, 0, 0, 0, 0, 0, 0)
    return errno.errorcode.get(ctypes.get_errno())
numbers = {name: pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name) for name in %r}
sandbox.limit_memory(512)
assert sandbox.deny_network_and_programs()
"""
REFUSED = (
    *("socket", "socketpair", "connect", "accept", "accept4", "bind", "listen", "io_uring_setup"),
    *("execve", "execveat", "ptrace", "process_vm_readv", "process_vm_writev", "pidfd_getfd"),
)
BY_X32 = "call(0x40000000 | 41)\n"
# mov eax, 359 (i386's socket); int 0x80; ret
BY_I386 = r"""
code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
code.write(b"\xb8\x67\x01\x00\x00\xcd\x80\xc3")
ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))()
"""
IN_A_THREAD = """
thread = threading.Thread(target=exec, args=(code, globals()), daemon=True)
thread.start()
thread.join(5)
"""


def sandboxed(code: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", SANDBOXED % (REFUSED,) + code], capture_output=True, text=True, timeout=60, check=False
    )


def test_sockets_programs_and_other_processes_are_refused() -> None:
    done = sandboxed("print({name: call(number) for name, number in numbers.items()})")
    assert done.stdout.strip() == str(dict.fromkeys(REFUSED, "EPERM")), done.stderr


@pytest.mark.skipif(platform.machine() != "x86_64", reason="these are ways round a filter of x86_64")
@pytest.mark.parametrize("code", [BY_X32, BY_I386], ids=["x32", "i386"])
def test_other_architectures_are_no_way_round(code: str) -> None:
    done = sandboxed(f"code = {code!r}" + IN_A_THREAD)  # all threads are killed, not the one that called
    assert done.returncode == -signal.SIGSYS, done.stderr


def test_trying_it_binds_nobody() -> None:
    assert sandbox.can_deny()
    socket.socket().close()
