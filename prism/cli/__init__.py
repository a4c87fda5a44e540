"""The ``prism`` command. Everything heavy is imported inside the command that needs it."""

import os
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from prism import logs
from prism.cli import score as score_cli
from prism.cli.experts import experts
from prism.cli.grade import HELP as GRADE_HELP
from prism.cli.grade import grade
from prism.errors import ConfigError, PrismError

if TYPE_CHECKING:
    from prism.config import RunConfig

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="Align a vision-language policy with a closed teacher, between SFT and RL with verifiable rewards.",
)
serve = typer.Typer(no_args_is_help=True, help="Run one service in the foreground, configured by PRISM_* variables.")
app.add_typer(serve, name="serve")
app.add_typer(experts, name="experts")
score_cli.register(app)
app.command("grade", help=GRADE_HELP)(grade)

ConfigArgument = Annotated[Path, typer.Argument(help="a run's TOML file, such as configs/demo.toml")]
ConfigOption = Annotated[Path, typer.Option("--config", help="a run's TOML file, such as configs/demo.toml")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="override a dotted key, e.g. stages.align.steps=10; repeatable"),
]
Fresh = Annotated[bool, typer.Option("--fresh", help="delete what the run has so far and start over")]

DEMO = Path("configs/demo.toml")
DEMO_COMPARE = Path("configs/demo-compare.toml")


@serve.command("policy")
def serve_policy() -> None:
    """vLLM's OpenAI server with tokens, policy versions and live weights, supervised."""
    from prism.services.policy.__main__ import main

    main()


@serve.command("perception")
def serve_perception() -> None:
    """The perception expert's scoring API: judges captions."""
    from prism.services.experts.__main__ import main

    main("perception")


@serve.command("reasoning")
def serve_reasoning() -> None:
    """The reasoning expert's scoring API: judges steps and answer, never the caption."""
    from prism.services.experts.__main__ import main

    main("reasoning")


@serve.command("grader")
def serve_grader() -> None:
    """The verifiable-reward API: verdicts over answers, in processes that are killed at a deadline."""
    from prism.services.grader.__main__ import main

    main()


@serve.command("rollouts")
def serve_rollouts() -> None:
    """A rollout worker: prompts from the stream, sampled, scored and graded, groups back."""
    from prism.services.rollouts.__main__ import main

    main()


@app.command()
def run(
    config: ConfigArgument,
    overrides: Overrides = None,
    fresh: Fresh = False,
    attach: Annotated[
        bool, typer.Option("--attach", help="use services that run already (PRISM_* variables) instead of starting any")
    ] = False,
    metrics_port: Annotated[
        int | None, typer.Option(envvar="PRISM_PORT", help="serve Prometheus metrics of the learners on this port")
    ] = None,
) -> None:
    """The whole pipeline: services, every stage, measurements, report. Resumes where it stopped."""
    from prism.config import load_config

    _run(load_config(config, overrides), config, overrides or [], fresh, attach, metrics_port)


@app.command()
def prepare(config: ConfigArgument, overrides: Overrides = None) -> None:
    """Make a run's data and model as its configuration says, and the folders that services read, before they start."""
    from prism.config import load_config
    from prism.settings import load_settings
    from prism.stack.await_model import wait_for
    from prism.trainer.run.launch import Launch
    from prism.trainer.run.pipeline import prepare as prepare_run

    resolved = load_config(config, overrides)
    if not load_settings(Launch).is_first:  # of several nodes that train together the first prepares
        wait_for(resolved.run_dir / "weights")
        return
    prepare_run(resolved, logs.console())
    for folder in ("weights", "blobs"):
        (resolved.run_dir / folder).mkdir(parents=True, exist_ok=True)


@app.command("secrets")
def write_secrets(
    folder: Annotated[Path, typer.Argument(help="folder for services, which read it as PRISM_SECRETS_DIR")],
    redis_folder: Annotated[Path, typer.Argument(help="folder for Redis alone, with its password")],
    redis_address: Annotated[str, typer.Argument(help="host:port of Redis")],
) -> None:
    """Write the tokens of a deployment to files: those in the environment, else those there, else made up."""
    from prism.stack import secret_files

    made_up = secret_files.write_secrets(folder, redis_folder, redis_address)
    logs.console().print(f"made up: {', '.join(made_up)}" if made_up else "secrets are there")


