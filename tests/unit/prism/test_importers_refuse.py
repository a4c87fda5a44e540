"""Rows that cannot be used as they are meant: each is refused by name, with file and line, and none is misread."""

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from public_data import data_url, lines, pictures, png, table

from prism.config import DataConfig
from prism.data.rows import read_rows

Row = dict[str, Any]
RED = "pictures/red.png"


def chat(*turns: tuple[str, Any], **more: Any) -> Row:
    return {"messages": [{"role": role, "content": content} for role, content in turns], **more}


def told(*turns: tuple[str, Any], **more: Any) -> Row:
    return {"conversations": [{"from": role, "value": value} for role, value in turns], **more}


ASKED = [("user", "<image>What?"), ("assistant", "Red.")]
SAID = [("human", "<image>What?"), ("gpt", "Red.")]
TOOL = [{"type": "function", "function": {"name": "f"}}]
USER, ASSISTANT = {"role": "user", "content": "?"}, {"role": "assistant", "content": "r"}
PARTS = [{"type": "image_url", "image_url": {"url": RED}}, {"type": "text", "text": "What?"}]

# Of each format a row that is good; what the other tables change in it makes it bad.
GOOD: dict[str, Row] = {
    "prism": {
        "id": "a",
        **chat(("user", [{"type": "image", "image": RED}, {"type": "text", "text": "?"}])),
        "response": "r",
    },
    "ms-swift": chat(*ASKED, images=[RED]),
    "openai": chat(("user", PARTS), ("assistant", "Red.")),
    "trl": {
        "prompt": [{"role": "user", "content": "?"}],
        "completion": [{"role": "assistant", "content": "r"}],
        "images": [RED],
    },
    "sharegpt": told(*SAID, images=[RED]),
    "alpaca": {"instruction": "<image>What?", "input": "", "output": "Red.", "images": [RED]},
    "llava": told(*SAID, image=RED),
    "verl": {
        "data_source": "d",
        "prompt": [{"role": "user", "content": "<image>What?"}],
        "images": [RED],
        "reward_model": {"style": "rule", "ground_truth": "red"},
        "response": "Red.",
    },
    "easyr1": {"problem": "<image>What?", "answer": "red", "images": [RED], "response": "Red."},
}

# At the level of the row, whatever its format. The text stands in the message.
KEYS: dict[str, tuple[Row, str]] = {
    "videos": ({"videos": ["a.mp4"]}, "videos: "),
    "video": ({"video": "a.mp4"}, "video: "),
    "audios": ({"audios": ["a.wav"]}, "audios: "),
    "tools": ({"tools": TOOL}, "tools: tools are not supported"),
    "tools as text": ({"tools": json.dumps(TOOL)}, "tools: tools are not supported"),
    "objects": ({"objects": {"ref": ["dog"], "bbox": [[1, 2, 3, 4]]}}, "objects: "),
    "weight": ({"weight": 0.5}, "weight: "),
    "weight of none": ({"weight": 0}, "weight: "),
    "max_pixels": ({"max_pixels": 1000}, "max_pixels: "),
    "weight that is false": ({"weight": False}, "weight: "),
    "loss": ({"loss": False}, "loss: "),
    "loss scale": ({"loss_scale": 0.1}, "loss_scale: "),
    "system message": ({"system_message": "Be brief."}, "system_message: "),
    "other answer": ({"rejected_response": "Blue."}, "rejected_response: pairs of preference"),
    "pair": ({"chosen": "Red.", "rejected": "Blue."}, ": pairs of preference"),
    "judged": ({"label": False}, "label: judgements"),
    "judged good": ({"kto_tag": True}, "kto_tag: judgements"),
    "tools beside": ({"extra_info": {"tools": TOOL}}, "extra_info.tools: tools are not supported"),
    "video by another name": ({"video_path": "a.mp4"}, "video_path: "),
    "second image": ({"image_2": RED}, "image_2: an image that would not be shown"),
    "videos beside": ({"extra_info": {"videos": ["a.mp4"]}}, "extra_info.videos: "),
    "image with pixels": ({"images": [{"path": RED, "max_pixels": 9}], "image": None}, "images.0.max_pixels: "),
    "image with a size": ({"images": [{"image": RED, "resized_height": 28}], "image": None}, "images.0.resized_height"),
    "missing image": ({"images": ["pictures/none.png"], "image": None}, "none.png"),
    "image at an address": ({"images": ["https://example.org/a.png"], "image": None}, "nothing is fetched"),
    "image that is a number": ({"images": [7], "image": None}, "an image is a path"),
    "image that is null": ({"images": [None], "image": None}, "images.0"),
    "image without bytes": ({"images": [{"bytes": None, "path": None}], "image": None}, "images.0"),
    "image that is blank": ({"images": [" "], "image": None}, "empty path"),
    "image outside": ({"images": ["/etc/hostname"], "image": None}, "outside"),
}
# Formats whose texts say where an image is.
PLACED: dict[str, tuple[Row, str]] = {
    "an image too many": ({"images": [RED, "pictures/blue.png"], "image": None}, "2 are given, 1 are asked for"),
    "no image": ({"images": [], "image": None}, "0 are given, 1 are asked for"),
    "no images at all": ({"images": None, "image": None}, "0 are given, 1 are asked for"),
}
# In the text of the user's turn.
TEXTS = {
    "video": ("<video>What?", "<video>"),
    "audio": ("<audio>What?", "<audio>"),
    "grounding": ("<image>Where is <ref-object>?", "<ref-object>"),
    "box": ("<image>What is in <bbox>?", "<bbox>"),
    "two places": ("<image><image>What?", "1 are given, 2 are asked for"),
    "numbered place": ("<image>What is in <image_2>?", "<image_2>"),
    "other place": ("<|image_1|>What?", "<|image_1|>"),
}


