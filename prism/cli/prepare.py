"""``prism prepare``: model and data before services start."""

from prism import logs
from prism.cli.options import ConfigArgument, Overrides


def prepare(config: ConfigArgument, overrides: Overrides = None) -> None:
    """Make a run's data and model as its configuration says, and the folders that services read, before they start."""
    from prism.config import load_config
    from prism.settings import load_settings
    from prism.stack.await_model import wait_for
    from prism.trainer.run.launch import Launch
    from prism.trainer.run.pipeline import prepare as prepare_run

    resolved = load_config(config, overrides)
    if not load_settings(Launch).is_first:  # of several nodes that train together the first prepares
        wait_for(resolved.run_dir / "weights")
        return
    prepare_run(resolved, logs.console())
    for folder in ("weights", "blobs"):
        (resolved.run_dir / folder).mkdir(parents=True, exist_ok=True)
