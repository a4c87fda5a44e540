"""A formula in TeX as sympy values: read wholly, or not at all.

The parser is latex2sympy's, with what it would get wrong or leave out put right here: tokens left over, brackets that
make a product, bases of numbers, letters' case, Euler's gamma for every gamma, decimals as binary fractions, braces
that only group, intervals whose bounds are reversed.
"""

import re
from typing import Any

import sympy
from antlr4 import Token
from latex2sympy2_extended.latex2sympy2 import ConversionConfig, _Latex2Sympy
from latex2sympy2_extended.sets import FiniteSet
from sympy.core.function import AppliedUndef

from prism.services.grader.kinds.cost import too_costly
from prism.services.grader.kinds.formulas.tex import TRIGONOMETRIC

_CONFIG = ConversionConfig(lowercase_symbols=False)
_INDEX_I = re.compile(r"[_,{]\s*i\s*(?:=|\\in|,)|_\{?\s*\w*i\b|\\(?:vec|hat|mathbf)\s*\{i\}")
_DOUBLE_POWER = re.compile(r"\^\s*(?:\w|\{[^{}]*\})\s*\^")
_CHAIN = re.compile(r"(?<![\\<>!:~=])=(?!=)|(?<!\\)[{}]")
_CONGRUENT = re.compile(
    r"(.+?)\\equiv(?![a-z])([^=<>]+?)\(?\s*(?:\\p?mod|\\(?:text|mathrm)\s*\{\s*mod\s*\}|mod)(?![a-z])"
    r"\s*([^=<>()]+?)\s*\)?"
)
_RESIDUE = re.compile(r"([^=<>]+?)\(?\s*\\pmod(?![a-z])\s*([^=<>()]+?)\s*\)?")
_COMMAND = re.compile(r"\\[a-zA-Z]+")
_ROUGHLY = sympy.Rational(1, 20)  # share by which an approximation may be off
_RELATION = re.compile(r"[<>]|\\(?:le|ge|leq|geq|lt|gt|ne|neq|approx|in)(?![a-z])")
# What may hold a word of letters, and then a word that does not stand in one of them.
_NAMED = re.compile(
    r"\\(?:text|math|mbox|operatorname|over|under|wide|bar|vec|hat|tilde|dot|begin|end)[a-z]*\s*\{[^{}]*\}"
    r"|\\[a-zA-Z]+|_\s*\{[^{}]*\}|\b(?:arsinh|arcosh|artanh|arcsinh|arccosh|arctanh|floor|ceil)\b"
)
_TEXT = re.compile(r"\\(?:text[a-z]*|mbox|mathrm)\s*\{([^{}]*)\}")
# What stands behind a number and is no unit of it: it joins, denies or multiplies.
_JOINERS = frozenset(
    {"or", "and", "not", "if", "when", "where", "for", "to", "than", "otherwise", "else", "is", "are"}
    | {"hundred", "thousand", "million", "billion", "trillion", "dozen", "dozens", "half", "percent", "k", "bn", "mn"}
    | {"times", "plus", "minus", "mod", "modulo", "over", "factorial", "root", "pi", "e", "i", "x", "n", "y"}
)
_PROSE = re.compile(r"[a-zA-Z]{4,}|[a-zA-Z]{2,}\s+[a-zA-Z]{2,}")
_PLAIN_FRACTION = re.compile(r"\\frac\{\d+\}\{\d+\}")
# A letter before a bracket is a factor, unless it is one that functions are named by.
_FACTORS = frozenset("abcdiklmnrstuvwxyzABCDKLMNRSUVXYZ") | {"alpha", "beta", "lambda", "mu", "theta", "omega", "pi"}


class NotWhole(ValueError):
    """The formula, or a part of it, says nothing that is understood."""


class Listed(sympy.Tuple):
    """Values with commas between and no bracket of their own: a set or a tuple, as whoever compares them takes it."""


class Either(Listed):
    """Listed with "or" between: one of them holds."""


class Both(Listed):
    """Listed with "and" between: all of them hold."""


class Congruence(sympy.Basic):
    """Of its args the first two are congruent modulo the third."""


RESIDUE = sympy.Symbol("what is not named")


