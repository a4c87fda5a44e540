"""The demo's data: right answers, disjoint handwriting, flaws at the named rates, files that load as a user's would."""

import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from configs.demo import prepare, task
from prism.model import torchvision_cpu
from prism.wire.response import caption_f1, parse_response

ROWS = {"public": 60, "teacher": 8, "prompts": 30, "validation": 12, "test": 12}


def puzzles(seed: int, number: int) -> list[task.Puzzle]:
    rng = random.Random(seed)
    return [task.draw_puzzle(rng, rng.choice(task.LEVELS)) for _ in range(number)]


def brute_force(question: str, digits: tuple[int, ...], rows: int, columns: int) -> int:
    """The answer, from the question's English alone."""
    grid = np.array(digits).reshape(rows, columns)
    if question == "First minus last?":
        return int(grid[0, 0] - grid[-1, -1])
    if question == "Largest minus smallest?":
        return int(grid.max() - grid.min())
    if question == "How many above 5?":
        return int((grid > 5).sum())
    *operation, name, axis = question.rstrip("?").split()
    lines = grid if axis == "row" else grid.T
    line = lines[{"top": 0, "left": 0, "bottom": -1, "right": -1, "middle": 1}[name]]
    reduce: Callable[[Any], Any] = {"Sum of the": np.sum, "Largest in the": np.max}[" ".join(operation)]
    return int(reduce(line))


def test_gold_answers_equal_brute_force() -> None:
    for puzzle in puzzles(1, 3000):
        expected = brute_force(task.question_text(puzzle), puzzle.digits, puzzle.rows, puzzle.columns)
        assert task.gold(puzzle) == str(expected), puzzle


def test_every_question_of_every_level_is_drawn() -> None:
    drawn = {(puzzle.level, puzzle.question) for puzzle in puzzles(2, 1000)}
    assert drawn == {(level, question) for level in task.LEVELS for question in task.QUESTIONS[level]}


def test_teacher_is_well_formed_right_and_its_steps_hold() -> None:
    for puzzle in puzzles(3, 1000):
        response = parse_response(task.teacher_response(puzzle))
        assert response.valid
        assert response.answer == task.gold(puzzle)
        assert [bullet.split()[1] for bullet in response.bullets] == [task.DIGIT_NAMES[d] for d in puzzle.digits]
        for step in response.think.split("\n"):
            left, right = step.split("=")
            if left[0].isdigit():
                first, sign, second = left.partition("+") if "+" in left else left.partition("-")
                assert int(first) + int(sign + second) == int(right)


def test_flaws_come_at_their_rates_and_show_in_the_text() -> None:
    flaws = task.Flaws({7: (1, 0.8), 4: (9, 0.5)}, drop_bullet=0.3, slip={1: 0.0, 2: 0.2, 3: 0.6})
    rng = random.Random(4)
    said: dict[int, list[str]] = {digit: [] for digit in range(10)}
    slips: dict[int, list[bool]] = {level: [] for level in task.LEVELS}
    dropped = 0
    drawn = puzzles(4, 6000)
    for puzzle in drawn:
        text, found = task.public_response(puzzle, flaws, rng)
        response = parse_response(text)
        assert response.valid
        assert (response.answer == task.gold(puzzle)) or found
        assert (caption_f1(text, task.teacher_response(puzzle)) == 1.0) == (not {"misread", "dropped"} & set(found))
        missing = len(puzzle.digits) - len(response.bullets)
        assert missing == found.count("dropped")
        dropped += missing
        if not puzzle.question.endswith("_max"):
            slips[puzzle.level].append("slip" in found)
        for bullet in response.bullets:
            letter, name = bullet.split()
            said[puzzle.digits[task.LETTERS.index(letter)]].append(name)
    assert said[7].count("one") / len(said[7]) == pytest.approx(0.8, abs=0.03)
    assert said[4].count("nine") / len(said[4]) == pytest.approx(0.5, abs=0.03)
    for digit in (0, 1, 2, 3, 5, 6, 8, 9):
        assert set(said[digit]) == {task.DIGIT_NAMES[digit]}
    assert dropped / len(drawn) == pytest.approx(0.3, abs=0.03)
    for level, rate in flaws.slip.items():
        assert np.mean(slips[level]) == pytest.approx(rate, abs=0.04)


@pytest.mark.parametrize("misread", [{7: (7, 0.5)}, {7: (1, 1.5)}, {11: (1, 0.5)}])
def test_impossible_flaws_are_refused(misread: dict[int, tuple[int, float]]) -> None:
    with pytest.raises(ValueError, match="misread"):
        task.Flaws(misread)


def test_scans_are_split_once_and_disjoint() -> None:
    training, held_out = task.split_scans(seed=0)
    for digit in range(10):
        assert not set(training[digit]) & set(held_out[digit])
        assert len(held_out[digit]) > 30
    assert sum(len(numbers) for split in (training, held_out) for numbers in split) == 1797
    assert task.split_scans(seed=0)[0] == training
    assert task.split_scans(seed=1)[0] != training


