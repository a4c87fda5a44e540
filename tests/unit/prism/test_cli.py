"""The command line: every command teaches, and a mistake is one message."""

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from prism import cli
from prism.cli import options
from prism.errors import ConfigError, DataError
from prism.trainer.run import compare, pipeline

COMMANDS = [
    [],
    ["run"],
    ["prepare"],
    ["secrets"],
    ["demo"],
    ["curate"],
    ["train"],
    ["up"],
    ["report"],
    ["export"],
    ["track"],
    ["upload"],
    ["evaluate"],
    *(["evaluate", command] for command in ("run", "show", "compare", "table")),
    ["score"],
    ["calibrate"],
    ["experts"],
    *(["experts", command] for command in ("upcycle", "warmup")),
    ["grade"],
    ["serve"],
    *(["serve", service] for service in ("policy", "perception", "reasoning", "experts", "grader", "rollouts")),
    *(["serve", service] for service in ("console", "jobs")),
    ["console"],
    ["jobs"],
    *(["jobs", command] for command in ("commands", "add", "list", "show", "log", "cancel", "retry", "priority")),
]


def names(app: object) -> set[str]:
    return {command.name or command.callback.__name__ for command in app.registered_commands}  # pyright: ignore


def test_all_commands_are_tested_here() -> None:
    groups = {
        "serve": cli.serve.app,
        "experts": cli.experts.experts,
        "evaluate": cli.evaluate.evaluate,
        "jobs": cli.jobs.jobs,
    }
    assert names(cli.app) | set(groups) == {command[0] for command in COMMANDS if command}
    for name, group in groups.items():
        assert names(group) == {command[1] for command in COMMANDS if len(command) == 2 and command[0] == name}


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command) or "prism")
def test_every_command_has_help(command: list[str]) -> None:
    result = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}).invoke(cli.app, [*command, "--help"])
    assert result.exit_code == 0
    usage, what_for, *rest = [line.strip() for line in result.output.splitlines() if line.strip()]
    assert usage.startswith("Usage: ")
    assert len(what_for) > 20
    assert rest


def prism(*arguments: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit status and what was said on stderr."""
    monkeypatch.setattr(sys, "argv", ["prism", *arguments])
    monkeypatch.setenv("COLUMNS", "60")
    with pytest.raises(SystemExit) as left:
        cli.main()
    status = left.value.code
    assert isinstance(status, int)
    return status, capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "nowhere.toml"], "error: config file nowhere.toml does not exist"),
        (["run", "bad.toml"], "error: bad.toml: not valid TOML: "),
        (["run", "{demo}", "--set", "seed"], "error: override 'seed': write it as dotted.key=value"),
        (
            ["run", "{demo}", "--set", "stages.align.rollouts.bogus=1"],
            "error: {demo}: stages.align.rollouts.bogus: is not a known key",
        ),
        (["up", "{demo}", "--set", "stack.base_port=1"], "error: {demo}: stack.base_port: "),
        (["train", "sft", "--config", "nowhere.toml"], "error: config file nowhere.toml does not exist"),
        (["train", "essay", "--config", "{demo}"], "error: no stage 'essay': the configuration has sft, align, rlvr"),
        (["train", "rlvr", "--config", "{demo}"], "error: stage rlvr starts from the result of align"),
        (
            ["train", "sft", "--config", "{demo}", "--set", "model=./nowhere", "--set", "threads=1"],
            "error: runs/demo is not there yet: `prism prepare` makes the run's model and data",
        ),
        (["demo"], "error: configs/demo.toml is not here"),
        (["experts", "upcycle", "./nowhere", "out"], "error: no processor can be loaded from ./nowhere: "),
        (
            ["experts", "warmup", "./nowhere", "nowhere.jsonl", "out", "--expert", "reasoning"],
            "error: data file nowhere.jsonl does not exist",
        ),
        (["report", "nowhere"], "error: nowhere is not a folder"),
        (["serve", "perception"], "error: PRISM_PORT: is not set"),
        (["serve", "grader"], "error: PRISM_PORT: is not set"),
        (["serve", "rollouts"], "error: PRISM_PORT: is not set"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_a_message_and_never_a_traceback(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    demo = str(Path("configs/demo.toml").resolve())
    for name in [name for name in os.environ if name.startswith("PRISM_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.toml").write_text("name = ")
    status, said = prism(*(a.format(demo=demo) for a in arguments), monkeypatch=monkeypatch, capsys=capsys)
    assert status == 1
    assert said.startswith(message.format(demo=demo))
    assert "Traceback" not in said


def test_a_message_is_shown_as_it_is(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Brackets are no markup, and a long path stays in one piece."""
    text = f"row [/bold] of {'a-very-long-folder/' * 20}rows.jsonl"

    def fail() -> None:
        raise DataError(text)

    monkeypatch.setattr(cli, "app", fail)
    assert prism(monkeypatch=monkeypatch, capsys=capsys) == (1, f"error: {text}\n")


def test_an_interrupt_is_not_an_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "app", interrupt)
    assert prism(monkeypatch=monkeypatch, capsys=capsys) == (130, "")


