"""The world of the study: answers by hand, flaws that nobody finds without the picture, texts of the right length."""

import random
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from configs.blind import PARTS, Pair, Part, told_apart
from configs.demo.model import Size, build_tokenizer
from configs.effect import writing
from configs.effect.plan import load_plan
from configs.effect.prepare import COLOURS, render, scans
from configs.effect.world import (
    FAMILIES,
    FAR,
    INKS,
    INSIDE,
    LONG,
    NEAR,
    ON_LARGER,
    WRONG,
    Grid,
    Question,
    choices,
    draw_grid,
    draw_question,
    picked,
    question_text,
)
from configs.effect.writing import Flaws, Style
from prism.wire.response import parse_response

PLAN = load_plan()
FLAWS = Flaws(**PLAN.world.model_dump(exclude={"teacher_share"}))
RED, GREEN, BLUE = range(3)
GRID = Grid(3, (7, 2, 8, 1, 4, 9, 3, 0, 5), (RED, BLUE, RED, GREEN, GREEN, BLUE, RED, RED, BLUE))
#   A red 7   B blue 2    C red 8
#   D green 1 E green 4   F blue 9
#   G red 3   H red 0     I blue 5


@pytest.mark.parametrize(
    ("family", "which", "question", "answer"),
    [
        (1, 1, "Sum of the middle row?", 14),
        (2, RED, "How many digits are red?", 4),
        (3, BLUE, "Sum of the blue digits?", 16),
        # A 7, B -2, C -8 | F -9, E -4, D +1 | G -3, H +0, I -5
        (4, 0, "Walk the rows like a snake: an ink that stays adds, an ink that changes subtracts. Result?", -23),
        (5, 0, "Largest in the left column?", 7),
        (6, 0, "Sum of the corners?", 23),
        (7, 2, "Sum of the right column?", 22),
        (8, 0, "Largest minus smallest?", 9),
        (9, 1, "How many digits are above 4?", 4),
        (10, 1, "Sum of the rising diagonal?", 15),
        (11, 8 * 1 + 6, "Cell B minus cell H?", 2),
        # A +7, D -1, G +3 | B -1, E -1, H +0 | C +8, F -1, I -1
        (12, RED, "Walk down the columns: red adds its digit, other inks subtract 1. Result?", 13),
    ],
)
def test_answers_are_those_worked_out_by_hand(family: int, which: int, question: str, answer: int) -> None:
    asked = Question(family, 3, which)
    assert question_text(asked) == question
    assert writing.gold(asked, GRID) == str(answer)


@pytest.mark.parametrize(("family", "answer"), [(3, 5), (4, -17), (5, 8), (6, 12)])
def test_a_wrong_procedure_reads_other_cells_by_the_same_computation(family: int, answer: int) -> None:
    """3: green instead of red. 4: D, E, F in that order. 5: the top row. 6: B, D, F, H."""
    said = parse_response(writing.write(Question(family, 3, 0), GRID, Style(), wrong=True))
    assert said.answer == str(answer)
    assert family in WRONG


def test_every_family_and_question_can_be_asked() -> None:
    for family in FAMILIES:
        texts = {question_text(Question(family, 3, which)) for which in range(choices(family, 3))}
        assert len(texts) == choices(family, 3)
        for which in range(choices(family, 3)):
            cells = picked(Question(family, 3, which), GRID)
            assert len(set(cells)) == len(cells)
    assert sorted({*INSIDE, *NEAR, *FAR}) == list(FAMILIES)
    assert {len(picked(Question(family, 4), draw_grid(random.Random(0), 4))) for family in (1, 10)} == {4}


def test_facts_are_read_in_every_style() -> None:
    rng = random.Random(1)
    for _ in range(600):
        families, side = (ON_LARGER, 4) if rng.random() < 0.2 else (FAMILIES, 3)
        question, grid = draw_question(rng, families, side), draw_grid(rng, side)
        said = parse_response(writing.teacher(question, grid, rng, slip=0))
        assert said.valid
        assert writing.facts(said.caption) == writing.true_facts(grid)
        assert said.answer == writing.gold(question, grid)


@pytest.mark.parametrize("bullet", ["A: red", "A: red 12", "A: red 1 2", "red 3", "A or B: red 3", "a: red 3"])
def test_a_bullet_that_says_no_whole_fact_says_none(bullet: str) -> None:
    assert writing.facts(f"- B: blue 2\n- {bullet}") == {("B", "blue", 2)}


