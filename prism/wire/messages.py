"""One chat message in all its forms, and the one way from each to the next. (No torch.)

In memory and on the streams a message is ``pb.Message``: a role, and parts, each a text or the sha256 of an image. The
other forms exist at edges alone:

- JSON, which ``Message`` validates: data rows, images by path, and the experts' HTTP API, images by any reference;
  rows are put into that form by ``place_images`` and ``take_demonstration``, OpenAI's image parts by ``Message``.
  ``from_json``, ``to_json``.
- OpenAI's chat API: the policy server and its probes, images as data URIs. ``to_openai``.
- What a model's chat template renders: an image is a place, its pixels go another way. ``to_template``.

A text is carried as it is in every form. ``prism.model.inputs`` decides which tokens it becomes.
"""

import base64
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal
from urllib.parse import unquote_to_bytes

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from prism.wire.v1 import rollout_pb2 as pb

IMAGE = "`data:image/...;base64,...`, `sha256:...` of an image in the blob store, or an http(s) URL where allowed"

_URL_SAFE, _WHITE_SPACE = bytes.maketrans(b"-_", b"+/"), b" \t\n\f\r"
_REMOVED = dict.fromkeys(map(ord, "\t\n\r"))  # from all of a URL, before anything else is looked at
_BASE64 = re.compile(r"; *base64 *$", re.IGNORECASE)


def well_formed(value: Any) -> Any:
    """A text with each lone surrogate, which JSON can smuggle in but UTF-8 cannot hold, replaced by U+FFFD."""
    if isinstance(value, str) and not value.isascii():
        return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return value


Text = Annotated[str, BeforeValidator(well_formed)]


class Wire(BaseModel):
    """What a caller sends: an unknown key is a mistake that is named, and true or "1" is no number."""

    model_config = ConfigDict(extra="forbid")


class TextPart(Wire):
    type: Literal["text"]
    text: Text


class ImagePart(Wire):
    type: Literal["image"]
    image: Text = Field(description=IMAGE)


class ImageUrl(BaseModel):
    url: Text = Field(description=IMAGE)
    detail: str | None = Field(default=None, description="of no effect: images are seen as they are")


class ImageUrlPart(BaseModel):
    """An image as OpenAI's chat API has it (platform.openai.com/docs/api-reference/chat, November 2026), and vLLM.

    It is read as the ImagePart of its URL. Clients put more into it, which is of no effect.
    """

    type: Literal["image_url"]
    image_url: Text | ImageUrl


def _as_image_part(part: Any) -> Any:
    """Raises ValueError for a part ``image_url`` without one."""
    if not isinstance(part, dict) or part.get("type") != "image_url":
        return part
    try:
        given = ImageUrlPart.model_validate(part).image_url
    except ValidationError:
        raise ValueError('an image_url part is {"type": "image_url", "image_url": {"url": "…"}}') from None
    return {"type": "image", "image": given if isinstance(given, str) else given.url}


ContentPart = Annotated[
    TextPart | ImagePart,
    Field(discriminator="type"),
    BeforeValidator(
        _as_image_part,
        json_schema_input_type=Annotated[TextPart | ImagePart | ImageUrlPart, Field(discriminator="type")],
    ),
]
"""One part of a message, whichever way an image is given."""


class Message(Wire):
    # Rows, which carry more than a trainer reads, are validated with extra="ignore".
    role: Literal["system", "user", "assistant"]
    content: Text | list[ContentPart]

    @property
    def parts(self) -> list[TextPart | ImagePart]:
        return [TextPart(type="text", text=self.content)] if isinstance(self.content, str) else self.content


def plain_message(text: str, images: Sequence[str]) -> Message:
    """A prompt given as text and images: the user's message, images first."""
    parts: list[TextPart | ImagePart] = [ImagePart(type="image", image=image) for image in images]
    return Message(role="user", content=[*parts, TextPart(type="text", text=text)])


def image_parts(messages: Sequence[Message]) -> list[ImagePart]:
    """In the order of the messages."""
    with_parts = (message.content for message in messages if not isinstance(message.content, str))
    return [part for parts in with_parts for part in parts if isinstance(part, ImagePart)]


def image_sha256s(messages: Sequence[pb.Message]) -> list[str]:
    """What names the images, in the order of the messages; an image that is named twice stands there twice."""
    return [part.image_sha256 for message in messages for part in message.parts if part.HasField("image_sha256")]


def with_images(messages: Sequence[pb.Message], other: Callable[[str], str]) -> list[pb.Message]:
    """The same messages about other images: ``other`` gives one by the sha256 of each, and is called in order."""

    def part_of(part: pb.Part) -> pb.Part:
        return pb.Part(image_sha256=other(part.image_sha256)) if part.HasField("image_sha256") else part

    return [pb.Message(role=message.role, parts=map(part_of, message.parts)) for message in messages]


