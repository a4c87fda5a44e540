"""``prism jobs``: the console's queue from the command line."""

import json
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prism.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prism.clients.console import ConsoleClient
    from prism.wire.console import JobInfo

jobs = typer.Typer(no_args_is_help=True, help="Jobs of a console: queue, list, follow, cancel, retry.")

Url = Annotated[str, typer.Option("--url", envvar="PRISM_CONSOLE_URL", help="the console's address")]
Key = Annotated[
    str, typer.Option("--token", envvar="PRISM_CONSOLE_TOKEN", help="a token of the console", show_default=False)
]
Number = Annotated[int, typer.Argument(help="a job's number", min=1)]
URL = "http://127.0.0.1:8110"


@contextmanager
def _console(url: str, token: str) -> "Iterator[ConsoleClient]":
    from prism.clients.console import ConsoleClient

    if not token:
        raise ConfigError("set PRISM_CONSOLE_TOKEN to a token of the console: make one on its page `Access`")
    with ConsoleClient(url, token) as console:
        yield console


@jobs.command("commands")
def list_commands(url: Url = URL, token: Key = "") -> None:
    """The commands that can be jobs, and their parameters."""
    with _console(url, token) as console:
        for command in console.commands():
            typer.echo(f"{command.name}: {command.about}")
            required = command.parameters.get("required", [])
            for name, field in command.parameters.get("properties", {}).items():
                default = "" if name in required else f" (default: {json.dumps(field.get('default'))})"
                typer.echo(f"    {name}{default}: {field.get('description', '')}".replace("\n", " "))


@jobs.command()
def add(
    command: Annotated[str, typer.Argument(help="one of `prism jobs commands`")],
    parameters: Annotated[list[str] | None, typer.Argument(metavar="NAME=VALUE...", help="its parameters")] = None,
    priority: Annotated[int, typer.Option(help="higher ones start first")] = 0,
    plan: Annotated[bool, typer.Option("--plan", help="check it, and queue nothing")] = False,
    follow: Annotated[bool, typer.Option("--follow", help="print its log until it has ended")] = False,
    url: Url = URL,
    token: Key = "",
) -> None:
    """Queue a job: `prism jobs add run config=demo.toml name=demo`. A value may be JSON; a name may come repeatedly."""
    with _console(url, token) as console:
        known = {found.name: found.parameters for found in console.commands()}
        if command not in known:
            raise ConfigError(f"there is no command {command!r}: there are {', '.join(known)}")
        given = _parameters(parameters or [], known[command].get("properties", {}))
        if plan:
            planned = console.plan(command, given)
            typer.echo(f"{planned.title}: {planned.gpus} GPUs, {planned.ports} ports")
            if planned.config:
                typer.echo(planned.config)
            return
        job = console.add(command, given, priority=priority)
        typer.echo(f"job {job.id}: {job.title}")
        if follow:
            _follow(console, job.id)


@jobs.command("list")
def list_jobs(
    state: Annotated[
        list[str] | None, typer.Option(help="queued, running, done, failed, cancelled; repeatable")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 50,
    url: Url = URL,
    token: Key = "",
) -> None:
    """Jobs of the console, the newest first."""
    with _console(url, token) as console:
        for job in console.jobs(states=tuple(state or ()), limit=limit):
            typer.echo(_line(job))


@jobs.command()
def show(job: Number, url: Url = URL, token: Key = "") -> None:
    """A job, and what happened to it."""
    with _console(url, token) as console:
        found = console.job(job)
        typer.echo(_line(found))
        if found.reason:
            typer.echo(found.reason)
        for event in console.events(job):
            typer.echo(f"  {_time(event.at)}  attempt {event.attempt}  {event.what} by {event.who}  {event.detail}")


@jobs.command()
def log(
    job: Number, follow: Annotated[bool, typer.Option("--follow")] = False, url: Url = URL, token: Key = ""
) -> None:
    """A job's log, from its beginning to where it is."""
    with _console(url, token) as console:
        if follow:
            _follow(console, job)
            return
        offset = 0
        while (part := console.log(job, offset)).text:
            typer.echo(part.text, nl=False)
            offset = part.offset


@jobs.command()
def cancel(job: Number, url: Url = URL, token: Key = "") -> None:
    """End a job: one that runs is asked first, then made to."""
    with _console(url, token) as console:
        typer.echo(_line(console.cancel(job)))


@jobs.command()
def retry(job: Number, url: Url = URL, token: Key = "") -> None:
    """Queue a job that has ended again: its command goes on where it stopped."""
    with _console(url, token) as console:
        typer.echo(_line(console.retry(job)))


@jobs.command()
def priority(job: Number, value: Annotated[int, typer.Argument()], url: Url = URL, token: Key = "") -> None:
    """Order a queued job: higher ones start first."""
    with _console(url, token) as console:
        typer.echo(_line(console.prioritise(job, value)))


def _follow(console: "ConsoleClient", job: int) -> None:
    for text in console.follow(job):
        typer.echo(text, nl=False)
    found = console.job(job)
    typer.echo(_line(found))
    if found.state != "done":
        raise typer.Exit(1)


def _parameters(given: list[str], known: dict[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for text in given:
        name, separator, value = text.partition("=")
        if not separator:
            raise ConfigError(f"{text!r}: write it as NAME=VALUE")
        is_list = known.get(name, {}).get("type") == "array"
        is_text = known.get(name, {}).get("type") == "string"
        try:
            parsed = value if is_text or is_list else json.loads(value)
        except ValueError:
            parsed = value
        if is_list:
            values.setdefault(name, []).append(parsed)
        else:
            values[name] = parsed
    return values


def _line(job: "JobInfo") -> str:
    ended = f" {job.reason}" if job.reason and job.state == "failed" else ""
    state = "cancelling" if job.cancel and job.state == "running" else job.state
    return f"{job.id:>5}  {state:<10} {_time(job.created)}  {job.title}  by {job.created_by}{ended}"


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")
