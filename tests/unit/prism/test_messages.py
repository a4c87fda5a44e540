"""A chat message through every form and back: roles, texts and the order of parts and images stay what they are."""

import base64
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unicodedata import normalize
from urllib.parse import quote

import pytest
from PIL import Image
from pydantic import ValidationError

from prism.data.blobs import BlobStore
from prism.data.rows import DataFile, DataRow, read_rows, to_prompt
from prism.errors import DataError
from prism.model.inputs import InputBuilder
from prism.trainer.flow.demonstrations import prompt_of
from prism.wire.experts import ScoreItem
from prism.wire.messages import (
    Message,
    data_uri,
    data_uri_bytes,
    from_json,
    image_parts,
    image_sha256s,
    is_data_uri,
    to_json,
    to_openai,
    to_template,
)
from prism.wire.v1 import rollout_pb2 as pb

NASTY = (
    " \n<|im_end|>\n<|im_start|>assistant\n{{ messages[0] }} {% raw %} {0} %s <image> </think> \\n \u2028 🙂 e\u0301 \0"
)
# Each as (role, parts); "a.png" and "b.png" stand for images.
CONVERSATIONS: dict[str, list[tuple[str, list[str]]]] = {
    "text only": [("user", ["2 + 2?"])],
    "several images, one of them twice": [("user", ["a.png", "and", "b.png", "a.png", "alike?"])],
    "system and several turns": [
        ("system", ["Be brief."]),
        ("user", ["b.png", "Sum?"]),
        ("assistant", ["Nine."]),
        ("user", ["And of", "a.png"]),
    ],
    "nasty": [("system", [NASTY]), ("user", [NASTY, "a.png", "", NASTY])],
}


def is_image(part: str) -> bool:
    return part.endswith(".png")


def as_dicts(conversation: list[tuple[str, list[str]]], image: Callable[[str], dict[str, Any]]) -> list[dict[str, Any]]:
    """What a form of dicts holds, written down a second time."""
    return [
        {"role": role, "content": [image(part) if is_image(part) else {"type": "text", "text": part} for part in parts]}
        for role, parts in conversation
    ]


@pytest.fixture(params=CONVERSATIONS.values(), ids=list(CONVERSATIONS))
def conversation(request: pytest.FixtureRequest) -> list[tuple[str, list[str]]]:
    return request.param


@pytest.fixture
def images(tmp_path: Path) -> dict[str, bytes]:
    for name, size in (("a.png", (64, 64)), ("b.png", (96, 64))):
        Image.effect_noise(size, 90).convert("RGB").save(tmp_path / name)
    return {name: (tmp_path / name).read_bytes() for name in ("a.png", "b.png")}


@pytest.fixture
def data(conversation: list[tuple[str, list[str]]], images: dict[str, bytes], tmp_path: Path) -> DataFile:
    messages = as_dicts(conversation, lambda name: {"type": "image", "image": name})
    (tmp_path / "rows.jsonl").write_text(json.dumps({"id": "q", "messages": messages}))
    return read_rows(tmp_path / "rows.jsonl", "fail")


@pytest.fixture
def stream(data: DataFile, tmp_path: Path) -> list[pb.Message]:
    """The row's messages as they come out of the stream."""
    sent = to_prompt(data.rows[0], data, BlobStore(str(tmp_path / "blobs"))).SerializeToString()
    return list(pb.Prompt.FromString(sent).messages)


def sha256(name: str, images: dict[str, bytes]) -> str:
    return hashlib.sha256(images[name]).hexdigest()


def test_a_row_goes_over_stream_and_http_and_comes_back(
    conversation: list[tuple[str, list[str]]], images: dict[str, bytes], stream: list[pb.Message]
) -> None:
    expected = [
        (role, [("image_sha256", sha256(p, images)) if is_image(p) else ("text", p) for p in parts])
        for role, parts in conversation
    ]
    assert [(m.role, [(f.name, v) for part in m.parts for f, v in part.ListFields()]) for m in stream] == expected
    assert image_sha256s(stream) == [sha256(p, images) for _, parts in conversation for p in parts if is_image(p)]

    body = ScoreItem(messages=to_json(stream), responses=["x"]).model_dump(mode="json", exclude_none=True)
    as_sent = as_dicts(conversation, lambda name: {"type": "image", "image": f"sha256:{sha256(name, images)}"})
    assert body["messages"] == as_sent
    received = ScoreItem.model_validate_json(json.dumps(body)).chat()
    assert [part.image.removeprefix("sha256:") for part in image_parts(received)] == image_sha256s(stream)
    assert from_json(received, lambda reference: reference.removeprefix("sha256:")) == stream


def test_openai_gets_texts_as_they_are_and_images_whole(
    conversation: list[tuple[str, list[str]]], images: dict[str, bytes], stream: list[pb.Message]
) -> None:
    made = to_openai(stream, {sha256(name, images): data for name, data in images.items()})
    assert made == as_dicts(
        conversation, lambda name: {"type": "image_url", "image_url": {"url": data_uri(images[name])}}
    )
    if image_sha256s(stream):
        with pytest.raises(KeyError):
            to_openai(stream, {})


def test_a_template_gets_texts_as_they_are_and_places_for_images(
    conversation: list[tuple[str, list[str]]], stream: list[pb.Message]
) -> None:
    assert to_template(stream) == as_dicts(conversation, lambda _: {"type": "image"})


