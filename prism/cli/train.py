"""``prism train``: one stage."""

from typing import Annotated

import typer

from prism.cli.options import ConfigOption, Overrides


def train(
    stage: Annotated[str, typer.Argument(help="a stage of the configuration, by name or kind: sft, align, rlvr")],
    config: ConfigOption,
    overrides: Overrides = None,
) -> None:
    """One stage alone, over services that already run (PRISM_* variables or `prism up`); sft needs none."""
    from prism.config import load_config
    from prism.trainer.stages.train import train_stage

    train_stage(load_config(config, overrides), stage)