def test_slips_are_as_frequent_as_the_plan_says_and_off_by_one() -> None:
    rng = random.Random(2)
    apart = Counter[int]()
    for _ in range(3_000):
        question, grid = Question(1, 3, rng.randrange(3)), draw_grid(rng)
        said = parse_response(writing.teacher(question, grid, rng, FLAWS.slip))
        apart[int(said.answer) - int(writing.gold(question, grid))] += 1
    assert set(apart) == {-1, 0, 1}
    assert stats.binomtest(apart[-1] + apart[1], 3_000, FLAWS.slip).pvalue > 0.01


def test_misreadings_keep_the_share_of_every_digit_and_ink() -> None:
    rng = random.Random(3)
    grids = [draw_grid(rng) for _ in range(3_000)]
    read = [FLAWS.read(grid, rng) for grid in grids]
    before, after = (np.array([grid.digits for grid in of]) for of in (grids, read))
    assert (before != after).mean() == pytest.approx(0.6 * FLAWS.misread, abs=0.02)  # six digits of ten lie on a cycle
    for name, kinds in (("digits", 10), ("inks", len(INKS))):
        counts = np.bincount([value for grid in read for value in getattr(grid, name)], minlength=kinds)
        assert stats.chisquare(counts).pvalue > 0.01


@pytest.mark.parametrize("rate", [-0.1, 1.5])
def test_a_rate_beyond_its_bounds_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        Flaws(misread=rate)


def test_walks_take_a_hundred_to_two_hundred_tokens_and_nothing_else_does() -> None:
    tokenizer = build_tokenizer(writing.corpus(), Size(vocabulary=512), writing.TAGS)
    rng = random.Random(4)
    for family in FAMILIES:
        chains = [parse_response(writing.teacher(Question(family, 3), draw_grid(rng), rng)).think for _ in range(30)]
        lengths = [len(tokenizer(chain)["input_ids"]) for chain in chains]
        assert all((100 <= length <= 200) is (family in LONG) for length in lengths), (family, lengths)


def test_pictures_show_digits_of_their_split_in_their_inks() -> None:
    assert not {place for own in scans(False) for place in own} & {place for own in scans(True) for place in own}
    picture = np.asarray(render(GRID, random.Random(5)), dtype=np.float32)  # [96, 96, 3]
    assert picture.shape == (96, 96, 3)
    for cell in GRID.cells:
        row, column = divmod(cell, 3)
        shown = picture[32 * row : 32 * row + 32, 32 * column : 32 * column + 32].reshape(-1, 3)
        brightest = shown[shown.sum(1).argmax()]
        assert (
            np.abs(brightest / brightest.max() - COLOURS[GRID.inks[cell]] / COLOURS[GRID.inks[cell]].max()).max() < 0.05
        )


# ------------------------------------------------------------------------------------------------------- the blind gate


def pairs(families: tuple[int, ...], other: Callable[[Question, Grid, random.Random], str], count: int) -> list[Pair]:
    rng = random.Random(6)
    made: list[Pair] = []
    for _ in range(count):
        question, grid = draw_question(rng, families), draw_grid(rng)
        teacher = writing.teacher(question, grid, rng, FLAWS.slip)
        made.append(Pair(question_text(question), teacher, other(question, grid, rng)))
    return made


@pytest.mark.parametrize("part", PARTS)
def test_without_the_picture_nobody_tells_the_public_from_the_teacher(part: Part) -> None:
    """The gate, on the real world: at most 55 % of pairs, families with wrong procedures included."""

    def public(question: Question, grid: Grid, rng: random.Random) -> str:
        return writing.public(question, grid, rng, FLAWS)[0]

    told = told_apart(pairs((*INSIDE, *NEAR), public, 1_000), part)
    assert told.pairs == 400
    assert told.share <= PLAN.gates.blind


def test_the_judge_would_find_flaws_that_lean_one_way() -> None:
    def leaning(question: Question, grid: Grid, rng: random.Random) -> str:
        digits = tuple(1 if digit == 7 and rng.random() < 0.75 else digit for digit in grid.digits)
        return writing.teacher(question, Grid(3, digits, grid.inks), rng)

    assert told_apart(pairs(INSIDE, leaning, 500), "perception").share > 0.65


def test_the_judge_finds_a_teacher_who_always_says_it_alike() -> None:
    def alike(question: Question, grid: Grid, rng: random.Random) -> str:
        return writing.truth(question, grid)

    assert told_apart(pairs(INSIDE, alike, 200), "whole").share > 0.9


def test_a_judge_of_a_handful_of_pairs_is_refused() -> None:
    with pytest.raises(ValueError, match="too few"):
        told_apart(pairs(INSIDE, lambda *_: "no sections", 30), "whole")
