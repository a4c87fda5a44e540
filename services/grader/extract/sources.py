"""Where a response may hold its answer: tags, boxes, "the answer is", ``####``. Linear in the text."""

import functools
import re

_ANSWER = re.compile(r"<(/?)(?:final[_ -]?)?answer>", re.IGNORECASE)
_BOXED = re.compile(r"\\f?box(?:ed)?(?:\s*\{|\s+(?=[^\s{])|(?=\d))")
_BARE = re.compile(r"[^\s$]*[^\s$.,;:!?。，]")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
# Between two boxes that are one answer, such as \boxed{6} and \boxed{8}.
_JOIN = re.compile(
    r"[\s$,;，；、]*(?:(and|or|&|\\text\s*\{\s*(?:and|or)\s*\}|和|或|及)[\s$,]*)?(?:([a-z])\s*=\s*)?\$?\s*"
)
_NAMED = re.compile(r"([a-z])\s*=\s*$")
MAX_JOINED = 32

_FILLER = r"(?:\s+(?:simply|just|exactly|clearly|therefore|thus|then|indeed|definitely|equal\s+to)\b)*"
_IS = (
    r"(?:(?:is|are|was|were|would\s+be|should\s+be|must\s+be|will\s+be|has\s+to\s+be|becomes|equals"
    r"|comes\s+out\s+(?:to\s+be|to|as))\b|[=:：])"
)
# "answer is", "**Answer:**", "answer to the question would be", or a heading of the one word.
_ENGLISH = re.compile(
    r"(?:answers?|correct (?:option|choice))\b(?:\s+(?:to|for)\s+(?:the|this)\s+\w{1,12})?"
    rf"[\s*_`\"')]*{_IS}{_FILLER}|answers?[*_ \t#:：]*\n",
    re.IGNORECASE,
)
_WORDS = ("answer", "correct option", "correct choice")
_HEADING = re.compile(r"(?:^|\n)[#*_ \t]*(?:(?:the|final|correct|my)[ \t]+){0,2}$", re.IGNORECASE)
_CHINESE = re.compile(
    r"答案[应该就当]{0,3}(?:是|为|选择?|[:：])+|(?:故|应|所以|因此|本题|我)(?:本题)?应?选(?:择|项)?[为是]?[:：]?"
)
# GSM8K's mark. A heading of Markdown has the same: it holds words, and more follows it.
_HASHES = re.compile(r"^[ \t]*####[ \t]*(\S[^\n]*)", re.MULTILINE)
_VALUE = re.compile(r"[-+−$€£¥\\(\[{.]*(?:\d|[A-Za-z]\W*$|\\|yes\b|no\b|true\b|false\b)", re.IGNORECASE)


def answer_section(text: str) -> str | None:
    """What the last ``<answer>`` holds, up to its end tag or the end of the text; None without one."""
    return last_tag(text, _ANSWER) if "nswer>" in text or "NSWER>" in text else None


def last_tag(text: str, tags: re.Pattern[str]) -> str | None:
    """``answer_section`` for other tags; the first group of ``tags`` holds the slash of an end tag."""
    begin: int | None = None
    end = len(text)
    for tag in tags.finditer(text):
        if not tag[1]:
            begin, end = tag.end(), len(text)
        elif begin is not None and end == len(text):
            end = tag.start()
    return None if begin is None else text[begin:end].strip()


@functools.lru_cache(maxsize=64)
def named_tags(name: str) -> re.Pattern[str]:
    """The tags of a caller's own, for ``last_tag``."""
    return re.compile(rf"<(/?){re.escape(name)}\s*>", re.IGNORECASE)


def last_boxed(text: str) -> str | None:
    """What the last closed ``\\boxed{…}`` holds, nested braces included; None without one, or if it is empty."""
    found = _boxes(text)
    return found[-1][2] or None if found else None


def boxed_answer(text: str) -> tuple[str, bool] | None:
    """The last box, joined with those that stand right before it, and whether there are several."""
    found = _boxes(text)
    if not found or not found[-1][2]:
        return None
    start, _, last = found[-1]
    parts, joined = [last], last
    for before, end, content in reversed(found[-MAX_JOINED:-1]):
        between = _JOIN.fullmatch(text, end, start)
        if not (between and content) or (between[2] and between[2] != _name_before(text, before)):
            break
        if content not in parts:
            parts.append(content)
            word = r" \text{ or } " if between[1] and ("or" in between[1] or "或" in between[1]) else ", "
            joined = content + word + joined
        start = before
    return joined, len(parts) > 1


def _name_before(text: str, start: int) -> str | None:
    named = _NAMED.search(text[max(0, start - 8) : start].replace("$", ""))
    return named[1] if named else None


def _boxes(text: str) -> list[tuple[int, int, str]]:
    """Begin, end and content of each closed box that holds no other, in order."""
    if "box" not in text:
        return []
    starts = [(match.start(), match.end()) for match in _BOXED.finditer(text)]
    if not starts:
        return []
    # One pass over all braces: many unclosed boxes must not make it quadratic.
    opened: list[int] = []
    closing: dict[int, int] = {}
    for brace in _BRACE.finditer(text, starts[0][0]):
        if brace[0] == "{":
            opened.append(brace.end())
        elif brace[0] == "}" and opened:
            closing[opened.pop()] = brace.start()
    found: list[tuple[int, int, str]] = []
    for start, inside in starts:
        if text[inside - 1] == "{":
            if inside in closing:
                found.append((start, closing[inside] + 1, text[inside : closing[inside]].strip()))
        elif bare := _BARE.match(text, inside):
            found.append((start, bare.end(), bare[0]))
    innermost: list[tuple[int, int, str]] = []
    for box in found:
        while innermost and box[0] < innermost[-1][1]:
            innermost.pop()
        innermost.append(box)
    return innermost


def after_phrase(text: str) -> str | None:
    """All that follows the last "the answer is", "answer:", ``####`` or the like; None without one."""
    end = _last_end(text)
    if "答案" in text or "选" in text:
        end = max([end, *(match.end() for match in _CHINESE.finditer(text))])
    if "####" in text:
        last = None
        for last in _HASHES.finditer(text):  # noqa: B007
            pass
        if last and last.start(1) > end and (_VALUE.match(last[1]) or not text[last.end() :].strip()):
            end = last.start(1)
    return text[end:] if end >= 0 else None


def _last_end(text: str) -> int:
    """Where the last English phrase ends; -1 without one. Its words are found first, which is fast."""
    folded = text.lower()
    if len(folded) != len(text):  # a few letters are longer in lower case
        folded = text
    found = -1
    for word in _WORDS:
        place = folded.rfind(word)
        while place > found:
            match = _ENGLISH.match(text, place)
            heading = not match or not match[0].endswith("\n") or _HEADING.search(text[max(0, place - 40) : place])
            if match and heading and not _is_letter(text[place - 1 : place]):
                found = max(found, match.end())
                break
            place = folded.rfind(word, 0, place)
    return found


def _is_letter(char: str) -> bool:
    return char.isascii() and char.isalpha()
