"""Prompts too long for the policy server are refused when data is read, by name: in training, measured, or planned."""

import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

from prism.config import RunConfig, load_config
from prism.data.blobs import BlobStore
from prism.data.rows import read_rows
from prism.errors import ConfigError, DataError
from prism.model.inputs import InputBuilder
from prism.trainer.flow.examples import GroupExamples, refuse_unservable
from prism.trainer.run import compare, pipeline, plan
from prism.trainer.stages.context import Context
from prism.wire.messages import from_json

LIMIT = r"over the limit of 56: stack.max_model_len \(96\) less max_tokens \(40\)"

TEACHER = "<caption>- a seven</caption><think>7</think><answer>7</answer>"


def row(name: str, words: int) -> dict[str, Any]:
    parts = [{"type": "image", "image": "picture.png"}, {"type": "text", "text": "seven " * words}]
    return {"id": name, "messages": [{"role": "user", "content": parts}], "gold": "7", "teacher": TEACHER}


@pytest.fixture
def config(tmp_path: Path, tiny_model: Path) -> RunConfig:
    """A run in which 56 tokens are left to a prompt, with a row that fits and one that does not, in both files."""
    Image.new("RGB", (96, 96), "red").save(tmp_path / "picture.png")  # 9 tokens
    text = "\n".join(json.dumps(row(name, words)) for name, words in (("fits", 20), ("long", 200)))
    (tmp_path / "rows.jsonl").write_text(text)
    made = load_config(
        Path("configs/demo.toml"),
        [
            f"runs_dir={json.dumps(str(tmp_path))}",
            f"model={json.dumps(str(tiny_model))}",
            f"evaluate.data={json.dumps(str(tmp_path / 'rows.jsonl'))}",
            "evaluate.max_tokens=40",
            "stack.max_model_len=96",
            "stages.align.rollouts.max_tokens=40",
            f"stages.align.rollouts.data={json.dumps(str(tmp_path / 'rows.jsonl'))}",
        ],
    )
    return made.model_copy(update={"prepare": None})


def test_a_prompt_may_fill_what_the_response_leaves_and_no_more(config: RunConfig, tiny_model: Path) -> None:
    inputs = InputBuilder(tiny_model)
    file = read_rows(Path(str(config.evaluate.data)), "skip")
    fits = file.rows[0]
    image = file.decode_image("picture.png")
    tokens = len(inputs.prompt(from_json(fits.messages, str), [image]).input_ids)
    refuse_unservable(inputs, tokens + 40, 40)(fits, [image.size])
    with pytest.raises(DataError, match=rf"a prompt of {tokens} tokens, over the limit of {tokens - 1}: "):
        refuse_unservable(inputs, tokens + 39, 40)(fits, [image.size])
    scaled = InputBuilder(tiny_model, (64 * 64, 64 * 64))  # 4 tokens instead of 9
    refuse_unservable(scaled, tokens + 35, 40)(fits, [image.size])
    with pytest.raises(DataError):
        refuse_unservable(scaled, tokens + 34, 40)(fits, [image.size])


def test_a_stages_prompts_are_checked(config: RunConfig, tiny_model: Path, tmp_path: Path) -> None:
    inputs, blobs = InputBuilder(tiny_model), BlobStore(str(tmp_path / "blobs"))
    examples, nothing = GroupExamples(inputs, blobs), SimpleNamespace()
    console = Console(record=True, width=300)
    context: Any = Context(config, "align", 1, nothing, blobs, inputs, examples, console)  # pyright: ignore[reportArgumentType]
    prompts = context._prompts(config.stages["align"].rollouts, ("gold",))  # pyright: ignore[reportAttributeAccessIssue]
    assert [prompt.id for prompt in prompts] == ["fits"]
    assert f"{config.evaluate.data}:2: a prompt of " in console.export_text()
    strict = config.model_copy(update={"on_bad_row": "fail"})
    refusing: Any = Context(strict, "align", 1, nothing, blobs, inputs, examples, console)  # pyright: ignore[reportArgumentType]
    with pytest.raises(DataError, match=f":2: a prompt of .*{LIMIT}"):
        refusing._prompts(config.stages["align"].rollouts, ("gold",))  # pyright: ignore[reportAttributeAccessIssue]


class Running(nullcontext[None]):
    """Services that run already."""

    def __init__(self, *_: object) -> None:
        super().__init__()


@pytest.fixture
def measured(config: RunConfig, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What measurements of a run whose stages are trained are given as their check."""
    given: list[Any] = []
    figures = {"stage": "align", "accuracy": None}
    for name in ("save_resolved", "refuse_changed", "_serve", "print_figures", "_disentangled"):
        monkeypatch.setattr(pipeline, name, lambda *_: None)
    monkeypatch.setattr(pipeline, "stage_result", lambda *_: {"version": 3})
    monkeypatch.setattr(pipeline, "stage_folder", lambda *_: tiny_model)
    monkeypatch.setattr(pipeline, "RunningServices", Running)
    for module in (pipeline, compare):
        monkeypatch.setattr(module, "evaluate", lambda *_, check=None, **__: given.append(check) or figures)
    return given


def test_held_out_questions_are_checked_before_training_and_when_they_are_asked(
    config: RunConfig, measured: list[Any]
) -> None:
    pipeline.run(config, Path("configs/demo.toml"), [], Console(quiet=True), attach=True)
    assert len(measured) == len(config.stages)
    for check in measured:
        file = read_rows(Path(str(config.evaluate.data)), "skip", check=check)
        assert ([row.id for row in file.rows], file.bad_rows) == (["fits"], 1)
    measured.clear()
    strict = config.model_copy(update={"on_bad_row": "fail"})
    with pytest.raises(DataError, match=f":2: a prompt of .*{LIMIT}"):
        pipeline.run(strict, Path("configs/demo.toml"), [], Console(quiet=True), attach=True)
    assert not measured


def test_held_out_data_without_a_question_that_fits_ends_a_run_before_it_trains(
    config: RunConfig, measured: list[Any]
) -> None:
    Path(str(config.evaluate.data)).write_text(json.dumps(row("long", 200)))
    with pytest.raises(DataError, match=f"holds no usable row; the first problem: .*:1: a prompt of .*{LIMIT}"):
        pipeline.run(config, Path("configs/demo.toml"), [], Console(quiet=True), attach=True)
    assert not measured


def test_a_plan_names_what_the_run_would_leave_out(config: RunConfig) -> None:
    lines = "\n".join(plan.make_plan(config, attach=True).lines)
    for title in ("align:", "evaluate:"):
        of_stage = lines.split(f"\n{title}", 1)[1]
        assert "1 of 2 rows usable" in of_stage.splitlines()[0]
        assert "a prompt of " in of_stage.splitlines()[1]


def test_a_response_that_leaves_no_room_for_a_question_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"evaluate\.max_tokens: 256 leaves no room for a question"):
        load_config(Path("configs/demo.toml"), ["evaluate.max_tokens=256"])
