"""Kind ``math``: LaTeX, expressions, sets, intervals, matrices, equations. Runs in workers alone.

A formula is read wholly or not at all. One that sympy cannot hold (a congruence, a definition by cases, dots) is
compared as it is written: it is right where it is the same, but for spacing and the like.
"""

import functools
import logging
import re
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import sympy
from math_verify import ExprExtractionConfig, parse
from sympy import MatrixBase, nan, zoo
from sympy.core.basic import Basic

from prism.services.grader.extract import last_boxed
from prism.services.grader.kinds import arithmetic, number
from prism.services.grader.kinds.cost import too_costly
from prism.services.grader.kinds.formulas import find, tex
from prism.services.grader.kinds.formulas.equal import Terms, equal
from prism.services.grader.kinds.formulas.reader import Both, Either, Listed, NotWhole, read_formula
from prism.services.grader.kinds.spelling.units import PI, parse_unit
from prism.services.grader.kinds.text import REPLACEMENT
from prism.services.grader.verdict import GoldUnreadable, Match, Options, Unreadable, shown

MAX_MATH_CHARS = 16_384
MAX_FORMULA_CHARS = 4096
MAX_NESTING = 40  # reading takes time that grows much faster than the depth
_PLAIN = (ExprExtractionConfig(),)
_NO_UNIT = number.Quantity(1)
_DEGREE, _RADIAN = (number.Quantity(1, parse_unit(name)[0]) for name in ("°", "rad"))

arithmetic.install()
# It says at each start that its timeouts are off; they are meant to be.
logging.getLogger("math_verify").setLevel(logging.ERROR)

