"""Small files as public data sets are written, after the documentation that each names, and what a model must be shown.

A picture is one colour all over: where ``[red]`` stands in what is shown, the model must see red.
"""

import base64
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
from PIL import Image
from pyarrow import parquet

from prism.data.rows import DataFile, DataRow

COLOURS = {"red": (255, 0, 0), "green": (0, 128, 0), "blue": (0, 0, 255), "white": (255, 255, 255)}
ANSWERED = "<caption>- one colour</caption><think>It is red.</think><answer>red</answer>"


def png(colour: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (64, 64), COLOURS[colour]).save(file, "PNG")
    return file.getvalue()


def data_url(colour: str) -> str:
    return f"data:image/png;base64,{base64.b64encode(png(colour)).decode()}"


def embedded(colour: str) -> dict[str, Any]:
    """An image as Hugging Face's Image feature holds it."""
    return {"bytes": png(colour), "path": f"{colour}.png"}


def pictures(folder: Path) -> None:
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    for colour in COLOURS:
        (folder / "pictures" / f"{colour}.png").write_bytes(png(colour))


def lines(file: Path, *rows: Any) -> Path:
    file.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return file


def array(file: Path, *rows: Any, indent: int | None = 2) -> Path:
    file.write_text(json.dumps(rows, indent=indent, ensure_ascii=False))
    return file


def table(file: Path, *rows: dict[str, Any]) -> Path:
    parquet.write_table(pyarrow.Table.from_pylist(list(rows)), file, row_group_size=2)
    return file


def shown(row: DataRow, data: DataFile) -> list[str]:
    """Each message as its role and content, a picture by its colour; then the response."""
    names: dict[Any, str] = {colour: name for name, colour in COLOURS.items()}

    def content(message: Any) -> str:
        parts = message.parts
        return "".join(
            part.text if part.type == "text" else f"[{names[data.decode_image(part.image).getpixel((0, 0))]}]"
            for part in parts
        )

    said = [f"{message.role}: {content(message)}" for message in row.messages]
    return said + ([f"= {row.response}"] if row.response is not None else [])


@dataclass(frozen=True)
class Published:
    """A file of a format, with what its rows must come to."""

    follows: str
    format: str
    write: Callable[[Path], Path]
    rows: list[list[str]]
    """What is shown of each row, the turns that are learnt from each a row of their own."""
    golds: list[list[str]] | None = None
    """Of each row that reinforcement learning can take."""
    learnt: bool = True
    """Whether SFT has something to learn from it."""


def _llama_factory(folder: Path) -> Path:
    chat = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    columns = {"messages": "messages", "images": "images"}
    described = {"file_name": "mllm_demo.json", "formatting": "sharegpt", "columns": columns, "tags": chat}
    (folder / "dataset_info.json").write_text(json.dumps({"identity": {"file_name": "i.json"}, "mllm_demo": described}))
    turns = [
        {"content": "<image>Who are they?", "role": "user"},
        {"content": "Red ones.", "role": "assistant"},
        {"content": "And here:<image>?", "role": "user"},
        {"content": "Blue ones.", "role": "assistant"},
    ]
    images = ["pictures/red.png", "pictures/blue.png"]
    return array(folder / "mllm_demo.json", {"messages": turns, "images": images})


def _sharegpt(folder: Path) -> Path:
    said = [{"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": "Green."}]
    row = {"conversations": said, "system": "Be brief.", "tools": "", "images": ["pictures/green.png"]}
    return array(folder / "sharegpt.json", row, indent=None)


def _alpaca(folder: Path) -> Path:
    row = {
        "instruction": "<image>What colour?",
        "input": "One word.",
        "output": "Blue.",
        "system": "Be brief.",
        "history": [["Ready?", "Yes."]],
        "images": ["pictures/blue.png"],
    }
    plain = {"instruction": "2 + 2?", "input": "", "output": "4"}
    return array(folder / "alpaca.json", row, plain)


