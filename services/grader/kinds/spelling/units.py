"""Units of the kinds number and math: what each measures, and how many of its base units it is. Exact, and case counts.

A table of our own rather than pint 0.25.3: that reads ``2 pi``, ``2 e`` and ``2 k`` as constants and ``hats`` as a
hundred technical atmospheres, knows neither money nor 厘米, takes two seconds to start, and minutes for "mmmm…".
"""

import functools
import re
from dataclasses import dataclass
from fractions import Fraction

MAX_UNIT_CHARS = 60

# To 60 digits: a multiple of π equals the same multiple, and nothing that anybody writes as a decimal.
PI = Fraction(3141592653589793238462643383279502884197169399375105820974944, 10**60)


@dataclass(frozen=True, slots=True)
class Unit:
    """``dimension``: base units with their exponents, sorted. ``factor``: how many of them one unit is."""

    dimension: tuple[tuple[str, int], ...]
    factor: Fraction = Fraction(1)

    def __str__(self) -> str:
        return " ".join(base if exponent == 1 else f"{base}^{exponent}" for base, exponent in self.dimension)

    def __mul__(self, other: "Unit") -> "Unit":
        exponents = dict(self.dimension)
        for base, exponent in other.dimension:
            exponents[base] = exponents.get(base, 0) + exponent
        return Unit(tuple(sorted((b, e) for b, e in exponents.items() if e)), self.factor * other.factor)

    def __pow__(self, power: int) -> "Unit":
        return Unit(tuple((base, exponent * power) for base, exponent in self.dimension if power), self.factor**power)


NONE = Unit(())
PERCENT = Unit((("percent", 1),), Fraction(1, 100))

_SMALL = {"f": "1e-15", "p": "1e-12", "n": "1e-9", "μ": "1e-6", "u": "1e-6", "m": "1e-3"}
_LARGE = {"k": "1e3", "M": "1e6", "G": "1e9", "T": "1e12"}
_SI = _SMALL | _LARGE
_PREFIXES: dict[str, dict[str, str]] = {
    "": {},
    "si": _SI,
    "metre": _SI | {"c": "1e-2", "d": "1e-1"},
    "litre": {"μ": "1e-6", "u": "1e-6", "m": "1e-3", "c": "1e-2", "d": "1e-1", "h": "1e2", "k": "1e3", "M": "1e6"},
    "hecto": _SI | {"h": "1e2"},
    "large": _LARGE,
    "binary": _LARGE | {"P": "1e15", "Ki": str(2**10), "Mi": str(2**20), "Gi": str(2**30), "Ti": str(2**40)},
}
_SPELT = {"n": "nano", "μ": "micro", "m": "milli", "c": "centi", "d": "deci", "k": "kilo", "M": "mega", "G": "giga"}

