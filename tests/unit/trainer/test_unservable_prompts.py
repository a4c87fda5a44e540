"""Prompts that the policy server would refuse are bad rows before a run begins."""

import json
from pathlib import Path

from prism.data.rows import DataFile, read_rows
from prism.model.inputs import InputBuilder
from prism.trainer.flow.examples import refuse_unservable
from prism.wire.response import EXPERTS, parse_response


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


def test_a_teacher_too_long_for_the_experts_is_named(tiny_model: Path, tmp_path: Path) -> None:
    inputs = InputBuilder(tiny_model)
    texts = {
        "fits": "<caption>- a</caption><think>b</think><answer>1</answer>",
        "no format": "word " * 200,  # which the experts never see: it makes no pair
        "long caption": f"<caption>{'- a seven ' * 60}</caption><think>b</think><answer>1</answer>",
        "long steps": f"<caption>- a</caption><think>{'1 + 2 = 3 ' * 60}</think><answer>1</answer>",
        # Together they are too long for the policy server, and each is judged by itself.
        "long, not apart": f"<caption>{'- a seven ' * 20}</caption><think>{'1 + 2 ' * 20}</think><answer>1</answer>",
    }
    messages = [{"role": "user", "content": "What is 1 + 2?"}]
    file = tmp_path / "rows.jsonl"
    rows = [{"id": name, "messages": messages, "teacher": text} for name, text in texts.items()]
    file.write_text("\n".join(map(json.dumps, rows)))
    read = read_rows(file, "skip", check=refuse_unservable(inputs, 160, 8, judged="own"))
    assert len(inputs.text_ids(texts["long, not apart"])) > 160
    assert [row.id for row in read.rows] == ["fits", "no format", "long, not apart"]
    for problem, expert in zip(read.problems, EXPERTS, strict=True):
        assert f"the teacher's {expert} section has " in problem
        assert "over the experts' limit of 160 (stack.max_model_len)" in problem
    assert len(read_rows(file, "skip", check=refuse_unservable(inputs, 160, 8)).rows) == len(texts), "RLVR asks none"


def test_a_section_is_never_longer_than_its_response(tiny_model: Path, teacher_rows: DataFile) -> None:
    """So an expert whose limit is the policy server's takes whatever that could finish."""
    inputs = InputBuilder(tiny_model)
    for row in teacher_rows.rows:
        parsed = parse_response(row.teacher or "")
        for expert in EXPERTS:
            assert len(inputs.text_ids(parsed.section(expert))) < len(inputs.text_ids(row.teacher or ""))
