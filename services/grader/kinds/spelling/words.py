"""The words behind a number: those that multiply it, those that name what is counted, and those that are neither.

What is counted may be any noun, so it is told by what it is not: no multiplier of any language we know, no function,
no variable's name, no word that joins, denies or compares.
"""

import re
from dataclasses import dataclass

MAX_NOUN_CHARS, MAX_NOUN_WORDS = 60, 6

_MULTIPLES = {
    "hundred": 10**2,
    "thousand": 10**3,
    "million": 10**6,
    "mln": 10**6,
    "billion": 10**9,
    "bln": 10**9,
    "trillion": 10**12,
    "quadrillion": 10**15,
    "dozen": 12,
    "lakh": 10**5,
    "crore": 10**7,
}
_CJK_MULTIPLES = {"十": 10, "百": 100, "千": 10**3, "万": 10**4, "萬": 10**4, "亿": 10**8, "億": 10**8}
_MULTIPLE = re.compile(rf"(?:{'|'.join(_MULTIPLES)})s?(?![^\W_])", re.IGNORECASE)
# 千克 and 千米 are units.
_CJK_MULTIPLE = re.compile(f"[{''.join(_CJK_MULTIPLES)}](?![克米瓦帕焦字])")
_SUFFIX = re.compile(r"(?:k|K|M|m|mm|MM|mn|B|b|bn|Bn|T|tn)(?![^\W_])")
_SUFFIXES = {"k": 10**3, "m": 10**6, "mm": 10**6, "mn": 10**6, "b": 10**9, "bn": 10**9, "t": 10**12, "tn": 10**12}
# Of these nobody makes a variable, so that money need not be there.
_SURE = frozenset(["mn", "bn", "Bn", "tn"])

# Behind a number these make it another number, an expression, no answer, or the beginning of a second one.
_NOT_COUNTED_TEXT = """
    hundred hundreds thousand thousands million millions billion billions trillion trillions quadrillion quintillion
    dozen dozens score grand gross mil mille millon millón millones milhão milhões milliard milliards mila milioni
    milione miliardi miliardo tausend millionen milliarde milliarden hundert dutzend cien cientos docena docenas dúzia
    douzaine тысяча тысячи тысяч миллион миллиона миллионов миллиард миллиардов लाख करोड़ lakh crore 만 억 천
    half halves third thirds fourth fourths quarter quarters fifth fifths sixth sixths seventh sevenths eighth
    eighths ninth ninths tenth tenths hundredth hundredths thousandth thousandths millionth millionths double triple
    tens teens quadruple sextillion septillion googol myriad
    twice zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
    seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety

    plus minus times multiplied divided over mod modulo squared cubed square cube root roots sqrt cbrt power powers
    exponent factorial sin cos tan cot sec csc sinh cosh tanh arcsin arccos arctan log ln exp lim max min gcd lcm det
    abs sgn alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau phi chi psi
    omega infinity inf nan abc xyz

    or and to by of if then else but nor vs versus is are was were be not no never none false wrong incorrect
    impossible unlikely invalid undefined unknown except without less fewer below above under beyond than least most
    maybe perhaps possibly probably negative fold

    am pm bc bce ad ce january february march april june july august september october november december
"""
_NOT_COUNTED = frozenset(_NOT_COUNTED_TEXT.split())
# twelfths, sixteenths, twentieths, billionths
_ORDINAL = re.compile(r"(?:\w*teen|eleven|twelf|\w+ie|\w+illion)ths?")
_WITHIN = frozenset(["of", "a", "an", "per", "in", "on", "the", "for", "each"])
_ADJECTIVES = frozenset(
    ["long", "wide", "tall", "high", "deep", "thick", "old", "away", "apart", "ago", "each", "total"]
)
_NOUN = re.compile(r"[^\W\d_]{2,}\.?(?:[-'’/][^\W\d_]{2,})*")
_PIECE = re.compile(r"[-'’/ ]")
_VOWEL = re.compile(r"[aeiou]|[^\x00-\x7f]", re.IGNORECASE)
_CJK = re.compile(
    r"(千米|公里|米|厘米|毫米|克|千克|公斤|毫克|吨|升|毫升|小时|分钟|秒|个月|个|只|人|本|张|辆|块|条|棵|次|名|支|件|位|岁|元|年|天|周)"
    r"([\u4e00-\u9fff\u3040-\u30ff]{1,6})"
)
_CJK_NOT_COUNTED = re.compile("[十百千万萬亿億兆半分倍平立方次幂根多几余约左右上下至到和或与每除加减乘]")


@dataclass(frozen=True, slots=True)
class Multiplier:
    """What multiplies the number before it, and how many characters say so."""

    factor: int
    length: int
    symbolic: bool = False  # it may as well be a variable: 3k


def multiplier(text: str, spaced: bool, currency: bool) -> Multiplier | None:
    """The multiplier that ``text`` begins with: a word, a character, or a letter right behind the number."""
    if found := _MULTIPLE.match(text):
        word = found[0].lower()
        return Multiplier(_MULTIPLES.get(word) or _MULTIPLES[word[:-1]], found.end())
    if not spaced or currency or text[:1] in _CJK_MULTIPLES:
        if _CJK_MULTIPLE.match(text):
            return Multiplier(_CJK_MULTIPLES[text[0]], 1)
        found = _SUFFIX.match(text)
        # Without money 5m are metres, 5T tesla, 5K kelvin and 5B bytes or a room.
        if found and (currency or found[0] in _SURE or (found[0] in "kM" and found.end() == len(text))):
            return Multiplier(_SUFFIXES[found[0].lower()], found.end(), not currency and found[0] == "k")
    return None


def is_noun(text: str) -> bool:
    """Whether ``text`` can only be what is counted: ``red apples``, ``people per year``."""
    words = text.split()
    if not words or len(text) > MAX_NOUN_CHARS or len(words) > MAX_NOUN_WORDS:
        return False
    for index, word in enumerate(words):
        if index and word.lower() in _WITHIN:
            continue
        if not _NOUN.fullmatch(word) or any(map(_is_not_counted, _PIECE.split(word.casefold()))):
            return False
    # xy and km are no nouns.
    return len(words[0]) > 2 and bool(_VOWEL.search(words[0]))


def _is_not_counted(word: str) -> bool:
    return word in _NOT_COUNTED or bool(_ORDINAL.fullmatch(word))


def is_adjective(text: str) -> bool:
    return text in _ADJECTIVES


def same_nouns(one: str, other: str) -> bool:
    """Whether both may be the same things: apples and red apples, but not red and green ones."""
    few, many = sorted((_singular(one), _singular(other)), key=len)
    return bool(few) and few <= many


def _singular(text: str) -> frozenset[str]:
    words = (word for word in text.casefold().split() if word not in _WITHIN)
    return frozenset(word[:-1] if len(word) > 3 and word.endswith("s") else word for word in words)


def split_cjk(text: str) -> tuple[str, str] | None:
    """A Chinese unit or measure word and the noun behind it: 个 and 苹果."""
    found = _CJK.fullmatch(text)
    return (found[1], found[2]) if found and not _CJK_NOT_COUNTED.search(found[2]) else None
