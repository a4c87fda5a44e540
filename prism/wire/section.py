"""The experts, named for the section of a response that each judges. (No torch: settings and wire need the names.)"""

from typing import Literal

Expert = Literal["perception", "reasoning"]
EXPERTS: tuple[Expert, ...] = ("perception", "reasoning")
