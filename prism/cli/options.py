"""What several commands take, and ``--fresh``."""

import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.filesize import decimal

from prism.errors import ConfigError
from prism.stack.folder_lock import refuse_use_below

ConfigArgument = Annotated[Path, typer.Argument(help="a run's TOML file, such as configs/demo.toml")]
ConfigOption = Annotated[Path, typer.Option("--config", help="a run's TOML file, such as configs/demo.toml")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="override a dotted key, e.g. stages.align.steps=10; repeatable"),
]
RunFolder = Annotated[Path, typer.Argument(help="a run's folder, such as runs/demo")]
Fresh = Annotated[bool, typer.Option("--fresh", help="delete what there is so far, after asking, and start over")]
Yes = Annotated[bool, typer.Option("--yes", help="let --fresh delete without asking")]

WaitForLock = Annotated[
    float,
    typer.Option(
        "--wait-for-lock",
        metavar="SECONDS",
        min=0,
        envvar="PRISM_WAIT_FOR_LOCK",
        help="wait so long for another process to let go of the run's folder; without, it is refused at once",
    ),
]


def agree_to_delete(path: Path, yes: bool) -> None:
    """For ``--fresh``: returns if there is nothing, or once a person has agreed; ``yes`` stands for one.

    Raises ConfigError where there is nobody to ask, and typer.Abort at a no.
    """
    if not path.exists():
        return
    sizes = {
        stat.st_ino: stat.st_size for file in (path, *path.rglob("*")) if not file.is_dir() and (stat := file.lstat())
    }
    stages = [file.parent.relative_to(path) for file in sorted(path.rglob("stages/*/stage.json"))]
    finished = ", ".join(str(stage.parent.parent / stage.name) for stage in stages)
    of_a_run = f", finished stages: {finished or 'none'}" if path.is_dir() else ""
    what = f"{path} ({decimal(sum(sizes.values()))}{of_a_run})"
    if not yes and not sys.stdin.isatty():
        raise ConfigError(f"--fresh deletes {what}, and there is no terminal to ask on: add --yes if that is meant")
    if not yes:
        typer.confirm(f"Delete {what}?", abort=True)


def delete(path: Path, yes: bool) -> None:
    """A folder of runs, once that is agreed to.

    Raises as ``agree_to_delete``, and LockedError if a run inside it is in use.
    """
    refuse_use_below(path)
    agree_to_delete(path, yes)
    shutil.rmtree(path, ignore_errors=True)
