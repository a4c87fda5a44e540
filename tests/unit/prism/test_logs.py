"""Log lines: for people and for machines, both with what they are about."""

import io
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from prism import logs
from prism.logs import JsonLines, TextLines

ROOT = Path(__file__).parents[3]


@pytest.fixture
def logger() -> logging.Logger:
    made = logging.Logger("prism.test")
    made.addHandler(logging.StreamHandler(io.StringIO()))
    return made


def said(logger: logging.Logger) -> str:
    (handler,) = logger.handlers
    assert isinstance(handler, logging.StreamHandler)
    return handler.stream.getvalue()


def test_a_json_line_holds_ids_and_the_exception(logger: logging.Logger) -> None:
    logger.handlers[0].setFormatter(JsonLines())
    try:
        raise ValueError("no such image")
    except ValueError:
        logger.exception("group %s", "failed", extra={"run": "demo", "position": 0, "attempt": None})
    (text,) = said(logger).splitlines()
    line = json.loads(text)
    assert (line["level"], line["message"], line["run"], line["position"]) == ("error", "group failed", "demo", 0)
    assert "attempt" not in line
    assert "ValueError: no such image" in line["exception"]


def test_a_line_for_people_ends_with_the_ids(logger: logging.Logger) -> None:
    logger.handlers[0].setFormatter(TextLines("%(levelname)s %(message)s"))
    logger.warning("late", extra={"run": "demo", "policy_version": 3})
    logger.warning("alone")
    assert said(logger) == "WARNING late [run=demo policy_version=3]\nWARNING alone\n"


def test_no_text_passes_for_a_record_of_its_own(logger: logging.Logger) -> None:
    logger.handlers[0].setFormatter(TextLines("%(levelname)s %(message)s"))
    forged = "a\nWARNING forged\r\x1b[2J\u2028\x85\u202e\ud800\x00end"
    logger.warning("prompt %s", forged, extra={"prompt_id": forged})
    try:
        raise ValueError(forged)
    except ValueError:
        logger.exception("it failed")
    lines = said(logger).splitlines()
    assert [line for line in lines if not line.startswith("  ")] == [lines[0], "ERROR it failed"]
    text = r"a\nWARNING forged\r\x1b[2J\u2028\x85\u202e\ud800\x00end"
    assert lines[0] == f"WARNING prompt {text} [prompt_id={text}]"
    assert not any(line.lstrip().startswith("WARNING forged\r") for line in lines)
    assert "\x1b" not in said(logger)


def test_a_terminal_is_not_steered_by_what_is_told_of(capsys: pytest.CaptureFixture[str]) -> None:
    logs.say(logs.console(), "row\x1b[2J\tone\ntwo")
    logs.fail(ValueError("no \x1b]0;title\x07\nfile"))
    out, err = capsys.readouterr()
    assert r"row\x1b[2J" in out
    assert "two\n" in out
    assert r"no \x1b]0;title\x07" in err
    assert "\nfile" in err
    assert "\x1b]" not in err


def test_a_line_is_also_about_what_its_process_is(logger: logging.Logger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_about", {})
    logger.handlers[0].setFormatter(JsonLines())
    logs.about(run="demo", expert_version=3, stage=None)
    logger.info("scored")
    logger.info("trained", extra={"stage": "align", "expert_version": 4, "figures": {"loss": 0.5}})
    first, second = (json.loads(line) for line in said(logger).splitlines())
    assert (first["run"], first["expert_version"], "stage" in first) == ("demo", 3, False)
    assert (second["run"], second["expert_version"], second["stage"]) == ("demo", 4, "align")
    assert second["figures"] == {"loss": 0.5}


@pytest.mark.parametrize(
    ("line", "message", "process"),
    [
        ('{"message": "ready", "level": "info"}', "ready", None),
        ('(EngineCore pid=12) {"message": "ready"}', "ready", "EngineCore pid=12"),
        ("(EngineCore pid=12) [W1] a warning of C++", "[W1] a warning of C++", "EngineCore pid=12"),
        ("{not JSON", "{not JSON", None),
        ('"text"', '"text"', None),
    ],
)
def test_what_another_process_prints_becomes_json(line: str, message: str, process: str | None) -> None:
    read = json.loads(logs.as_json(line, "vllm"))
    assert (read["message"], read.get("process")) == (message, process)


def test_every_line_of_a_command_can_be_json(tmp_path: Path) -> None:
    """The console's, those of a script it runs, and the error's that ends it."""
    script = tmp_path / "prepare.py"
    script.write_text("import sys; print('plain'); print('also plain', file=sys.stderr); sys.exit(1)")
    sets = ["--set", f"runs_dir={tmp_path}", "--set", f"prepare.script={script}"]
    done = subprocess.run(
        [sys.executable, "-m", "prism", "prepare", "configs/demo.toml", *sets],
        cwd=ROOT, env=os.environ | {"PRISM_LOG_FORMAT": "json"}, check=False, capture_output=True, text=True,
    )  # fmt: skip
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert done.stdout == ""
    assert {"plain", "also plain"} <= {line["message"] for line in lines}
    assert (lines[-1]["level"], done.returncode) == ("error", 1)
    assert f"{script} failed" in lines[-1]["message"]


def test_a_console_prints_for_people_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    logs.console().print("[bold]two[/]\nlines")
    assert capsys.readouterr().out == "two\nlines\n"
    monkeypatch.setenv("PRISM_LOG_FORMAT", "json")
    with caplog.at_level(logging.INFO, logger="prism"):
        logs.console().print("[bold]two[/]\nlines")
    assert [record.getMessage() for record in caplog.records] == ["two", "lines"]
    assert capsys.readouterr().out == ""
