"""``prism run``: the whole pipeline."""

import time
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from prism import logs
from prism.cli.options import ConfigArgument, Fresh, Overrides, WaitForLock, Yes, delete
from prism.cli.results.report import report
from prism.errors import ConfigError
from prism.stack.folder_lock import FolderLock, Use, lock_run

if TYPE_CHECKING:
    from prism.config import RunConfig


def run(
    config: ConfigArgument,
    overrides: Overrides = None,
    fresh: Fresh = False,
    yes: Yes = False,
    attach: Annotated[
        bool, typer.Option("--attach", help="use services that run already (PRISM_* variables) instead of starting any")
    ] = False,
    wait_for_lock: WaitForLock = 0,
    metrics_port: Annotated[
        int | None, typer.Option(envvar="PRISM_PORT", help="serve Prometheus metrics of the learners on this port")
    ] = None,
    metrics_host: Annotated[
        str, typer.Option(envvar="PRISM_HOST", help="address that they are served on; they need no token")
    ] = "127.0.0.1",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="print the configuration and what the run would take; start nothing")
    ] = False,
) -> None:
    """The whole pipeline: services, every stage, measurements, report. Resumes where it stopped."""
    from prism.config import load_config

    resolved = load_config(config, overrides)
    if dry_run:
        print_plan(resolved, fresh, attach)
    else:
        run_pipeline(resolved, config, overrides or [], fresh, yes, attach, metrics_port, metrics_host, wait_for_lock)


def print_plan(config: "RunConfig", fresh: bool, attach: bool) -> None:
    """The configuration as a file to run again, the plan as its comments. Raises ConfigError if it would be refused."""
    from prism.config import as_toml
    from prism.trainer.run.plan import make_plan

    if fresh:
        raise ConfigError("--dry-run deletes nothing: leave --fresh out, or name another run with --set name=...")
    typer.echo(as_toml(config))
    plan = make_plan(config, attach=attach, progress=lambda text: typer.echo(text, err=True))
    for line in plan.lines:
        typer.echo(f"# {line}")
    if plan.problems:
        raise ConfigError("\n".join(plan.problems))


def run_pipeline(
    config: "RunConfig",
    config_file: Path,
    overrides: list[str],
    fresh: bool,
    yes: bool,
    attach: bool = False,
    metrics_port: int | None = None,
    metrics_host: str = "127.0.0.1",
    wait_for_lock: float = 0,
) -> None:
    """Raises LockedError, before anything is deleted or started, if another process uses the run's folder."""
    from prism.settings import load_settings
    from prism.trainer.run.launch import Launch

    began = time.monotonic()
    if not load_settings(Launch).is_first:  # of the nodes that train together
        _run(config, config_file, overrides, attach, metrics_port, metrics_host, None)
        return
    uses: list[Use] = ["services"] if fresh or not attach else []
    with lock_run(config.run_dir, "trainer", *uses, wait_seconds=wait_for_lock) as lock:
        if fresh:
            delete(config.run_dir, yes)
        _run(config, config_file, overrides, attach, metrics_port, metrics_host, lock)
    logs.console().print(f"[dim]{(time.monotonic() - began) / 60:.1f} minutes[/]")
    report(config.run_dir)


def _run(
    config: "RunConfig",
    config_file: Path,
    overrides: list[str],
    attach: bool,
    metrics_port: int | None,
    metrics_host: str,
    lock: FolderLock | None,
) -> None:
    from prism.trainer.run import pipeline
    from prism.trainer.run.live_metrics import serve_metrics
    from prism.trainer.track.beside import trackers_beside

    with TemporaryDirectory(prefix="prism-metrics-") as folder:
        environment = serve_metrics(metrics_port, Path(folder), metrics_host) if metrics_port else {}
        # Of several nodes the first alone sends figures.
        with trackers_beside(config, logs.console()) if lock else nullcontext():
            pipeline.run(
                config, config_file, overrides, logs.console(), attach=attach, environment=environment, lock=lock
            )
