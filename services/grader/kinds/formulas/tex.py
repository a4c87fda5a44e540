"""One formula's TeX made plain for the parser, and the unit at its end taken off.

Nothing is dropped that says something: what the parser would ignore or misread (dots, primes, repeating decimals,
powers of ten, thousands) is spelt out here, and what it cannot know is left for it to refuse.
"""

import re
from collections.abc import Callable

from prism.services.grader.kinds.formulas.units import is_bare_unit, read_unit
from prism.services.grader.kinds.number import Quantity

_FULL_WIDTH = {code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}
_UNICODE = str.maketrans(
    _FULL_WIDTH
    | dict.fromkeys("−–‒\u2010\u2011", "-")
    | dict.fromkeys("\u00a0\u202f\u2009\u2002\u2003\u3000", " ")
    | dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff", "")
    | {"、": ",", "′": "'", "’": "'", "…": r"\ldots "}
    | {"×": r"\times ", "÷": r"\div ", "·": r"\cdot ", "π": r"\pi ", "∞": r"\infty ", "√": r"\sqrt "}
    | {"≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "≈": r"\approx ", "±": r"\pm ", "°": r"^{\circ}", "º": r"^{\circ}"}
    | {"∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "≡": r"\equiv ", "⇒": r"\Rightarrow ", "→": r"\to "}
    | {"α": r"\alpha ", "β": r"\beta ", "θ": r"\theta ", "λ": r"\lambda ", "∅": r"\emptyset ", "ℝ": r"\mathbb{R}"}
    | {"½": r"\frac{1}{2}", "⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}"}
)
_SUPERSCRIPTS = re.compile("[⁻⁺]?[⁰¹²³⁴⁵⁶⁷⁸⁹ⁿˣ]+")
_SUPERSCRIPT = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿˣ", "0123456789-+nx")
_SUBSCRIPTS = re.compile("[₀₁₂₃₄₅₆₇₈₉]+")
_SUBSCRIPT = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
_ROOT = re.compile(r"\\sqrt (\d+|[a-z]|\([^()]*\))")

_FONT = r"\\(?:math(?:rm|bf|it|sf|tt|normal)|text(?:bf|it|rm|normal|up|sf|tt)?|mbox|boldsymbol|bm|underline|num)"
_PLAIN: list[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]] = [
    (re.compile(r"\\\\\s*(?=\\end)"), ""),
    (re.compile(r"\\m?(?:left|right)\s*\.|\\m?(?:left|right)(?![a-zA-Z])|\\[bB]ig{1,2}[lrm]?(?![a-zA-Z])"), ""),
    (re.compile(r",\s*\\!\s*(?=\d)|\{\s*,\s*\}(?=\d)"), ","),
    (
        re.compile(r"\\q?quad|(?<!\\)\\[,;:! ]|~|\\(?:displaystyle|textstyle|limits|nolimits|thinspace)(?![a-zA-Z])"),
        " ",
    ),
    (re.compile(r"\\[dtcs]frac(?![a-zA-Z])"), r"\\frac"),
    (re.compile(r"\\(?:varnothing|empty|O)(?![a-zA-Z])"), r"\\emptyset"),
    (re.compile(r"\\bmod(?![a-zA-Z])"), r"\\mod"),
    (re.compile(r"\\([lr])brace(?![a-zA-Z])"), lambda match: r"\{" if match[1] == "l" else r"\}"),
    (re.compile(r"\\log\s*_\s*(?:e(?![a-zA-Z])|\{\s*e\s*\})"), r"\\ln "),
    (re.compile(r"\\(?:mathrm|mathbf|mathit|text|rm)\s+([a-zA-Z])(?![a-zA-Z])"), r" \1 "),
    (re.compile(r"\\(?:mathrm|text|rm)\s*\{\s*([deiT])\s*\}|\{\\rm\s+([deiT])\}"), r" \1\2 "),
    (re.compile(_FONT + r"\s*\{\s*(-?\d[\d.,]*|[a-zA-Z])\s*\}(?!\s*\^?\{?\d)"), r"{\1}"),
    (re.compile(r"\s*\\text\s*\{\s*,?\s*(?:and|or)\s*\}\s*,?|(?<![a-zA-Z\\]),?\s*(?:and|or)(?![a-z])"), ","),
    (re.compile(r"\\text\s*\{\s*(?:percent|pct|percentage)\s*\}|\s*\b(?:percent(?:age)?|pct)\b"), r"\\%"),
    (re.compile(r"(?<![\\a-zA-Z])(?:[iI]nfinity|inf)(?![a-zA-Z])"), r"\\infty "),
    (
        re.compile(
            r"(?<![\\a-zA-Z])(sqrt|pi|sin|cos|tan|sec|csc|cot|ln|log|exp|arcsin|arccos|arctan|gcd|lcm)(?![a-zA-Z])"
        ),
        r"\\\1 ",
    ),
    (re.compile(r"~="), r"\\approx "),
    (re.compile(r"\\(?:degree|circ)(?![a-zA-Z])"), r"\\circ"),
    (re.compile(r"\^\s*\\circ"), r"^{\\circ}"),
    (re.compile(r"\s\.(?=\d)|^\.(?=\d)|(?<=[-{(,])\.(?=\d)"), " 0."),
    (re.compile(r"\n|\t|\x0c"), " "),
    (re.compile(r"(?<=\d),(?:,|\s*$)"), ","),
]
_FONT_OPENS = re.compile(r"\\(?:math(?:bf|it|sf|tt|rm)|boldsymbol|bm|pmb)\s*\{")
_ESCAPED_TWICE = re.compile(r"\\\\(?=[a-zA-Z])")
_LEADING = re.compile(r"^(?:=|\\approx(?![a-z])|:)\s*")
_SCIENTIFIC = re.compile(r"(?<![\w.\\}])(\d+(?:\.\d+)?|\.\d+)[eE]([+-]?\d{1,4})(?![\w.])")
_REPEATING = re.compile(
    r"(?<![\w.])(\d*)\.(\d*)(?:\\(?:overline|bar|dot)\s*(?:\{(\d+)\}|(\d)))(?![\d.\\])|(?<![\w.])(\d+)\.(\d*)\((\d+)\)(?![\w.(])"
)
_THOUSANDS = re.compile(r"(?<![\d.,_^{])\{?(\d{1,3}(?:,\d{3})+|\d{1,3}(?: \d{3})+)(?![\d,]|\.\d*,| \d)\}?")
_MIXED = re.compile(r"(?<![\w.^}/])(\d+)\s+(\d+)\s*/\s*(\d+)(?![\w.])")
_POWER_SIGN = re.compile(r"\^\s*(-\s*(?:\d+|[a-zA-Z]))")
_PRIME = re.compile(r"(?<=[a-zA-Z}])('+)")
_QUOTED = re.compile(r"\s*\\(?:text(?:bf|it|rm|normal)?|math(?:rm|bf|it)|mbox)\s*\{([^{}]*)\}\s*")
_BRACKETS = {"(": 1, "[": 1, ")": -1, "]": -1}

# The unit at a formula's end, in text or upright letters; outside of them only a word that is known.
_UPRIGHT_UNIT = re.compile(
    r"^(.*[\d\w})\]%])(?:\s|~|\\[,;:! ])*\\(?:text(?:rm|bf|it|normal|up)?|math(?:rm|it|bf)|mbox)\s*"
    r"\{([^{}]*(?:\{[^{}]*\}[^{}]*)*)\}((?:\s*(?:\^\s*\{?-?\d\}?|/|\\cdot|\\(?:text|mathrm)\s*\{[^{}]*\}))*)\s*$",
    re.DOTALL,
)
_BARE_UNIT = re.compile(
    r"^(.*[\d})%])\s+([a-zA-Z]{2,}(?:\s?[a-zA-Z]{2,})?|[a-zA-Z]{1,3}/[a-zA-Z]{1,4})((?:\^\{?-?\d\}?)?)\s*$", re.DOTALL
)
_DEGREES = re.compile(
    r"^(.*[\d\w})])\s*\^\s*\{?\s*\\(?:circ|degree)\s*\}?\s*(C|F|\\text\{\s*[CF]\s*\}|\\mathrm\{\s*[CF]\s*\})?\s*$",
    re.DOTALL,
)
_MONEY = re.compile(r"^\s*(-?)\s*(\\\$|[€£¥])\s*(?=[\d.])|\s*(\\\$|[€£¥])\s*$")
TRIGONOMETRIC = re.compile(r"\\(?:sin|cos|tan|sec|csc|cot)(?![a-z])")


def from_unicode(text: str) -> str:
    """Unicode's mathematics as TeX."""
    if text.isascii():
        return text
    text = _SUPERSCRIPTS.sub(lambda match: "^{" + match[0].translate(_SUPERSCRIPT) + "}", text)
    text = _SUBSCRIPTS.sub(lambda match: "_{" + match[0].translate(_SUBSCRIPT) + "}", text)
    return _ROOT.sub(lambda match: rf"\sqrt{{{match[1].strip('()')}}}", text.translate(_UNICODE)).replace("。", ".")


def quoted(formula: str) -> str | None:
    """The words of a formula that is nothing but ``\\text{…}``; None for all others."""
    match = _QUOTED.fullmatch(formula.strip().strip("$").rstrip("."))
    return match[1].strip() if match else None


def split_unit(formula: str) -> tuple[str, Quantity | None]:
    """The formula without its unit, and one of the unit, None without one. What multiplies is no unit: ``million``."""
    text = formula.strip().rstrip(".").strip()
    if money := _MONEY.search(text):
        sign = (money[2] or money[3]).replace("\\", "")
        return (money[1] or "") + _MONEY.sub("", text, count=1), read_unit(sign)
    if degrees := _DEGREES.match(text):
        if TRIGONOMETRIC.search(text):
            return text, None
        return degrees[1], read_unit("°" + re.sub(r"\\[a-z]+|[{}\s]", "", degrees[2] or ""))
    if upright := _UPRIGHT_UNIT.match(text):
        written = upright[2] + upright[3]
        power = written.strip() == "T" and upright[1].rstrip().endswith("^")
        if not power and (unit := read_unit(written)):
            return upright[1], unit
    elif (
        (bare := _BARE_UNIT.match(text))
        and all(map(is_bare_unit, re.findall("[a-zA-Z]+", bare[2])))
        and (unit := read_unit(bare[2] + bare[3]))
    ):
        return bare[1], unit
    return text, None


def plain(formula: str) -> str:
    """The formula as the parser can read it."""
    text = formula.replace("$", "").replace("\\$", "")
    text = re.sub(r"\\(?=\s*$)", "", text)
    if "\\begin" not in text:
        text = _ESCAPED_TWICE.sub(r"\\", text)
    text = _without_fonts(text)
    for pattern, replacement in _PLAIN:
        text = pattern.sub(replacement, text)
    text = re.sub(r"(?<!\\)[\"`]", "", text)
    if "." in text:
        text = _REPEATING.sub(_repeating, text)
    text = _SCIENTIFIC.sub(r"\1 \\cdot 10^{\2}", text)
    text = _MIXED.sub(r"(\1+\\frac{\2}{\3})", text)
    text = _outside_brackets(text)
    if "**" in text:
        text = text.replace("**", "^")
    if "'" in text:
        text = _PRIME.sub(lambda match: "_{" + "p" * len(match[1]) + "}", text)
    text = _POWER_SIGN.sub(r"^{\1}", text)
    text = _arguments(text)
    return _LEADING.sub("", text.strip().rstrip(".,;").strip())


def _without_fonts(text: str) -> str:
    """Braces alone round what is bold or the like, where it holds more than letters."""
    at = 0
    while font := _FONT_OPENS.search(text, at):
        end = _closing(text[font.end() - 1 :])
        at = font.end()
        if end and "\\" in (inner := text[font.end() : font.end() + end - 1]):
            text = text[: font.start()] + "{" + inner + "}" + text[font.end() + end :]
            at = font.start()
    return text


def _repeating(match: re.Match[str]) -> str:
    whole, fixed = (match[1] or match[5] or "0"), (match[2] or match[6] or "")
    period = match[3] or match[4] or match[7]
    below = (10 ** len(period) - 1) * 10 ** len(fixed)
    above = int(whole + fixed + period) - int(whole + fixed or "0")
    return rf"\frac{{{above}}}{{{below}}}"


def _outside_brackets(text: str) -> str:
    """Thousands without their separators; between brackets a comma separates elements."""
    if not re.search(r"\d[, ]\d{3}", text):
        return text
    depth, pieces, last = 0, [], 0
    for match in re.finditer(r"\\\{|\\\}|[()\[\]]|$", text):
        piece = text[last : match.start()]
        pieces.append(_THOUSANDS.sub(lambda m: re.sub("[, ]", "", m[0]), piece) if depth == 0 else piece)
        pieces.append(match[0])
        depth += 1 if match[0] in ("(", "[", r"\{") else -1 if match[0] else 0
        last = match.end()
    return "".join(pieces)


def _arguments(text: str) -> str:
    r"""Braces round what ``\frac``, ``\sqrt`` and ``^`` take: one character, or a bracket as in plain text."""
    if not re.search(r"\\(?:frac|sqrt)|\^\s*\(", text):
        return text
    out, at = [], 0
    for match in re.finditer(r"\\frac(?![a-zA-Z])\s*|\\sqrt(?![a-zA-Z])\s*(?!\[)|\^\s*(?=\()", text):
        if match.start() < at:
            continue
        out.append(text[at : match.start()])
        at = match.end()
        sign = match[0].strip()
        out.append(sign)
        for _ in range(2 if sign == "\\frac" else 1):
            rest = text[at:]
            stripped = rest.lstrip()
            at += len(rest) - len(stripped)
            if stripped[:1] == "(" and sign != "\\frac" and (end := _closing(stripped)):
                out.append("{" + _arguments(stripped[1:end]) + "}")
                at += end + 1
            elif re.match(r"[0-9a-zA-Z]", stripped):
                out.append("{" + stripped[0] + "}")
                at += 1
            elif stripped[:1] == "{" and (end := _closing(stripped)):
                out.append("{" + _arguments(stripped[1:end]) + "}")
                at += end + 1
            else:
                break
    out.append(text[at:])
    return "".join(out)


def _closing(text: str) -> int | None:
    """Where the bracket that ``text`` begins with is closed."""
    depth = 0
    pair = {"{": "}", "(": ")"}[text[0]]
    for index, char in enumerate(text):
        if char == text[0]:
            depth += 1
        elif char == pair:
            depth -= 1
            if depth == 0:
                return index
    return None
