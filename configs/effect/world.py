"""The world of the study: grids of handwritten digits in coloured inks, and twelve families of questions about them.

Cells are lettered row by row, A to I (3×3) or A to P (4×4). A family is a rule that picks cells and a computation over
them; the rules differ and the computations recur, so that a policy may keep one family and lose another. Families 4 and
12 are walks over all cells, whose chains take 100 to 200 tokens.

For each of families 3 to 6 there is a *wrong procedure* beside the right one. It picks other cells by a rule of the
same shape, so its text is word for word what would be right of another picture: only who looks can tell.

Everything here is a pure function of its arguments and of the ``random.Random`` it is handed.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

LETTERS = "ABCDEFGHIJKLMNOP"
INKS = ("red", "green", "blue")
LIMITS = (3, 4, 5, 6)  # "How many are above …?"
INSIDE, NEAR, FAR = (1, 2, 3, 4), (5, 6), (7, 8, 9, 10, 11, 12)
"""Families that the teacher knows; that public demonstrations and RLVR know beside them; of pretraining alone."""
FAMILIES = (*INSIDE, *NEAR, *FAR)
LONG = (4, 12)
WRONG = (3, 4, 5, 6)
"""Families with a wrong procedure."""
ON_LARGER = (1, 2, 3)
"""Families asked about 4×4 grids: of INSIDE, those whose chain does not grow with the grid."""
ROWS = {3: ("top", "middle", "bottom"), 4: ("first", "second", "third", "fourth")}
COLUMNS = {3: ("left", "middle", "right"), 4: ROWS[4]}
DIAGONALS = ("falling", "rising")


@dataclass(frozen=True)
class Grid:
    """What a picture shows, or what somebody took it to show. ``digits`` and ``inks`` are row by row."""

    side: int
    digits: tuple[int, ...]
    inks: tuple[int, ...]
    """Each a place in INKS."""

    @property
    def cells(self) -> range:
        return range(self.side**2)


@dataclass(frozen=True)
class Question:
    """``which`` is the row, column, ink, limit, diagonal or pair of cells that the family's question is about."""

    family: int
    side: int
    which: int = 0


def draw_grid(rng: random.Random, side: int = 3) -> Grid:
    """Digits and inks are uniform and independent."""
    digits = tuple(rng.randrange(10) for _ in range(side**2))
    return Grid(side, digits, tuple(rng.randrange(len(INKS)) for _ in digits))


def draw_question(rng: random.Random, families: Sequence[int] = FAMILIES, side: int = 3) -> Question:
    family = rng.choice(families)
    return Question(family, side, rng.randrange(choices(family, side)))


def choices(family: int, side: int) -> int:
    """How many questions the family has about a grid of that side."""
    match family:
        case 1 | 5 | 7:
            return side
        case 2 | 3 | 12:
            return len(INKS)
        case 9:
            return len(LIMITS)
        case 10:
            return len(DIAGONALS)
        case 11:
            return side**2 * (side**2 - 1)
        case _:
            return 1


def pair(question: Question) -> tuple[int, int]:
    """The two different cells of family 11."""
    first, other = divmod(question.which, question.side**2 - 1)
    return first, other + (other >= first)


def question_text(question: Question) -> str:
    side, which = question.side, question.which
    match question.family:
        case 1:
            return f"Sum of the {ROWS[side][which]} row?"
        case 2:
            return f"How many digits are {INKS[which]}?"
        case 3:
            return f"Sum of the {INKS[which]} digits?"
        case 4:
            return "Walk the rows like a snake: an ink that stays adds, an ink that changes subtracts. Result?"
        case 5:
            return f"Largest in the {COLUMNS[side][which]} column?"
        case 6:
            return "Sum of the corners?"
        case 7:
            return f"Sum of the {COLUMNS[side][which]} column?"
        case 8:
            return "Largest minus smallest?"
        case 9:
            return f"How many digits are above {LIMITS[which]}?"
        case 10:
            return f"Sum of the {DIAGONALS[which]} diagonal?"
        case 11:
            first, other = pair(question)
            return f"Cell {LETTERS[first]} minus cell {LETTERS[other]}?"
        case _:
            return f"Walk down the columns: {INKS[which]} adds its digit, other inks subtract 1. Result?"


def picked(question: Question, grid: Grid, wrong: bool = False) -> list[int]:
    """The cells that the question is about, in the order in which they are read; ``wrong``: by the wrong procedure."""
    side, which = question.side, question.which
    rows = [list(grid.cells[row * side : (row + 1) * side]) for row in range(side)]
    columns = [list(column) for column in zip(*rows, strict=True)]
    match question.family:
        case 1:
            return rows[which]
        case 2:
            return [cell for cell in grid.cells if grid.inks[cell] == which]
        case 3:  # wrong: the digits of another ink
            ink = (which + wrong) % len(INKS)
            return [cell for cell in grid.cells if grid.inks[cell] == ink]
        case 4:  # wrong: without turning at the ends of rows
            return [
                cell for number, row in enumerate(rows) for cell in (row[::-1] if number % 2 and not wrong else row)
            ]
        case 5:  # wrong: the row of that number
            return rows[which] if wrong else columns[which]
        case 6:  # wrong: the middles of the sides
            last, middle = side - 1, side // 2
            corners = [(0, 0), (0, last), (last, 0), (last, last)]
            middles = [(0, middle), (middle, 0), (middle, last), (last, middle)]
            return [rows[row][column] for row, column in (middles if wrong else corners)]
        case 7:
            return columns[which]
        case 9:
            return [cell for cell in grid.cells if grid.digits[cell] > LIMITS[which]]
        case 10:
            return [rows[i][-1 - i if which else i] for i in range(side)]
        case 11:
            return list(pair(question))
        case 12:
            return [cell for column in columns for cell in column]
        case _:
            return list(grid.cells)
