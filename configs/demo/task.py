"""The demo's task: read a grid of handwritten digits, then answer a question about it.

The scans are real: scikit-learn's bundled 8x8 digits, split once into training and held-out scans, so that held-out
accuracy means unseen handwriting. A response describes the grid first and reasons over it afterwards:

    <caption>- a seven
    - b two
    ...</caption><think>7+2=9</think><answer>9</answer>

Cells are lettered row by row. Two kinds of annotator write responses: the *teacher*, always right, and the *public*,
who regularly read a digit as another (`Flaws`) and reason over what they read. Errors with a direction are what drift
is made of; a policy averages symmetric noise away. They go round in cycles, so that every digit is named as often as it
occurs: a flawed response is a right one to some other picture, and who does not look cannot tell it.

Everything here is a pure function of its arguments and of the `random.Random` it is handed.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits

CELL = 32  # pixels a side: 2x2 patches of 16 that merge into one visual token
LETTERS = "abcdefghi"
DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
ROW_NAMES = {2: ("top", "bottom"), 3: ("top", "middle", "bottom")}
COLUMN_NAMES = {2: ("left", "right"), 3: ("left", "middle", "right")}
THRESHOLD = 5
TAGS = ("<caption>", "</caption>", "<think>", "</think>", "<answer>", "</answer>")

GRIDS: Mapping[int, tuple[tuple[int, int], ...]] = {1: ((2, 2),), 2: ((2, 3), (3, 2)), 3: ((3, 3),)}
QUESTIONS: Mapping[int, tuple[str, ...]] = {
    1: ("row_sum", "column_max", "first_minus_last"),
    2: ("row_sum", "column_sum", "row_max", "column_max", "first_minus_last", "count_above"),
    3: ("row_sum", "column_sum", "row_max", "column_max", "spread", "count_above"),
}
LEVELS = tuple(GRIDS)
CYCLES = {7: 1, 1: 4, 4: 7, 3: 8, 8: 5, 5: 3}  # what the public call a digit
MISREAD = 0.55  # of the times


@dataclass(frozen=True)
class Puzzle:
    """A grid of digits, row by row, and one question about it; `index` is the row or column asked about."""

    level: int
    question: str
    index: int | None
    rows: int
    columns: int
    digits: tuple[int, ...]

    @property
    def cells(self) -> tuple[int, ...]:
        """Positions that the question is about."""
        every = tuple(range(len(self.digits)))
        if self.question == "first_minus_last":
            return every[0], every[-1]
        if self.index is None:
            return every
        if self.question.startswith("row_"):
            return every[self.index * self.columns :][: self.columns]
        return every[self.index :: self.columns]


@dataclass(frozen=True)
class Flaws:
    """How public annotators err.

    `misread` maps a digit to what it is called instead, and how often; `drop_bullet` is the share of captions that
    miss a bullet; `slip` is the share of computations that are off by one, for each level. The last two can be seen
    without the picture, and are rare by default.
    """

    misread: Mapping[int, tuple[int, float]] = field(
        default_factory=lambda: {digit: (read_as, MISREAD) for digit, read_as in CYCLES.items()}
    )
    drop_bullet: float = 0.0
    slip: Mapping[int, float] = field(default_factory=lambda: dict.fromkeys(LEVELS, 0.03))

    def __post_init__(self) -> None:
        for digit, (read_as, rate) in self.misread.items():
            if not (0 <= digit <= 9 and 0 <= read_as <= 9 and digit != read_as and 0 <= rate <= 1):
                raise ValueError(f"misread {digit}={read_as}:{rate}: two different digits, a rate between 0 and 1")
        if not all(0 <= rate <= 1 for rate in (self.drop_bullet, *self.slip.values())):
            raise ValueError(f"drop_bullet {self.drop_bullet}, slip {self.slip}: a rate lies between 0 and 1")


# ---------------------------------------------------------------------------------------------------------- puzzles


def draw_puzzle(rng: random.Random, level: int, question: str | None = None) -> Puzzle:
    """A random puzzle of that level; digits are uniform."""
    rows, columns = rng.choice(GRIDS[level])
    digits = tuple(rng.randrange(10) for _ in range(rows * columns))
    return ask(rng, level, rows, columns, digits, question)


def ask(
    rng: random.Random, level: int, rows: int, columns: int, digits: tuple[int, ...], question: str | None = None
) -> Puzzle:
    """A random question of that level about a given grid."""
    question = question or rng.choice(QUESTIONS[level])
    index = None
    if question.startswith("row_"):
        index = rng.randrange(rows)
    elif question.startswith("column_"):
        index = rng.randrange(columns)
    return Puzzle(level, question, index, rows, columns, digits)


def question_text(puzzle: Puzzle) -> str:
    match puzzle.question:
        case "first_minus_last":
            return "First minus last?"
        case "count_above":
            return f"How many above {THRESHOLD}?"
        case "spread":
            return "Largest minus smallest?"
        case _:
            axis, operation = puzzle.question.split("_")
            names = ROW_NAMES[puzzle.rows] if axis == "row" else COLUMN_NAMES[puzzle.columns]
            assert puzzle.index is not None
            what = {"sum": "Sum of", "max": "Largest in"}[operation]
            return f"{what} the {names[puzzle.index]} {axis}?"


# -------------------------------------------------------------------------------------------------------- responses


def reason(puzzle: Puzzle, digits: Sequence[int], slip: int = 0) -> tuple[list[str], int]:
    """Steps and answer of someone who read `digits`; `slip` is added to the last computation."""
    seen = [digits[cell] for cell in puzzle.cells]
    listed = ",".join(map(str, seen))
    match puzzle.question:
        case "first_minus_last":
            answer = seen[0] - seen[1] + slip
            return [f"{seen[0]}-{seen[1]}={answer}"], answer
        case "spread":
            largest, smallest = max(seen), min(seen)
            answer = largest - smallest + slip
            return [f"max={largest}", f"min={smallest}", f"{largest}-{smallest}={answer}"], answer
        case "count_above":
            above = [digit for digit in seen if digit > THRESHOLD]
            answer = len(above) + slip
            return [f"count({','.join(map(str, above))})={answer}"], answer
        case "row_max" | "column_max":
            return [f"max({listed})={max(seen)}"], max(seen)  # nothing is computed, so nothing slips
        case _:
            steps: list[str] = []
            total = seen[0]
            for position, digit in enumerate(seen[1:], start=2):
                result = total + digit + (slip if position == len(seen) else 0)
                steps.append(f"{total}+{digit}={result}")
                total = result
            return steps, total


def gold(puzzle: Puzzle) -> str:
    return str(reason(puzzle, puzzle.digits)[1])


def write(bullets: Sequence[str], steps: Sequence[str], answer: int) -> str:
    caption, reasoning = "\n".join(f"- {bullet}" for bullet in bullets), "\n".join(steps)
    return f"<caption>{caption}</caption><think>{reasoning}</think><answer>{answer}</answer>"


def caption_bullets(digits: Sequence[int]) -> list[str]:
    return [f"{LETTERS[cell]} {DIGIT_NAMES[digit]}" for cell, digit in enumerate(digits)]


def teacher_response(puzzle: Puzzle) -> str:
    """The truth, as a careful annotator writes it."""
    return write(caption_bullets(puzzle.digits), *reason(puzzle, puzzle.digits))


def public_response(puzzle: Puzzle, flaws: Flaws, rng: random.Random) -> tuple[str, list[str]]:
    """A public annotator's response, and the names of the flaws in it.

    The reasoning follows what was read, so a misread cell also spoils the answer; a dropped bullet does not.
    """
    found: list[str] = []
    read = list(puzzle.digits)
    for cell, digit in enumerate(puzzle.digits):
        if digit in flaws.misread:
            read_as, rate = flaws.misread[digit]
            if rng.random() < rate:
                read[cell] = read_as
                found.append("misread")
    bullets = caption_bullets(read)
    if rng.random() < flaws.drop_bullet:
        del bullets[rng.randrange(len(bullets))]
        found.append("dropped")
    slip = 0
    if not puzzle.question.endswith("_max") and rng.random() < flaws.slip[puzzle.level]:
        slip = 1
        found.append("slip")
    return write(bullets, *reason(puzzle, read, slip)), found


def prompt_messages(puzzle: Puzzle, image: str) -> list[dict[str, Any]]:
    content = [{"type": "image", "image": image}, {"type": "text", "text": question_text(puzzle)}]
    return [{"role": "user", "content": content}]


# ------------------------------------------------------------------------------------------------------------ scans


Scans = Sequence[Sequence[int]]
"""One split's handwritten digits: at [d], the positions in scikit-learn's data set of scans of digit d."""

_digits: Any = cache(load_digits)


def split_scans(seed: int, held_out: float = 0.25) -> tuple[Scans, Scans]:
    """(training, held-out) scans, every digit split in the same proportion."""
    rng = random.Random(f"scans-{seed}")
    training: list[list[int]] = []
    test: list[list[int]] = []
    for digit in range(10):
        numbers: list[int] = np.flatnonzero(_digits().target == digit).tolist()
        rng.shuffle(numbers)
        boundary = round(len(numbers) * held_out)
        training.append(sorted(numbers[boundary:]))
        test.append(sorted(numbers[:boundary]))
    return training, test


@cache
def _upscaled(number: int, side: int) -> NDArray[np.float32]:
    """One scan, enlarged; cached, since every scan appears in many grids."""
    ink = _digits().images[number].astype(np.float32) / 16.0
    scan = Image.fromarray((ink * 255).astype(np.uint8))
    return np.asarray(scan.resize((side, side), Image.Resampling.BICUBIC), dtype=np.float32)


def render(puzzle: Puzzle, scans: Scans, rng: random.Random, jitter: int = 2) -> Image.Image:
    """The grid as a greyscale picture: light ink on black, each digit a random scan, a little off centre."""
    canvas = np.zeros((puzzle.rows * CELL, puzzle.columns * CELL), dtype=np.float32)
    for cell, digit in enumerate(puzzle.digits):
        side = CELL - 2 * jitter
        number = rng.choice(scans[digit])
        top = cell // puzzle.columns * CELL + rng.randint(0, 2 * jitter)
        left = cell % puzzle.columns * CELL + rng.randint(0, 2 * jitter)
        canvas[top : top + side, left : left + side] = _upscaled(number, side)
    return Image.fromarray(canvas.round().astype(np.uint8))


def corpus() -> list[str]:
    """Every kind of text the task writes, for training the tokenizer: the same on each call."""
    rng = random.Random("corpus")
    texts = ["user\n", "assistant\n", "system\n"] * 10  # the chat template's roles
    for _ in range(600):
        puzzle = draw_puzzle(rng, rng.choice(LEVELS))
        texts += [question_text(puzzle), teacher_response(puzzle)]
    return texts