def with_text(row: Row, text: str) -> Row:
    row = copy.deepcopy(row)
    for key in ("problem", "instruction"):
        if key in row:
            return row | {key: text}
    for key, name in (("conversations", "value"), ("messages", "content"), ("prompt", "content")):
        if key in row:
            row[key][0][name] = text
            return row
    raise AssertionError


def in_turns(change: Callable[[list[Row]], Any]) -> Callable[[Row], Row]:
    def changed(row: Row) -> Row:
        row = copy.deepcopy(row)
        key = next(key for key in ("messages", "conversations", "prompt") if isinstance(row.get(key), list))
        result = change(row[key])
        return row | {key: result} if isinstance(result, list) else row

    return changed


def turn(place: int, **keys: Any) -> Callable[[Row], Row]:
    return in_turns(lambda turns: turns[place].update(keys))


# Of messages with role and content.
CHATS: dict[str, tuple[Callable[[Row], Row], str]] = {
    "tool call": (turn(-1, tool_calls=TOOL), "tool_calls: tools are not supported"),
    "function call": (turn(-1, function_call={"name": "f"}), "function_call: tools are not supported"),
    "tool's turn": (in_turns(lambda t: [*t, {"role": "tool", "content": "x"}]), "tools are not supported"),
    "reasoning apart": (turn(-1, reasoning_content="hm"), "reasoning_content: "),
    "frames of a message": (turn(0, fps=2), "0.fps: "),
    "system of a message": (turn(0, system="Be brief."), "0.system: "),
    "part with a weight": (turn(0, content=[{"type": "text", "text": "?", "weight": 0.5}]), "content.0.weight"),
    "part with boxes": (
        turn(0, content=[{"type": "text", "text": "?", "objects": {"bbox": [1]}}]),
        "content.0.objects",
    ),
    "part with tools": (turn(0, content=[{"type": "text", "text": "?", "tools": TOOL}]), "content.0.tools"),
    "image in a part with pixels": (
        turn(0, content=[{"type": "image", "image": {"path": RED, "max_pixels": 9}}, {"type": "text", "text": "?"}]),
        "content.0.max_pixels",
    ),
    "address with pixels": (
        turn(0, content=[{"type": "image_url", "image_url": {"url": RED, "max_pixels": 9}}]),
        "content.0.max_pixels",
    ),
    "images of a message": (turn(0, images=[RED]), "messages.0.images: |prompt.0.images: "),
    "unknown role": (turn(0, role="robot"), "0.role: 'robot'"),
    "role that is a number": (turn(0, role=1), "0.role: 1"),
    "no role": (in_turns(lambda t: [{"content": "?"}, *t[1:]]), "0.role: is missing"),
    "no content": (turn(0, content=None), "0.content: is missing"),
    "content that is a number": (turn(0, content=7), "0.content: "),
    "message that is a text": (
        in_turns(lambda t: ["hello", *t]),
        "0: a message is expected|a list of messages is expected",
    ),
    "video part": (turn(0, content=[{"type": "video", "video": "a.mp4"}]), "'video' is no part"),
    "audio part": (turn(0, content=[{"type": "input_audio", "input_audio": {}}]), "'input_audio' is no part"),
    "part with pixels": (turn(0, content=[{"type": "image", "image": RED, "max_pixels": 9}]), "max_pixels"),
    "part without text": (turn(0, content=[{"type": "text"}]), "content.0.text: "),
    "two images in a part": (turn(0, content=[{"type": "image", "image": RED, "url": RED}]), "two images"),
    "no turn": (in_turns(lambda t: []), "is empty|is not set|a list of messages is expected"),
}
ALONE = "an answer alone"
LEARNT: dict[str, tuple[Callable[[Row], Row], str]] = {
    "weight that is half": (turn(-1, weight=0.5), "weight: 0 or 1"),
    "weight of a user": (turn(0, weight=1), "only an assistant's turn"),
    "loss that is a text": (turn(-1, loss="no"), "loss: 0 or 1"),
    "nothing to learn from": (turn(-1, weight=0), "weight 0"),
    "image in an answer": (turn(-1, content="<image>"), "assistant: only a user's turn"),
    "no prompt": (lambda row: {**row, "messages": [ASSISTANT], "images": []}, ALONE),
}
TOLD: dict[str, tuple[Callable[[Row], Row], str]] = {
    "observation": (turn(0, **{"from": "observation"}), "tools are not supported"),
    "two users": (in_turns(lambda t: [t[0], *t]), "the assistant's turn is expected"),
    "assistant first": (in_turns(lambda t: t[::-1]), "the user's turn is expected"),
    "unknown role": (turn(0, **{"from": "bot"}), "0.from: 'bot'"),
    "value that is null": (turn(1, value=None), "1.value: is missing"),
    "value that is a number": (turn(0, value=7), "0.value: "),
    "image in an answer": (turn(1, value="<image>"), "assistant: only a user's turn"),
    "no turn": (in_turns(lambda t: []), "is empty"),
}
PLACE = {"type": "text", "text": "<image>?"}


