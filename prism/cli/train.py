"""``prism train``: one stage."""

from contextlib import nullcontext
from typing import Annotated

import typer

from prism.cli.options import ConfigOption, Overrides, WaitForLock

END_SECONDS = 5.0  # after SIGTERM; less than `prism run` gives its stage, and any container its command


def train(
    stage: Annotated[str, typer.Argument(help="a stage of the configuration, by name or kind: sft, align, rlvr")],
    config: ConfigOption,
    overrides: Overrides = None,
    wait_for_lock: WaitForLock = 0,
) -> None:
    """One stage alone, over services that already run (PRISM_* variables or `prism up`); sft needs none."""
    from prism.config import load_config
    from prism.settings import load_settings
    from prism.stack.ending import ending_within
    from prism.stack.folder_lock import lock_run
    from prism.trainer.run.launch import Launch

    resolved = load_config(config, overrides)
    alone = load_settings(Launch).leads  # of all ranks, the one that writes files
    with lock_run(resolved.run_dir, "trainer", wait_seconds=wait_for_lock) if alone else nullcontext():
        from prism.trainer.stages.train import train_stage  # with torch, for which a refusal need not wait

        with ending_within(END_SECONDS):
            train_stage(resolved, stage)
