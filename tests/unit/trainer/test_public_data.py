"""Public data as a model is given it: a changed picture changes its log-probabilities, a long row is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from public_data import PUBLISHED, Published, data_url, lines, pictures, png
from typer.testing import CliRunner

from prism.cli import app
from prism.data.blobs import BlobStore
from prism.data.rows import DataFile, Prompts, read_rows
from prism.errors import DataError
from prism.model.inputs import Example, InputBuilder
from prism.model.packing import pack
from prism.trainer.flow.demonstrations import Demonstrations, prompt_of
from prism.trainer.flow.lengths import max_positions, refuse_overlong
from prism.trainer.learn.policy_model import load_policy, response_logprobs


@pytest.fixture(scope="module")
def inputs(tiny_model: Path) -> InputBuilder:
    return InputBuilder(tiny_model)


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Any:
    return load_policy(tiny_model, dtype=torch.float32).eval()


def seen(data: DataFile, inputs: InputBuilder) -> list[Example]:
    return [inputs.with_text(prompt_of(row, data, inputs), row.response or "7") for row in data.rows]


@pytest.mark.parametrize("published", PUBLISHED.values(), ids=PUBLISHED.keys())
def test_a_changed_picture_changes_the_log_probabilities(
    tmp_path: Path, inputs: InputBuilder, model: Any, published: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every row with a picture is another one to the model where all pictures are white, and no other row is."""
    pictures(tmp_path)
    data = read_rows(published.write(tmp_path), "fail", every_turn=True)
    pictured = ["[" in "".join(said) for said in published.rows]
    as_it_is = seen(data, inputs)
    white = png("white")
    monkeypatch.setattr(DataFile, "image", lambda *_: white)
    changed = seen(data, inputs)
    with torch.no_grad():
        before, after = (response_logprobs(model, pack(examples, inputs)) for examples in (as_it_is, changed))
    lengths = [len(example.response_ids) for example in as_it_is]
    other = [not torch.equal(a, b) for a, b in zip(before.split(lengths), after.split(lengths), strict=True)]
    assert any(pictured)
    assert other == pictured


def test_a_row_that_is_too_long_is_refused_with_its_length_at_the_check_and_at_its_step(
    tmp_path: Path, inputs: InputBuilder, tiny_model: Path
) -> None:
    limit = max_positions(tiny_model)
    rows = [{"instruction": "?", "output": "7 " * count} for count in (10, 4 * limit)]
    file = lines(tmp_path / "a.jsonl", *rows)
    check = refuse_overlong(inputs, limit, "response")
    data = read_rows(file, "skip", ("response",), check=check)
    tokens = len(seen(read_rows(file, "fail"), inputs)[1].input_ids)
    (problem,) = data.problems
    assert problem.startswith(f"{file}:2: {tokens:,} tokens of prompt and response, over the limit of {limit:,} (")
    unopened = read_rows(file, "fail")  # as where images are only looked for, whose tokens nobody knows
    said: list[str] = []
    made = Demonstrations(
        [unopened], "response", inputs, cache_bytes=0, on_bad_row="skip", say=said.append, max_tokens=limit
    )
    assert len(made.batch([0, 1], ahead=[])) == 1
    assert f"{tokens:,} tokens" in said[0]
    result = CliRunner().invoke(app, ["data", "check", str(file), "--model", str(tiny_model)])
    assert f"refused {file}:2: {tokens:,} tokens" in result.output
    assert "prompts of " in result.output
    exact = refuse_overlong(inputs, tokens, "response")
    assert len(read_rows(file, "fail", check=exact).rows) == 2


def test_lengths_hold_images(tmp_path: Path, inputs: InputBuilder) -> None:
    file = lines(tmp_path / "a.jsonl", {"problem": "<image>?", "images": [data_url("red")], "response": "7"})
    tokens = len(seen(read_rows(file, "fail"), inputs)[0].input_ids)
    assert len(read_rows(file, "fail", check=refuse_overlong(inputs, tokens, "response")).rows) == 1
    with pytest.raises(DataError, match=f"{tokens} tokens of prompt and response"):
        read_rows(file, "skip", check=refuse_overlong(inputs, tokens - 1, "response"))


def test_prompts_of_several_files_have_ids_of_their_own(tmp_path: Path, blobs: BlobStore) -> None:
    rows = [{"id": 1, "problem": "<image>?", "answer": 1, "images": [data_url(c)]} for c in ("red", "blue")]
    files = [read_rows(lines(tmp_path / f"{i}.jsonl", row), "fail") for i, row in enumerate(rows)]
    prompts = Prompts(files, blobs)
    assert [prompt.id for prompt in (prompts[0], prompts[1])] == ["1:1", "2:1"]
    assert prompts[0].messages != prompts[1].messages
    assert Prompts(files[0], blobs)[0].id == "1"