def by_url(image_url: Row) -> Row:
    return chat(("user", [{"type": "image_url", "image_url": image_url}]), ASKED[1])


TEXT_ONLY: Row = {"images": None, "prompt": [{"role": "user", "content": "What?"}]}
# Of single formats: name, what is changed, what is said.
OWN: list[tuple[str, str, Row, str]] = [
    ("prism", "both placed and beside", {"images": ["pictures/blue.png"]}, "others are given in the messages"),
    ("prism", "no id", {"id": ""}, "id: "),
    ("prism", "unknown kind", {"kind": "essay"}, "kind: "),
    ("prism", "image beside", {"messages": [{"role": "user", "content": "?"}], "image_path": RED}, "image_path: "),
    ("ms-swift", "system twice", {"system": "a", **chat(("system", "b"), *ASKED)}, "system: "),
    ("ms-swift", "images under two names", {"image": "pictures/blue.png"}, "images and image"),
    ("ms-swift", "messages that are a text", {"messages": "hello"}, "messages: "),
    ("openai", "placed twice", {"images": ["pictures/blue.png"]}, "others are given"),
    ("openai", "functions", {"functions": TOOL}, "functions: "),
    ("openai", "image that is no data", by_url({"url": "data:,x"}), "data:,x"),
    ("openai", "text and part", chat(("user", [PARTS[0], PLACE]), ASKED[1]), "<image> stands"),
    ("openai", "image that is empty", by_url({}), "content.0"),
    ("trl", "completion that is two turns", {"completion": [USER, ASSISTANT]}, "completion: "),
    ("trl", "prompt that is a number", {"prompt": 7}, "prompt: "),
    ("trl", "completion that is a number", {"completion": 7}, "completion: "),
    ("trl", "a place of another tool", {"prompt": [{"role": "user", "content": "<img>?"}]}, "<img>"),
    ("trl", "a system text apart", {"system": "Be brief."}, "system: "),
    ("sharegpt", "preference", {"chosen": SAID[1], "rejected": SAID[1]}, "chosen: "),
    ("sharegpt", "unplaced", told(("human", "What?"), SAID[1]), "no <image> stands in the text"),
    ("sharegpt", "system that is a number", {"system": 7}, "system: "),
    ("sharegpt", "image under another name", {"image": "pictures/blue.png"}, "image: "),
    ("sharegpt", "conversations that are a text", {"conversations": "hello"}, "conversations: "),
    ("alpaca", "history that is a text", {"history": "hello"}, "history.0: "),
    ("alpaca", "history of one", {"history": [["hello"]]}, "history.0: "),
    ("alpaca", "input that is a number", {"input": 7}, "input: "),
    ("alpaca", "output that is a list", {"output": ["a"]}, "output: "),
    ("alpaca", "unplaced", {"instruction": "What?"}, "no <image> stands in the text"),
    ("alpaca", "place in history", {"history": [["<image>?", "a"]]}, "1 are given, 2 are asked for"),
    ("llava", "unplaced", told(("human", "What?"), SAID[1]), "no <image> stands in the text"),
    ("llava", "two for one place", {"image": [RED, "pictures/blue.png"]}, "2 are given, 1 are asked for"),
    ("llava", "image and images", {"images": ["pictures/blue.png"]}, "image and images"),
    ("verl", "tools", {"extra_info": {"need_tools_kwargs": True}}, "need_tools_kwargs: "),
    ("verl", "tools with arguments", {"extra_info": {"tools_kwargs": {"f": {"create": {"a": 1}}}}}, "tools_kwargs: "),
    ("verl", "interaction", {"extra_info": {"interaction_kwargs": {"name": "x"}}}, "interaction_kwargs: "),
    ("verl", "images beside", TEXT_ONLY | {"extra_info": {"images": [RED]}}, "extra_info.images: "),
    ("verl", "image beside", TEXT_ONLY | {"extra_info": {"image": RED}}, "extra_info.image: "),
    ("verl", "embedded beside", TEXT_ONLY | {"extra_info": {"shown": data_url("red")}}, "extra_info.shown: "),
    ("verl", "agent with tools", {"agent_name": "tool_agent"}, "agent_name: "),
    ("alpaca", "no prompt", {"instruction": "", "images": []}, "instruction: is empty"),
    ("sharegpt", "a film beside", told(("human", "?"), SAID[1], video_path="a.mp4", images=[]), "video_path: "),
    ("trl", "a sound beside", {"images": [], "audio_file": "a.wav"}, "audio_file: "),
    ("verl", "prompt that is a text", {"prompt": "hello"}, "prompt: "),
    ("verl", "prompt that ends with an answer", {"prompt": [USER, ASSISTANT]}, "the user's"),
    ("verl", "unplaced", {"prompt": [{"role": "user", "content": "What?"}]}, "no <image> stands in the text"),
    ("easyr1", "problem that is a number", {"problem": 7}, "problem: "),
    ("easyr1", "unplaced", {"problem": "What?"}, "no <image> stands in the text"),
    ("easyr1", "image under another name", {"images": None, "problem": "What?", "image_url": RED}, "image_url: "),
    ("easyr1", "embedded elsewhere", {"images": None, "problem": "?", "picture": data_url("red")}, "picture: "),
]  # fmt: skip