def read_formula(tex: str) -> Any:
    """The sympy value. Raises NotWhole, and whatever latex2sympy raises, where it cannot be read to its last token."""
    if _DOUBLE_POWER.search(tex):
        raise NotWhole("a power of a power without brackets")
    if "'" in tex:
        raise NotWhole("a prime of a number")
    if congruent := _CONGRUENT.fullmatch(tex):
        return Congruence(*(_read(part) for part in congruent.groups()))
    if residue := _RESIDUE.fullmatch(tex):
        return Congruence(RESIDUE, *(_read(part) for part in residue.groups()))
    parts = _equated(tex)
    if len(parts) > 2 and not any(mark in tex for mark in ",;") and not _RELATION.search(tex):
        # Of a chain of equations the ends count: what is named, or reckoned, and what it comes to.
        first, last = _read(parts[0]), _read(parts[-1])
        return last if not getattr(first, "free_symbols", None) else sympy.Eq(first, last, evaluate=False)
    return _read(tex)


def _equated(tex: str) -> list[str]:
    """What stands between the signs of equality that are in no braces."""
    parts: list[str] = []
    depth = start = 0
    for mark in _CHAIN.finditer(tex):
        if mark[0] != "=":
            depth += 1 if mark[0] == "{" else -1
        elif depth == 0:
            parts.append(tex[start : mark.start()])
            start = mark.end()
    return [*parts, tex[start:]]


def _read(tex: str) -> Any:
    if any(
        not _JOINERS.isdisjoint(words.lower().split()) for words in _TEXT.findall(tex) if " " in words or len(words) > 2
    ):
        raise NotWhole("a text that joins, denies or multiplies")
    if _PROSE.search(_NAMED.sub(" ", tex)):
        raise NotWhole("words are no product of letters")
    value = _Reader(not _INDEX_I.search(tex), bool(TRIGONOMETRIC.search(tex))).parse(tex.strip())
    if isinstance(value, list):
        raise NotWhole("a derivative of nothing")
    return _named_derivatives(value)


def _named_derivatives(value: Any) -> Any:
    """dy/dx is no derivative of a constant, which would be 0, but is called so."""
    if not hasattr(value, "atoms"):
        return value
    names = {
        part: sympy.Symbol(f"d{part.expr}/d{' d'.join(map(str, part.variables))}", real=True)
        for part in value.atoms(sympy.Derivative)
        if part.expr.is_Symbol and part.expr not in part.variables
    }
    return value.xreplace(names) if names else value


def _approximates(exact: Any, rounded: Any) -> bool:
    """Whether one number may be rounded to the other; true where they are no numbers."""
    if not all(getattr(value, "is_number", False) for value in (exact, rounded)):
        return True
    difference, size = abs(exact - rounded).evalf(), abs(exact).evalf()
    return bool(difference.is_comparable and size.is_comparable and difference <= _ROUGHLY * size)


