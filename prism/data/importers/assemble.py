"""The one place that turns a format's row into PRISM's own, or refuses it.

A key that changes the prompt is used, or the row is refused: whatever a reader has not used is looked at here.
"""

import json
import re
from collections.abc import Mapping, Set
from functools import lru_cache
from hashlib import blake2b
from typing import Any, get_args

from prism.data.importers import keys
from prism.data.importers.draft import Format, Tags, is_chat
from prism.data.importers.keys import is_blank
from prism.data.importers.media import place_images
from prism.data.table import without_nan
from prism.errors import DataError
from prism.wire.grading import AnswerKind, GradeOptions

PLAIN_KEYS = frozenset(
    [
        "id",
        "messages",
        "response",
        "teacher",
        "gold",
        "kind",
        "meta",
        "prompt",
        "responses",
        "policy",
        "options",
        "tokens",
    ]
)
"""PRISM's own, that hold no image."""
IMAGE_KEYS = re.compile(
    r"(decoded_)?(image|img|picture|photo)s?([ _-]?\d+|_(path|file|url|name|bytes|data|base64|list)s?)", re.IGNORECASE
)
TABLES = ("messages", "conversations", "images", "meta", "options", "reward_model", "extra_info")
"""What columns of a table may hold as JSON."""
CHAT_AS_TEXT = re.compile(r"\s*\[\s*\{")
KINDS = get_args(AnswerKind)
PASSED_KEYS = frozenset(["kind", "meta", "options", "tokens", "response", "teacher", "responses", "policy"])
GOLD_KEYS = ("gold", "ground_truth", "answer", "solution", "reference_answer", "final_answer")
GOLD_PLACES = frozenset(["equivalent_answers", "reward_model", "extra_info", *GOLD_KEYS])
MAIN_KEYS = ("conversations", "messages", "prompt", "problem", "instruction", "query", "conversation")
"""Where the formats have a prompt."""


def own_row(value: Any, form: Format, tags: Tags | None = None) -> dict[str, Any]:
    """A row as PRISM has it: ``id``, ``messages`` with each image in its place, ``gold``, what else it has.

    Where the messages end with an assistant's turn it is there as ``response``, and ``learnt`` are the places of all
    assistant's turns that are learnt from, that one included. Raises DataError that says what is wrong.
    """
    row = object_of(value)
    draft = form.read(row, tags)
    messages, images = place_images(draft)
    if any(key not in PLAIN_KEYS and key not in draft.used for key in row):
        refuse_unused(row, draft.used, images)
        keys.refuse_pairs(row, answered=draft.turns[-1].role == "assistant" or row.get("response") is not None)
    own = passed_on(row, form)
    if "response" in draft.used:
        own.pop("response", None)  # it is a turn by now
    learnt = [i for i, turn in enumerate(draft.turns) if turn.role == "assistant" and turn.trained]
    if messages[-1]["role"] == "assistant" and own.get("response") is None:
        own["response"] = messages.pop()["content"]
        own["learnt"] = learnt
    if not messages:
        raise DataError(f"{draft.where}: an answer alone, without a prompt before it")
    own["messages"] = messages
    if draft.where == "prompt" and len(draft.turns) == 1 and isinstance(row["prompt"], str):
        own["plain"] = True
    own |= golds_of(row)
    return named(row, own, form)


def answer_row(value: Any, form: Format, tags: Tags | None = None) -> dict[str, Any]:
    """A row to be graded: what is there of ``id``, ``response``, ``gold``, ``kind``, ``options``, ``tokens``.

    A response alone needs no prompt; without one the row's demonstration is the response. Raises DataError.
    """
    row = object_of(value)
    if row.get("response") is None and not row.keys().isdisjoint(MAIN_KEYS):
        return own_row(row, form, tags)
    own = passed_on(row, form) | golds_of(row)
    if (given := row.get("id")) is not None:
        own["id"] = _whole(given)
    return own


def object_of(value: Any) -> dict[str, Any]:
    """Raises DataError unless the row is one."""
    if not isinstance(value, dict):
        raise DataError("a row is a JSON object (a dictionary)")
    row: dict[str, Any] = without_nan(value)  # pyright: ignore[reportAssignmentType]  (a dictionary gives one)
    for key, text in row.items():
        if isinstance(text, str) and key in TABLES and text.lstrip()[:1] in ("[", "{"):
            try:
                row = {**row, key: json.loads(text)}
            except (ValueError, RecursionError):
                continue  # whoever reads it says that it is a text
    if isinstance(prompt := row.get("prompt"), str) and CHAT_AS_TEXT.match(prompt):
        row = _with_chat(row, prompt)
    return row


def _with_chat(row: dict[str, Any], prompt: str) -> dict[str, Any]:
    """A prompt that is a chat written as JSON is that chat."""
    try:
        chat = json.loads(prompt)
    except (ValueError, RecursionError):
        return row
    return {**row, "prompt": chat} if is_chat(chat) else row