def cases() -> Iterator[tuple[str, str, Row, str]]:
    """Format, what is wrong, the row, what is said of it."""
    for form, good in GOOD.items():
        placed = form in ("ms-swift", "sharegpt", "alpaca", "llava", "verl", "easyr1")
        for what, (change, said) in (KEYS | PLACED if placed else KEYS).items():
            row = copy.deepcopy(good)
            if form in ("prism", "openai") and ("images" in change):
                continue
            yield form, what, row | change, said
        for what, (text, said) in TEXTS.items() if placed else ():
            yield form, what, with_text(good, text), said
        if form in ("prism", "ms-swift", "openai", "trl", "verl"):
            for what, (alter, said) in CHATS.items():
                yield form, what, alter(good), said
        if form in ("ms-swift", "openai"):
            for what, (alter, said) in LEARNT.items():
                yield form, what, alter(good), said
        if form in ("sharegpt", "llava"):
            for what, (alter, said) in TOLD.items():
                yield form, what, alter(good), said
    for form, what, change, said in OWN:
        yield form, what, copy.deepcopy(GOOD[form]) | change, said


def test_there_are_more_than_200_of_them() -> None:
    assert len(list(cases())) > 200


@pytest.mark.parametrize("form", GOOD)
def test_every_malformed_row_is_refused_by_name(tmp_path: Path, form: str) -> None:
    """All of a format in one file, after a row that is good: each must be named with its line and what is wrong."""
    pictures(tmp_path)
    bad = [(what, row, said) for of, what, row, said in cases() if of == form]
    file = lines(tmp_path / "rows.jsonl", GOOD[form], *(row for _, row, _ in bad))
    entry = DataConfig(path="x", format=form)  # type: ignore[arg-type]
    data = read_rows(file, "skip", ("response",) if form != "verl" else (), entry=entry, every_turn=True)
    by_line = {int(problem.removeprefix(f"{file}:").split(":")[0]): problem for problem in data.problems}
    for number, (what, row, said) in enumerate(bad, 2):
        assert number in by_line, f"{form}, {what} was read: {json.dumps(row)[:300]}"
        assert any(one in by_line[number] for one in said.split("|")), f"{form}, {what}: {by_line[number]}"
    assert len(data.rows) == 1
    unnamed = read_rows(file, "skip", ("response",), every_turn=True)  # nor where the format is found by the rows
    kept = {problem.removeprefix(f"{file}:").split(":")[0] for problem in unnamed.problems}
    assert [what for number, (what, _, _) in enumerate(bad, 2) if str(number) not in kept and what != "no id"] == []


