"""Images of a row: what names them, and which place of the prompt each has."""

import re
from typing import Any
from urllib.parse import unquote, urlsplit

from prism.data.importers.draft import Draft
from prism.data.importers.keys import OF_PART, is_blank, refuse
from prism.errors import DataError
from prism.wire.messages import is_data_uri

IMAGE = "<image>"
# Every placeholder: no row may carry those of other things into a prompt as text. (The letter first is faster.)
PLACES = re.compile(
    r"<(?=[|ivabrp])(?:video>|audio>|ref-object>|bbox>|point>|\|?(?:image|img)[ _-]?\d*/?\|?>)", re.IGNORECASE
)
LOOKS_LIKE_ONE = re.compile(r"<\|?/?(?:image|img|picture)\b[^<>\n]{0,40}>|\[(?:image|img)\]", re.IGNORECASE)
BASE64 = re.compile(r"[A-Za-z0-9+/_-]{512,}={0,2}")  # no name of a file is that long
BARE_IMAGE = ("image", "url", "path", "image_url", "data", "base64")  # where a part of type image may hold it


def reference(image: Any, where: str) -> str:
    """A path or a data: URL, of all the ways in which rows name an image. Raises DataError."""
    if isinstance(image, dict):
        refuse(image, OF_PART, f"{where}.")
        if image.get("bytes") is not None:
            return _of_bytes(image["bytes"], where)
        found = [
            image[key]
            for key in ("path", "url", "image", "image_url", "data", "base64")
            if not is_blank(image.get(key))
        ]
        if len(found) != 1:
            raise DataError(f'{where}: an image is a path, a data: URL or {{"bytes", "path"}}')
        return reference(found[0], where)
    if not isinstance(image, str):
        raise DataError(f"{where}: an image is a path or a data: URL, not {image!r:.80}")
    if not image.strip():
        raise DataError(f"{where}: the image has an empty path")
    if image.startswith("file:"):
        parts = urlsplit(image)
        if parts.netloc not in ("", "localhost"):
            raise DataError(f"{where}: {image[:200]!r} names another machine")
        return unquote(parts.path)
    if len(image) >= 512 and BASE64.fullmatch(image):
        return f"data:;base64,{image}"
    return image


def _of_bytes(given: Any, where: str) -> str:
    """Of an image's bytes, which Parquet has as a data: URL by now, and JSON can have as base64 alone."""
    if not isinstance(given, str) or not given.strip():
        raise DataError(f"{where}.bytes: base64 is expected in JSON")
    return given if is_data_uri(given) else f"data:;base64,{given.strip()}"


def place_images(draft: Draft) -> tuple[list[dict[str, Any]], int]:
    """The turns as chat messages, each image in the place that asks for it, and how many images there are.

    Raises DataError where images and places differ in number, or a text asks for what is not there.
    """
    given = [reference(image, f"images.{i}") for i, image in enumerate(draft.images)]
    texts = [
        [turn.content] if isinstance(turn.content, str) else _texts(turn.content, turn.role, f"{draft.where}.{i}")
        for i, turn in enumerate(draft.turns)
    ]
    as_parts = any(isinstance(turn.content, list) for turn in draft.turns)
    own, empty = _own_images(draft) if as_parts else ([], 0)
    asked = 0
    if not (draft.literal and (own or empty)):
        for i, of_turn in enumerate(texts):
            for text in of_turn:
                if found := PLACES.findall(text):
                    asked += _places(found, draft.turns[i].role, f"{draft.where}.{i}")
    if asked and (own or empty):
        raise DataError(
            f"{IMAGE} stands in a text of messages that have images as parts: which place is which image's?"
        )
    if asked or empty:
        if empty > len(given):
            raise DataError(f"{_first_empty(draft, len(given))}: an image part, for which there is no image")
        if len(given) != (asked or empty):
            raise DataError(f"images: {len(given)} are given, {asked or empty} are asked for in the messages")
        return _messages(draft, iter(given), split=bool(asked)), len(given) + len(own)
    if own:
        if given and given != own:
            raise DataError("images: others are given in the messages' parts than beside the messages")
        return _messages(draft, iter(())), len(own)
    if given and draft.lone == "refuse":
        raise DataError(f"images: {len(given)} are given, and no {IMAGE} stands in the text to say where")
    return _messages(draft, iter(given), before_first=bool(given)), len(given)


