"""``prism grade FILE``: what it prints, writes, resumes and refuses."""

import json
import subprocess
import sys
import threading
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet
from typer.testing import CliRunner, Result

from prism import cli
from prism.clients.http import Refused
from prism.errors import DataError, PrismError
from prism.jobs import Row
from prism.services.grader.grade_file import grade_rows, open_job
from prism.services.grader.protocol import GradeItem


def respond(answer: str) -> str:
    return f"<caption>- a</caption><think>b</think><answer>{answer}</answer>"


ROWS: list[dict[str, Any]] = [
    {"id": "one", "response": respond("0.5"), "gold": "1/2", "source": "of no interest"},
    {"response": respond("\\sqrt{4}"), "gold": "2", "kind": "math"},
    {"response": respond("3"), "gold": "2"},
    {"response": "no format", "gold": "2"},
    {"response": respond("2"), "gold": "several", "kind": "number"},
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "rows.jsonl"
    file.write_text("\n\n".join(map(json.dumps, ROWS)), encoding="utf-8")
    return file


def grade(*arguments: object) -> Result:
    environment = {"COLUMNS": "160", "NO_COLOR": "1", "TERM": "dumb", "PRISM_TOKEN": "", "PRISM_JUDGE_TOKEN": None}
    return CliRunner(env=environment).invoke(cli.app, ["grade", *map(str, arguments)])


def test_a_table_counts_what_was_not_judged_apart(file: Path) -> None:
    result = grade(file, "--workers", 1)
    assert result.exit_code == 0, result.output
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in result.output.splitlines() if "│" in line]
    assert rows == [
        ["auto", "invalid_format", "1", "0.000", "0.000", rows[0][5]],
        ["auto", "ok", "2", "0.500", "0.600", ""],
        ["math", "ok", "1", "1.000", "1.000", ""],
        [
            "number",
            "unparseable_gold",
            "1",
            "not judged",
            "not judged",
            "line 9: the gold answer is not a number: 'several'",
        ],
        ["all", "", "5", "0.500", "0.550", ""],
    ]