_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x9f]")
_ARITHMETIC = re.compile(r"[\d\s.+*/()-]*\*\*[\d\s.+*/()-]*")
_DECIMAL = re.compile(r"\d?\.\d|\d+[eE]-\d")
_DECIMAL_PLACES = re.compile(r"[+-]?\d*\.(\d+)(?:\s*(?:\\times|\\cdot|\*|[eE])[^.]*)?")
_COMMA_DECIMAL = re.compile(r"-?0,\d+")
_WORDS = re.compile(r"[^\W\d_](?:[^\W\d_]|[ '-](?=[^\W\d_]))*")
_WRITTEN = re.compile(r"[\w\\]")
_SPACING = re.compile(r"\\(?:left|right)(?![a-zA-Z])|(?<!\\)\\[,;:! ]|\$")
# 3e - 4 is not 3e-4.
_NEEDLESS = re.compile(r"(?<!\d[eE])\s+(?!\w)|(?<!\w)(?<!\d[eE][+-])\s+")
_FONT = re.compile(r"\\(?:text|math)(?:rm|bf|it|up|normal)?\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
_INDEX = re.compile(r"_\{(\w)\}")
_EMPHASIS = re.compile(r"\s*(\*|__?)(?=\S)([^*_]+)(?<=\S)\1\.?\s*")
_SET = re.compile(r"\{(?!\d{1,3}(?:,\d{3})+\})((?:[^{}]|\{[^{}]*\})*)\}")
_JOINT = re.compile(r"(?<![a-zA-Z])(and|or)(?![a-zA-Z])")
_SHORT_WORDS = frozenset(["yes", "no", "dne"])
_VOWEL = re.compile("[aeiouy]|[^\x00-\x7f]", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Formula:
    """``value`` is sympy's; None where the formula can only be compared as ``written``, or as words."""

    value: Any
    written: str
    words: str | None = None  # it is nothing but words
    quoted: bool = False  # it stood in \text{}
    unit: number.Quantity | None = None  # one of the unit, or of what is counted
    decimal: bool = False  # it has a decimal point
    places: int | None = None  # after the decimal point, where it is one number and no more

    @property
    def is_list(self) -> bool:
        return isinstance(self.value, sympy.Set | sympy.Tuple)


@dataclass(frozen=True, slots=True)
class Parsed:
    """The formula of a text, and the last box alone where several of them make a list."""

    formula: Formula
    last_box: Formula | None = None

    @property
    def understood(self) -> bool:
        """Whether it has a meaning, and is not only so many characters."""
        return self.formula.value is not None or self.formula.words is not None


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
    if notation == "plain":
        return Parsed(_plain_number(text))
    text = tex.from_unicode(text)
    text = emphasised[2] if (emphasised := _EMPHASIS.fullmatch(text)) else text.strip()
    # In TeX the braces of {1, 2} would only group.
    if (braces := _SET.fullmatch(text)) and "," in re.sub(r"[({\[].*[)}\]]", "", braces[1]):
        text = rf"\{{{braces[1]}\}}"
    if (box := find.boxed(text)) is not None:
        formula = _formula(box)
        last = last_boxed(text) if formula.is_list and text.count("box") > 1 else None
        return Parsed(formula, _formula(last) if last else None)
    return Parsed(_found(find.MARKDOWN.sub(lambda match: match[1] or match[2], text), notation == "any"))


def _found(text: str, in_prose: bool) -> Formula:
    """The formula of a text without boxes; ``in_prose`` it may be a number among words. Raises Unreadable."""
    try:
        alone = _alone(text)
        if alone is not None and (formula := _try(alone)) and (formula.value is not None or formula.words is not None):
            return formula
        for candidate in find.answer_phrase(text, in_prose):
            if (formula := _try(candidate)) and formula.value is not None:
                return formula
        for candidate in find.conclusion(text) if in_prose else ():
            if (formula := _try(candidate)) and formula.value is not None:
                return formula
        if alone is None and (candidate := find.delimited(text)):
            return _formula(candidate)
    except ValueError as why:
        raise Unreadable(str(why)) from None
    return _formula(text if alone is None else alone)


def _alone(text: str) -> str | None:
    """The formula that the text is, without its delimiters; None where there is more than that."""
    text = text.strip()
    for opening, closing in (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]")):
        bare = text.rstrip(".。")
        inner = bare[len(opening) : -len(closing)]
        if bare.startswith(opening) and bare.endswith(closing) and len(bare) > len(opening + closing):
            return (
                None if opening in inner or closing in inner or (opening in ("$", r"\(") and "\n" in inner) else inner
            )
    return text if "$" not in text.replace("\\$", "")[1:-1] and r"\(" not in text and r"\[" not in text else None


def _try(candidate: str) -> Formula | None:
    try:
        return _formula(candidate)
    except Unreadable:
        return None


def _formula(source: str) -> Formula:
    """Raises Unreadable."""
    if len(source) > MAX_FORMULA_CHARS:
        raise Unreadable(f"a formula of more than {MAX_FORMULA_CHARS} characters")
    source = source.strip()
    written = _NEEDLESS.sub("", _SPACING.sub(" ", source))
    words = tex.quoted(source)
    if words is not None and not re.fullmatch(r"[-\d.,/ ]+|[a-zA-Z]", words):
        return Formula(None, written, _folded(words), quoted=True)
    if (bare := source.rstrip(".").strip("$")) and _is_words(bare):
        return Formula(None, written, _folded(bare))
    bare_formula, unit = tex.split_unit(source if words is None else words)
    try:
        value = _value(bare_formula)
    except RecursionError:
        raise Unreadable("nested too deep") from None
    except Exception as why:
        if not _may_be_written(source):
            raise Unreadable(f"not mathematics that can be parsed: {shown(source)!r}") from why
        return Formula(None, written)
    if reason := too_costly(value):
        raise Unreadable(f"too large to compute with ({reason}): {shown(source)!r}")
    if not _meaningful(value):
        return Formula(None, written)
    letters = _folded(source) if source.strip("()").isalpha() else words and _folded(words)
    one = _DECIMAL_PLACES.fullmatch(bare_formula.strip().strip("$"))
    decimal = bool(_DECIMAL.search(bare_formula))
    return Formula(value, written, letters, words is not None, unit, decimal, len(one[1]) if one else None)


def _is_words(text: str) -> bool:
    if not _WORDS.fullmatch(text) or text.casefold() == "infinity":
        return False
    return " " in text or (len(text) > 3 and bool(_VOWEL.search(text)))


def _value(formula: str) -> Any:
    text = formula.strip().strip("$").strip()
    if "**" in text and _ARITHMETIC.fullmatch(text):
        return arithmetic.parse_arithmetic(text)
    if _COMMA_DECIMAL.fullmatch(text):
        text = text.replace(",", ".")
    value = read_formula(tex.plain(text))
    if isinstance(value, bool) or not isinstance(value, Basic | MatrixBase):
        raise NotWhole("it is neither a value nor a relation")
    joints = set(_JOINT.findall(text))
    if isinstance(value, Listed) and len(joints) == 1:
        return (Either if "or" in joints else Both)(*value)
    return value


def _plain_number(text: str) -> Formula:
    """The number, or the arithmetic, that stands last in a text without TeX. Raises Unreadable."""
    values = [value for value in parse(text, _PLAIN, parsing_timeout=0) if isinstance(value, Basic)]
    if not values:
        raise Unreadable(f"no number that can be parsed: {shown(text)!r}")
    if reason := too_costly(values[0]):
        raise Unreadable(f"too large to compute with ({reason}): {shown(text)!r}")
    value = values[0].xreplace({real: sympy.Rational(str(real)) for real in values[0].atoms(sympy.Float)})
    return Formula(value, text.strip(), decimal=bool(values[0].atoms(sympy.Float)))


def same(gold: Parsed, answer: Parsed, options: Options) -> Match:
    """Raises whatever sympy raises: a comparison that failed is not "different"."""
    one, other = gold.formula, answer.formula
    if answer.last_box and not one.is_list:
        other = answer.last_box
    if one.written == other.written and not (one.quoted and not other.quoted):
        return Match(True, "math: the same formula")
    if one.words and other.words:
        # mgh and MGH are products of other letters.
        letters = not (one.quoted or other.quoted or None in (one.value, other.value) or one.words in _SHORT_WORDS)
        if one.words == other.words and not letters:
            return Match(True, "math: the same words")
        if one.value is None or other.value is None:
            return Match(False, "math: other words")
    if None in (one.value, other.value) and _upright(one.written) == _upright(other.written):
        return Match(True, "math: the same formula")
    if one.quoted and not other.quoted and one.value is not None and one.value.is_number:
        return Match(False, "math: the gold answer is a text")
    if other.value is None:
        if one.value is None and other.words is None and one.words is None:
            return Match(False, "math: not the same formula as written")
        if other.words:
            return Match(False, "math: words are no formula")
        raise Unreadable(f"not mathematics that can be parsed: {shown(other.written)!r}")
    if one.value is None:
        if one.words:
            return Match(False, "math: a formula is no word")
        raise GoldUnreadable(f"not mathematics that can be parsed: {shown(one.written)!r}")
    return _same_values(one, other, options)


def _same_values(gold: Formula, answer: Formula, options: Options) -> Match:
    gold, answer = _with_unit_of(gold, answer), _with_unit_of(answer, gold)
    value = answer.value
    if gold.unit != answer.unit:
        units = number.comparable(gold.unit or _NO_UNIT, answer.unit or _NO_UNIT, options.units == "strict")
        if isinstance(units, str):
            return Match(False, f"math: {units}")
        there, here = units[0]
        if there != here and (value := _times(value, Fraction(here) / there)) is None:
            return Match(False, "math: not in the same unit")
    # Two decimals of one length are no roundings of each other.
    roundings = gold.places is None or gold.places != answer.places or options.float_rounding < 6
    terms = Terms(
        options.float_rounding, (gold.decimal or answer.decimal) and roundings, options.strict, options.set_relations
    )
    right = equal(gold.value, value, terms)
    return Match(right, "math: equal" if right else "math: different")


def _with_unit_of(formula: Formula, other: Formula) -> Formula:
    """``formula`` with the unit that it has if ``other``'s is one: 5 m/s^2 could be a product, π/2 any number."""
    if formula.unit is not None or other.unit is None or not isinstance(formula.value, sympy.Expr):
        return formula
    if not formula.value.free_symbols:
        angle = other.unit.unit == _DEGREE.unit and formula.value.has(sympy.pi)
        return replace(formula, unit=_RADIAN) if angle else formula
    quantity = number.parse_quantity(formula.written)
    if quantity is None or quantity.noun or quantity.unit.dimension != other.unit.unit.dimension:
        return formula
    if "pi" in formula.written:
        return formula
    return replace(formula, value=sympy.Rational(quantity.value), unit=number.Quantity(1, quantity.unit))


def _times(value: Any, factor: Fraction) -> Any:
    """A number, several, or what a letter equals, in a unit of which ``factor`` make one; None for all else."""
    match value:
        case sympy.Eq():
            right = _times(value.rhs, factor)
            return None if right is None else sympy.Eq(value.lhs, right, evaluate=False)
        case sympy.Tuple():
            values = [_times(part, factor) for part in value]
            return None if None in values else value.func(*values)
        case sympy.Expr():
            # An angle's 180°/π is a fraction of many digits by which kind number reckons.
            by_pi = factor * PI
            exact = sympy.Rational(by_pi) / sympy.pi if by_pi.denominator < factor.denominator else factor
            return value * sympy.sympify(exact)
        case _:
            return None


def _upright(written: str) -> str:
    """A formula as written, but for fonts: what is no mathematics, H₂O, is set in many."""
    before = ""
    while before != written:
        before, written = written, _FONT.sub(r"\1", written)
    return _INDEX.sub(r"_\1", written)


def _folded(words: str) -> str:
    return re.sub(r"[\s()]+", "", words).casefold()


def _may_be_written(source: str) -> bool:
    """Whether what cannot be read is a formula at least, of letters or digits, with all its brackets closed."""
    opened: list[str] = []
    for char in source:
        if char in "({[":
            opened.append(char)
        # An interval may be closed by the other bracket.
        elif char in ")}]" and (not opened or (opened.pop() == "{") != (char == "}")):
            return False
    return not opened and bool(_WRITTEN.search(source)) and not re.search(r"[\^_/+*=<>\\-]\s*$", source)


def _meaningful(value: Any) -> bool:
    return isinstance(value, MatrixBase) or not value.has(zoo, nan)


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
