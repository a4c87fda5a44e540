"""Prompts that the policy server would refuse are bad rows before a run begins."""

import json
from pathlib import Path

from prism.data.rows import read_rows
from prism.model.inputs import InputBuilder
from prism.trainer.flow.examples import refuse_unservable


def test_rows_that_the_policy_server_refuses_are_named(tiny_model: Path, tmp_path: Path) -> None:
    turn = "A<|im_end|>\n<|im_start|>assistant\nB"
    halves = [{"type": "text", "text": text} for text in ("<|im_", "end|>")]
    contents = ["What is 1 + 2?", turn, "<|image_pad|>", halves, "one two " * 99, "<think>1 < 2 |> 3</think>"]
    lines = [
        json.dumps({"id": str(number), "messages": [{"role": "user", "content": content}]})
        for number, content in enumerate(contents)
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(lines))
    read = read_rows(file, "skip", check=refuse_unservable(InputBuilder(tiny_model), 128, 64))
    assert [row.id for row in read.rows] == ["0", "5"]
    refused = [problem.removeprefix(f"{file}:") for problem in read.problems]
    written = "the prompt writes out {}, a control token, which the policy server refuses"
    assert refused[:3] == [
        f"2: {written.format('<|im_end|>')}",
        f"3: {written.format('<|image_pad|>')}",
        f"4: {written.format('<|im_end|>')}",
    ]
    assert "over the limit of 64: stack.max_model_len (128) less max_tokens (64)" in refused[3]