class _Reader(_Latex2Sympy):
    def __init__(self, imaginary: bool, degrees: bool) -> None:
        """``imaginary``: i is the imaginary unit, and no index. ``degrees``: a ° is π/180, else it is left out."""
        super().__init__(None, is_real=True, convert_degrees=degrees, config=_CONFIG)
        self.imaginary = imaginary

    def parse(self, latex_str: str) -> Any:
        parser = self.create_parser(latex_str)
        math = parser.math()
        tokens: Any = parser.getTokenStream()
        if tokens.LT(1).type != Token.EOF:
            raise NotWhole("something is left over")
        # \pmod is no \pm and \nexists no \ne.
        starts = {token.start for token in tokens.tokens}
        if any(starts.intersection(range(word.start() + 1, word.end())) for word in _COMMAND.finditer(latex_str)):
            raise NotWhole("a command that is not known")
        if math.set_relation():
            return self.convert_set_relation(math.set_relation())
        if math.set_elements():
            return self.convert_set_elements(math.set_elements())
        if math.set_elements_relation():
            return self.convert_set_elements_relation(math.set_elements_relation())
        raise NotWhole("nothing is there")

    def convert_relation(self, rel: Any) -> Any:
        if rel.expr() or not rel.APPROX():
            return super().convert_relation(rel)
        left, right = (self.convert_relation(part) for part in rel.relation())
        if isinstance(left, sympy.Symbol):
            return sympy.Eq(left, right, evaluate=False)
        if not _approximates(left, right):
            raise NotWhole("an approximation that is none")
        return left

    def parse_number(self, text: str) -> Any:
        return sympy.Rational(text.replace(",", ""))

    def convert_elements_to_set_or_tuple(self, elements: list[list[Any]]) -> Any:
        if all(len(some) == 1 for some in elements):
            values = [some[0] for some in elements]
        else:
            values = elements[0] if len(elements) == 1 else [sympy.Tuple(*some) for some in elements]
        return values[0] if len(values) == 1 else Listed(*values)

    def convert_finite_set(self, expr: Any) -> Any:
        elements = self.convert_semicolon_elements(expr.semicolon_elements())
        if expr.getText().startswith((r"\{", r"\lbrace")):
            return FiniteSet(*[value for some in elements for value in some])
        return self.convert_elements_to_set_or_tuple(elements)

    def convert_interval(self, expr: Any) -> Any:
        bounds: list[Any] = [self.convert_expr(part) for part in expr.expr()]
        low, high = bounds
        if too_costly(low) or too_costly(high):
            raise NotWhole("bounds that are too large to compute with")
        text = expr.getText()
        left_open, right_open = text.startswith(("(", r"\(", r"\lgroup")), text.endswith((")", r"\)", r"\rgroup"))
        empty = low.is_number and high.is_number and (high - low).evalf() <= 0
        if empty and left_open == right_open and (left_open or low != high):
            return sympy.Tuple(low, high)
        if empty and low != high:
            raise NotWhole("an interval whose bounds are reversed")
        return sympy.Interval(low, high, left_open=left_open, right_open=right_open)

    def convert_postfix_list(self, arr: list[Any], i: int = 0) -> Any:
        if i < len(arr) - 1:
            text, following = arr[i].getText(), arr[i + 1].getText()
            if text.isdigit() and _PLAIN_FRACTION.fullmatch(following):
                whole, rest = sympy.Integer(text), self.convert_postfix(arr[i + 1])
                value = whole + rest
                return value if i + 2 == len(arr) else self.mul_flat(value, self.convert_postfix_list(arr, i + 2))
            if text[-1:].isdigit() and following[:1].isdigit():
                raise NotWhole("numbers side by side")
            first = self.convert_postfix(arr[i])
            if isinstance(first, sympy.Expr) and not getattr(first, "is_Matrix", False):
                rest = self.convert_postfix_list(arr, i + 1)
                return (
                    self.mat_mul_flat(first, rest) if getattr(rest, "is_Matrix", False) else self.mul_flat(first, rest)
                )
        return super().convert_postfix_list(arr, i)

    def convert_atom(self, atom: Any) -> Any:
        if atom.number_subexpr() and "_" in atom.getText():
            return sympy.Symbol(atom.getText().replace("{", "").replace("}", ""))
        if atom.FUNC_GAMMA():
            return sympy.Symbol(atom.FUNC_GAMMA().getText().lstrip("\\"), real=True)
        if atom.E_NOTATION():
            raise NotWhole("two meanings of e")
        value = super().convert_atom(atom)
        if value is None:
            raise NotWhole(f"{atom.getText()} means nothing")
        return value

    def convert_atom_expr(self, atom_expr: Any) -> Any:
        text = atom_expr.getText()
        if text == "I":
            return sympy.Symbol("I", real=True)
        if text == "i" and self.imaginary:
            return sympy.I
        if text.startswith(("i^", "I^")):
            power = atom_expr.supexpr()
            exponent: Any = self.convert_expr(power.expr()) if power.expr() else self.convert_atom(power.atom())
            base = sympy.I if text[0] == "i" and self.imaginary else sympy.Symbol(text[0], real=True)
            return sympy.Pow(base, exponent, evaluate=False)
        return super().convert_atom_expr(atom_expr)

    def convert_postfix(self, postfix: Any) -> Any:
        ops = postfix.postfix_op()
        if not any(op.transpose() for op in ops):
            return super().convert_postfix(postfix)
        nested = postfix.exp() if hasattr(postfix, "exp") else postfix.exp_nofunc()
        base: Any = self.convert_exp(nested)
        if len(ops) > 1:
            raise NotWhole("more than a transposed matrix")
        # Of what is no matrix, T is a power like others.
        return base.T if getattr(base, "is_Matrix", False) else sympy.Pow(base, self._letter("T"), evaluate=False)

    def convert_binom(self, binom: Any) -> Any:
        above, below = (self.convert_expr(part) for part in (binom.upper, binom.lower))
        return sympy.binomial(above, below, evaluate=False)

    def convert_func(self, func: Any) -> Any:
        value = super().convert_func(func)
        if isinstance(value, AppliedUndef) and len(value.args) == 1 and type(value).__name__.lstrip("\\") in _FACTORS:
            # a(b+c) is a product
            return self.mul_flat(self._letter(type(value).__name__), value.args[0])
        return value

    def _letter(self, name: str) -> Any:
        if name == "i" and self.imaginary:
            return sympy.I
        return _Reader(self.imaginary, False).parse(name)