def _texts(parts: list[Any], role: str, where: str) -> list[str]:
    """Raises DataError for parts that are neither text nor image, or say more than a part can."""
    found: list[str] = []
    for i, part in enumerate(parts):
        at = f"{where}.content.{i}"
        if isinstance(part, str):
            found.append(part)
            continue
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in ("text", "image", "image_url", "input_text", "input_image"):
            raise DataError(f"{at}: {kind or part!r:.80} is no part: text and image are")
        refuse(part, OF_PART, f"{at}.")
        if kind in ("text", "input_text"):
            if not isinstance(part.get("text"), str):
                told = "the assistant's message must consist of text parts" if role == "assistant" else "no text"
                raise DataError(f"{at}.text: {told}")
            found.append(part["text"])
    return found


def _places(found: list[str], role: str, where: str) -> int:
    """How many of a text's placeholders are images'. Raises DataError for those of other things, or in an answer."""
    if role != "user" and IMAGE in found:
        raise DataError(f"{where}: {IMAGE} in a text of the {role}: only a user's turn can show an image")
    if other := next((one for one in found if one != IMAGE), None):
        raise DataError(f"{where}: the text says {other}, for which nothing can be put")
    return len(found)


def _image_of(part: dict[str, Any], where: str) -> str | None:
    """None: the part leaves it to the row's images."""
    found = [part[key] for key in (*BARE_IMAGE, "bytes") if key in part and part[key] is not None]
    if not found:
        return None
    if len(found) > 1:
        raise DataError(f"{where}: an image part with two images")
    return reference({"bytes": part["bytes"]} if part.get("bytes") is not None else found[0], where)


def _own_images(draft: Draft) -> tuple[list[str], int]:
    """Images that the messages themselves name, and how many parts name none."""
    own: list[str] = []
    empty = 0
    for i, turn in enumerate(draft.turns):
        if isinstance(turn.content, str):
            continue
        for j, part in enumerate(turn.content):
            if isinstance(part, str) or "image" not in part["type"]:
                continue
            at = f"{draft.where}.{i}.content.{j}"
            if turn.role != "user":
                what = "the assistant's message must consist of text parts" if turn.role == "assistant" else "an image"
                raise DataError(f"{at}: {what}: only a user's turn can show an image")
            image = _image_of(part, at)
            own += [image] if image else []
            empty += image is None
    return own, empty


def _first_empty(draft: Draft, number: int) -> str:
    for i, turn in enumerate(draft.turns):
        for j, part in enumerate(turn.content if isinstance(turn.content, list) else []):
            if not isinstance(part, str) and "image" in part["type"] and _image_of(part, "") is None:
                if not number:
                    return f"{draft.where}.{i}.content.{j}"
                number -= 1
    return draft.where


def _messages(draft: Draft, given: Any, *, before_first: bool = False, split: bool = False) -> list[dict[str, Any]]:
    """``split``: at each placeholder in a text."""
    messages: list[dict[str, Any]] = []
    for i, turn in enumerate(draft.turns):
        content = turn.content
        if before_first and turn.role == "user":
            parts = content if isinstance(content, list) else [content]
            for text in (text for text in parts if isinstance(text, str)):
                if found := LOOKS_LIKE_ONE.search(text):
                    raise DataError(f"{draft.where}.{i}: the text says {found[0]}, which is no place for an image here")
            before_first = False
            content = [*({"type": "image", "image": image} for image in given), *_parts(content, given, split)]
        elif isinstance(content, list) or (split and turn.role == "user" and IMAGE in content):
            content = _parts(content, given, split)
            if turn.role == "assistant":
                content = "".join(part["text"] for part in content)
        messages.append({"role": turn.role, "content": content})
    if before_first:
        raise DataError("images: no user's turn could show them")
    return messages


def _parts(content: Any, given: Any, split: bool) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = []
    for part in content if isinstance(content, list) else [content]:
        if not isinstance(part, str) and "image" in part["type"]:
            image = _image_of(part, "")
            parts.append({"type": "image", "image": next(given) if image is None else image})
            continue
        text = part if isinstance(part, str) else part["text"]
        segments = text.split(IMAGE) if split else [text]
        for i, segment in enumerate(segments):
            if i:
                parts.append({"type": "image", "image": next(given)})
            if segment or len(segments) == 1:
                parts.append({"type": "text", "text": segment})
    return parts
