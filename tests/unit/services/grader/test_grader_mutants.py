"""Right answers with one thing changed: a short, seeded run of ``python -m bench.mutants``."""

import random
from collections import Counter

import pytest

from bench.mutants.forms import FORMS, Form, draw, number
from bench.mutants.mutate import mean_the_same, mutate, survivors
from prism.services.grader.verdict import AnswerKind

COUNTS: dict[AnswerKind, int] = {
    "math": 60,
    "number": 500,
    "choice": 200,
    "text": 300,
    "date": 500,
    "multi": 300,
    "box": 300,
    "auto": 60,
}


@pytest.mark.parametrize(("kind", "count"), COUNTS.items())
def test_no_mutant_of_a_right_answer_stays_right(kind: AnswerKind, count: int) -> None:
    seen: Counter[str] = Counter()
    assert list(survivors(kind, count, seed=1, seen=seen)) == []
    assert seen["mutants"] == count
    assert seen["wrong"] > 0.3 * count


def test_a_mutant_that_stays_right_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a form whose values mean nothing the grader is bound to call mutants right: 2/4 for 1/2."""
    form = Form(draw(number()), lambda a: f"{abs(a)}/{abs(a)}", lambda a: a)
    monkeypatch.setitem(FORMS, "number", [form])
    seen: Counter[str] = Counter()
    assert len(list(survivors("number", 20, seed=1, seen=seen))) == seen["rewarded"] == 20


def test_a_mutant_is_another_answer() -> None:
    rng = random.Random(3)
    values = [(form.values(rng), form) for form in FORMS["math"]]
    for one, form in values:
        mutants = [mutant for _ in range(20) if (mutant := mutate(one, rng)) is not None]
        assert any(not mean_the_same(form.mean(*one), form.mean(*mutant)) for mutant in mutants)
