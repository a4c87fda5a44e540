"""``prism score`` and ``prism calibrate``: no row is lost, mixed up or scored twice, whatever happens in between."""

import fcntl
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi import HTTPException
from PIL import Image
from typer.testing import CliRunner, Result

from prism.cli import app
from prism.data.rows import read_rows
from prism.errors import PrismError
from prism.wire.messages import image_parts

DATA, ADMIN = "data-token-0123456789", "admin-token-0123456789"
Command = Callable[..., Result]


@pytest.fixture
def prism(fake_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs a command over the stand-ins, in a folder of its own."""
    for name, value in {"TOKEN": DATA, "ADMIN_TOKEN": ADMIN}.items():
        monkeypatch.setenv(f"PRISM_{name}", value)
    for name in ("perception", "reasoning"):
        monkeypatch.setenv(f"PRISM_{name.upper()}_URL", f"{fake_url}/{name}")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(app, [str(one) for one in arguments])


def write(rows: list[Any], name: str = "rows.jsonl") -> Path:
    path = Path(name)
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def rows(count: int) -> list[Any]:
    return [{"id": f"q{i}", "prompt": "?", "responses": ["a" * (i + 1), "bad"]} for i in range(count)]


def lines(path: str = "out.jsonl") -> list[Any]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def error(result: Result) -> str:
    assert isinstance(result.exception, PrismError), result.output
    return str(result.exception)


def test_every_line_says_what_was_scored_how_and_by_whom(prism: Command) -> None:
    result = prism("score", write(rows(2)), "--out", "out.jsonl", "--alpha", "0.75")
    assert result.exit_code == 0, result.output
    first, second = lines()
    assert (first["index"], first["id"], second["index"], second["id"]) == (0, "q0", 1, "q1")
    assert (first["section"], first["alpha"]) == ("own", 0.75)
    by = {"base": "the-model", "version": 3, "attempt": 1, "calibration": None}
    assert first["weights"] == {"perception": by, "reasoning": by}
    good, bad = second["responses"]
    assert (good["status"], good["score"]) == ("ok", 0.75 * 2 - 0.25 * 2)
    assert good["experts"]["perception"] | {"probability": None} == {
        "status": "ok",
        "score": 2.0,
        "section": "perception",
        "tokens": 2,
        "percentile": None,
        "probability": None,
        "detail": None,
    }
    assert (bad["status"], bad["score"], bad["experts"]["reasoning"]["detail"]) == (
        "invalid_format",
        None,
        "bad: no <think>",
    )


def test_few_rows_are_shown_one_by_one_and_all_are_summed_up(prism: Command) -> None:
    result = prism("score", write(rows(3)), "--expert", "perception", "--section", "all")
    assert result.exit_code == 0, result.output
    shown = [line.split() for line in result.output.replace("│", " ").splitlines()]
    assert ["q1", "1", "2.000"] in shown
    assert ["q1", "2", "–", "bad:", "no", "<think>"] in shown
    summed = [["version", "3"], ["ok", "3"], ["invalid_format", "3"], ["too_long", "0"], ["error", "0"]]
    spread = [["min", "1.000"], ["10", "%", "1.200"], ["median", "2.000"], ["90", "%", "2.800"], ["max", "3.000"]]
    assert all(row in shown for row in summed + spread)


def test_an_expert_that_is_not_there_is_named_and_what_to_do(prism: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(rows(1))
    wrong = ("--perception-url", "http://127.0.0.1:9", "--patience", "0.2")
    assert "http://127.0.0.1:9/v1/model: ConnectError" in error(prism("score", file, *wrong))
    monkeypatch.delenv("PRISM_TOKEN")
    assert "PRISM_TOKEN: is not set, and runs/demo/stack.json does not tell" in error(prism("score", file))


def test_rows_come_in_every_form_of_training_data(prism: Command, fake: Any) -> None:
    Path("images").mkdir()
    Image.new("RGB", (2, 2)).save("images/a.png")
    chat = [{"role": "user", "content": [{"type": "image", "image": "images/a.png"}, {"type": "text", "text": "?"}]}]
    file = write(
        [
            {"messages": chat, "response": "abc", "gold": "7", "meta": {}},
            "",
            {"id": 7, "messages": [*chat, {"role": "assistant", "content": "abcd"}]},
            {"id": "x", "prompt": "?", "images": ["images/a.png"], "responses": ["abcde"]},
        ]
    )
    assert prism("score", file, "--out", "out.jsonl", "--batch", "2").exit_code == 0
    assert [(line["index"], line["id"]) for line in lines()] == [(0, "0"), (1, "7"), (2, "x")]
    assert [line["responses"][0]["experts"]["perception"]["score"] for line in lines()] == [3.0, 4.0, 5.0]
    sent = [item.model_dump_json() for request in fake.requests for item in request.items]
    assert all("data:image/png;base64," in one for one in sent)


def test_rows_that_training_takes_are_taken(prism: Command, fake: Any) -> None:
    """Whatever a training file has beside what is scored: images beside messages, NaN, blanks, numbers."""
    Image.new("RGB", (8, 8)).save("a.png")
    picture = {"type": "image", "text": None, "source": "web"}
    asked = {"role": "user", "content": [picture, {"type": "text", "text": "?", "bbox": [1]}], "name": "me"}
    given: list[dict[str, Any]] = [
        {"messages": [asked], "images": ["a.png"], "response": "aa"},
        {"messages": [{"role": "user", "content": "?"}], "images": ["a.png"], "prompt": "else", "response": "aa"},
        {"messages": [asked, {"role": "assistant", "content": "aa", "weight": 1}], "images": ["a.png"]},
        {"messages": [{"role": "user", "content": "?"}], "response": 77, "gold": 7, "meta": {"a": 1}},
        {"messages": [{"role": "user", "content": "?"}], "response": float("nan"), "teacher": "aa", "gold": "7"},
        {"messages": [{"role": "user", "content": "?"}], "response": " ", "teacher": "aa"},
    ]
    file = write([row | {"id": index} for index, row in enumerate(given)])
    assert [row.id for row in read_rows(file, "fail").rows] == [*"012345"]
    result = prism("score", file, "--out", "out.jsonl", "--expert", "perception")
    assert result.exit_code == 0, result.output
    assert [(line["id"], [one["score"] for one in line["responses"]]) for line in lines()] == [
        (str(index), [2.0]) for index in range(6)
    ]
    images = [len(image_parts(item.chat())) for request in fake.requests for item in request.items]
    assert sorted(images) == [0, 0, 0, 1, 1, 1]


def test_a_bad_row_is_named_with_its_line_and_costs_no_other_its_score(prism: Command, fake: Any) -> None:
    def refuse(items: list[Any]) -> None:
        if any(item.prompt == "refuse" for item in items):
            raise HTTPException(422, "too many tokens in this prompt")

    fake.before = refuse
    file = write(
        [
            *rows(3),
            {"id": "r", "prompt": "refuse", "responses": ["a"]},
            "{not json",
            {"prompt": "?"},
            {"prompt": "?", "response": "a", "responses": ["a"]},
            {"prompt": "?", "images": ["nowhere.png"], "response": "a"},
            "[1]",
            {"prompt": "?", "responses": [1]},
            '{"prompt": "\\ud800", "response": "a"}',
            {"response": "a"},
            {"id": "e", "prompt": "?", "responses": ["a", "boom"]},
            *rows(2),
        ]
    )
    result = prism("score", file, "--out", "out.jsonl")
    assert [line["index"] for line in lines()] == [0, 1, 2, 12, 13, 14]
    assert "10 of 15 rows in rows.jsonl failed: 9 have no scores, 1 have a response with status error" in error(result)
    for number, reason in {
        4: "422 too many tokens in this prompt",
        5: "Expecting property name",
        6: "responses or response is missing",
        7: "give response or responses, not both",
        8: "image 'nowhere.png': No such file",
        9: "a row is a JSON object",
        10: "responses must be a text or a list of texts",
        11: "surrogates not allowed",
        12: "give either messages or prompt",
        13: "boom: no <think>",
    }.items():
        [said] = [line for line in result.stderr.splitlines() if line.startswith(f"rows.jsonl:{number}: ")]
        assert reason in said
    again = prism("score", file, "--out", "out.jsonl")
    assert error(again) == error(result)
    assert len(lines()) == 6


@pytest.mark.parametrize("torn", [0, 1, 40])
def test_an_interrupted_file_is_gone_on_with(prism: Command, fake: Any, torn: int) -> None:
    file = write(rows(10))
    left = iter(range(3))

    def dies(_: list[Any]) -> None:
        if next(left, None) is None:
            raise HTTPException(503, "gone")

    fake.before = dies
    command = ("score", file, "--out", "out.jsonl", "--expert", "perception", "--batch", "2", "--concurrency", "1")
    failed = prism(*command, "--patience", "0.2")
    assert "503 gone\nwhat is scored is in out.jsonl: the same command goes on" in error(failed)
    assert [line["index"] for line in lines()] == [0, 1, 2, 3, 4, 5]
    whole = Path("out.jsonl").read_bytes()
    Path("out.jsonl").write_bytes(whole[: len(whole) - torn])

    fake.before, fake.requests = lambda _: None, []
    result = prism(*command)
    assert result.exit_code == 0, result.output
    assert "10 rows" in result.output
    assert [line["index"] for line in lines()] == list(range(10))
    assert sum(len(request.items) for request in fake.requests) == (5 if torn else 4)
    assert prism(*command).exit_code == 0
    assert sum(len(request.items) for request in fake.requests) == (5 if torn else 4)


def test_rows_that_were_added_to_the_input_are_scored_and_rows_that_changed_are_refused(prism: Command) -> None:
    assert prism("score", write(rows(3)), "--out", "out.jsonl").exit_code == 0
    assert prism("score", write(rows(5)), "--out", "out.jsonl").exit_code == 0
    assert [line["id"] for line in lines()] == ["q0", "q1", "q2", "q3", "q4"]
    before = Path("out.jsonl").read_bytes()
    changed = prism("score", write([*rows(3), *rows(2)]), "--out", "out.jsonl")
    assert "out.jsonl: rows.jsonl:4 is not the row that was scored. Write to another file, or" in error(changed)
    fewer = prism("score", write(rows(3)), "--out", "out.jsonl")
    assert "2 scored rows are not in rows.jsonl any more" in error(fewer)
    assert Path("out.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--section", "all"], "section own, alpha 0.5, now it is by perception and reasoning, section all"),
        (["--alpha", "0.25"], "alpha 0.5, now it is by perception and reasoning, section own, alpha 0.25"),
        (["--expert", "reasoning"], "now it is by reasoning, section own, alpha None"),
    ],
)
def test_scores_made_in_another_way_are_not_mixed(prism: Command, options: list[str], message: str) -> None:
    file = write(rows(2))
    assert prism("score", file, "--out", "out.jsonl").exit_code == 0
    before = Path("out.jsonl").read_bytes()
    assert message in error(prism("score", file, "--out", "out.jsonl", *options))
    assert Path("out.jsonl").read_bytes() == before


@pytest.mark.parametrize("change", ["version", "base", "calibration"])
def test_scores_by_other_weights_are_not_mixed_unless_asked_for(prism: Command, fake: Any, change: str) -> None:
    assert prism("score", write(rows(2)), "--out", "out.jsonl").exit_code == 0
    if change == "calibration":
        reference = write([{"prompt": "?", "teacher": ["a", "b"], "policy": ["c", "d"]}] * 2, "reference.jsonl")
        assert prism("calibrate", reference).exit_code == 0
    else:
        setattr(fake, change, {"version": 4, "base": "another"}[change])
    file = write(rows(3))
    said = error(prism("score", file, "--out", "out.jsonl"))
    assert "scored by perception the-model version 3 (attempt 1, not calibrated)" in said
    assert prism("score", file, "--out", "out.jsonl", "--mixed-versions").exit_code == 0
    assert lines()[2]["weights"] != lines()[1]["weights"] == lines()[0]["weights"]


def test_weights_that_change_in_the_middle_stop_it(prism: Command, fake: Any) -> None:
    def push(items: list[Any]) -> None:
        fake.version += items[0].responses[0] == "aaa"

    fake.before = push
    one_by_one = ("--batch", "1", "--concurrency", "1")
    command = ("score", write(rows(4)), "--out", "out.jsonl", "--expert", "reasoning", *one_by_one)
    said = error(prism(*command))
    assert "the reasoning expert's weights changed from version 3 (attempt 1) to 4 (1) in the middle" in said
    assert [line["weights"]["reasoning"]["version"] for line in lines()] == [3, 3]
    fake.version, fake.before = 4, lambda _: None
    assert prism(*command, "--mixed-versions").exit_code == 0
    assert [line["weights"]["reasoning"]["version"] for line in lines()] == [3, 3, 4, 4]


@pytest.mark.parametrize("content", ["a diary", "a diary\n", '{"index": 0}\n', '{"id": "q", "response": "x"}'])
def test_a_file_that_is_not_ours_is_left_alone(prism: Command, content: str) -> None:
    Path("out.jsonl").write_text(content)
    said = error(prism("score", write(rows(2)), "--out", "out.jsonl"))
    assert said == "out.jsonl:1 was not written by prism score: name another file to write to"
    assert Path("out.jsonl").read_text() == content


def test_input_and_output_are_two_files_and_one_process_writes(prism: Command) -> None:
    file = write(rows(2))
    assert "is the input" in error(prism("score", file, "--out", file))
    assert "nowhere.jsonl does not exist" in error(prism("score", "nowhere.jsonl", "--out", "out.jsonl"))
    assert "Is a directory" in error(prism("score", file, "--out", "."))
    with Path("out.jsonl").open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert "is being written by another prism score" in error(prism("score", file, "--out", "out.jsonl"))


def test_a_refusal_that_no_row_is_to_blame_for_ends_it(prism: Command, fake: Any) -> None:
    def refuse(_: list[Any]) -> None:
        raise HTTPException(403, "this token opens nothing")

    fake.before = refuse
    assert "403 this token opens nothing" in error(prism("score", write(rows(9)), "--batch", "4"))


REFERENCE = [
    {"prompt": "?", "teacher": "aaaa", "policy": ["a", "bad"]},
    {"prompt": "?", "teacher": ["aaaaa", "bad"], "response": "aa"},
    {"prompt": "?", "teacher": "aaa"},
]


def test_a_reference_gives_scores_their_meaning(prism: Command, fake: Any) -> None:
    file = write([*REFERENCE, {"prompt": "?", "teacher": "aaa", "policy": ["boom"]}])
    result = prism("calibrate", file)
    assert result.exit_code == 0, result.output
    assert "rows.jsonl:3: policy or responses or response is missing" in result.stderr
    assert "among 2 responses of the teacher and 2 of the policy to 2 prompts" in result.output
    assert "right for 87.5% of the reference by fits without the prompt" in result.output
    assert "log loss 0.250" in result.output
    why = "1 of the policy (error), 1 of the policy (invalid_format), 1 of the teacher (invalid_format), "
    why += "1 of the teacher (nothing of the other side to set beside), "
    assert result.output.count(f"left out: {why}1 rows that could not be scored, named above") == 2
    state = fake.calibrations["perception"]
    assert (state.version, state.attempt, state.section, state.reference.name) == (3, 1, "own", "rows.jsonl")
    assert len(state.reference.sha256) == 64
    prism("score", write(rows(1), "more.jsonl"), "--out", "out.jsonl")
    assert lines()[0]["responses"][0]["experts"]["reasoning"]["probability"] == 0.9
    assert lines()[0]["weights"]["reasoning"]["calibration"] == state.reference.sha256


def test_one_expert_alone_is_calibrated_on_whole_texts(prism: Command, fake: Any) -> None:
    file = write([{"prompt": "?", "teacher": "a", "policy": "c"}] * 2)
    assert prism("calibrate", file, "--expert", "reasoning", "--section", "all").exit_code == 0
    assert fake.calibrations.keys() == {"reasoning"}
    assert fake.calibrations["reasoning"].section == "all"


def test_what_cannot_calibrate_calibrates_nothing(prism: Command, fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    few = write([{"prompt": "?", "teacher": ["a", "b"], "policy": ["bad", "c"]}])
    said = error(prism("calibrate", few))
    assert "expert scored both sides of 1 prompts, a calibration needs 2 or more, to hold some out" in said
    assert "left out: 1 of the policy (invalid_format)" in said

    def push(_: list[Any]) -> None:
        fake.version += 1

    fake.before = push
    enough = write([{"prompt": "?", "teacher": ["a", "b"], "policy": ["c", "d"]}] * 2)
    assert "in the middle" in error(prism("calibrate", enough))
    monkeypatch.delenv("PRISM_ADMIN_TOKEN")
    assert "set PRISM_ADMIN_TOKEN" in error(prism("calibrate", enough))
    assert not fake.calibrations