# (definition by units above it, or "base"; symbols, read as written; their prefixes; words, in any case, also plural)
_TABLE = [
    ("base", "m", "metre", "meter metre"),
    ("base", "g", "si", "gram gramme"),
    ("base", "s", "si", "second sec"),
    ("base", "A", "si", "ampere amp"),
    ("base", "K", "si", "kelvin"),
    ("base", "mol", "si", "mole"),
    ("base", "cd", "", "candela"),
    ("base", "°", "", "degree deg"),
    ("base", "°C", "", "celsius centigrade degc"),
    ("base", "°F", "", "fahrenheit degf"),
    ("base", "bit", "binary", "bit"),
    ("8 bit", "B", "binary", "byte"),
    ("base", "$ US$ USD usd", "", "dollar buck"),
    ("0.01 $", "¢ ￠", "", "cent"),
    ("base", "€ EUR eur", "", "euro"),
    ("base", "£ GBP gbp", "", "quid"),
    ("base", "¥ CNY RMB cny rmb 元 人民币", "", "yuan"),
    ("0.1 ¥", "角", "", ""),
    ("base", "JPY jpy 日元 円", "", "yen"),
    ("base", "₹ INR inr Rs", "", "rupee"),
    ("base", "₩ KRW", "", ""),
    ("base", "₽ RUB", "", "rouble ruble"),
    ("base", "dB", "", "decibel"),
    ("base", "ppm", "", ""),
    ("base", "ppb", "", ""),
    ("base", "fps", "", ""),
    ("base", "px", "", "pixel"),
    ("base", "", "", "unit"),
    ("base", "lm", "", "lumen"),
    ("base", "Bq", "si", "becquerel"),
    ("base", "Gy", "si", ""),
    ("base", "Sv", "si", "sievert"),
    ("base", "个 只 人 本 张 辆 块 条 棵 次 名 支 件 位 岁", "", ""),
    ("0.0254 m", "in", "", "inch inche"),
    ("0.3048 m", "ft", "", "foot feet"),
    ("0.9144 m", "yd", "", "yard"),
    ("1609.344 m", "mi", "", "mile"),
    ("1852 m", "nmi", "", ""),
    ("149597870700 m", "au AU", "", ""),
    ("9460730472580800 m", "ly", "", "lightyear"),
    ("1e-6 m", "", "", "micron"),
    ("1e-10 m", "Å", "", "angstrom ångström"),
    ("1 m^2", "sqm", "", ""),
    ("0.09290304 m^2", "sqft", "", ""),
    ("1e4 m^2", "ha", "", "hectare"),
    ("4046.8564224 m^2", "", "", "acre"),
    ("1e-3 m^3", "L l", "litre", "liter litre"),
    ("1e-6 m^3", "cc", "", ""),
    ("3.785411784e-3 m^3", "gal", "", "gallon"),
    ("1.6605390666e-24 g", "amu Da", "", "dalton"),
    ("1e6 g", "t", "large", "ton tonne"),
    ("453.59237 g", "lb lbs", "", "pound_mass"),
    ("28.349523125 g", "oz", "", "ounce"),
    ("60 s", "min", "", "minute"),
    ("3600 s", "h hr", "", "hour"),
    ("86400 s", "d", "", "day"),
    ("604800 s", "wk", "", "week"),
    ("2629800 s", "", "", "month"),
    ("31557600 s", "yr", "", "year"),
    ("1e3 m/h", "kph kmh kmph", "", ""),
    ("1609.344 m/h", "mph", "", ""),
    ("1852 m/h", "kn", "", "knot"),
    ("360 °", "rev", "", "revolution"),
    ("360 °/min", "rpm", "", ""),
    ("1e3 g m/s^2", "N", "si", "newton"),
    ("1 N m", "J", "si", "joule"),
    ("3600 J", "Wh", "si", ""),
    ("1.602176634e-19 J", "eV", "si", "electronvolt"),
    ("4.184 J", "cal", "large", "calorie"),
    ("4184 J", "Cal", "", ""),
    ("1 J/s", "W", "si", "watt"),
    ("745.69987158227022 W", "hp", "", "horsepower"),
    ("1 N/m^2", "Pa", "hecto", "pascal"),
    ("1e5 Pa", "bar", "si", ""),
    ("6894.757293168 Pa", "psi", "", ""),
    ("101325 Pa", "atm", "", "atmosphere"),
    ("133.322387415 Pa", "mmHg", "", ""),
    ("1 A s", "C", "si", "coulomb"),
    ("3600 C", "Ah", "si", ""),
    ("1 W/A", "V", "si", "volt"),
    ("1 V/A", "Ω", "si", "ohm"),
    ("1 C/V", "F", "si", "farad"),
    ("1 A/V", "S", "si", "siemens"),
    ("1 V s", "Wb", "si", "weber"),
    ("1 Wb/m^2", "T", "si", "tesla"),
    ("1 Wb/A", "H", "si", "henry"),
    ("1 s^-1", "Hz", "si", "hertz"),
    ("1 lm/m^2", "lx", "", "lux"),
]
# Other spellings, read as written. Those of other case are there only if they can mean nothing else: K is no prefix.
_SPELLINGS = {
    "km": "千米 公里 Km KM",
    "m": "米",
    "dm": "分米",
    "cm": "厘米 CM",
    "mm": "毫米",
    "μm": "微米",
    "nm": "纳米",
    "m^2": "平方米",
    "km^2": "平方千米 平方公里",
    "dm^2": "平方分米",
    "cm^2": "平方厘米",
    "mm^2": "平方毫米",
    "ha": "公顷",
    "m^3": "立方米",
    "dm^3": "立方分米",
    "cm^3": "立方厘米",
    "mm^3": "立方毫米",
    "L": "升",
    "mL": "毫升",
    "g": "克",
    "kg": "千克 公斤 Kg KG kgs kilo kilos",
    "mg": "毫克",
    "t": "吨",
    "s": "秒 secs",
    "ms": "毫秒",
    "min": "分钟 分 mins",
    "h": "小时 时 hrs",
    "day": "天",
    "week": "周 星期",
    "month": "个月",
    "year": "年 yrs",
    "m/s": "米/秒 米每秒",
    "km/h": "千米/时 千米/小时 公里/小时 公里/时",
    "mph": "MPH",
    "rpm": "RPM",
    "°": "度",
    "°C": "°c 摄氏度",
    "°F": "°f 华氏度",
    "$": "美元",
    "€": "欧元",
    "£": "英镑",
    "N": "牛 牛顿",
    "N m": "Nm",
    "J": "焦 焦耳",
    "kJ": "KJ kj",
    "kWh": "KWh KWH kwh",
    "W": "瓦",
    "kW": "KW kw",
    "V": "伏 伏特",
    "kV": "KV kv",
    "A": "安",
    "Ω": "欧 欧姆",
    "kΩ": "kohm kohms",
    "MΩ": "Mohm Mohms",
    "Pa": "帕",
    "kPa": "KPa kpa",
    "Hz": "赫兹 HZ hz",
    "kHz": "KHz khz",
    "MHz": "MHZ",
    "GHz": "GHZ ghz",
    "kB": "KB",
    "kbit": "kb",
    "Mbit": "Mb",
    "Gbit": "Gb",
    "Tbit": "Tb",
}
# What is written for two units: the second meaning, which counts only where the first does not fit.
_SECOND = {"pound": "£", "pounds": "£", "C": "°C", "F": "°F", "¥": "JPY"}

