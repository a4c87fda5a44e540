"""The two sections of a response and the experts that judge them. (No torch: settings and wire need the names.)"""

from typing import Literal

from prism.wire.response import ParsedResponse

Section = Literal["perception", "reasoning"]
SECTIONS: tuple[Section, ...] = ("perception", "reasoning")


def section_of(response: ParsedResponse, expert: Section) -> str:
    """The part of a valid response that this expert judges. The reasoning expert never sees the caption."""
    return response.perception if expert == "perception" else response.reasoning
