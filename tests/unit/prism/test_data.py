"""Data rows as users bring them: what is wrong is said with file and line, counted, and skipped or fatal."""

import io
import json
import random
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from prism.data.blobs import BlobStore
from prism.data.images import decode_image
from prism.data.rows import DataRow, read_rows, to_prompt
from prism.errors import DataError

TEACHER = "<caption>- a two</caption><think>2+2=4</think><answer>4</answer>"
GOOD: dict[str, Any] = {"id": "a", "messages": [{"role": "user", "content": "2 + 2?"}]}


def png(size: tuple[int, int] = (8, 6), mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.effect_noise(size, 90).convert(mode).save(file, "PNG")
    return file.getvalue()


def asking(image: str) -> dict[str, Any]:
    parts = [{"type": "image", "image": image}, {"type": "text", "text": "What is it?"}]
    return GOOD | {"messages": [{"role": "user", "content": parts}]}


def write(folder: Path, *rows: object) -> Path:
    file = folder / "rows.jsonl"
    file.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return file


BAD = {
    "broken JSON": ('{"id": "b"', "Expecting"),
    "no object": ("[1, 2]", "dictionary"),
    "null": ("null", "dictionary"),
    "nested without end": ("[" * 100_000, "recursion"),
    "number without end": ('{"id": 1' + "0" * 5000 + "}", "Exceeds the limit"),
    "no messages": ({"id": "b"}, "messages: is not set"),
    "empty messages": ({"id": "b", "messages": []}, "messages: "),
    "empty id": (GOOD | {"id": ""}, "id: "),
    "id is a list": (GOOD | {"id": ["b"]}, "id: "),
    "unknown role": ({"id": "b", "messages": [{"role": "robot", "content": "x"}]}, "messages.0.role: "),
    "unknown part": ({"id": "b", "messages": [{"role": "user", "content": [{"type": "video"}]}]}, "messages.0"),
    "last is system": ({"id": "b", "messages": [{"role": "system", "content": "x"}]}, "must be the user's"),
    "only an assistant": ({"id": "b", "messages": [{"role": "assistant", "content": "x"}]}, "messages: "),
    "two demonstrations": (
        {"id": "b", "response": "y", "messages": [*GOOD["messages"], {"role": "assistant", "content": "x"}]},
        "must be the user's",
    ),
    "assistant without text": (
        {"id": "b", "messages": [*GOOD["messages"], {"role": "assistant", "content": [{"type": "text", "text": 7}]}]},
        "must consist of text parts",
    ),
    "unknown option": (GOOD | {"id": "b", "options": {"rel_tl": 0.1}}, "options: rel_tl: is not a known key"),
    "option out of range": (GOOD | {"id": "b", "options": {"rel_tol": 2}}, "options: rel_tol: Input should be less"),
    "options are a list": (GOOD | {"id": "b", "options": [1]}, "options: "),
    "unknown kind": (GOOD | {"id": "b", "kind": "essay"}, "kind: "),
    "lone surrogate": ('{"id": "\\ud800", "messages": [{"role": "user", "content": "x"}]}', "surrogates not"),
    "surrogate in text": ('{"id": "b", "messages": [{"role": "user", "content": "\\udfff"}]}', "surrogates not"),
    "missing image": (asking("none.png") | {"id": "b"}, "image 'none.png': No such file"),
    "corrupt image": (asking("corrupt.png") | {"id": "b"}, "image 'corrupt.png': not a"),
    "image is text": (asking("rows.jsonl") | {"id": "b"}, "image 'rows.jsonl': not an image of a known format"),
    "image is a folder": (asking(".") | {"id": "b"}, "image '.': Is a directory"),
    "image is no path": (asking("a\0b") | {"id": "b"}, "image 'a\\x00b': "),
    "image without a name": (asking("") | {"id": "b"}, "image"),
    "same id again": (GOOD, "id 'a' stands twice"),
}


@pytest.mark.parametrize(("row", "problem"), BAD.values(), ids=BAD.keys())
def test_a_bad_row_is_reported_with_file_and_line_and_skipped_or_fatal(
    tmp_path: Path, row: object, problem: str
) -> None:
    (tmp_path / "corrupt.png").write_bytes(png()[:60])
    file = write(tmp_path, GOOD, "", row, GOOD | {"id": "z"})
    data = read_rows(file, "skip")
    assert [row.id for row in data.rows] == ["a", "z"]
    (said,) = data.problems
    assert said.startswith(f"{file}:3: ")
    assert problem in said
    assert "BytesIO" not in said
    said.encode()  # can be printed and logged
    with pytest.raises(DataError) as refused:
        read_rows(file, "fail")
    assert str(refused.value).startswith(said)


def test_bytes_that_are_no_utf8_spoil_their_line_alone(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    line = json.dumps(GOOD).encode()
    file.write_bytes(line.replace(b"2 + 2?", b"caf\xe9") + b"\n" + line + b"\n")
    data = read_rows(file, "skip")
    assert [row.id for row in data.rows] == ["a"]
    assert data.problems[0].startswith(f"{file}:1: ")


def test_a_file_without_a_usable_row_is_refused_with_its_first_problem(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.jsonl does not exist"):
        read_rows(tmp_path / "none.jsonl", "skip")
    with pytest.raises(DataError, match=r"holds no usable row$"):
        read_rows(write(tmp_path), "skip")
    with pytest.raises(DataError, match=r"no usable row; the first problem: .*rows\.jsonl:1: "):
        read_rows(write(tmp_path, "nonsense", "{}"), "skip")


def test_keys_that_a_stage_needs_are_asked_for(tmp_path: Path) -> None:
    file = write(tmp_path, GOOD, GOOD | {"id": "b", "teacher": TEACHER, "gold": 4})
    data = read_rows(file, "skip", require=("teacher", "gold"))
    assert [(row.id, row.gold) for row in data.rows] == [("b", "4")]
    assert data.problems == [f"{file}:1: teacher, gold is missing or empty, which this stage needs"]


MISSING = {"null": "null", "empty": '""', "blank": '" \\n"', "NaN": "NaN"}


@pytest.mark.parametrize("value", MISSING.values(), ids=MISSING.keys())
@pytest.mark.parametrize("key", ["gold", "teacher", "response"])
def test_a_text_that_is_not_there_is_missing_and_no_text(tmp_path: Path, key: str, value: str) -> None:
    without = json.dumps(GOOD)[:-1] + f', "{key}": {value}}}'
    assert getattr(read_rows(write(tmp_path, without), "fail").rows[0], key) is None
    file = write(tmp_path, GOOD | {"id": "b", key: TEACHER}, without)
    data = read_rows(file, "skip", require=(key,))
    assert [row.id for row in data.rows] == ["b"]
    assert data.problems == [f"{file}:2: {key} is missing or empty, which this stage needs"]
    with pytest.raises(DataError, match=f"rows.jsonl:2: {key} is missing"):
        read_rows(file, "fail", require=(key,))
    with pytest.raises(DataError, match=f"holds no usable row.*{key} is missing"):
        read_rows(write(tmp_path, without), "skip", require=(key,))


def test_an_answer_may_be_the_word_nan_or_a_zero(tmp_path: Path) -> None:
    file = write(tmp_path, GOOD | {"gold": "nan"}, GOOD | {"id": "b", "gold": 0})
    assert [row.gold for row in read_rows(file, "fail", require=("gold",)).rows] == ["nan", "0"]


@pytest.mark.parametrize(
    ("values", "golds"),
    [
        ({"gold": ["7", "seven"]}, ["7", "seven"]),
        ({"gold": [7, "", None, "seven"]}, ["7", "seven"]),
        ({"gold": "7", "equivalent_answers": ["seven", 7.0]}, ["7", "seven", "7.0"]),
        ({"gold": "7", "equivalent_answers": None}, ["7"]),
        ({"gold": None, "equivalent_answers": ["seven"]}, ["seven"]),
        ({"gold": ["7"], "equivalent_answers": "seven"}, ["7", "seven"]),
        ({"gold": 7}, ["7"]),
    ],
)
def test_several_answers_may_be_equally_right(
    tmp_path: Path, blobs: BlobStore, values: dict[str, object], golds: list[str]
) -> None:
    data = read_rows(write(tmp_path, GOOD | values), "fail", require=("gold",))
    prompt = to_prompt(data.rows[0], data, blobs)
    assert [prompt.gold, *prompt.equivalent_answers] == golds


def test_no_answer_among_several_is_a_missing_one(tmp_path: Path) -> None:
    file = write(tmp_path, GOOD | {"gold": []}, GOOD | {"id": "b", "gold": ["", None]}, GOOD | {"id": "c", "gold": "7"})
    data = read_rows(file, "skip", require=("gold",))
    assert [row.id for row in data.rows] == ["c"]
    assert data.problems == [f"{file}:{n}: gold is missing or empty, which this stage needs" for n in (1, 2)]


def test_nan_in_a_table_of_demonstrations_hides_no_assistants_turn(tmp_path: Path) -> None:
    turns = [*GOOD["messages"], {"role": "assistant", "content": "four"}]
    line = json.dumps(GOOD | {"messages": turns})[:-1] + ', "response": NaN}'
    assert read_rows(write(tmp_path, line), "fail", require=("response",)).rows[0].response == "four"


def test_a_teachers_text_that_nobody_can_learn_from_is_a_bad_row_where_it_is_needed(tmp_path: Path) -> None:
    file = write(tmp_path, GOOD | {"teacher": TEACHER}, GOOD | {"id": "b", "teacher": "It is 4."})
    assert len(read_rows(file, "fail").rows) == 2
    data = read_rows(file, "skip", require=("teacher",))
    assert [row.id for row in data.rows] == ["a"]
    missing = "missing <caption>, missing <think>, missing <answer>"
    assert data.problems == [f"{file}:2: the teacher's text is not in the response format: {missing}"]
    with pytest.raises(DataError, match=r"rows\.jsonl:2: the teacher's text is not in the response format"):
        read_rows(file, "fail", require=("teacher",))


@pytest.mark.parametrize("content", ["four", [{"type": "text", "text": "fo"}, {"type": "text", "text": "ur"}]])
def test_an_assistants_last_turn_is_the_response(content: object) -> None:
    given = GOOD | {"messages": [*GOOD["messages"], {"role": "assistant", "content": content}]}
    row = DataRow.model_validate(given)
    assert (row.response, [message.role for message in row.messages]) == ("four", ["user"])
    assert len(given["messages"]) == 2  # the caller's row stays as it was


def test_earlier_turns_and_unknown_keys_are_kept_out_of_the_way() -> None:
    turns = [{"role": role, "content": role} for role in ("system", "user", "assistant", "user")]
    row = DataRow.model_validate({"id": 7, "messages": turns, "source": "elsewhere"})
    assert (row.id, len(row.messages), row.response) == ("7", 4, None)


def test_a_row_travels_with_its_images_by_content(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(png())
    blobs = BlobStore(str(tmp_path / "blobs"))
    data = read_rows(write(tmp_path, asking("images/a.png") | {"teacher": "t", "meta": {"level": 3}}), "fail")
    prompt = to_prompt(data.rows[0], data, blobs)
    image, text = prompt.messages[0].parts
    assert blobs.get(image.image_sha256) == (tmp_path / "images" / "a.png").read_bytes()
    assert (text.text, prompt.teacher, prompt.gold, json.loads(prompt.meta_json)) == (
        "What is it?",
        "t",
        "",
        {"level": 3},
    )


@pytest.mark.parametrize(
    ("options", "sent"),
    [
        ({"rel_tol": 0.02, "units": "strict"}, {"rel_tol": 0.02, "units": "strict"}),
        ({"choices": ["12 cm", 7], "image_size": None}, {"choices": ["12 cm", "7"]}),
        ({"image_size": [640, 480], "box_scale": "0-1000"}, {"image_size": [640.0, 480.0], "box_scale": "0-1000"}),
        (None, None),
        ({}, None),
    ],
)
def test_a_row_travels_with_how_its_answer_is_compared(
    tmp_path: Path, options: dict[str, Any] | None, sent: dict[str, Any] | None
) -> None:
    data = read_rows(write(tmp_path, GOOD | {"options": options}), "fail")
    prompt = to_prompt(data.rows[0], data, BlobStore(str(tmp_path / "blobs")))
    assert (json.loads(prompt.options_json) if prompt.options_json else None) == sent


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "1"])
def test_an_image_is_seen_in_rgb(mode: str) -> None:
    image = decode_image(png(mode=mode))
    assert (image.mode, image.size) == ("RGB", (8, 6))


def test_too_many_pixels_are_refused_with_the_limit_named() -> None:
    assert decode_image(png((8, 6)), max_pixels=48).size == (8, 6)
    with pytest.raises(DataError, match="8x6 pixels, over the limit of 47"):
        decode_image(png((8, 6)), max_pixels=47)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [9_000, 60_000])
def test_a_small_file_of_a_huge_image_is_refused_before_it_is_unpacked(side: int) -> None:
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)) + png()[33:]
    with pytest.raises(DataError, match="pixels"):
        decode_image(bomb)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
def test_whatever_is_wrong_with_an_image_is_a_data_error(kind: str) -> None:
    file = io.BytesIO()
    Image.effect_noise((32, 32), 90).convert("RGB").save(file, kind)
    whole, rng = file.getvalue(), random.Random(0)
    for _ in range(400):
        broken = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            broken[rng.randrange(min(rng.choice([60, 200, 10_000]), len(whole)))] = rng.randrange(256)
        del broken[rng.choice([rng.randrange(1, len(whole)), len(whole)]) :]
        try:
            decode_image(bytes(broken))
        except DataError:
            continue


def test_a_png_whose_chunks_are_broken_is_a_data_error() -> None:
    whole = png((64, 64))
    first = whole.index(b"IDAT")
    length = struct.unpack(">I", whole[first - 4 : first])[0]
    # The chunk is said to be half as long as it is, so that what follows is no chunk at all.
    broken = whole[: first - 4] + struct.pack(">I", length // 2) + whole[first:]
    with pytest.raises(DataError, match="not a readable image"):
        decode_image(broken)
