"""Units at the end of formulas, by one name each: ``metres`` and ``m`` are the same, ``m/s`` and ``m/s^2`` are not."""

import re

# The name, then words for it; a word may have an s at its end. Symbols of one letter are none outside of \text{}.
_NAMES = {
    "m": "meter metre", "km": "kilometer kilometre", "cm": "centimeter centimetre", "mm": "millimeter millimetre",
    "dm": "", "nm": "nanometer nanometre", "in": "inch inches", "ft": "foot feet", "yd": "yard", "mi": "mile",
    "g": "gram", "kg": "kilogram", "mg": "milligram", "lb": "lbs pound", "oz": "ounce", "ton": "tonne",
    "s": "sec second", "ms": "millisecond", "min": "minute", "h": "hr hour", "day": "", "week": "", "month": "",
    "year": "yr", "mph": "", "L": "l liter litre", "mL": "ml milliliter millilitre", "N": "newton", "J": "joule",
    "kJ": "kilojoule", "W": "watt", "kW": "kilowatt", "V": "volt", "A": "ampere amp", "Hz": "hertz", "kHz": "",
    "MHz": "", "GHz": "", "Pa": "pascal", "kPa": "", "MPa": "", "atm": "", "mol": "mole", "eV": "", "K": "kelvin",
    "°": "degree deg", "°C": "", "°F": "", "rad": "radian", "$": "dollar usd USD", "cent": "", "€": "euro", "£": "",
    "unit": "",
}  # fmt: skip
_BY_WORD = {word: name for name, words in _NAMES.items() for word in (name, *words.split())}
# What stands behind a number and is no unit of it: it joins, denies or multiplies.
JOINERS = frozenset(
    {"or", "and", "not", "if", "when", "where", "for", "to", "than", "otherwise", "else", "is", "are"}
    | {"hundred", "thousand", "million", "billion", "trillion", "dozen", "dozens", "half", "percent", "k", "bn", "mn"}
    | {"times", "plus", "minus", "mod", "modulo", "over", "factorial", "root", "pi", "e", "i", "x", "n", "y"}
)
_POWERS = {"square": "^2", "sq": "^2", "cubic": "^3", "cu": "^3"}
_PART = re.compile(r"[^\W\d_]+|°[CF]?|[$€£¥]")


def unit_name(text: str) -> str | None:
    """One name for the unit that TeX between ``\\text{`` and ``}`` says; None where it says none."""
    text = re.sub(r"\\(?:text|mathrm)(?![a-zA-Z])|[{}]", "", re.sub(r"\\cdot(?![a-zA-Z])|·", "*", text))
    text = " ".join(re.sub(r"(?<!\w)per(?!\w)", "/", text.replace(r"\,", " ").replace("~", " ")).split())
    words = [word for word in _PART.findall(text)]
    if not words or len(words) > 4 or "_" in text or any(word.lower() in JOINERS for word in words):
        return None
    if words[-1] in ("squared", "cubed"):
        if len(words) == 1:
            return None
        text = text.removesuffix(words[-1]).rstrip() + ("^2" if words[-1] == "squared" else "^3")
    elif len(words) == 2 and words[0].lower() in _POWERS:
        text = words[1] + _POWERS[words[0].lower()]
    named = _PART.sub(lambda match: known(match[0]) or match[0], text)
    return re.sub(r"\s*([/*^])\s*", r"\1", named).replace(" ", "*")


def known(word: str) -> str | None:
    """The name of a unit that we know by this word or symbol."""
    return _BY_WORD.get(word) or _BY_WORD.get(word.removesuffix("s")) or _BY_WORD.get(word.lower().removesuffix("s"))
