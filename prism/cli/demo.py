"""``prism demo``: the example run, and the comparison of ways to spend its steps."""

from pathlib import Path
from typing import Annotated

import typer

from prism import logs
from prism.cli.options import Fresh, Overrides, WaitForLock, Yes, delete
from prism.cli.run import run_pipeline
from prism.errors import ConfigError
from prism.stack.folder_lock import lock_run

DEMO = Path("configs/demo.toml")
DEMO_COMPARE = Path("configs/demo-compare.toml")


def demo(
    overrides: Overrides = None,
    fresh: Fresh = False,
    yes: Yes = False,
    compare: Annotated[
        bool, typer.Option("--compare", help="train the baseline and the control too, with seeds, into one table")
    ] = False,
    wait_for_lock: WaitForLock = 0,
) -> None:
    """Train a tiny Qwen3-VL on handwritten digits through all three stages, on a CPU, in minutes."""
    from prism.config import load_config

    if not DEMO.is_file():
        raise ConfigError(f"{DEMO} is not here: run `prism demo` in the checkout of the repository")
    if not compare:
        run_pipeline(load_config(DEMO, overrides), DEMO, overrides or [], fresh, yes, wait_for_lock=wait_for_lock)
        return
    from prism.trainer.run.compare import compare_arms, compare_folder

    folder = compare_folder(DEMO_COMPARE, overrides or [])
    with lock_run(folder, "trainer", wait_seconds=wait_for_lock):
        if fresh:
            delete(folder, yes)
        compare_arms(DEMO_COMPARE, overrides or [], logs.console())
