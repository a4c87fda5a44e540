"""How responses are worded, and who writes them: the truth, the teacher, and the public.

    <caption>- A: red 7
    - B: blue 2
    …</caption><think>7+2=9
    9+4=13</think><answer>13</answer>

Everyone draws wording, order and decomposition alike (``Style``): a style tells nothing of who wrote. The public's
flaws are readings and procedures, not words. A misread digit or ink is one step along a cycle, which leaves the share
of every digit and ink as it is; a wrong procedure picks other cells. So a flawed text is distributed as right texts of
other pictures are, and who does not look at the picture cannot tell it from the teacher's.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from configs.effect.world import (
    FAMILIES,
    INKS,
    LETTERS,
    ON_LARGER,
    WRONG,
    Grid,
    Question,
    draw_grid,
    draw_question,
    picked,
    question_text,
)

TAGS = ("<caption>", "</caption>", "<think>", "</think>", "<answer>", "</answer>")
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CAPTIONS = (
    "{cell}: {ink} {digit}",
    "{cell} is {ink} {digit}",
    "{cell} holds {digit} in {ink}",
    "{ink} {digit} at {cell}",
)
DECOMPOSITIONS = 3
_FACT = re.compile(r"\b(?:[A-P]|\d+|" + "|".join((*NAMES, *INKS)) + r")\b")
_DIGITS = {str(digit): digit for digit in range(10)} | {name: digit for digit, name in enumerate(NAMES)}

Fact = tuple[str, str, int]
"""Cell, ink and digit."""


@dataclass(frozen=True)
class Style:
    """The truth's own, where nothing is drawn."""

    caption: int = 0
    names: bool = False
    """Digits of the caption are spelled out."""
    columns: bool = False
    """The caption goes column by column."""
    decomposition: int = 0
    spaced: bool = False
    order: int = 0
    """Seed of the order in which the digits of a sum or count are read; 0: as they stand."""


@dataclass(frozen=True)
class Flaws:
    """How the public errs. Rates are of each digit or ink that could be misread, or of each response."""

    cycles: tuple[tuple[int, ...], ...] = ((7, 1, 4), (3, 8, 5))
    """A digit is misread as the one after it, the last as the first."""
    misread: float = 0.55
    ink: float = 0.1
    """Inks are one cycle."""
    procedure: float = 0.6
    slip: float = 0.03
    """Of responses whose last computation is off by one; the teacher's too, or a slip would tell who wrote."""

    def __post_init__(self) -> None:
        rates = (self.misread, self.ink, self.procedure, self.slip)
        if not all(0 <= rate <= 1 for rate in rates):
            raise ValueError(f"flaws {self}: a rate lies between 0 and 1")

    def read_digit(self, digit: int, rng: random.Random) -> int:
        for cycle in self.cycles:
            if digit in cycle and rng.random() < self.misread:
                return cycle[(cycle.index(digit) + 1) % len(cycle)]
        return digit

    def read(self, grid: Grid, rng: random.Random) -> Grid:
        digits = tuple(self.read_digit(digit, rng) for digit in grid.digits)
        inks = tuple((ink + (rng.random() < self.ink)) % len(INKS) for ink in grid.inks)
        return Grid(grid.side, digits, inks)


def draw_style(rng: random.Random) -> Style:
    return Style(
        rng.randrange(len(CAPTIONS)),
        rng.random() < 0.5,
        rng.random() < 0.5,
        rng.randrange(DECOMPOSITIONS),
        rng.random() < 0.5,
        rng.randrange(1, 1000) if rng.random() < 0.5 else 0,
    )


# ---------------------------------------------------------------------------------------------------------- who writes


def truth(question: Question, grid: Grid) -> str:
    """Always in the same words: gold answers are its answers, and a deterministic teacher's responses it all."""
    return write(question, grid, Style())


def teacher(question: Question, grid: Grid, rng: random.Random, slip: float = 0.03) -> str:
    """True facts in sampled words; ``slip`` is the share of responses whose last computation is off by one."""
    return write(question, grid, draw_style(rng), slip=_slip(slip, rng))


def public(question: Question, grid: Grid, rng: random.Random, flaws: Flaws) -> tuple[str, list[str]]:
    """The response, and what is wrong with it."""
    read = flaws.read(grid, rng)
    wrong = question.family in WRONG and rng.random() < flaws.procedure
    slip = _slip(flaws.slip, rng)
    found = [("digit", read.digits != grid.digits), ("ink", read.inks != grid.inks), ("procedure", wrong)]
    names = [name for name, is_there in [*found, ("slip", bool(slip))] if is_there]
    return write(question, read, draw_style(rng), wrong=wrong, slip=slip), names


def _slip(rate: float, rng: random.Random) -> int:
    return rng.choice((-1, 1)) if rng.random() < rate else 0


def gold(question: Question, grid: Grid) -> str:
    return str(_reason(question, grid, Style(), False, 0)[1])


# --------------------------------------------------------------------------------------------------------------- words


def write(question: Question, grid: Grid, style: Style, *, wrong: bool = False, slip: int = 0) -> str:
    """The response of somebody who sees ``grid``."""
    steps, answer = _reason(question, grid, style, wrong, slip)
    caption, think = "\n".join(f"- {bullet}" for bullet in _bullets(grid, style)), "\n".join(steps)
    return f"<caption>{caption}</caption><think>{think}</think><answer>{answer}</answer>"


