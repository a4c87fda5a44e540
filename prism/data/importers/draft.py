"""What every format's reader hands on: turns, images, and which keys of the row it has read."""

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field
from typing import Any, Literal

from prism.data.importers.keys import OF_MESSAGE, TOOLS, is_blank, refuse
from prism.errors import DataError

Lone = Literal["first", "refuse"]
"""What images mean that no placeholder asks for: they stand before the first user's text, or the row is refused."""


@dataclass(slots=True)
class Turn:
    role: str
    content: Any
    """A text, or a list of parts."""
    trained: bool = True
    """Of an assistant's turn: whether it is learnt from."""


@dataclass(slots=True)
class Draft:
    """A row as its format tells it. What it means for a prompt is decided in ``assemble``, for all formats."""

    turns: list[Turn]
    used: Set[str]
    """Keys of the row that the reader has used, or that mean nothing to a prompt."""
    where: str = "messages"
    """The key that the turns stand under, for messages about them."""
    images: list[Any] = field(default_factory=list)
    lone: Lone = "first"
    literal: bool = False
    """In messages that have images as parts, a text is what it says, ``<image>`` too."""


@dataclass(frozen=True)
class Tags:
    """Names within a message, as LLaMA-Factory's dataset_info.json may change them."""

    role: str
    content: str
    roles: Mapping[str, str]
    """PRISM's role, or "tool", by the file's."""


@dataclass(frozen=True)
class Format:
    """One of the forms that rows have in public. All its functions are a module's own, so that it can be pickled."""

    name: str
    follows: str
    """The documentation that it follows, with its date."""
    turns: Literal["all", "last"]
    """Which assistant's turns its own tool learns from."""
    unique_ids: bool
    """Whether an id names one row. Elsewhere two rows may share one, and are told apart by their content."""
    detect: Callable[[Mapping[str, Any]], bool]
    read: Callable[[Mapping[str, Any], Tags | None], Draft]
    """Raises DataError for a row that is none of this format."""


ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "tool": "tool",
    "ipython": "tool",
    "function": "tool",
    "observation": "tool",
    "function_call": "tool",
    "tool_call": "tool",
    "tool_response": "tool",
}


def is_chat(value: Any) -> bool:
    """Whether it is a list of messages, by the first of them."""
    return (
        isinstance(value, list)
        and bool(value)
        and isinstance(value[0], dict)
        and not value[0].keys().isdisjoint(("role", "from", "content", "value"))
    )


def read_turns(messages: Any, where: str, tags: Tags | None = None) -> list[Turn]:
    """Of messages with ``role`` and ``content``, or ``from`` and ``value``. Raises DataError."""
    if not isinstance(messages, list):
        raise DataError(f"{where}: a list of messages is expected, not {type(messages).__name__}")
    if not messages:
        raise DataError(f"{where}: is empty")
    return [_turn(message, f"{where}.{i}", tags) for i, message in enumerate(messages)]


def _turn(message: Any, where: str, tags: Tags | None) -> Turn:
    if not isinstance(message, dict):
        raise DataError(f"{where}: a message is expected, not {type(message).__name__}")
    if tags:
        role_key, content_key, roles = tags.role, tags.content, tags.roles
    elif "role" in message:
        role_key, content_key, roles = "role", "content", ROLES
    elif "from" in message:
        role_key, content_key, roles = "from", "value", ROLES
    else:
        raise DataError(f"{where}.role: is missing")
    given = message.get(role_key)
    role = roles.get(given) if isinstance(given, str) else None
    if role is None:
        raise DataError(f"{where}.{role_key}: {given!r} is none of system, user and assistant")
    trained = True
    if len(message) > 2:
        refuse(message, OF_MESSAGE, f"{where}.", but=(role_key, content_key))
        trained = _is_trained(message, role, where)
    if role == "tool":
        raise DataError(f"{where}.{role_key}: {given!r}: {TOOLS}")
    content = message.get(content_key)
    if not isinstance(content, str | list):
        kind = "is missing" if content is None else f"a text or a list of parts is expected, not {content!r:.80}"
        raise DataError(f"{where}.{content_key}: {kind}")
    return Turn(role, content, trained)


def _is_trained(message: Mapping[str, Any], role: str, where: str) -> bool:
    """By OpenAI's ``weight`` or ms-swift's ``loss``: 0 or 1."""
    trained = True
    for key in ("weight", "loss"):
        value = message.get(key)
        if value is None:
            continue
        if not isinstance(value, int | float) or value not in (0, 1):
            raise DataError(f"{where}.{key}: 0 or 1 is expected, not {value!r:.80}")
        if value and role != "assistant":
            raise DataError(f"{where}.{key}: only an assistant's turn can be learnt from")
        trained = trained and bool(value)
    return trained


def pairs(history: Any, where: str = "history") -> list[Turn]:
    """Earlier turns as [question, answer] pairs. Raises DataError."""
    if is_blank(history):
        return []
    turns: list[Turn] = []
    for i, pair in enumerate(history if isinstance(history, list) else [history]):
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise DataError(f"{where}.{i}: a question and its answer are expected, two texts")
        turns += [Turn("user", pair[0]), Turn("assistant", pair[1])]
    return turns


def one_text(row: Mapping[str, Any], key: str) -> str:
    """Raises DataError unless it is a text."""
    if not isinstance(value := row.get(key), str):
        raise DataError(f"{key}: {'is missing' if value is None else f'a text is expected, not {value!r:.80}'}")
    return value


def with_system(row: Mapping[str, Any], turns: list[Turn], key: str = "system") -> list[Turn]:
    """The turns after the row's own system text, if it has one. Raises DataError if there are two of them."""
    if (system := row.get(key)) is None or is_blank(system):
        return turns
    if not isinstance(system, str):
        raise DataError(f"{key}: a text is expected, not {system!r:.80}")
    if turns and turns[0].role == "system":
        if turns[0].content == system:
            return turns
        raise DataError(f"{key}: the row has a system text, and its messages begin with another")
    return [Turn("system", system), *turns]


def images_of(row: Mapping[str, Any], *keys: str) -> list[Any]:
    """Under the first of the keys that holds any, as a list. Raises DataError if two hold different ones."""
    found: list[Any] | None = None
    for key in keys:
        value = row.get(key)
        if value is None or is_blank(value):
            continue
        images = value if isinstance(value, list) else [value]
        if found is not None and images != found:
            raise DataError(
                f"{key}: images are given under {' and '.join(k for k in keys if not is_blank(row.get(k)))}"
            )
        found = images
    return found or []


def alternating(turns: list[Turn], where: str) -> None:
    """Raises DataError unless users and assistants take turns, users first, after at most one system text."""
    start = 1 if turns and turns[0].role == "system" else 0
    for i, turn in enumerate(turns[start:]):
        expected = "assistant" if i % 2 else "user"
        if turn.role != expected:
            raise DataError(f"{where}.{i + start}: the {expected}'s turn is expected, this is the {turn.role}'s")