@app.command()
def demo(
    overrides: Overrides = None,
    fresh: Fresh = False,
    compare: Annotated[
        bool, typer.Option("--compare", help="train the baseline and the control too, with seeds, into one table")
    ] = False,
) -> None:
    """Train a tiny Qwen3-VL on handwritten digits through all three stages, on a CPU, in minutes."""
    from prism.config import load_config

    if not DEMO.is_file():
        raise ConfigError(f"{DEMO} is not here: run `prism demo` in the checkout of the repository")
    if compare:
        from prism.trainer.run.compare import compare_arms

        compare_arms(DEMO_COMPARE, overrides or [], logs.console(), fresh=fresh)
        return
    _run(load_config(DEMO, overrides), DEMO, overrides or [], fresh)


@app.command()
def train(
    stage: Annotated[str, typer.Argument(help="a stage of the configuration, by name or kind: sft, align, rlvr")],
    config: ConfigOption,
    overrides: Overrides = None,
) -> None:
    """One stage alone, over services that already run (PRISM_* variables or `prism up`); sft needs none."""
    from prism.config import load_config
    from prism.trainer.stages.train import train_stage

    train_stage(load_config(config, overrides), stage)


@app.command()
def up(config: ConfigArgument, overrides: Overrides = None) -> None:
    """All services of a run as processes of this machine, until Ctrl-C."""
    from prism.config import load_config
    from prism.stack.local import Stack
    from prism.trainer.run.expert_start import served_experts
    from prism.trainer.run.pipeline import prepare, served_model

    console = logs.console()
    resolved = load_config(config, overrides)
    prepare(resolved, console)
    with Stack(resolved, served_model(resolved), console, experts=served_experts(resolved)) as stack:
        console.print(f"addresses and tokens are in {resolved.run_dir / 'stack.json'}; Ctrl-C stops everything")
        while True:
            stack.check()
            time.sleep(1)


@app.command()
def report(
    run_dir: Annotated[Path, typer.Argument(help="a run's folder, such as runs/demo")],
) -> None:
    """Write report.html and report.json from what a run has left so far, and print its table."""
    from prism.report import print_table, write_report

    console = logs.console()
    print_table(write_report(run_dir), console)
    console.print(f"report: {run_dir / 'report.html'}")


@app.command()
def export(
    run_dir: Annotated[Path, typer.Argument(help="a run's folder, such as runs/demo")],
    out: Annotated[Path, typer.Argument(help="folder to write; it must not exist yet")],
    stage: Annotated[str | None, typer.Option(help="of which stage; by default the last that has anything")] = None,
    model: Annotated[
        Literal["policy", "perception", "reasoning"], typer.Option(help="the policy, or an expert of an alignment")
    ] = "policy",
) -> None:
    """A run's model as an ordinary Hugging Face folder: a stage's result, or what its newest checkpoint holds."""
    from prism.trainer.run.export import export as export_model

    export_model(run_dir, out, stage=stage, model=model, console=logs.console())


def _run(
    config: "RunConfig",
    config_file: Path,
    overrides: list[str],
    fresh: bool,
    attach: bool = False,
    metrics_port: int | None = None,
) -> None:
    from prism.settings import load_settings
    from prism.trainer.run.launch import Launch
    from prism.trainer.run.live_metrics import serve_metrics
    from prism.trainer.run.pipeline import run as run_pipeline
    from prism.trainer.run.pipeline import start_over

    console = logs.console()
    began = time.monotonic()
    is_first = load_settings(Launch).is_first  # of the nodes that train together
    if fresh and is_first:
        start_over(config)
    with TemporaryDirectory(prefix="prism-metrics-") as folder:
        environment = serve_metrics(metrics_port, Path(folder)) if metrics_port else {}
        run_pipeline(config, config_file, overrides, console, attach=attach, environment=environment)
    console.print(f"[dim]{(time.monotonic() - began) / 60:.1f} minutes[/]")
    if is_first:
        report(config.run_dir)


def main() -> None:
    """Entry point: a user's mistake is a message, never a traceback."""
    # Several processes share the cores here. OpenMP threads that spin for long while they wait make a training step up
    # to ten times slower as soon as another process computes; that sleep at once make it 1.5 times slower when none
    # does. Read when torch is loaded, inherited by all we start.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    logs.configure_command()
    try:
        app()
    except PrismError as error:
        logs.fail(error)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
