"""Runs first in the vLLM server and in every interpreter it starts (the launcher puts this folder on PYTHONPATH)."""

import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def _die_with_parent() -> None:
    """Have the kernel kill this process when its parent is gone, however it went: a ``kill -9`` leaves nothing behind.

    For the server itself, and for what ``multiprocessing`` spawns in it (engine, workers). Not for the resource
    tracker, which must outlive them to clean up.
    """
    supervisor = os.environ.get("PRISM_SUPERVISOR_PID")
    spawned = any("multiprocessing.spawn" in argument for argument in sys.orig_argv)
    is_server = "vllm.entrypoints.openai.api_server" in sys.orig_argv
    if sys.platform != "linux" or supervisor is None or not (spawned or is_server):
        return
    import ctypes

    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if is_server and os.getppid() != int(supervisor):  # it died before the line above
        os._exit(1)


_die_with_parent()

if os.environ.get("PRISM_DEVICE", "cpu") == "cpu":
    from prism.model import torchvision_cpu

    torchvision_cpu.install()