def test_a_cell_is_one_visual_token_and_rendering_repeats() -> None:
    scans, _ = task.split_scans(seed=0)
    for puzzle in puzzles(5, 20):
        image = task.render(puzzle, scans, random.Random(6))
        assert image.size == (puzzle.columns * task.CELL, puzzle.rows * task.CELL)
        assert image.tobytes() == task.render(puzzle, scans, random.Random(6)).tobytes()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo")
    prepare.main(options(out))
    return out


def options(out: Path, **changes: int) -> list[str]:
    rows = ROWS | changes
    return [
        f"--out={out}",
        f"--public-demos={rows['public']}",
        f"--teacher-demos={rows['teacher']}",
        *(f"--{name}={rows[name]}" for name in ("prompts", "validation", "test")),
    ]


def read(prepared: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (prepared / "data" / f"{name}.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", ROWS)
def test_rows_hold_what_their_file_promises(prepared: Path, name: str) -> None:
    rows = read(prepared, name)
    assert len(rows) == ROWS[name]
    assert len({row["id"] for row in rows}) == len(rows)
    for row in rows:
        assert ("response" in row) == (name == "public")
        assert ("teacher" in row) == (name in ("teacher", "validation", "test"))
        assert ("gold" in row) == (name != "public")
        assert row["kind"] == "number"
        (message,) = row["messages"]
        image, text = message["content"]
        assert Image.open(prepared / "data" / image["image"]).size[0] == row["meta"]["columns"] * task.CELL
        assert text["text"].endswith("?")
        if "gold" in row:
            meta = row["meta"]
            assert int(row["gold"]) == brute_force(text["text"], meta["digits"], meta["rows"], meta["columns"])
        if "teacher" in row:
            assert parse_response(row["teacher"]).answer == row["gold"]


def test_prepare_does_nothing_twice_and_notices_a_change(prepared: Path, tmp_path: Path) -> None:
    marker, weights = tmp_path / prepare.MARKER, tmp_path / "model" / "model.safetensors"
    prepare.main(options(tmp_path))
    assert weights.read_bytes() == (prepared / "model" / "model.safetensors").read_bytes()
    for name in ROWS:
        assert read(tmp_path, name) == read(prepared, name)
    written = marker.stat().st_mtime_ns
    prepare.main(options(tmp_path))
    assert marker.stat().st_mtime_ns == written
    prepare.main(options(tmp_path, prompts=5))
    assert len(read(tmp_path, "prompts")) == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "model", prepare.MARKER]


def test_prompts_ask_about_drifted_digits_as_often_as_told(tmp_path: Path) -> None:
    prepare.main([*options(tmp_path), "--prompt-drift=0", "--misread", "7=1:0.5", "4=9:0.5"])
    for row in read(tmp_path, "prompts"):
        meta = {name: row["meta"][name] for name in ("level", "rows", "columns", "question", "index")}
        puzzle = task.Puzzle(digits=tuple(row["meta"]["digits"]), **meta)
        assert not {7, 4} & {puzzle.digits[cell] for cell in puzzle.cells}


def test_bad_options_are_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--misread=7-1"], ["--levels=1,2"], ["--slip=1.5"], ["--prompts=0"]):
        with pytest.raises(SystemExit):
            prepare.parse_arguments([f"--out={tmp_path}", *arguments])
        assert arguments[0].split("=")[0] in capsys.readouterr().err


def test_model_folder_loads_and_reads_a_grid_as_one_token_a_cell(prepared: Path) -> None:
    torchvision_cpu.install()
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(prepared / "model")
    model: Any = AutoModelForImageTextToText.from_pretrained(prepared / "model")
    assert 1e6 < sum(parameter.numel() for parameter in model.parameters()) < 2e6
    for row in read(prepared, "teacher"):
        prompt = processor.apply_chat_template(row["messages"], tokenize=False, add_generation_prompt=True)
        image = Image.open(prepared / "data" / row["messages"][0]["content"][0]["image"])
        inputs = processor(images=[image], text=[prompt], return_tensors="pt")
        cells = row["meta"]["rows"] * row["meta"]["columns"]
        assert int((inputs["input_ids"] == model.config.image_token_id).sum()) == cells
        assert inputs["pixel_values"].shape[0] == 4 * cells  # so the picture was not rescaled
        with torch.no_grad():
            assert torch.isfinite(model(**inputs).logits).all()


def test_tokenizer_round_trips_and_knows_its_tokens(prepared: Path) -> None:
    torchvision_cpu.install()
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(prepared / "model")
    texts = [row["response"] for row in read(prepared, "public")] + ["naïve ✓\n\n  <think>"]
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert len(tokenizer(task.teacher_response(puzzles(7, 1)[0]))["input_ids"]) < 64
    assert tokenizer.tokenize("12 seven</think>") == ["1", "2", "Ġseven", "</think>"]
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    plain = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    parts = [{"type": "text", "text": "Hi"}]
    assert plain == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert plain == tokenizer.apply_chat_template(
        [{"role": "user", "content": parts}], tokenize=False, add_generation_prompt=True
    )
