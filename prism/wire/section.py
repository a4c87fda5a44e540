"""The experts, named for the section of a response that each judges. (No torch: settings and wire need the names.)"""

from typing import Literal

Section = Literal["perception", "reasoning"]
SECTIONS: tuple[Section, ...] = ("perception", "reasoning")