def test_an_unknown_command_is_a_usage_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status, said = prism("dance", monkeypatch=monkeypatch, capsys=capsys)
    assert status == 2
    assert "No such command 'dance'" in said


def test_help_needs_no_torch() -> None:
    code = "import sys; from prism.cli import app; assert not {'torch', 'transformers', 'vllm'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.fixture
def begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The demo's folder with a finished stage, and another run's in that of its comparison."""
    for folder in ("demo", "demo-compare/prism-0"):
        (tmp_path / "runs" / folder / "stages" / "sft").mkdir(parents=True)
        (tmp_path / "runs" / folder / "stages" / "sft" / "stage.json").write_text("{}" + " " * 1998)
    (tmp_path / "configs").symlink_to(Path("configs").resolve())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pipeline, "run", lambda *_, **__: None)
    monkeypatch.setattr(compare, "compare_arms", lambda *_: None)
    return tmp_path / "runs"


FRESH = [
    (["run", "configs/demo.toml", "--fresh"], "demo", r"runs/demo \(2\.0 kB, finished stages: sft\)"),
    (["demo", "--fresh"], "demo", r"runs/demo \(2\.0 kB, finished stages: sft\)"),
    (["demo", "--compare", "--fresh"], "demo-compare", r"runs/demo-compare \(2\.0 kB, finished stages: prism-0/sft\)"),
]


@pytest.mark.parametrize(("arguments", "folder", "named"), FRESH)
def test_fresh_deletes_nothing_where_nobody_can_be_asked(
    arguments: list[str], folder: str, named: str, begun: Path
) -> None:
    refused = CliRunner().invoke(cli.app, arguments)
    assert isinstance(refused.exception, ConfigError)
    assert re.match(f"--fresh deletes {named}, and there is no terminal to ask on: add --yes", str(refused.exception))
    assert (begun / folder).is_dir()


@pytest.mark.parametrize(("arguments", "folder", "named"), FRESH)
def test_fresh_asks_on_a_terminal(
    arguments: list[str], folder: str, named: str, begun: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(options, "sys", SimpleNamespace(stdin=SimpleNamespace(isatty=lambda: True)))
    refused = CliRunner().invoke(cli.app, arguments, input="n\n")
    assert re.match(f"Delete {named}\\?", refused.output)
    assert refused.exit_code == 1
    assert (begun / folder).is_dir()
    CliRunner().invoke(cli.app, arguments, input="y\n")
    assert not (begun / folder).exists()


@pytest.mark.parametrize(("arguments", "folder", "named"), FRESH)
def test_fresh_deletes_one_folder_without_asking_if_told_so(
    arguments: list[str], folder: str, named: str, begun: Path
) -> None:
    CliRunner().invoke(cli.app, [*arguments, "--yes"])
    assert {path.name for path in begun.iterdir()} == {"demo", "demo-compare", ".locks"} - {folder}
