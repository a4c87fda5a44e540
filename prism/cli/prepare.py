"""``prism prepare``: model and data before services start."""

from prism import logs
from prism.cli.options import ConfigArgument, Overrides, WaitForLock


def prepare(config: ConfigArgument, overrides: Overrides = None, wait_for_lock: WaitForLock = 0) -> None:
    """Make a run's data and model as its configuration says, and what services read, before they start."""
    from prism.config import load_config
    from prism.errors import LockedError
    from prism.settings import load_settings
    from prism.stack.await_model import wait_for
    from prism.stack.folder_lock import lock_run
    from prism.trainer.run import pipeline
    from prism.trainer.run.launch import Launch

    resolved = load_config(config, overrides)
    if not load_settings(Launch).is_first:  # of several nodes that train together the first prepares
        wait_for(resolved.run_dir / "weights")
        return
    try:
        with lock_run(resolved.run_dir, "trainer", wait_seconds=wait_for_lock):
            pipeline.refuse_changed(resolved)
            pipeline.prepare(resolved, logs.console())
            for folder in ("weights", "blobs"):
                (resolved.run_dir / folder).mkdir(parents=True, exist_ok=True)
    except LockedError as error:
        if not pipeline.is_prepared(resolved):
            raise
        # `docker compose up` beside a trainer at work, a chart's new revision beside the one that is ending
        logs.say(logs.console(), f"{resolved.run_dir} was prepared before, and is left as it is: {error}")
