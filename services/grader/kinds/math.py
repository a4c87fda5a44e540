"""Kind ``math``: LaTeX, expressions, sets, intervals, matrices, equations, by math-verify. Runs in workers alone.

``verify(gold, answer)`` is not symmetric (an interval answers an inequality, but not the other way round), so the gold
answer always comes first. Its timeouts are off: they are signals that raise wherever the code is, and a failure in it
is False; here a deadline ends the process, and a failure is a status.
"""

import functools
import logging
import re
from dataclasses import dataclass
from typing import Any

import sympy
from latex2sympy2_extended.sets import FiniteSet
from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify
from sympy import MatrixBase, nan, zoo
from sympy.core.basic import Basic

from prism.services.grader.extract import last_boxed
from prism.services.grader.kinds import arithmetic
from prism.services.grader.kinds.cost import too_costly
from prism.services.grader.kinds.text import REPLACEMENT
from prism.services.grader.verdict import GoldUnreadable, Match, Options, Unreadable, shown

MAX_MATH_CHARS = 16_384
MAX_NESTING = 40  # reading takes time that grows much faster than the depth
_LATEX, _PLAIN = LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig()
_TARGETS = {"any": (_LATEX, _PLAIN), "latex": (_LATEX,), "plain": (_PLAIN,)}

_SETS = (sympy.Set, sympy.Tuple, FiniteSet)

arithmetic.install()
# It says at each start that its timeouts are off; they are meant to be.
logging.getLogger("math_verify").setLevel(logging.ERROR)

_FULL_WIDTH = {code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}
_UNICODE = str.maketrans(
    _FULL_WIDTH
    | {
        "−": "-",
        "–": "-",
        "‒": "-",
        "\u2010": "-",
        "、": ",",
        "\u00a0": " ",
        "\u202f": " ",
        "\u2009": " ",
        "\u200b": "",
    }
    | {"×": r"\times ", "÷": r"\div ", "·": r"\cdot ", "π": r"\pi ", "∞": r"\infty ", "√": r"\sqrt "}
    | {
        "≤": r"\le ",
        "≥": r"\ge ",
        "≠": r"\ne ",
        "∪": r"\cup ",
        "∩": r"\cap ",
        "∈": r"\in ",
        "±": r"\pm ",
        "°": r"^{\circ}",
    }
    | {"α": r"\alpha ", "β": r"\beta ", "θ": r"\theta ", "λ": r"\lambda ", "∅": r"\emptyset ", "ℝ": r"\mathbb{R}"}
    | {"½": r"\frac{1}{2}", "⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}"}
)
_SUPERSCRIPTS = re.compile("[⁻⁺]?[⁰¹²³⁴⁵⁶⁷⁸⁹ⁿˣ]+")
_SUPERSCRIPT = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿˣ", "0123456789-+nx")
_SUBSCRIPTS = re.compile("[₀₁₂₃₄₅₆₇₈₉]+")
_SUBSCRIPT = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
_WORDS = [
    (re.compile(r"(?<![\\a-zA-Z])sqrt\s*\(([^()]*)\)"), r"\\sqrt{\1}"),
    (re.compile(r"(?<![\\a-zA-Z])(pi|sin|cos|tan|ln|log)(?![a-zA-Z])"), r"\\\1 "),
]
_ROOT = re.compile(r"\\sqrt (\d+|[a-z]|\([^()]*\))")
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x9f]")
_TEX = re.compile(r"\$|\\\(|\\\[|\\f?box(?:ed)?\s*\{")
_PROSE = re.compile(r"[A-Za-z]{2,}[ ,]+[A-Za-z]{2,}|\b(?:answer|percent|pct|percentage)\b", re.IGNORECASE)
_PLAIN_NUMBER = re.compile(r"\s*-?(?:[1-9]\d{0,2}(?:[ ,]\d{3})+(?:\.\d+)?|\d+[.,]\d+|\d+)\s*")
_MIXED = re.compile(r"^\s*(-?)(\d+)(?:\s+|\s*\\[,; ]\s*)?(?:\\[dt]?frac\{(\d+)\}\{(\d+)\}|(?<=\s)(\d+)/(\d+))\s*$")


@dataclass(frozen=True, slots=True)
class Parsed:
    """What math-verify read: sympy values, and the text between the delimiters."""

    values: tuple[Any, ...]
    # Of several boxes, which math-verify makes a set of, the last: the answer, where the gold answer is no set.
    last_box: tuple[Any, ...] = ()

    @property
    def understood(self) -> bool:
        """Whether there is a value with a meaning: ``12:00`` reads as a division by zero."""
        return any(_meaningful(value) for value in self.values)

    @property
    def texts(self) -> set[str]:
        return {value.strip() for value in self.values if isinstance(value, str)} - {""}


def read(text: str, options: Options) -> Parsed:
    """Raises Unreadable: nothing mathematical is found, or comparing it would cost too much."""
    return _read(text, options.notation)


