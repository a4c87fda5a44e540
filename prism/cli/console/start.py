"""``prism console``: the console of this machine, with a worker and the packaged Redis."""

from pathlib import Path
from typing import Annotated

import typer


def console(
    runs: Annotated[Path, typer.Argument(help="folder of runs")] = Path("runs"),
    configs: Annotated[Path, typer.Option(help="folder of configurations that runs can be started from")] = Path(
        "configs"
    ),
    host: Annotated[
        str, typer.Option(help="address to listen on; others than this machine's can reach 0.0.0.0")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8110,
    slots: Annotated[int, typer.Option(min=1, help="jobs at a time")] = 1,
    cards: Annotated[str, typer.Option(help="GPUs that jobs are given, by commas, such as 0,1")] = "",
) -> None:
    """Runs, jobs and rollouts on a page: prints a link that signs you in. Ctrl-C ends it; what runs is queued again."""
    from prism.services.console.embedded import run

    run(runs=runs, configs=configs, host=host, port=port, slots=slots, cards=cards)
