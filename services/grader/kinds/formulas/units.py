"""The unit at a formula's end, or what is counted: what kind ``number`` makes of the same words."""

from prism.services.grader.kinds.number import Quantity, parse_quantity
from prism.services.grader.kinds.spelling.units import PERCENT, is_word

# Symbols that are units without upright letters too; of all others, cd and kn, somebody makes a product.
_BARE_TEXT = """
    km cm mm dm nm in ft yd mi kg mg lb lbs ton tonne ms min hr mph ml mL kJ kW Hz kHz MHz GHz Pa kPa MPa atm mol eV rad
    usd USD
"""
_BARE = frozenset(_BARE_TEXT.split())


def read_unit(tex: str) -> Quantity | None:
    """One of what TeX, as between ``\\text{`` and ``}``, says; None where it is no unit: ``million``, ``percent``."""
    quantity = parse_quantity(f"1 {tex}")
    if quantity is None or quantity.value != 1 or quantity.name or quantity.unit == PERCENT:
        return None
    return quantity


def is_bare_unit(word: str) -> bool:
    """Whether the word is a unit even where letters are variables."""
    return word in _BARE or is_word(word)
