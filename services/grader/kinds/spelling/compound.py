"""One measure in several units, the larger first: 5 feet 3 inches, 2 h 30 min, 30°15'."""

import re
from fractions import Fraction

from prism.services.grader.kinds.spelling.units import Unit, parse_unit

MAX_COMPOUND_CHARS = 60
_PART = r"([0-9]{1,9}(?:\.[0-9]{1,9})?) ?([^\W\d]{1,12}\.?|°|'|\"|′)"
_PARTS = re.compile(rf"{_PART}(?:(?:,? and |, ?| ?){_PART})+")
_ONE = re.compile(_PART)
_MARKS = {"'": "ft", '"': "in"}
_OF_ANGLES = {"'": 60, "minute": 60, "minutes": 60, "min": 60, '"': 3600, "second": 3600, "seconds": 3600, "sec": 3600}


def add_units(text: str) -> tuple[Fraction, Unit] | None:
    """The sum, in the first of the units; None where ``text`` is no such measure."""
    text = re.sub("′′|''|″", '"', text[: MAX_COMPOUND_CHARS + 1]).replace("′", "'").replace("’", "'")
    if len(text) > MAX_COMPOUND_CHARS or not _PARTS.fullmatch(text):
        return None
    first = last = None
    total = Fraction(0)
    for amount, name in _ONE.findall(text):
        unit, value = _unit(name, first), Fraction(amount)
        if unit is None or (last is not None and last[1].denominator != 1):
            return None
        # 5 ft 13 in is no measure, 3 in 5 ft are two.
        if last and (unit.dimension != last[0].dimension or value * unit.factor >= last[0].factor):
            return None
        first, last = first or unit, (unit, value)
        total += value * unit.factor / first.factor
    return (total, first) if first else None


def _unit(name: str, first: Unit | None) -> Unit | None:
    degree = parse_unit("°")[0]
    if first == degree and name in _OF_ANGLES:
        return Unit(degree.dimension, Fraction(1, _OF_ANGLES[name]))
    if first == parse_unit("h")[0] and name == "m":
        name = "min"
    units = parse_unit(_MARKS.get(name, name.rstrip(".")))
    return units[0] if units else None
