"""How a short answer is written: TeX, Markdown and Unicode taken off a number, a date or a score. Case is kept."""

import re
import unicodedata

REPLACEMENT = "\ufffd"  # stands where the request had a lone surrogate (protocol.py)

# Zero-width characters, joiners, marks of direction, soft hyphens: nobody sees them.
_INVISIBLE = re.compile("[\u00ad\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufe0e\ufe0f\ufeff]")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_DASHES = str.maketrans(dict.fromkeys("\u2010\u2011\u2012\u2013\u2212\ufe63\uff0d", "-"))
_SUPERSCRIPTS = re.compile("[⁻⁺]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+")
_SUPERSCRIPT = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
_SUBSCRIPT = re.compile("[₀-₉]")  # NFKC would read x₅ as x5
_VULGAR = re.compile("[¼-¾⅐-⅞]")
_LIKE_DEGREES = str.maketrans({"º": "°", "˚": "°", "⋅": "·", "∙": "·", "•": "·", "≃": "≈", "≅": "≈", "～": "~"})
_WRAPPERS = {"`": "`", '"': '"', "“": "”", "'": "'", "‘": "’", "「": "」", "*": "*", "_": "_"}

_MONEY = "\ue001"  # a dollar that is no delimiter
_SIMPLE = r"\s*(-?[0-9]*\.?[0-9]*(?:\\pi)?)\s*"
_FRACTION = re.compile(rf"\\[dtc]?frac\s*(?:\{{{_SIMPLE}\}}|([0-9]))\s*(?:\{{\s*(-?[0-9]+)\s*\}}|([0-9]))")
_WRAPPED = re.compile(
    r"\\(?:text|textbf|textit|textrm|textsf|texttt|textnormal|mathrm|mathbf|mathit|mathsf|mathtt|mathnormal|bm|boldsymbol"
    r"|operatorname\*?|mbox|boxed|fbox|underline|emph)\s*\{([^{}]*)\}"
)
_RECURRING = re.compile(r"([0-9]*)\.([0-9]*)\\(?:overline|bar|dot)\s*(?:\{([0-9]+)\}|([0-9]))")
_TEX = [
    (re.compile(r"\\(?:displaystyle|textstyle|rm|bf|large|Large|left|right)(?![a-zA-Z])|\\[()\[\]]"), " "),
    (re.compile(r"\{,\}(?:\\!)?\s*|,\s*\\!\s*"), ","),
    (re.compile(r"\{\s*\}"), ""),
    (re.compile(r"\^\s*\{?\s*\\(?:circ|degree)\s*\}?|\\(?:degree|circ|textdegree)(?![a-zA-Z])"), "°"),
    (re.compile(r"\^\s*\{\s*([+-]?[0-9]+)\s*\}"), r"^\1"),
    (re.compile(r"_\s*\{\s*([A-Za-z0-9]+)\s*\}"), r"_\1"),
    (re.compile(r"\\(?:[,;:!> ]|quad|qquad|thinspace)|~"), " "),
    (re.compile(r"\\times(?![a-zA-Z])\s*"), "×"),
    (re.compile(r"\\cdot(?![a-zA-Z])\s*"), "·"),
    (re.compile(r"\\(?:approx|simeq|sim|thickapprox)(?![a-zA-Z])\s*"), "≈"),
    (re.compile(r"\\(?:pounds|textsterling)(?![a-zA-Z])\s*"), "£"),
    (re.compile(r"\\(?:euro|texteuro)(?![a-zA-Z])\s*"), "€"),
    (re.compile(r"\\textdollar(?![a-zA-Z])\s*"), "$"),
    (re.compile(r"\\(?:angle|measuredangle)(?![a-zA-Z])\s*"), "∠"),
    (re.compile(r"\\([%#&])"), r"\1"),
]
_GREEK: dict[str, str] = {
    **{"alpha": "α", "beta": "β", "gamma": "γ", "delta": "δ", "epsilon": "ε", "theta": "θ", "lambda": "λ", "mu": "μ"},
    **{"rho": "ρ", "sigma": "σ", "tau": "τ", "phi": "φ", "varphi": "φ", "omega": "ω", "pi": "π", "Omega": "Ω"},
}
_GREEK_NAMES = re.compile(rf"\\({'|'.join(_GREEK)})(?![a-zA-Z])\s*")


def plain(text: str) -> str | None:
    """``text`` on one line, as somebody would type it. None if it is no text, or has TeX that nobody could type."""
    stripped = text.strip()
    while len(stripped) > 2 and _WRAPPERS.get(stripped[0]) == stripped[-1]:
        stripped = stripped[1:-1].strip()
    if not stripped.isascii():
        stripped = _from_unicode(stripped)
    if any(mark in stripped for mark in "\\${"):
        stripped = _from_tex(stripped)
        if "\\" in stripped or "{" in stripped or "}" in stripped:
            return None
    line = " ".join(stripped.split())
    if line[-1:] in (".", "。") and line[-2:-1] not in (".", "。", ""):
        line = line[:-1].rstrip()
    if not line or REPLACEMENT in line or _CONTROL.search(line) or _SUBSCRIPT.search(text):
        return None
    return line


def _from_unicode(text: str) -> str:
    text = _INVISIBLE.sub("", text).strip()
    text = _SUPERSCRIPTS.sub(lambda match: "^" + match[0].translate(_SUPERSCRIPT), text.translate(_LIKE_DEGREES))
    # ½ becomes 1⁄2 by NFKC: apart from the whole number before it.
    text = _VULGAR.sub(lambda match: f" {match[0]}", text)
    return unicodedata.normalize("NFKC", text).translate(_DASHES).replace("\u2044", "/")


def _from_tex(text: str) -> str:
    text = text.replace(r"\$", _MONEY)
    if text.count("$") % 2 == 0:
        text = text.replace("$", " ")
    if "\\" in text or "{" in text:
        text = _RECURRING.sub(_recurring, text)
        text = _FRACTION.sub(lambda m: f" {m[1] or m[2] or '?'}/{m[3] or m[4]} ", text)
        for pattern, spelt in _TEX:
            text = pattern.sub(spelt, text)
        text = _GREEK_NAMES.sub(lambda match: _GREEK[match[1]], text)
        for _ in range(4):  # \boxed{\textbf{7}}
            unwrapped = _WRAPPED.sub(r" \1 ", text)
            if unwrapped == text:
                break
            text = _FRACTION.sub(lambda m: f" {m[1] or m[2] or '?'}/{m[3] or m[4]} ", unwrapped)
        text = re.sub(r" +(?=\^)|(?<=°) +(?=[CF]\b)", "", text).strip()
        if text[:1] == "{" and text[-1:] == "}":
            text = text[1:-1]
    return text.replace(_MONEY, "$")


def _recurring(match: re.Match[str]) -> str:
    whole, begin, period = match[1], match[2], match[3] or match[4]
    if len(whole) + len(begin) + len(period) > 60:
        return match[0]
    scale = 10 ** len(begin)
    above = int((whole or "0") + begin + period) - int((whole or "0") + begin)
    return f" {above}/{scale * (10 ** len(period) - 1)} "
