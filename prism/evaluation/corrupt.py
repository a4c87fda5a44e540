"""Lies told in one section of a response: every number, or a share of them, becomes another. (No torch.)

Whatever is not a number stays as it is, so what comes out keeps its format, its length in words, and its other section.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from prism.wire.response import parse_response

CorruptedPart = Literal["caption", "steps"]
CORRUPTED_PARTS: tuple[CorruptedPart, ...] = ("caption", "steps")
_TAGS = {"caption": "caption", "steps": "think"}


@dataclass(frozen=True)
class Lies:
    """What stands for what: digits for other digits, and a word for another of its vocabulary."""

    vocabularies: Sequence[Sequence[str]] = ()
    """Words that may stand in for one another, such as the names of digits."""
    share: float = 1.0
    """Share of a section's numbers and words that are changed; at least one is."""

    def corrupt(self, response: str, section: CorruptedPart, seed: int | str) -> str | None:
        """The response with other numbers in that section alone; None if it is not valid or holds none there.

        A pure function of its arguments.
        """
        if not parse_response(response).valid:
            return None
        tag = _TAGS[section]
        before, opening, rest = response.partition(f"<{tag}>")
        inside, closing, after = rest.partition(f"</{tag}>")
        random_ = random.Random(f"{seed}/{section}")
        changed = self._swap(inside, random_)
        return None if changed == inside else before + opening + changed + closing + after

    def _swap(self, text: str, random_: random.Random) -> str:
        others = {word: [o for o in words if o != word] for words in self.vocabularies for word in words}
        words = "|".join(re.escape(word) for word in sorted(others, key=len, reverse=True))
        pattern = re.compile(rf"\d+|\b(?:{words})\b" if words else r"\d+")
        places = [match.start() for match in pattern.finditer(text)]
        chosen = set(random_.sample(places, max(1, round(self.share * len(places))))) if places else set[int]()

        def other(match: re.Match[str]) -> str:
            if match.start() not in chosen:
                return match[0]
            return random_.choice(others[match[0]]) if match[0] in others else _other_number(match[0], random_)

        return pattern.sub(other, text)


def _other_number(number: str, random_: random.Random) -> str:
    """Another number of as many digits; a leading zero, which nobody writes, would give it away."""
    low = 10 ** (len(number) - 1) if len(number) > 1 else 0
    while (drawn := str(random_.randrange(low, 10 ** len(number)))) == number:
        pass
    return drawn
