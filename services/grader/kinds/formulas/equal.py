"""Whether two formulas say the same. Sympy's values go in; a failure of sympy comes out as it was raised.

Numbers are exact, or compared to ``float_rounding`` decimals where one was written as a decimal (of a number below 0.1,
to as many significant digits). Expressions are compared at points where both are real, to 30 digits: two that agree at
all of them are equal, whatever sympy's simplify would make of them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
from latex2sympy2_extended.latex2sympy2 import is_expr_of_only_symbols
from math_verify.grader import unwrap_fcs
from sympy import Rational, S, UnevaluatedExpr
from sympy.core.function import AppliedUndef
from sympy.core.relational import Relational
from sympy.logic.boolalg import And as AnyAnd
from sympy.logic.boolalg import Boolean

from prism.services.grader.kinds.formulas.points import DIGITS, SAME, agree, at_points, vanishes
from prism.services.grader.kinds.formulas.reader import RESIDUE, Both, Congruence, Either, Listed

_FLIPPED = {sympy.Gt: sympy.Lt, sympy.Ge: sympy.Le}
_SETS = (sympy.Set,)
_NUMERIC_ONLY = (sympy.Integral, sympy.Sum, sympy.Product, sympy.Limit, sympy.Derivative)


@dataclass(frozen=True, slots=True)
class Terms:
    """How much two values may differ. ``decimal``: one of the two was written with a decimal point."""

    decimals: int
    decimal: bool
    strict: bool
    set_relations: bool


def equal(gold: Any, answer: Any, terms: Terms) -> bool:
    if not terms.strict:
        answer = _renamed(gold, answer)
    gold, answer = _assigned(gold, answer)
    if isinstance(gold, Congruence) or isinstance(answer, Congruence):
        return type(gold) is type(answer) and _equal_congruences(gold.args, answer.args, terms)
    if _is_relation(gold) and isinstance(answer, sympy.Set):
        gold = _as_set(gold)
    if terms.set_relations and _is_relation(answer) and isinstance(gold, sympy.Set):
        answer = _as_set(answer)
    listed = [isinstance(value, Listed) for value in (gold, answer)]
    if not all(listed) and (_is_relation(gold) or _is_relation(answer)):
        return _is_relation(gold) and _is_relation(answer) and _equal_relations(gold, answer, terms)
    if isinstance(gold, sympy.MatrixBase | sympy.MatrixExpr) or isinstance(answer, sympy.MatrixBase | sympy.MatrixExpr):
        return _equal_matrices(gold, answer, terms)
    if _is_collection(gold) or _is_collection(answer):
        return _equal_collections(gold, answer, terms)
    return _equal_expressions(gold, answer, terms)


def _renamed(gold: Any, answer: Any) -> Any:
    """The answer with the gold's letters, where there are as many: names do not matter."""
    names, others = (sorted(value.free_symbols, key=str) for value in (gold, answer))
    if len(names) != len(others) or names == others:
        return answer
    return answer.subs(dict(zip(others, names, strict=True)), simultaneous=True)


def _assigned(gold: Any, answer: Any) -> tuple[Any, Any]:
    """Both without what they are called where only one says it: ``x = 3`` and 3."""
    gold, answer = _ends(gold), _ends(answer)
    if isinstance(answer, sympy.Eq) and not isinstance(gold, sympy.Eq) and _is_name(answer):
        return gold, answer.rhs
    if isinstance(gold, sympy.Eq) and not isinstance(answer, sympy.Eq) and is_expr_of_only_symbols(_flat(gold.lhs)):
        return gold.rhs, answer
    if isinstance(gold, sympy.Eq) and isinstance(answer, sympy.Eq):
        return gold, _same_arguments(gold, answer)
    return gold, answer


def _same_arguments(gold: Any, answer: Any) -> Any:
    """f(y) = y² as f(x) = x²: what a function's argument is called does not matter where the function is given."""
    one, other = gold.lhs, answer.lhs
    if not (isinstance(one, AppliedUndef) and isinstance(other, AppliedUndef) and one.func == other.func):
        return answer
    if len(one.args) != len(other.args) or not all(part.is_Symbol for part in one.args + other.args):
        return answer
    return answer.subs(dict(zip(other.args, one.args, strict=True)), simultaneous=True)


