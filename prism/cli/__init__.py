"""The ``prism`` command: a file a command. Everything heavy is imported inside the functions that need it."""

import os
import sys

import typer

from prism import logs
from prism.cli import curate, data, demo, experts, prepare, run, secrets, serve, train, up
from prism.cli.console import jobs, start
from prism.cli.judge import grade, score
from prism.cli.results import evaluate, export, report, track, upload
from prism.errors import PrismError
from prism.stack.ending import end_on_sigterm, leave

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="Align a vision-language policy with a closed teacher, between SFT and RL with verifiable rewards.",
)
app.add_typer(serve.app, name="serve")
app.add_typer(experts.experts, name="experts")
app.add_typer(data.data, name="data")
app.add_typer(jobs.jobs, name="jobs")
app.add_typer(evaluate.evaluate, name="evaluate")
app.command()(score.score)
app.command()(score.calibrate)
app.command()(grade.grade)
app.command()(run.run)
app.command()(prepare.prepare)
app.command("secrets")(secrets.write_secrets)
app.command()(demo.demo)
app.command()(start.console)
app.command()(curate.curate)
app.command()(train.train)
app.command()(up.up)
app.command()(report.report)
app.command()(export.export)
app.command()(track.track)
app.command()(upload.upload)


def main() -> None:
    """Entry point: a user's mistake is a message, never a traceback, and so is SIGTERM."""
    # Several processes share the cores here. OpenMP threads that spin for long while they wait make a training step up
    # to ten times slower as soon as another process computes; that sleep at once make it 1.5 times slower when none
    # does. Read when torch is loaded, inherited by all we start.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    logs.configure_command()
    end_on_sigterm()
    try:
        app()
    except SystemExit as end:
        leave(end.code)
        raise
    except PrismError as error:
        logs.fail(error)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
