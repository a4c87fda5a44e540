"""Pairs as training meets them: a gold answer, and a whole response that is right about half of the time."""

import random
from collections.abc import Callable
from dataclasses import dataclass

THOUGHT = "So I read the chart again and compare what the legend says with the bars. "
RESPONSE = (
    "<caption>- a bar chart with four bars\n- the red bar is 12 high\n- the blue bar is 7 high\n- the legend is on the "
    "right</caption><think>First I read the chart. The red bar has height 12, the blue one 7. {thoughts}</think>"
    "<answer>{answer}</answer>"
)
WORDS = ["red", "blue", "green", "yellow", "left", "right", "circle", "triangle", "square",
         "January", "Monday", "increasing", "decreasing"]  # fmt: skip


@dataclass(frozen=True)
class Pair:
    kind: str
    gold: str
    answer: str

    def item(self, thoughts: int) -> dict[str, str]:
        """As the grader is asked."""
        text = RESPONSE.format(thoughts=THOUGHT * thoughts, answer=self.answer)
        return {"response": text, "gold": self.gold, "kind": self.kind}


def make(kind: str, count: int, seed: int = 0) -> list[Pair]:
    """``count`` pairs; those of math are all different."""
    rng = random.Random(f"{kind} {seed}")
    if kind != "math":
        return [MAKERS[kind](rng) for _ in range(count)]
    pairs: dict[Pair, None] = {}
    while len(pairs) < count:
        pairs[_math(rng)] = None
    return list(pairs)


def in_groups(pairs: list[Pair], size: int = 16, seed: int = 0) -> list[Pair]:
    """As many pairs, ``size`` to one gold answer: responses agree with each other about half of the time."""
    rng = random.Random(seed)
    groups: list[Pair] = []
    while len(groups) < len(pairs):
        first, *others = rng.sample(pairs, 6)
        for _ in range(size):
            answer = first.answer if rng.random() < 0.5 else rng.choice(others).answer
            groups.append(Pair(first.kind, first.gold, answer))
    return groups[: len(pairs)]


def _choice(rng: random.Random) -> Pair:
    gold, other = rng.choice("ABCDE"), rng.choice("ABCDE")
    answer = gold if rng.random() < 0.5 else other
    return Pair(
        "choice", gold, rng.choice(["{}", "{}", "{}.", "**{}**", "The answer is {}.", "Answer: {}"]).format(answer)
    )


def _number(rng: random.Random) -> Pair:
    value = rng.choice([rng.randint(0, 200), rng.randint(1000, 99_999), rng.randint(1, 9999) / 100])
    answer = value if rng.random() < 0.5 else rng.choice([value + 1, value * 2, round(value / 3, 2)])
    spelt = rng.choice(["{}", "{}", "{}", "{:,}", "{}.", "${}$", "{} cm", "{}\\%", "The answer is {}."])
    unit = " cm" if "cm" in spelt and rng.random() < 0.5 else "\\%" if "%" in spelt else ""
    return Pair("number", f"{value}{unit}", spelt.format(answer))


def _text(rng: random.Random) -> Pair:
    gold, other = rng.choice(WORDS), rng.choice(WORDS)
    return Pair("text", gold, gold if rng.random() < 0.5 else other)


def _math(rng: random.Random) -> Pair:
    a, b, c, d = (rng.randint(2, 99) for _ in range(4))
    forms: list[Callable[[], tuple[str, list[str]]]] = [
        lambda: (rf"\frac{{{a}}}{{{b}}}", [rf"\frac{{{2 * a}}}{{{2 * b}}}", rf"\frac{{{a + 1}}}{{{b}}}", f"{a}/{b}"]),
        lambda: (rf"{a}\sqrt{{{b}}}", [rf"\sqrt{{{a * a * b}}}", rf"{a + 1}\sqrt{{{b}}}"]),
        lambda: (rf"{a}x^2+{b}x-{c}", [rf"{a}x^2-{c}+{b}x", rf"{a}x^2+{b}x+{c}"]),
        lambda: (f"({a},{b})", [f"({a}, {b})", f"({b},{a + b})"]),
        lambda: (f"[{a},{a + b})", [f"[{a}, {a + b})", f"[{a},{a + b}]"]),
        lambda: (rf"\{{{a},{a + b}\}}", [rf"\{{{a + b},{a}\}}", rf"\{{{a},{a + b + 1}\}}"]),
        lambda: (f"x={a}", [f"{a}", f"x={a + 1}"]),
        lambda: (rf"\frac{{{a}\pi}}{{{b}}}", [rf"\frac{{{a}}}{{{b}}}\pi", rf"\frac{{{a + 1}\pi}}{{{b}}}"]),
        lambda: (f"{a}", [f"{a}", f"{a}.0", f"{a + 1}", rf"\boxed{{{a}}}"]),
        lambda: (rf"2^{{{a % 9 + 2}}}\cdot {b}", [f"{2 ** (a % 9 + 2) * b}", f"{2 ** (a % 9 + 2) * b + 1}"]),
        lambda: (
            rf"\begin{{pmatrix}}{a}&{b}\\{c}&{d}\end{{pmatrix}}",
            [rf"\begin{{bmatrix}}{a}&{b}\\{c}&{d}\end{{bmatrix}}"],
        ),
    ]
    gold, answers = rng.choice(forms)()
    return Pair("math", gold, rng.choice(answers))


MAKERS = {"choice": _choice, "number": _number, "text": _text}

# What hostile responses hold, each a little different from the one before. The last three are comparisons that sympy
# does not end in time; the others are refused by what they would cost.
BOMBS: list[Callable[[int], str]] = [
    lambda i: f"9**9**9**{i + 9}",
    lambda i: f"10^{{10^{{{i + 10}}}}}!",
    lambda i: "(" * (i + 1000) + "1" + ")" * (i + 1000),
    lambda i: "\\frac" * (i + 2000),
    lambda i: "\\frac{1}{" * (i + 60) + "1" + "}" * (i + 60),
    lambda i: f"\\sum_{{k=1}}^{{{10**9 + i}}} \\sin(k)",
    lambda i: f"__import__('os').system('sleep {i + 100}')",
    lambda i: f"\0 {i}",
    lambda i: f"\\int \\frac{{\\sin(x^3)\\ln(x)}}{{e^{{x}}+x^{i + 5}}} dx",
    lambda i: (
        "\\det\\begin{pmatrix}"
        + "\\\\".join("&".join(f"x_{{{i + a + 10 * b}}}" for a in range(9)) for b in range(9))
        + "\\end{pmatrix}"
    ),
    lambda i: "(x+y+z+w)^{60}(x-y)^{" + str(i + 70) + "}",
]


def hostile(count: int) -> list[Pair]:
    return [Pair("math", r"\frac{x}{7}+1", BOMBS[index % len(BOMBS)](index)) for index in range(count)]