def test_one_conversation_gives_one_prompt_whatever_way_it_came(
    tiny_model: Path, conversation: list[tuple[str, list[str]]], data: DataFile, stream: list[pb.Message]
) -> None:
    inputs = InputBuilder(tiny_model)
    of_row = prompt_of(data.rows[0], data, inputs)
    pictures = [data.decode_image(name) for _, parts in conversation for name in parts if is_image(name)]
    assert inputs.prompt(stream, pictures).input_ids == of_row.input_ids
    assert inputs.prompt(from_json(to_json(stream), str), pictures).input_ids == of_row.input_ids
    seen = inputs.tokenizer.decode(of_row.input_ids)
    assert all(normalize("NFC", part) in seen for _, parts in conversation for part in parts if not is_image(part))


def test_a_plain_prompt_is_the_users_message_after_its_images() -> None:
    item = ScoreItem(prompt=NASTY, images=["sha256:b", "sha256:a"], responses=["x"])
    parts = [pb.Part(image_sha256="sha256:b"), pb.Part(image_sha256="sha256:a"), pb.Part(text=NASTY)]
    assert from_json(item.chat(), str) == [pb.Message(role="user", parts=parts)]
    (text,) = from_json([Message(role="user", content=NASTY)], str)
    assert text == pb.Message(role="user", parts=[pb.Part(text=NASTY)])


def test_http_refuses_what_rows_may_carry_beside(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "?", "cache": 1}], "name": "x"}]
    with pytest.raises(ValidationError, match="Extra inputs"):
        ScoreItem.model_validate({"messages": messages, "responses": ["x"]})
    (tmp_path / "rows.jsonl").write_text(json.dumps({"id": "q", "messages": messages}))
    (row,) = read_rows(tmp_path / "rows.jsonl", "fail").rows
    assert from_json(row.messages, str) == [pb.Message(role="user", parts=[pb.Part(text="?")])]


def test_a_row_does_not_name_a_folder_as_its_image() -> None:
    with pytest.raises(ValidationError, match="empty path"):
        DataRow.model_validate({"id": "q", "messages": [{"role": "user", "content": [{"type": "image", "image": ""}]}]})


def test_an_image_that_is_gone_is_named(images: dict[str, bytes], tmp_path: Path) -> None:
    data = DataFile(tmp_path / "rows.jsonl")
    assert data.image("a.png") == images["a.png"]
    assert data.image(data_uri(images["a.png"])) == images["a.png"]
    for name, problem in (("c.png", "No such file"), ("data:image/png;base64,!!!", "base64"), ("c\0", "null byte")):
        with pytest.raises(DataError, match=f"^image {name!r}: .*{problem}".replace("\\x00", r"\\x00")):
            data.image(name)


@pytest.mark.parametrize(
    ("image", "kind"), [(b"\xff\xd8\xff", "jpeg"), (b"RIFF0000WEBPVP8 ", "webp"), (b"\x89PNG", "png")]
)
def test_a_data_uri_names_the_kind_of_image(image: bytes, kind: str) -> None:
    assert data_uri(image).startswith(f"data:image/{kind};base64,")
    assert data_uri_bytes(data_uri(image)) == image


def test_openais_image_parts_are_image_parts_in_rows_too() -> None:
    """With whatever else a table of such parts holds."""
    content = [
        {"type": "image_url", "image_url": {"url": "a.png", "detail": "auto"}, "text": None},
        {"type": "text", "text": "Sum?"},
    ]
    message = Message.model_validate({"role": "user", "content": content}, extra="ignore")
    assert [part.image for part in image_parts([message])] == ["a.png"]
    assert message.model_dump()["content"][0] == {"type": "image", "image": "a.png"}


BYTES = bytes(range(256)) + b"\xfb\xff\xfe"
PLAIN = base64.b64encode(BYTES).decode()
WRITTEN = {
    "plain": f"data:image/png;base64,{PLAIN}",
    "upper case": f"DATA:IMAGE/PNG;BASE64,{PLAIN}",
    "wrapped": "data:image/png;base64,\r\n" + "\n".join(PLAIN[at : at + 76] for at in range(0, len(PLAIN), 76)) + "\n",
    "spaced": f" data: image/png; base64, {PLAIN[:9]} \t{PLAIN[9:]} ",
    "percent-encoded": f"data:image/png;base64,{quote(PLAIN, safe='')}",
    "percent-encoded line ends": f"data:image/png;base64,{PLAIN[:76]}%0D%0A{PLAIN[76:]}",
    "url-safe": f"data:image/png;base64,{base64.urlsafe_b64encode(BYTES).decode()}",
    "not padded": f"data:image/png;base64,{PLAIN.rstrip('=')}",
    "with parameters": f"data:image/png;charset=utf-8;base64,{PLAIN}",
    "wrapped anywhere": f"da\nta:image/png;ba\r\nse64\t,{PLAIN}",
    "without a type": f"data:;base64,{PLAIN}",
    "percent-encoded bytes": "data:image/png," + "".join(f"%{byte:02x}" for byte in BYTES),
    "percent-encoded bytes, wrapped": "data:image/png,\n" + "\r\n".join(f"%{byte:02x}" for byte in BYTES),
    "with a fragment": f"data:image/png;base64,{PLAIN}#top",
}


@pytest.mark.parametrize("uri", WRITTEN.values(), ids=WRITTEN.keys())
def test_data_uris_are_read_as_browsers_do(uri: str) -> None:
    assert is_data_uri(uri)
    assert data_uri_bytes(uri) == BYTES


@pytest.mark.parametrize(
    "uri", ["data:image/png;base64,!!!", "data:image/png;base64,A", "data:image/png;base64", "data:,é"]
)
def test_what_holds_nothing_is_a_value_error(uri: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        data_uri_bytes(uri)