def _ends(value: Any) -> Any:
    """a = b = c as a = c."""
    parts = getattr(value, "_unsorted_args", None)
    if isinstance(value, AnyAnd) and parts and all(isinstance(part, sympy.Eq) for part in parts):
        return sympy.Eq(parts[0].lhs, parts[-1].rhs, evaluate=False)
    return value


def _flat(value: Any) -> Any:
    return sympy.Tuple(value.start, value.end) if isinstance(value, sympy.Interval) else value


def _is_name(equation: Any) -> bool:
    """Whether the left side names the right one, or is reckoned to it; not where it is to be solved."""
    left = _flat(equation.lhs)
    if is_expr_of_only_symbols(left):
        return True
    if not left.free_symbols:
        # 12 = 13 says nothing.
        return not (left.is_integer and equation.rhs.is_integer and left.doit() != equation.rhs.doit())
    return isinstance(left, sympy.Expr) and isinstance(equation.rhs, sympy.Expr) and vanishes(left - equation.rhs)


def _is_relation(value: Any) -> bool:
    if isinstance(value, Either | Both):
        return all(map(_is_relation, value)) and not all(isinstance(part, sympy.Eq) for part in value)
    return isinstance(value, Relational | AnyAnd | sympy.Not | sympy.Or)


def _is_collection(value: Any) -> bool:
    return isinstance(value, sympy.Set | sympy.Tuple)


def _as_set(relation: Any) -> Any:
    """The numbers for which it holds; the relation itself where sympy knows of no such set."""
    if isinstance(relation, Either | Both):
        sets = [_as_set(part) for part in relation]
        if not all(isinstance(part, sympy.Set) for part in sets):
            return relation
        return (sympy.Union if isinstance(relation, Either) else sympy.Intersection)(*sets)
    parts = relation.atoms(Relational)
    if not all(isinstance(side, sympy.Expr) for part in parts for side in part.args):
        return relation
    plain: Any = unwrap_fcs(relation)
    if not isinstance(plain, Boolean) or len(plain.free_symbols) != 1:
        return relation
    try:
        return plain.as_set()
    except NotImplementedError:
        return relation


# Relations


def _equal_congruences(gold: Sequence[Any], answer: Sequence[Any], terms: Terms) -> bool:
    named = RESIDUE in (gold[0], answer[0]) or equal(gold[0], answer[0], terms)
    if not (named and equal(gold[2], answer[2], terms)):
        return False
    return equal(gold[1], answer[1], terms) or bool(((gold[1] - answer[1]) / gold[2]).doit().is_integer)


def _equal_relations(gold: Any, answer: Any, terms: Terms) -> bool:
    ours, theirs = (list(_relations(value)) for value in (gold, answer))
    if len(ours) != len(theirs) or isinstance(gold, Either) != isinstance(answer, Either):
        return False
    return _matched(ours, theirs, lambda one, other: _equal_relation(one, other, terms))


def _relations(value: Any) -> Iterable[Any]:
    if isinstance(value, AnyAnd):
        yield from getattr(value, "_unsorted_args", value.args)
    elif isinstance(value, Either | Both):
        for part in value:
            yield from _relations(part)
    else:
        yield value


def _equal_relation(gold: Any, answer: Any, terms: Terms) -> bool:
    gold, answer = _upwards(gold), _upwards(answer)
    if type(gold) is not type(answer):
        return False
    if not isinstance(gold, Relational):
        return gold == answer
    sides: list[Any] = [gold.lhs, gold.rhs, answer.lhs, answer.rhs]
    if not all(isinstance(side, sympy.Expr) for side in sides):
        return equal(gold.lhs, answer.lhs, terms) and equal(gold.rhs, answer.rhs, terms)
    if equal(gold.lhs, answer.lhs, terms) and equal(gold.rhs, answer.rhs, terms):
        return True
    ratio = _ratio(sides[0] - sides[1], sides[2] - sides[3])
    if ratio is None:
        return isinstance(gold, sympy.Eq) and _same_solutions(gold, answer)
    return bool(ratio > 0) if isinstance(gold, sympy.Lt | sympy.Le) else True


def _upwards(relation: Any) -> Any:
    """a > b as b < a."""
    flipped = next((to for kind, to in _FLIPPED.items() if isinstance(relation, kind)), None)
    return flipped(relation.rhs, relation.lhs, evaluate=False) if flipped else relation


