"""``prism secrets``: the tokens of a deployment, as files."""

from pathlib import Path
from typing import Annotated

import typer

from prism import logs


def write_secrets(
    folder: Annotated[Path, typer.Argument(help="folder that keeps all of them, for this command alone")],
    shares: Annotated[Path, typer.Argument(help="folder of a folder for each service, which it gets alone")],
    redis_address: Annotated[str, typer.Argument(help="host:port of Redis")],
    database_address: Annotated[str, typer.Option(help="host:port of the console's PostgreSQL")] = "postgres:5432",
) -> None:
    """Write the tokens of a deployment to files: those in the environment, else those there, else made up.

    SHARES/servers (policy and experts), grader, rollouts, trainer, console (and its workers), redis and postgres hold
    what each of these uses; a service reads its own as PRISM_SECRETS_DIR.
    """
    from prism.stack import secret_files

    made_up = secret_files.write_secrets(folder, shares, redis_address, database_address)
    logs.console().print(f"made up: {', '.join(made_up)}" if made_up else "secrets are there")
