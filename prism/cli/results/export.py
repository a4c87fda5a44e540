"""``prism export``: a model out of a run."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from prism import logs
from prism.cli.options import RunFolder


def export(
    run_dir: RunFolder,
    out: Annotated[Path, typer.Argument(help="folder to write; it must not exist yet")],
    stage: Annotated[str | None, typer.Option(help="of which stage; by default the last that has anything")] = None,
    model: Annotated[
        Literal["policy", "perception", "reasoning"], typer.Option(help="the policy, or an expert of an alignment")
    ] = "policy",
    best: Annotated[
        bool, typer.Option("--best", help="the checkpoint whose validation was best (evaluate.keep_best)")
    ] = False,
    adapter: Annotated[
        bool, typer.Option("--adapter", help="the adapter alone, a folder of PEFT's, where a stage trained with lora")
    ] = False,
) -> None:
    """A run's model as an ordinary Hugging Face folder: a stage's result, or what its newest checkpoint holds. Adapters
    are merged into it, unless they are asked for alone."""
    from prism.trainer.run.export import export as export_model

    export_model(run_dir, out, stage=stage, model=model, console=logs.console(), best=best, adapter=adapter)
