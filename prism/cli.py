"""The ``prism`` command. Everything heavy is imported inside the command that needs it."""

import sys

import typer
from rich.console import Console

from prism.errors import PrismError

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Align a vision-language policy with a closed teacher, between SFT and RL with verifiable rewards.",
)
serve = typer.Typer(no_args_is_help=True, help="Run one service in the foreground, configured by PRISM_* variables.")
app.add_typer(serve, name="serve")


@serve.command("policy")
def serve_policy() -> None:
    """vLLM's OpenAI server with tokens, policy versions and live weights, supervised."""
    from services.policy.__main__ import main

    main()


@serve.command("grader")
def serve_grader() -> None:
    """The verifiable-reward API: verdicts over answers, in processes that are killed at a deadline."""
    from services.grader.__main__ import main

    main()


def main() -> None:
    """Entry point: a user's mistake is a message, never a traceback."""
    try:
        app()
    except PrismError as error:
        Console(stderr=True).print(f"[bold red]error:[/] {error}", highlight=False, markup=True)
        sys.exit(1)