def from_json(messages: Sequence[Message], name: Callable[[str], str]) -> list[pb.Message]:
    """``name`` gives an image's sha256 by its reference, and is called for each image in order.

    It may give anything where the messages go nowhere but into ``InputBuilder.prompt``, which only counts images.
    """

    def part_of(part: TextPart | ImagePart) -> pb.Part:
        return pb.Part(text=part.text) if isinstance(part, TextPart) else pb.Part(image_sha256=name(part.image))

    return [pb.Message(role=message.role, parts=map(part_of, message.parts)) for message in messages]


def to_json(messages: Sequence[pb.Message]) -> list[Message]:
    """As the experts take them, with images in the blob store. Raises ValidationError for a role that is none."""

    def part_of(part: pb.Part) -> dict[str, str]:
        return {"type": "image", "image": f"sha256:{part.image_sha256}"}

    return [Message.model_validate(message) for message in _as_dicts(messages, part_of)]


def to_openai(messages: Sequence[pb.Message], images: Mapping[str, bytes]) -> list[dict[str, object]]:
    """``images``: each image's bytes by what names it in the messages. Raises KeyError if one is missing."""

    def part_of(part: pb.Part) -> dict[str, object]:
        return {"type": "image_url", "image_url": {"url": data_uri(images[part.image_sha256])}}

    return _as_dicts(messages, part_of)


def to_template(messages: Sequence[pb.Message]) -> list[dict[str, object]]:
    """For ``apply_chat_template``."""
    return _as_dicts(messages, lambda _: {"type": "image"})


def _as_dicts(
    messages: Sequence[pb.Message], image: Callable[[pb.Part], Mapping[str, object]]
) -> list[dict[str, object]]:
    """Each message as role and content; text parts are the same everywhere, ``image`` makes the others."""
    return [
        {
            "role": message.role,
            "content": [
                image(part) if part.HasField("image_sha256") else {"type": "text", "text": part.text}
                for part in message.parts
            ],
        }
        for message in messages
    ]


def data_uri(image: bytes) -> str:
    kind = "jpeg" if image.startswith(b"\xff\xd8") else "webp" if image[8:12] == b"WEBP" else "png"
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"


def is_data_uri(text: str) -> bool:
    return ":" in text[:64] and text[:64].translate(_REMOVED).lstrip()[:5].lower() == "data:"


def data_uri_bytes(uri: str) -> bytes:
    """What a data URI holds, as browsers read it (fetch.spec.whatwg.org, "data: URLs"), and url-safe base64 too.

    It may be wrapped, spaced, percent-encoded, unpadded, of any type, or not base64 at all. Raises ValueError if it
    holds nothing, or base64 that does not decode.
    """
    head, comma, data = uri.partition(",")
    if not comma:
        raise ValueError("a data URI has a comma before its data")
    plain = data.partition("#")[0].encode("ascii").translate(None, b"\t\n\r")
    if b"%" in plain:
        plain = unquote_to_bytes(plain)
    if not _BASE64.search(head.translate(_REMOVED)):
        return plain
    plain = plain.translate(_URL_SAFE, _WHITE_SPACE).rstrip(b"=")
    try:
        return base64.b64decode(plain + b"=" * (-len(plain) % 4), validate=True)
    except ValueError as error:
        raise ValueError(f"its base64 does not decode: {error}") from None


def take_demonstration(row: object) -> object:
    """The row with an assistant's last turn as its response; a copy, the caller's row stays as it was.

    Raises ValueError if that turn is not text.
    """
    if isinstance(row, dict) and isinstance(messages := row.get("messages"), list) and messages:
        last = messages[-1]
        if isinstance(last, dict) and last.get("role") == "assistant" and "response" not in row:
            content = last.get("content")
            if isinstance(content, list):
                texts = [part.get("text") if isinstance(part, dict) else None for part in content]
                content = "".join(text for text in texts if isinstance(text, str))
                if len(texts) != sum(isinstance(text, str) for text in texts):
                    raise ValueError("the assistant's message must consist of text parts")
            return {**row, "messages": messages[:-1], "response": content}
    return row


def place_images(row: object) -> object:
    """The row with the images of its ``images``, in order, in the parts that are an image and name none; a copy.

    Raises ValueError if there are more than such parts.
    """
    if not isinstance(row, dict) or not isinstance(row.get("messages"), list):
        return row
    given = row.get("images")
    left = list(given) if isinstance(given, list) else []

    def placed(part: object) -> object:
        if left and isinstance(part, dict) and part.get("type") == "image" and part.get("image") is None:
            return {**part, "image": left.pop(0)}
        return part

    messages = [
        {**message, "content": [placed(part) for part in content]}
        if isinstance(message, dict) and isinstance(content := message.get("content"), list)
        else message
        for message in row["messages"]
    ]
    if left and isinstance(given, list) and len(left) < len(given):
        raise ValueError(f"images: {len(given)} are given, {len(given) - len(left)} are asked for in the messages")
    return {**row, "messages": messages}
