"""Trackers beside a run: a process each, which can neither slow nor stop it. (No torch.)"""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from rich.console import Console

from prism import logs
from prism.config import RunConfig
from prism.files import make_folder
from prism.stack.processes import start_process


@contextmanager
def trackers_beside(config: RunConfig, console: Console) -> Iterator[None]:
    """Follow the run's files with each tracker of ``track.to`` while the ``with`` lasts, and let them send the rest.

    What they say is in ``track/NAME.log``. One that fails is named at the end, and is no reason for anything.
    """
    processes: dict[str, subprocess.Popen[bytes]] = {}
    folder = config.run_dir / "track"
    with ExitStack() as files:
        for name in config.track.to:
            make_folder(folder)
            output = files.enter_context((folder / f"{name}.log").open("ab"))
            command = [sys.executable, "-m", "prism", "track", str(config.run_dir), "--to", name, "--follow"]
            options = [f"--project={config.track.project}", f"--every={config.track.every_seconds}"]
            processes[name] = start_process([*command, *options], {}, output)
        try:
            yield
        finally:
            for process in processes.values():
                process.terminate()
            deadline = time.monotonic() + config.track.finish_seconds
            for name, process in processes.items():
                _end(name, process, deadline, config, console)


def _end(name: str, process: subprocess.Popen[bytes], deadline: float, config: RunConfig, console: Console) -> None:
    again = f"`prism track {config.run_dir} --to {name}` sends the rest; {config.run_dir}/track/{name}.log says more"
    try:
        status = process.wait(max(0.1, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        logs.say(console, f"tracker {name} did not finish within {config.track.finish_seconds:g} s: {again}")
        return
    if status:
        logs.say(console, f"tracker {name} ended with status {status}: {again}")