def _ms_swift(folder: Path) -> Path:
    both = "<image><image>What is the difference?"
    return lines(
        folder / "swift.jsonl",
        {"messages": [{"role": "user", "content": "Capital?"}, {"role": "assistant", "content": "Hangzhou."}]},
        {
            "messages": [{"role": "user", "content": both}, {"role": "assistant", "content": "The first is red."}],
            "images": ["pictures/red.png", "pictures/green.png"],
        },
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "<image>Colour?"},
                {"role": "assistant", "content": "No.", "loss": False},
                {"role": "user", "content": "Say it."},
                {"role": "assistant", "content": "Blue."},
            ],
            "images": [{"bytes": base64.b64encode(png("blue")).decode(), "path": None}],
        },
    )


def _ms_swift_query(folder: Path) -> Path:
    history = [["<image>Ready?", "Yes."]]
    row = {"system": "Hi.", "query": "Colour?", "response": "Red.", "history": history, "images": ["pictures/red.png"]}
    return lines(folder / "query.jsonl", row)


def _openai(folder: Path) -> Path:
    asked = {"type": "text", "text": "What colour?"}
    by_url = {"type": "image_url", "image_url": {"url": data_url("green"), "detail": "high"}}
    by_file = {"type": "image_url", "image_url": {"url": (folder / "pictures" / "red.png").resolve().as_uri()}}
    return lines(
        folder / "openai.jsonl",
        {
            "messages": [
                {"role": "developer", "content": "Be brief."},
                {"role": "user", "content": [asked, by_url]},
                {"role": "assistant", "content": "Grey.", "weight": 0},
                {"role": "user", "content": [by_file, {"type": "text", "text": "And this?"}]},
                {"role": "assistant", "content": "Red.", "weight": 1},
            ]
        },
    )