def _ratio(one: Any, other: Any) -> Any:
    """The constant by which two differences differ, or None."""
    if one.free_symbols != other.free_symbols:
        return None
    ratios = [first / second for first, second in at_points(one, other) if second != 0 and first != 0]
    if len(ratios) < 2 or not all(ratio.is_real and abs(ratio / ratios[0] - 1) < SAME for ratio in ratios):
        return None
    return ratios[0]


def _same_solutions(gold: Any, answer: Any) -> bool:
    """Of two equations in one and the same unknown, of which both have solutions."""
    if gold.free_symbols != answer.free_symbols or len(gold.free_symbols) != 1:
        return False
    (unknown,) = gold.free_symbols
    try:
        ours, theirs = (sympy.solve(equation, unknown) for equation in (gold, answer))
    except NotImplementedError:
        return False
    terms = Terms(15, False, True, False)
    return (
        bool(ours) and len(ours) == len(theirs) and _matched(ours, theirs, lambda one, other: equal(one, other, terms))
    )


# Sets, tuples, lists, matrices


def _equal_collections(gold: Any, answer: Any, terms: Terms) -> bool:
    gold, answer = _computed_set(gold), _computed_set(answer)
    if isinstance(gold, sympy.Interval) and isinstance(answer, sympy.Interval):
        alike = (gold.left_open, gold.right_open) == (answer.left_open, answer.right_open)
        return bool(alike) and all(equal(*pair, terms) for pair in ((gold.start, answer.start), (gold.end, answer.end)))
    ours, theirs = _elements(gold), _elements(answer)
    if ours is None or theirs is None:
        return _equal_sets(gold, answer, terms)
    sets = [isinstance(value, sympy.Set) and not isinstance(value, sympy.Interval) for value in (gold, answer)]
    tuples = [_is_tuple(value) for value in (gold, answer)]
    if any(sets) and any(tuples) and terms.strict:
        return False
    if {type(gold), type(answer)} == {Either, Both} and _is_relation(gold):
        return False
    if any(tuples) and not any(sets):
        # "2 or 3" are two answers, (2, 3) is one.
        return not (isinstance(gold, Either) or isinstance(answer, Either)) and _in_order(ours, theirs, terms)
    if _named_apart(ours) and not any(isinstance(value, sympy.Eq) for value in theirs):
        return not any(sets) and _in_order(ours, theirs, terms)
    return _as_sets(ours, theirs, terms)


def _is_tuple(value: Any) -> bool:
    return isinstance(value, sympy.Interval) or (isinstance(value, sympy.Tuple) and not isinstance(value, Listed))


def _elements(value: Any) -> Sequence[Any] | None:
    """Of a set, a list or a tuple, which an open interval of two bounds may be; None for what has no elements."""
    match value:
        case sympy.Tuple() | sympy.FiniteSet():
            return value.args
        case sympy.Interval(left_open=S.true, right_open=S.true):
            return (value.start, value.end)
        case sympy.Set():
            return None
        case _:
            return (value,)


def _in_order(golds: Sequence[Any], answers: Sequence[Any], terms: Terms) -> bool:
    return len(golds) == len(answers) and all(equal(*pair, terms) for pair in zip(golds, answers, strict=True))


def _named_apart(values: Sequence[Any]) -> bool:
    """a = 1, b = 2: bare numbers answer it in this order alone."""
    if not all(isinstance(value, sympy.Eq) for value in values):
        return False
    return len({value.lhs for value in values}) == len(values) > 1


def _as_sets(golds: Sequence[Any], answers: Sequence[Any], terms: Terms) -> bool:
    def among(value: Any, others: Sequence[Any], gold_first: bool) -> bool:
        return any(equal(value, other, terms) if gold_first else equal(other, value, terms) for other in others)

    return all(among(one, answers, True) for one in golds) and all(among(other, golds, False) for other in answers)


def _matched(golds: Sequence[Any], answers: Sequence[Any], same: Any) -> bool:
    """Whether each gold is met by an answer of its own; the same one never twice."""
    left = list(answers)
    for gold in golds:
        found = next((index for index, answer in enumerate(left) if same(gold, answer)), None)
        if found is None:
            return False
        del left[found]
    return not left