def test_a_run_that_was_stopped_goes_on(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "verdicts.jsonl"
    assert grade(file, "--workers", 1, "--out", out).exit_code == 0
    lines = out.read_text().splitlines()
    verdicts = [json.loads(line) for line in lines]
    assert [verdict["line"] for verdict in verdicts] == [1, 3, 5, 7, 9]
    assert [verdict["reward"] for verdict in verdicts] == [1.0, 1.0, 0.2, 0.0, None]
    assert verdicts[0]["id"] == "one"

    out.write_text(lines[0] + "\n" + lines[1][:40])  # killed while it wrote
    assert grade(file, "--workers", 1, "--out", out).exit_code == 0
    again = [json.loads(line) for line in out.read_text().splitlines()]
    assert out.read_text().splitlines()[0] == lines[0]
    assert [verdict["reward"] for verdict in again] == [1.0, 1.0, 0.2, 0.0, None]

    finished = out.read_text()
    assert grade(file, "--workers", 1, "--out", out).exit_code == 0
    assert out.read_text() == finished


def test_verdicts_of_other_rows_are_not_gone_on_with(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "verdicts.jsonl"
    for held in ('{"row": "another"}\n', "garbage\n", "[]\n", '{"row": 1}\n' * 9):
        out.write_text(held)
        with pytest.raises(DataError, match="add --fresh"):
            open_job(file, out, list().append)
    result = grade(file, "--workers", 1, "--out", out)
    assert isinstance(result.exception, PrismError)
    assert grade(file, "--workers", 1, "--out", out, "--fresh", "--yes").exit_code == 0
    assert len(out.read_text().splitlines()) == 5


def test_starting_over_never_deletes_the_input(file: Path) -> None:
    before = file.read_bytes()
    assert "is the input" in str(grade(file, "--out", file, "--fresh", "--yes").exception)
    assert file.read_bytes() == before


def test_parquet_is_graded_with_its_options(tmp_path: Path) -> None:
    file, out = tmp_path / "rows.parquet", tmp_path / "out.jsonl"
    row = {"response": respond("3.1"), "gold": "3.14", "kind": "number", "options": {"rel_tol": 0.05}}
    parquet.write_table(pyarrow.Table.from_pylist([row]), file)
    assert grade(file, "--workers", 1, "--out", out).exit_code == 0
    assert json.loads(out.read_text())["accuracy"] == 1.0


def test_responses_of_another_format(tmp_path: Path) -> None:
    file, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    file.write_text(json.dumps({"response": "so \\boxed{B}", "gold": "B"}))
    grade(file, "--any-format", "--extract", "boxed, whole", "--kind", "choice", "--out", out)
    assert json.loads(out.read_text())["reward"] == 1.0


def test_what_cannot_be_read_is_wrong_or_masked(tmp_path: Path) -> None:
    file, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    rows = [{"response": respond(answer), "gold": "7", "kind": "number"} for answer in ("7", "no idea")]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for flags, expected in (((), [1.0, 0.2]), (("--mask-unparseable",), [1.0, None])):
        result = grade(file, "--workers", 1, "--out", out, "--fresh", "--yes", *flags)
        verdicts = [json.loads(line) for line in out.read_text().splitlines()]
        assert [verdict["reward"] for verdict in verdicts] == expected
        assert verdicts[1]["status"] == "unparseable_answer"
    assert "not judged" in result.stdout, "a masked answer is in no mean"


def test_a_tag_of_ones_own(tmp_path: Path) -> None:
    file, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    file.write_text(json.dumps({"response": "<answer>8</answer> <final>7</final>", "gold": "7"}))
    grade(file, "--any-format", "--extract", "tag:final,answer", "--out", out)
    assert json.loads(out.read_text())["accuracy"] == 1.0
    assert "extract.0: Input should be" in str(grade(file, "--extract", "tag:a b").exception)


def test_a_pattern_of_ones_own(tmp_path: Path) -> None:
    file, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    rows = [{"response": response, "gold": "7"} for response in ("\\boxed{8} ANSWER: 7, I think", "\\boxed{7}")]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert (
        grade(file, "--any-format", "--extract", r"pattern:R: (\d{1,3}),", "--extract", "boxed", "--out", out).exit_code
        == 0
    )
    assert [json.loads(line)["accuracy"] for line in out.read_text().splitlines()] == [1.0, 1.0]
    assert "extract.1: the pattern is none of RE2's: missing )" in str(
        grade(file, "--extract", "boxed,pattern:(").exception
    )


def test_a_file_without_rows(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("\n")
    result = grade(file)
    assert result.exit_code == 0
    assert "not judged" in result.output


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not a JSON object: "),
        ("[]", "not a JSON object: not a JSON object"),
        ('{"response": "a"}', "gold: is not set"),
        ('{"response": "a", "gold": NaN}', "gold: is not set"),
        ('{"response": "a", "gold": [NaN]}', "gold.function-before"),
        ('{"response": "a", "gold": true}', "gold.function-before"),
        ('{"response": "a", "gold": 1%s}' % ("0" * 5000), "not a JSON object: Exceeds the limit"),
        ('{"response": "a", "gold": "7", "kind": "essay"}', "kind: Input should be"),
        ("[" * 100_000, "not a JSON object: "),
        ('"\xff', "not a JSON object: "),
    ],
)
def test_a_row_that_cannot_be_used_is_named_and_ends_nothing(line: str, message: str, tmp_path: Path) -> None:
    file, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    good = json.dumps({"response": respond("7"), "gold": "7"})
    file.write_bytes(f"{good}\n{line}\n{good}\n".encode("latin-1"))
    result = grade(file, "--workers", 1, "--out", out)
    assert f"{file}:2: {message}" in result.stderr
    assert isinstance(result.exception, DataError), "the exit status says so"
    assert str(result.exception) == f"1 of 3 rows in {file} cannot be graded; they are named above"
    assert [json.loads(verdict)["line"] for verdict in out.read_text().splitlines()] == [1, 3]
    assert "│ 2         │ 1.000" in result.stdout

    # What is mended is graded by the same command, and nothing else is again.
    before = out.read_text()
    file.write_text(f"{good}\n{good}\n{good}\n")
    assert grade(file, "--workers", 1, "--out", out).exit_code == 0
    assert out.read_text().startswith(before)
    assert [json.loads(verdict)["line"] for verdict in out.read_text().splitlines()] == [1, 3, 2]


def test_numbers_stand_for_texts_as_in_training_rows(tmp_path: Path) -> None:
    """An unquoted gold or id is one of the commonest ways a table writes an answer."""
    file, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    rows = [
        {"id": 5, "response": respond("7"), "gold": 7},
        {"id": 5.5, "response": respond("7.5"), "gold": [6, 7.5, float("nan")], "tokens": None, "kind": None},
        {
            "id": float("nan"),
            "response": respond("B"),
            "gold": "12",
            "kind": "choice",
            "options": {"choices": [11, 12]},
        },
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
    assert grade(file, "--workers", 1, "--out", out).exit_code == 0
    verdicts = [json.loads(verdict) for verdict in out.read_text().splitlines()]
    assert [(verdict["id"], verdict["accuracy"]) for verdict in verdicts] == [("5", 1.0), ("5.5", 1.0), (None, 1.0)]


def test_verdicts_of_an_earlier_release_are_gone_on_with(file: Path, tmp_path: Path) -> None:
    """They named their row by its place among the verdicts."""
    out = tmp_path / "verdicts.jsonl"
    assert grade(file, "--workers", 1, "--out", out).exit_code == 0
    verdicts = [json.loads(line) for line in out.read_text().splitlines()]
    earlier = [{key: value for key, value in verdict.items() if key != "index"} for verdict in verdicts[:2]]
    out.write_text("".join(json.dumps(verdict) + "\n" for verdict in earlier))
    assert grade(file, "--workers", 1, "--out", out).exit_code == 0
    assert [json.loads(line)["line"] for line in out.read_text().splitlines()] == [1, 3, 5, 7, 9]


async def test_a_batch_that_a_server_refuses_is_asked_for_again_in_halves() -> None:
    asked: list[int] = []

    async def ask(items: Sequence[GradeItem]) -> list[dict[str, Any]]:
        asked.append(len(items))
        if any(item.gold == "too large" for item in items):
            raise Refused("413 over the limit", 413)
        return [{"reward": float(item.gold)} for item in items if isinstance(item.gold, str)]

    golds = ["0", "1", "too large", "3", "4"]
    rows = [Row(n, n + 1, json.dumps({"response": "a", "gold": gold}).encode()) for n, gold in enumerate(golds)]
    results = await grade_rows([*rows, Row(5, 6, b"{")], "auto", ask)
    assert [result.record and result.record["reward"] for result in results] == [0.0, 1.0, None, 3.0, 4.0, None]
    assert [result.problem is None for result in results] == [True, True, False, True, True, False]
    assert asked[0] == 5

    async def away(_: Sequence[GradeItem]) -> list[dict[str, Any]]:
        raise Refused("401 no token", 401)

    with pytest.raises(Refused):
        await grade_rows(rows, "auto", away)


def test_mistakes_are_messages(file: Path, tmp_path: Path) -> None:
    for arguments, message in [
        ([tmp_path / "nowhere.jsonl"], "does not exist"),
        ([file, "--extract", "answer,magic"], "extract.1: Input should be"),
        ([file, "--workers", 0], "workers: "),
        ([file, "--deadline", -1], "deadline_seconds: "),
    ]:
        result = grade(*arguments)
        assert isinstance(result.exception, PrismError)
        assert message in str(result.exception)
    assert grade(file, "--kind", "essay").exit_code == 2


def test_the_judges_limits_come_from_the_environment(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, out = tmp_path / "judged.jsonl", tmp_path / "out.jsonl"
    rows.write_text(json.dumps({"response": respond("a cat"), "gold": "a kitten", "kind": "judge"}))
    monkeypatch.setenv("PRISM_JUDGE_URL", "http://127.0.0.1:9/v1")
    monkeypatch.setenv("PRISM_JUDGE_MAX_CHARS", "5")
    assert grade(rows, "--out", out).exit_code == 0
    assert "over the limit of 5 (PRISM_JUDGE_MAX_CHARS)" in json.loads(out.read_text())["detail"]
    monkeypatch.setenv("PRISM_JUDGE_MAX_CALLS", "-1")
    assert "judge_max_calls: " in str(grade(file).exception)


class Refuses(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_error(401)


@pytest.mark.parametrize("missing", ["pebble", "math_verify", "re2"])
def test_asking_a_server_needs_none_of_what_the_server_does(file: Path, missing: str) -> None:
    """A worker's image holds the core alone, and `helm test` grades from one."""
    # In a process of its own: modules that were imported here before would hide what a fresh one needs.
    code = f"import sys; sys.modules[{missing!r}] = None; from prism.cli import main; main()"
    with HTTPServer(("127.0.0.1", 0), Refuses) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        command = [sys.executable, "-c", code, "grade", file, "--url", f"http://127.0.0.1:{server.server_port}"]
        result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        server.shutdown()
    assert result.returncode == 1, result.stderr
    assert "401" in result.stderr
