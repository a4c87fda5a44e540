"""What a model that judges answers: one JSON object, ``{"verdict": WORD}``."""

import json
import re
from collections.abc import Sequence
from typing import TypeVar

_FENCE = re.compile(r"```(?:json)?\s(.*)```", re.DOTALL | re.IGNORECASE)
Word = TypeVar("Word", bound=str)


def one_verdict(reply: object, allowed: Sequence[Word]) -> Word | None:
    """None for a reply that is anything but the one object asked for: a verdict is never guessed from prose.

    What stands before the last ``</think>`` was thought (templates often begin the block themselves, so that no reply
    opens it); one fence around the object is no matter.
    """
    if not isinstance(reply, str):
        return None
    said = reply.rpartition("</think>")[2].strip()
    if fenced := _FENCE.fullmatch(said):
        said = fenced[1].strip()
    try:
        pairs = json.loads(said, object_pairs_hook=list)  # pairs: of a key that stands twice, neither counts
    except (ValueError, RecursionError):
        return None
    return next((word for word in allowed if pairs == [("verdict", word)]), None)