def _bullets(grid: Grid, style: Style) -> list[str]:
    cells = list(grid.cells)
    if style.columns:
        cells.sort(key=lambda cell: (cell % grid.side, cell))
    return [
        CAPTIONS[style.caption].format(
            cell=LETTERS[cell],
            ink=INKS[grid.inks[cell]],
            digit=NAMES[grid.digits[cell]] if style.names else grid.digits[cell],
        )
        for cell in cells
    ]


def facts(caption: str) -> frozenset[Fact]:
    """What a caption says, in whichever of the styles; a bullet that says no whole fact says none."""
    found: set[Fact] = set()
    for line in caption.splitlines():
        words = _FACT.findall(line)
        cells = [word for word in words if word in LETTERS and len(word) == 1]
        inks = [word for word in words if word in INKS]
        digits = [_DIGITS[word] for word in words if word in _DIGITS]
        if len(cells) == len(inks) == len(digits) == 1:
            found.add((cells[0], inks[0], digits[0]))
    return frozenset(found)


def true_facts(grid: Grid) -> frozenset[Fact]:
    return frozenset((LETTERS[cell], INKS[grid.inks[cell]], grid.digits[cell]) for cell in grid.cells)


def _reason(question: Question, grid: Grid, style: Style, wrong: bool, slip: int) -> tuple[list[str], int]:
    """Steps and answer; ``slip`` is added to the last computation, where there is one."""
    cells = picked(question, grid, wrong)
    if question.family in (4, 12):
        return _walk(question, grid, cells, style, slip)
    if style.order and question.family != 11:
        random.Random(style.order).shuffle(cells)
    digits = [grid.digits[cell] for cell in cells]
    listed = ", ".join(map(str, digits)) if style.spaced else ",".join(map(str, digits))
    match question.family:
        case 2 | 9:
            if not digits:
                return ["none"], 0
            answer = len(digits) + slip
            told = {0: f"{listed}: {answer}", 1: f"there are {listed}, so {answer}", 2: f"count {listed} = {answer}"}
            return [told[style.decomposition]], answer
        case 5:
            told = {0: f"max({listed})={max(digits)}", 1: f"of {listed} it is {max(digits)}"}
            return [told.get(style.decomposition, f"digits {listed}\nlargest {max(digits)}")], max(digits)
        case 8:
            answer = max(digits) - min(digits) + slip
            last = _equation([max(digits), min(digits)], "-", answer, style)
            ends = {0: f"max {max(digits)}, min {min(digits)}", 1: f"from {min(digits)} to {max(digits)}"}
            return [ends.get(style.decomposition, f"of {listed}"), last], answer
        case 11:
            answer = digits[0] - digits[1] + slip
            return [_equation(digits, "-", answer, style)], answer
        case _:
            return _sum(digits, listed, style, slip)


def _sum(digits: Sequence[int], listed: str, style: Style, slip: int) -> tuple[list[str], int]:
    if len(digits) < 2:
        return [f"only {digits[0]}" if digits else "none"], sum(digits)
    if style.decomposition == 1:
        return [_equation(digits, "+", sum(digits) + slip, style)], sum(digits) + slip
    steps = [f"digits {listed}"] if style.decomposition == 2 else []
    total = digits[0]
    for place, digit in enumerate(digits[1:], start=2):
        result = total + digit + (slip if place == len(digits) else 0)
        steps.append(_equation([total, digit], "+", result, style))
        total = result
    return steps, total


def _walk(question: Question, grid: Grid, cells: Sequence[int], style: Style, slip: int) -> tuple[list[str], int]:
    """A step for each cell. No step names its cell: the order of cells is what a wrong procedure changes."""
    steps: list[str] = []
    total, before = 0, -1
    for place, cell in enumerate(cells, start=1):
        digit, ink = grid.digits[cell], grid.inks[cell]
        if question.family == 4:
            sign, amount = (1 if before in (ink, -1) else -1), digit
            why = "first" if before < 0 else "same" if before == ink else f"after {INKS[before]}"
        else:
            sign, amount = (1, digit) if ink == question.which else (-1, 1)
            why = "adds" if sign > 0 else "takes 1"
        result = total + sign * amount + (slip if place == len(cells) else 0)
        equation = _equation([total, amount], "+" if sign > 0 else "-", result, replace(style, spaced=False))
        said = (f"{digit} {INKS[ink]}, {why}: ", f"{INKS[ink]} {digit} {why}, so ", f"{why}: {INKS[ink]} {digit}, ")
        steps.append(said[style.decomposition] + equation)
        total, before = result, ink
    return steps, total


def _equation(terms: Sequence[int], sign: str, result: int, style: Style) -> str:
    text = sign.join(map(str, terms)) + f"={result}"
    return re.sub(r"(?<=\d)([-+=])", r" \1 ", text) if style.spaced else text


def corpus() -> list[str]:
    """Every kind of text the world writes, for training the tokenizer: the same on each call."""
    rng = random.Random("corpus")
    texts = ["user\n", "assistant\n", "system\n"] * 10  # the chat template's roles
    for number in range(1_500):
        families, side = (ON_LARGER, 4) if number % 10 == 0 else (FAMILIES, 3)
        question = draw_question(rng, families, side)
        texts += [question_text(question), teacher(question, draw_grid(rng, side), rng)]
    return texts
