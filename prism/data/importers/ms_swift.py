"""ms-swift: ``messages`` whose texts say ``<image>`` where one of ``images`` is shown, and its three other forms."""

from collections.abc import Mapping
from typing import Any

from prism.data.importers.draft import Draft, Format, Tags, Turn, images_of, one_text, pairs, read_turns, with_system
from prism.data.importers.keys import is_blank
from prism.errors import DataError

MEDIA = ("<image>", "<video>", "<audio>")
KEYS = frozenset(["system", "images", "image"])
OF_MESSAGES, OF_CONVERSATION = KEYS | {"messages"}, KEYS | {"conversation"}
OF_QUERY = KEYS | {"query", "response", "history"}


def detect(row: Mapping[str, Any]) -> bool:
    if isinstance(messages := row.get("messages"), list):
        if not row.keys().isdisjoint(("objects", "rejected_response", "videos", "audios")):
            return True
        return any(
            isinstance(message, dict)
            and (
                "loss" in message or (isinstance(text := message.get("content"), str) and any(m in text for m in MEDIA))
            )
            for message in messages
        )
    return isinstance(row.get("query"), str) or isinstance(row.get("conversation"), list)


def read(row: Mapping[str, Any], tags: Tags | None = None) -> Draft:
    if row.get("messages") is not None:
        turns, where, used = read_turns(row["messages"], "messages", tags), "messages", OF_MESSAGES
    elif row.get("query") is not None:
        turns, where, used = [*pairs(row.get("history")), Turn("user", one_text(row, "query"))], "query", OF_QUERY
        if not is_blank(row.get("response")):
            turns.append(Turn("assistant", one_text(row, "response")))
    elif row.get("conversation") is not None:
        turns, where, used = _conversation(row["conversation"]), "conversation", OF_CONVERSATION
    else:
        raise DataError("messages: is not set (nor query, nor conversation)")
    return Draft(with_system(row, turns), used, where, images_of(row, "images", "image"))


def _conversation(rounds: Any) -> list[Turn]:
    """Of {"human": ..., "assistant": ...}, one for each round."""
    if not isinstance(rounds, list) or not rounds:
        raise DataError("conversation: a list of rounds is expected")
    turns: list[Turn] = []
    for i, one in enumerate(rounds):
        if not isinstance(one, dict) or not all(isinstance(one.get(key), str) for key in ("human", "assistant")):
            raise DataError(f"conversation.{i}: human and assistant are expected, two texts")
        turns += [Turn("user", one["human"]), Turn("assistant", one["assistant"])]
    return turns


FORMAT = Format(
    "ms-swift",
    "swift.readthedocs.io/en/latest/Customization/Custom-dataset.html, November 2026",
    "all",
    unique_ids=False,
    detect=detect,
    read=read,
)