# A group of responses has one gold answer and few different ones.
@functools.lru_cache(maxsize=4096)
def _read(text: str, notation: str) -> Parsed:
    if len(text) > MAX_MATH_CHARS:
        raise Unreadable(f"longer than {MAX_MATH_CHARS} characters")
    if not text.strip() or REPLACEMENT in text or _CONTROL.search(text.replace("\x0c", " ")):
        raise Unreadable("empty or not text")
    if _nesting(text) > MAX_NESTING:
        raise Unreadable(f"nested deeper than {MAX_NESTING} levels")
    parsed = Parsed(())
    for candidate in [text] if notation == "plain" else _candidates(to_tex(text)):
        parsed = Parsed(tuple(parse(candidate, _TARGETS[notation], parsing_timeout=0)))
        if parsed.understood:
            break
    if text.count("boxed{") > 1 and _is_set(parsed) and (box := last_boxed(text)):
        parsed = Parsed(parsed.values, tuple(parse(f"${box}$", _TARGETS[notation], parsing_timeout=0)))
    if not parsed.values:
        raise Unreadable(f"not mathematics that can be parsed: {shown(text)!r}")
    for value in parsed.values + parsed.last_box:
        if reason := too_costly(value):
            raise Unreadable(f"too large to compute with ({reason}): {shown(text)!r}")
    return parsed


def same(gold: Parsed, answer: Parsed, options: Options) -> Match:
    """Raises whatever math-verify and sympy raise: a comparison that failed is not "different".

    What could only be read as a text is right if it is the same text. An answer is wrong if it is another one and the
    gold answer is understood; if the gold answer is not, GoldUnreadable is raised, for then nobody knows.
    """
    if not (gold.understood and answer.understood):
        if gold.texts & answer.texts:
            return Match(True, "math: the same text")
        if gold.understood:
            raise Unreadable(f"not mathematics that can be parsed: {shown(str(sorted(answer.texts)))}")
        if any(isinstance(value, Basic) for value in gold.values) and answer.texts:
            return Match(False, "math: not the same text")
        raise GoldUnreadable(f"not mathematics that can be parsed: {shown(str(sorted(gold.texts)))}")

    values = answer.last_box if answer.last_box and not _is_set(gold) else answer.values

    def equal(raise_on_error: bool) -> bool:
        return verify(
            list(gold.values),
            list(values),
            float_rounding=options.float_rounding,
            strict=options.strict,
            allow_set_relation_comp=options.set_relations,
            timeout_seconds=0,
            raise_on_error=raise_on_error,
        )

    try:
        right = equal(raise_on_error=True)
    except Exception:
        # One of several readings could not be compared; another may still be equal.
        if not equal(raise_on_error=False):
            raise
        right = True
    right = right or any(map(_equal_symbol, gold.values, values))
    return Match(right, "math: equal by math-verify" if right else "math: different by math-verify")


def _equal_symbol(gold: Any, answer: Any) -> bool:
    """Whether an expression comes to the one symbol on the other side: math-verify compares a symbol by its name."""
    if not (isinstance(gold, sympy.Expr) and isinstance(answer, sympy.Expr)):
        return False
    return isinstance(gold, sympy.Symbol) != isinstance(answer, sympy.Symbol) and sympy.simplify(gold - answer) == 0


def _is_set(parsed: Parsed) -> bool:
    return any(isinstance(value, _SETS) for value in parsed.values)


def _meaningful(value: Any) -> bool:
    return isinstance(value, MatrixBase) or (isinstance(value, Basic) and not value.has(zoo, nan))


def to_tex(text: str) -> str:
    """Unicode's mathematics as TeX."""
    if text.isascii():
        return text
    text = _SUPERSCRIPTS.sub(lambda match: "^{" + match[0].translate(_SUPERSCRIPT) + "}", text)
    text = _SUBSCRIPTS.sub(lambda match: "_{" + match[0].translate(_SUBSCRIPT) + "}", text)
    return _ROOT.sub(lambda match: rf"\sqrt{{{match[1]}}}", text.translate(_UNICODE)).replace("。", ".")


def _candidates(text: str) -> list[str]:
    """Ways to hand ``text`` to math-verify, best first: it looks for TeX only between delimiters."""
    if _TEX.search(text):
        return [text]
    if _PLAIN_NUMBER.fullmatch(text) or "**" in text:  # TeX has no **
        return [text]
    bare = text.strip().rstrip(".") if not text.strip().endswith("..") else text.strip()
    if mixed := _MIXED.fullmatch(bare):
        sign, whole, *parts = mixed.groups()
        above, below = parts[0] or parts[2], parts[1] or parts[3]
        return [rf"${sign}({whole}+\frac{{{above}}}{{{below}}})$"]
    for pattern, tex in _WORDS:
        bare = pattern.sub(tex, bare)
    inline = f"${bare}$" if "\n" not in bare else f"$${bare}$$"
    return [text, inline] if _PROSE.search(bare) and "\\" not in bare else [inline, text]


def _nesting(text: str) -> int:
    """The deepest nesting of brackets."""
    depth = deepest = 0
    for char in text:
        if char in "({[":
            depth += 1
            deepest = max(deepest, depth)
        elif char in ")}]":
            depth -= 1
    return deepest
