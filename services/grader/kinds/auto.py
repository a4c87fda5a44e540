"""Kind ``auto``: which kind a gold answer asks for. Only the gold answer decides; the response never does."""

import re
from typing import Literal

from prism.services.grader.kinds import choice, number
from prism.services.grader.verdict import Options, Unreadable

MAX_RESOLVED_CHARS = 4096
_CANDIDATE = re.compile(r"[0-9\\$xynπ∞]")
_CHOICE = re.compile(r"\s*(?:[A-Z]|\([A-Ja-j]\)|\([K-Z]\)|[A-Z][.)])\s*")
_MATH = re.compile(
    r"\\[a-zA-Z]+|[\^√π∞∪∩±×÷≤≥≠∈]|\$.*\$"
    r"|(?<![<>!])[=<>](?!=)"
    r"|[(\[{]\s*-?[0-9.]+\s*(?:,\s*-?[0-9./]+\s*)+[)\]}]"
    r"|^\s*-?[0-9.]*[a-z]?\s*[+*/-]\s*[0-9.]*[a-z]?(?:\s*[+*/-]\s*[0-9.]*[a-z]?)*\s*$"
    r"|\b(?:sqrt|sin|cos|tan|log|ln|pi)\b\s*\("
)


def resolve(gold: str, options: Options) -> Literal["number", "choice", "math", "text"]:
    """choice if the gold answer is a letter or an option's text, number if it is one, math if it looks like it."""
    if options.choices:
        try:
            choice.read(gold, options)
        except Unreadable:
            pass
        else:
            return "choice"
    if number.parse_quantity(gold) is not None:
        return "number"
    if _CHOICE.fullmatch(gold):
        return "choice"
    if len(gold) <= MAX_RESOLVED_CHARS and _CANDIDATE.search(gold) and _MATH.search(gold):
        return "math"
    return "text"