@pytest.mark.parametrize("form", ["ms-swift", "trl", "sharegpt", "verl", "easyr1"])
def test_parquet_is_refused_for_what_json_is(tmp_path: Path, form: str) -> None:
    pictures(tmp_path)
    good = GOOD[form] | {"images": [{"bytes": png("red"), "path": None}]}
    bad = [{"videos": [b"x"]}, {"tools": "[{}]"}, {"images": []}, {"weight": 0.5}, {"max_pixels": 9}]
    bad = bad[:2] + bad[3:] if form == "trl" else bad  # which may have no image
    bad += [{"extra_info": {"tools": "[{}]"}}, {"label": False, "response": "r"}, {"rejected_response": "r"}]
    rows = [{key: None for change in bad for key in change} | good | change for change in ({}, *bad)]
    file = table(tmp_path / "rows.parquet", *rows)
    data = read_rows(file, "skip")
    assert data.format == form
    assert [problem.split(": ")[0] for problem in data.problems] == [f"{file}:{n}" for n in range(2, len(rows) + 1)]


def test_a_description_of_no_file_or_of_another_kind_is_refused(tmp_path: Path) -> None:
    file = lines(tmp_path / "a.jsonl", {"instruction": "?", "output": "a"})
    for one, said in {
        "hub": ({"file_name": "a.jsonl", "hf_hub_url": "x/y"}, "download it"),
        "pairs": ({"file_name": "a.jsonl", "ranking": True}, "pairs of preference"),
        "judged": ({"file_name": "a.jsonl", "columns": {"kto_tag": "label"}}, "kto_tag"),
        "odd": ({"file_name": "a.jsonl", "formatting": "openai"}, "formatting 'openai'"),
        "column": ({"file_name": "a.jsonl", "columns": {"promt": "q"}}, "columns.promt is not known"),
        "tag": ({"file_name": "a.jsonl", "formatting": "sharegpt", "tags": {"role": "q"}}, "tags.role is not known"),
    }.values():
        (tmp_path / "dataset_info.json").write_text(json.dumps({"one": one}))
        with pytest.raises(ValueError, match=said):
            read_rows(file, "skip")
