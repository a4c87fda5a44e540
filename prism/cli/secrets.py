"""``prism secrets``: the tokens of a deployment, as files."""

from pathlib import Path
from typing import Annotated

import typer

from prism import logs


def write_secrets(
    folder: Annotated[Path, typer.Argument(help="folder for services, which read it as PRISM_SECRETS_DIR")],
    redis_folder: Annotated[Path, typer.Argument(help="folder for Redis alone, with its password")],
    redis_address: Annotated[str, typer.Argument(help="host:port of Redis")],
) -> None:
    """Write the tokens of a deployment to files: those in the environment, else those there, else made up."""
    from prism.stack import secret_files

    made_up = secret_files.write_secrets(folder, redis_folder, redis_address)
    logs.console().print(f"made up: {', '.join(made_up)}" if made_up else "secrets are there")