_PER = re.compile(r" ?(?:/|\bper\b|每) ?")
_PRODUCT = re.compile(r" ?[·*×⋅] ?|(?<=[^\W\d_])-(?=[^\W\d_])| ")
_POWERED = re.compile(r"(.*?[^\d^+-])(?:(?:\^|\*\*)(?:\((?P<a>[+-]?[1-9])\)|(?P<b>[+-]?[1-9]))|(?P<c>[23]|-[1-9]))?")
_PREPOSED, _POSTPOSED = {"square": 2, "sq": 2, "sq.": 2, "cubic": 3, "cu": 3}, {"squared": 2, "cubed": 3}

_symbols: dict[str, Unit] = {}
_words: dict[str, Unit] = {}


@functools.lru_cache(maxsize=4096)
def parse_unit(text: str) -> tuple[Unit, ...]:
    """What ``text`` may mean, most often one unit: ``m/s^2``, ``kg·m/s``, ``miles per hour``. () if it is none."""
    if len(text) > MAX_UNIT_CHARS:
        return ()
    unit = _compound(text.strip())
    if unit is None:
        return ()
    second = _SECOND.get(text) or _SECOND.get(text.casefold() if len(text) > 1 else "")
    return (unit, _symbols[second]) if second else (unit,)


def is_word(text: str) -> bool:
    """Whether ``text`` spells one unit out: ``metres``, not ``m``."""
    return text.casefold() in _words


def _compound(text: str) -> Unit | None:
    if known := _named(text):
        return known
    unit = NONE
    above, *below = _PER.split(text)
    unit = _product(above)
    for part in below:
        bracketed = part[:1] == "(" and part[-1:] == ")"
        # "W/m K" is somebody's W/(m K) and somebody's W K/m: only a dot or brackets say which.
        if not bracketed and " " in part and not _has_power_word(part):
            return None
        factor = _product(part[1:-1] if bracketed else part)
        if unit is None or factor is None:
            return None
        unit *= factor**-1
    return unit if unit and unit.dimension else None


def _has_power_word(part: str) -> bool:
    words = part.split()
    return words[0].casefold() in _PREPOSED or words[-1].casefold() in _POSTPOSED


def _product(text: str) -> Unit | None:
    unit, factor, power = NONE, None, 1
    for word in _PRODUCT.split(text):
        lower = word.casefold()
        if lower in _PREPOSED and power == 1:
            power = _PREPOSED[lower]
            continue
        if lower in _POSTPOSED and factor is not None:
            unit *= factor ** (_POSTPOSED[lower] - 1)
            factor = None
            continue
        factor = _factor(word)
        if factor is None:
            return None
        unit *= factor**power
        power = 1
    return unit if power == 1 else None


def _factor(word: str) -> Unit | None:
    if known := _named(word):
        return known
    match = _POWERED.fullmatch(word)
    known = match and _named(match[1])
    return known ** int(match["a"] or match["b"] or match["c"] or 1) if match and known else None


def _named(name: str) -> Unit | None:
    return _symbols.get(name) or _words.get(name.casefold())


def _define() -> None:
    def add(table: dict[str, Unit], name: str, unit: Unit) -> None:
        assert name not in table or table[name] == unit, f"{name} is two units"
        table[name] = unit

    for definition, symbols, prefixes, words in _TABLE:
        name = (symbols or words).split()[0]
        amount, _, base = definition.partition(" ")
        known = None if definition == "base" else _compound(base)
        unit = Unit(((name, 1),)) if known is None else Unit(known.dimension, known.factor * Fraction(amount))
        for symbol in symbols.split():
            add(_symbols, symbol, unit)
            for prefix, factor in _PREFIXES[prefixes].items():
                add(_symbols, prefix + symbol, Unit(unit.dimension, unit.factor * Fraction(factor)))
        for word in words.split():
            spelt = {"": "1"} | {_SPELT[p]: f for p, f in _PREFIXES[prefixes].items() if p in _SPELT}
            for prefix, factor in spelt.items():
                for form in (word, f"{word}s"):
                    add(_words, prefix + form, Unit(unit.dimension, unit.factor * Fraction(factor)))
    # An angle of π rad is exactly 180°.
    radian = Unit(_symbols["°"].dimension, 180 / PI)
    _symbols["rad"] = _words["radian"] = _words["radians"] = radian
    _words["pound"] = _words["pounds"] = _symbols["lb"]
    for scale, symbol in (("c", "°C"), ("f", "°F"), ("celsius", "°C"), ("centigrade", "°C"), ("fahrenheit", "°F")):
        for degree in ("degree", "degrees", "deg"):
            _words[f"{degree} {scale}"] = _symbols[symbol]
    _words["us dollar"] = _words["us dollars"] = _symbols["$"]
    for meant, spellings in _SPELLINGS.items():
        unit = _compound(meant)
        assert unit is not None, meant
        for spelling in spellings.split():
            add(_symbols, spelling, unit)


_define()