def _llava(folder: Path) -> Path:
    said = [
        {"from": "human", "value": "<image>\nWhat?"},
        {"from": "gpt", "value": "Red."},
        {"from": "human", "value": "Sure?"},
        {"from": "gpt", "value": "Yes."},
    ]
    text = [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4"}]
    first = {"id": 7, "image": "pictures/red.png", "conversations": said}
    hue = {"from": "human", "value": "Hue?\n<image>"}
    same_id = {
        "id": 7,
        "image": "pictures/blue.png",
        "conversations": [hue, said[1]],
    }
    return array(folder / "llava.json", {"id": "t", "conversations": text}, first, same_id)


def _trl(folder: Path) -> Path:
    asked = [{"role": "user", "content": "What colour?"}]
    said = [{"role": "assistant", "content": "Red."}]
    return table(
        folder / "trl.parquet",
        {"images": [embedded("red")], "prompt": asked, "completion": said},
        {"images": [], "prompt": asked, "completion": said},
    )


def _hugging_face(folder: Path) -> Path:
    """The union of parts that Arrow makes: each part has all keys, most of them null."""
    parts = [{"type": "image", "text": None}, {"type": "text", "text": "What colour?"}]
    messages = [
        {"role": "user", "content": parts},
        {"role": "assistant", "content": [{"type": "text", "text": "Blue."}]},
    ]
    return table(folder / "hf.parquet", {"messages": messages, "image": embedded("blue"), "tools": None})


def _verl(folder: Path) -> Path:
    def row(i: int, gold: Any, **more: Any) -> dict[str, Any]:
        return {
            "data_source": "hiyouga/geometry3k",
            "prompt": [{"role": "user", "content": f"<image>Find x{i}."}],
            "images": [embedded(("red", "blue")[i % 2])],
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": gold},
            "extra_info": {"split": "train", "index": i, "answer": "…", "question": "Find x.", **more},
        }

    return table(folder / "verl.parquet", row(0, "3"), row(1, "2 \\sqrt { 221 }"))


def _easyr1(folder: Path) -> Path:
    row = {"images": [embedded("green")], "problem": "<image>Find x.", "answer": 3.0}
    return table(folder / "easyr1.parquet", row, {"images": [], "problem": "2 + 2?", "answer": None})


def _prism_sft(folder: Path) -> Path:
    said = [{"from": "human", "value": "<image>What colour?"}, {"from": "gpt", "value": ANSWERED}]
    return array(folder / "prism_sft.json", {"conversations": said, "images": ["pictures/red.png"]})


def _prism_rl(folder: Path) -> Path:
    row = {
        "prompt": [{"role": "user", "content": "<image>What colour?"}],
        "images": ["pictures/red.png"],
        "reward_model": {"style": "rule", "ground_truth": "red", "equivalent_answers": ["crimson"]},
        "data_source": "prism",
    }
    return table(folder / "prism_rl.parquet", row)


LLAMA_FACTORY = "github.com/hiyouga/LLaMA-Factory: data/README.md and data/mllm_demo.json, November 2026"
VERL = "github.com/volcengine/verl: docs/preparation/prepare_data.rst, verl/utils/dataset/rl_dataset.py, November 2026"
SWIFT = "swift.readthedocs.io: Customization/Custom-dataset, November 2026"

PUBLISHED: dict[str, Published] = {
    "LLaMA-Factory, described": Published(
        LLAMA_FACTORY, "sharegpt", _llama_factory,
        [
            ["user: [red]Who are they?", "= Red ones."],
            ["user: [red]Who are they?", "assistant: Red ones.", "user: And here:[blue]?", "= Blue ones."],
        ],
    ),
    "LLaMA-Factory, sharegpt": Published(
        LLAMA_FACTORY, "sharegpt", _sharegpt, [["system: Be brief.", "user: [green]What?", "= Green."]]
    ),
    "LLaMA-Factory, alpaca": Published(
        LLAMA_FACTORY, "alpaca", _alpaca,
        [
            ["system: Be brief.", "user: Ready?", "= Yes."],
            ["system: Be brief.", "user: Ready?", "assistant: Yes.", "user: [blue]What colour?\nOne word.", "= Blue."],
            ["user: 2 + 2?", "= 4"],
        ],
    ),
    "ms-swift": Published(
        SWIFT, "ms-swift", _ms_swift,
        [
            ["user: Capital?", "= Hangzhou."],
            ["user: [red][green]What is the difference?", "= The first is red."],
            ["system: Be brief.", "user: [blue]Colour?", "assistant: No.", "user: Say it.", "= Blue."],
        ],
    ),
    "ms-swift, query": Published(
        SWIFT, "ms-swift", _ms_swift_query,
        [
            ["system: Hi.", "user: [red]Ready?", "= Yes."],
            ["system: Hi.", "user: [red]Ready?", "assistant: Yes.", "user: Colour?", "= Red."],
        ],
    ),
    "OpenAI": Published(
        "platform.openai.com/docs/guides/vision-fine-tuning, November 2026", "openai", _openai,
        [["system: Be brief.", "user: What colour?[green]", "assistant: Grey.", "user: [red]And this?", "= Red."]],
    ),
    "LLaVA": Published(
        "github.com/haotian-liu/LLaVA: docs/Finetune_Custom_Data.md, November 2026", "llava", _llava,
        [
            ["user: 2 + 2?", "= 4"],
            ["user: [red]\nWhat?", "= Red."],
            ["user: [red]\nWhat?", "assistant: Red.", "user: Sure?", "= Yes."],
            ["user: Hue?\n[blue]", "= Red."],
        ],
    ),
    "TRL": Published(
        "huggingface.co/docs/trl/dataset_formats, TRL 1.16, November 2026", "trl", _trl,
        [["user: [red]What colour?", "= Red."], ["user: What colour?", "= Red."]],
    ),
    "Hugging Face": Published(
        "huggingface.co/docs/datasets/image_dataset and TRL's SFTTrainer, November 2026", "trl", _hugging_face,
        [["user: [blue]What colour?", "= Blue."]],
    ),
    "verl": Published(
        VERL, "verl", _verl,
        [["user: [red]Find x0."], ["user: [blue]Find x1."]], [["3"], ["2 \\sqrt { 221 }"]], learnt=False,
    ),
    "EasyR1": Published(
        "github.com/hiyouga/EasyR1: README, hiyouga/geometry3k, November 2026", "easyr1", _easyr1,
        [["user: [green]Find x."], ["user: 2 + 2?"]], [["3"]], learnt=False,
    ),
    "PRISM's demonstrations": Published(
        f"{LLAMA_FACTORY}; answers in the sections of arXiv 2604.28123", "sharegpt", _prism_sft,
        [["user: [red]What colour?", f"= {ANSWERED}"]],
    ),
    "PRISM's prompts": Published(
        f"{VERL}; several right answers as docs/data.md names them", "verl", _prism_rl,
        [["user: [red]What colour?"]], [["red", "crimson"]], learnt=False,
    ),
}  # fmt: skip