def refuse_unused(row: Mapping[str, Any], used: Set[str], images: int) -> None:
    """Raises DataError for a key that nobody has used and that would change the prompt."""
    keys.refuse(row, keys.OF_ROW, "", but=tuple(used))
    for table in ("extra_info", "reward_model"):
        if isinstance(beside := row.get(table), dict):
            keys.refuse(beside, keys.ANYWHERE, f"{table}.")
            for key, value in beside.items() if not images else ():
                if not is_blank(value) and (key in ("image", "images") or _shows_image(key, value)):
                    raise DataError(f"{table}.{key}: an image that would not be shown: a row's own images are")
    for key, value in row.items():
        if key in used or key in PLAIN_KEYS or key in keys.OF_ROW or is_blank(value):
            continue
        if keys.MEDIA.fullmatch(key):
            raise DataError(f"{key}: {keys.why(key)}")
        # Beside images that are shown, other names hold the same in another form, and numbers others.
        if keys.NUMBERED_IMAGE.fullmatch(key) if images else _shows_image(key, value):
            raise DataError(f'{key}: an image that would not be shown: name it, with columns = {{ images = "{key}" }}')


def _shows_image(key: str, value: Any) -> bool:
    if IMAGE_KEYS.fullmatch(key):
        return True
    if isinstance(value, list) and value:
        value = value[0]
    if isinstance(value, dict):
        return "bytes" in value and value.keys() <= {"bytes", "path"}
    return isinstance(value, str) and value[:11] == "data:image/"


def passed_on(row: Mapping[str, Any], form: Format) -> dict[str, Any]:
    """What PRISM's own rows may hold beside a prompt, from a row of any format."""
    if PASSED_KEYS.isdisjoint(row):
        return {}
    own = {key: value for key, value in row.items() if key in PASSED_KEYS and value is not None}
    if form.name == "prism":
        return own
    # In public data these names may stand for anything.
    if own.get("kind") not in KINDS:
        own.pop("kind", None)
    if not isinstance(own.get("meta"), dict):
        own.pop("meta", None)
    options = own.get("options")
    if not isinstance(options, dict) or not options.keys() <= GradeOptions.model_fields.keys():
        own.pop("options", None)
    if not isinstance(own.get("tokens"), int):
        own.pop("tokens", None)
    return own


def golds_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """``gold`` and ``equivalent_answers``, from where the formats have them."""
    if GOLD_PLACES.isdisjoint(row):
        return {}
    of_reward = row.get("reward_model")
    places = [row, *(place for place in (of_reward, row.get("extra_info")) if isinstance(place, dict))]
    found: dict[str, Any] = {}
    if isinstance(of_reward, dict) and row.get("gold") is None and not is_blank(of_reward.get("ground_truth")):
        found["gold"] = of_reward["ground_truth"]
    elif key := next((key for key in GOLD_KEYS if key in row and not _is_nothing(row[key])), None):
        found["gold"] = row[key]
    elif "gold" in row:
        found["gold"] = row["gold"]
    for place in places:
        if (others := place.get("equivalent_answers")) is not None:
            found["equivalent_answers"] = _listed(others)
            break
    return found


def _listed(others: Any) -> Any:
    """A column of texts may hold the list as JSON. (An interval such as [1, 2] is one answer.)"""
    if isinstance(others, str) and others.lstrip().startswith("["):
        try:
            found = json.loads(others)
        except (ValueError, RecursionError):
            return others
        if isinstance(found, list) and all(isinstance(one, str) for one in found):
            return found
    return others


def _is_nothing(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip()) or value == []


def named(row: Mapping[str, Any], own: dict[str, Any], form: Format) -> dict[str, Any]:
    """With the row's id; one that has none is named by its content."""
    given = row.get("id")
    if given is not None and (form.unique_ids or _is_number(given) or (isinstance(given, str) and given.strip())):
        own["id"] = _whole(given)
    else:
        own["id"], own["made_id"] = content_id(own), True
    return own


def _whole(given: Any) -> Any:
    """An integer that a table made a float is one."""
    return int(given) if isinstance(given, float) and given.is_integer() else given


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def content_id(own: Mapping[str, Any]) -> str:
    """16 hexadecimal digits that differ where the prompt or a text differs."""
    pieces: list[bytes] = []
    for message in own["messages"]:
        content = message["content"]
        pieces.append(_framed_name(message["role"]))
        if isinstance(content, str):
            pieces += (_framed_name("text"), _framed(content))
            continue
        for part in content:
            kind = part["type"]
            pieces += (_framed_name(kind), _framed(part[kind]))
    for key in ("response", "responses", "teacher", "policy", "gold"):
        pieces += (_framed_name(key), _framed_name("None") if (given := own.get(key)) is None else _framed(given))
    return blake2b(b"".join(pieces), digest_size=8).hexdigest()


def _framed(text: object) -> bytes:
    """With its length before it, so that no two rows' pieces join to the same."""
    given = str(text).encode("utf-8", "surrogatepass")
    return b"%d:%b" % (len(given), given)


_framed_name = lru_cache(64)(_framed)  # of the few texts that every row has