def _computed_set(value: Any) -> Any:
    return value.doit() if isinstance(value, sympy.Union | sympy.Intersection | sympy.Complement) else value


def _equal_sets(gold: Any, answer: Any, terms: Terms) -> bool:
    if not (isinstance(gold, sympy.Set) and isinstance(answer, sympy.Set)):
        return False
    if gold == answer:
        return True
    if type(gold) is type(answer) and isinstance(gold, sympy.Union):
        return len(gold.args) == len(answer.args) and _matched(
            gold.args, answer.args, lambda one, other: _equal_collections(one, other, terms)
        )
    return bool(gold.symmetric_difference(answer).is_empty)


def _equal_matrices(gold: Any, answer: Any, terms: Terms) -> bool:
    gold, answer = (value.doit() if hasattr(value, "doit") else value for value in (gold, answer))
    if not (isinstance(gold, sympy.MatrixBase) and isinstance(answer, sympy.MatrixBase)) or gold.shape != answer.shape:
        return False
    return all(equal(*pair, terms) for pair in zip(gold.flat(), answer.flat(), strict=True))


# Expressions


def _equal_expressions(gold: Any, answer: Any, terms: Terms) -> bool:
    if not (isinstance(gold, sympy.Expr) and isinstance(answer, sympy.Expr)):
        return bool(gold == answer)
    if gold == answer:
        return True
    ours, theirs = _percent(gold), _percent(answer)
    if ours is not None or theirs is not None:
        values = (gold if ours is None else ours, answer if theirs is None else theirs)
        alike = _both_integers(*values) or (ours is not None and (theirs is not None or values[1].is_number))
        if alike and _equal_expressions(*values, terms):
            return True
        if ours is not None and theirs is not None:
            return False
        gold = gold if ours is None else ours / 100
        answer = answer if theirs is None else theirs / 100
    gold, answer = _known(gold, answer)
    free = gold.free_symbols | answer.free_symbols
    if not free:
        return _equal_numbers(gold, answer, terms)
    if gold.has(*_NUMERIC_ONLY) or answer.has(*_NUMERIC_ONLY):
        gold, answer = gold.doit(), answer.doit()
        if gold.has(*_NUMERIC_ONLY) or answer.has(*_NUMERIC_ONLY):
            return bool(sympy.simplify(gold - answer) == 0)
    return agree(gold, answer)


def _percent(value: Any) -> Any:
    """50 of 50 %, or None."""
    hundredth = UnevaluatedExpr(Rational(1, 100))
    if isinstance(value, sympy.Mul) and value.args[-1] == hundredth:
        return sympy.Mul(*value.args[:-1])
    return None


def _both_integers(one: Any, other: Any) -> bool:
    return bool(one.is_Rational and other.is_Rational and one.q == other.q == 1)


def _known(gold: Any, answer: Any) -> tuple[Any, Any]:
    """Both with a letter for each f(x) that is not given, the same for the same one."""
    applied = {value: sympy.Dummy(real=True) for value in gold.atoms(AppliedUndef) | answer.atoms(AppliedUndef)}
    return (gold.xreplace(applied), answer.xreplace(applied)) if applied else (gold, answer)


def _equal_numbers(gold: Any, answer: Any, terms: Terms) -> bool:
    one, other = (value if value.is_Rational else value.doit() for value in (gold, answer))
    if one.is_Rational and other.is_Rational and not (terms.decimal and one != other):
        return bool(one == other)
    if one.is_infinite or other.is_infinite:
        return bool(one == other)
    first, second = one.evalf(DIGITS), other.evalf(DIGITS)
    if not (first.is_number and second.is_number and (first - second).is_comparable is not None):
        return bool(sympy.simplify(one - other) == 0)
    difference, size = abs(first - second), max(abs(first), abs(second))
    if difference <= SAME * size:
        return True
    return terms.decimal and bool(difference <= _tolerance(abs(first), terms.decimals))


def _tolerance(size: Any, decimals: int) -> Any:
    """Half of the last decimal; of a number below 0.1, of the last significant digit."""
    half = Rational(1, 2 * 10**decimals)
    if size == 0:
        return S.Zero
    return half * S(10) ** min(0, int(sympy.floor(sympy.log(size, 10).evalf())) + 1)
