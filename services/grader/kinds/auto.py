"""Kind ``auto``: which kind a gold answer asks for. Only the gold answer decides; the response never does."""

import re
from typing import Literal

from services.grader.kinds import choice, number
from services.grader.verdict import Options, Unreadable

_CHOICE = re.compile(r"\s*(?:[A-H]|\([A-Ha-h]\)|[A-H][.)])\s*")
_MATH = re.compile(
    r"\\[a-zA-Z]+|[\^√π∞∪∩±×÷≤≥≠∈]|\$.*\$"
    r"|(?<![<>!])[=<>](?!=)"
    r"|[(\[{]\s*-?[0-9.]+\s*(?:,\s*-?[0-9./]+\s*)+[)\]}]"
    r"|^\s*-?[0-9.]*[a-z]?\s*[+*/-]\s*[0-9.]*[a-z]?(?:\s*[+*/-]\s*[0-9.]*[a-z]?)*\s*$"
    r"|\b(?:sqrt|sin|cos|tan|log|ln|pi)\b\s*\("
)


def resolve(gold: str, options: Options) -> Literal["number", "choice", "math", "text"]:
    """number if the gold answer is one, choice if it is a letter or an option's text, math if it looks like it."""
    if number.parse_quantity(gold) is not None:
        return "number"
    if _CHOICE.fullmatch(gold):
        return "choice"
    if options.choices:
        try:
            choice.read(gold, options)
        except Unreadable:
            pass
        else:
            return "choice"
    return "math" if len(gold) <= 4096 and any(char.isdigit() or char in "\\$xyn" for char in gold) and _MATH.search(gold) else "text"
