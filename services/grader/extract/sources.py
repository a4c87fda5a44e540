"""Where a response may hold its answer: tags, boxes, "the answer is", ``####``. Linear in the text."""

import functools
import json
import re

_ANSWER = re.compile(r"<(/?)(?:final[_ -]?)?answer(?:\s[^<>]{0,80})?>", re.IGNORECASE)
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
    r"(?:answers?|(?:correct|right|best) (?:option|choice))\b(?:\s+(?:to|for)\s+(?:the|this)\s+\w{1,12})?"
    rf"[\s*_`\"')]*{_IS}{_FILLER}|answers?[*_ \t#:：]*\n",
    re.IGNORECASE,
)
_WORDS = ("answer", *(f"{word} {what}" for word in ("correct", "right", "best") for what in ("option", "choice")))
# "If the answer is 7", "a wrong answer is 7", "I doubt that the answer is 7": nobody says that it is 7.
_UNSAID = re.compile(
    r"\b(?:(?:wrong|incorrect|false|mistaken|tempting|naive|n['’]t an?|not an?)\s+(?:final\s+)?"
    r"|(?:if|suppos(?:e|ing)|assum(?:e|ing)|imagine|pretend|whether|unless|doubt|unlikely|impossible|not\s+(?:true|sure|certain"
    r"|the\s+case)|(?:n['’]t|not)\s+(?:think|believe|say|know|mean|see))\s+(?:that\s+|how\s+|why\s+)?"
    r"(?:(?:the|my|your|this)\s+)?(?:(?:final|correct|right)\s+)?)$",
    re.IGNORECASE,
)
_CHINESE_UNSAID = re.compile(r"(?:错误|不正确|如果|假设|假如|若|是否|不认为|并非|不是?|别|没)的?(?:正确|最终)?$")
_HEADING = re.compile(r"(?:^|\n)[#*_ \t]*(?:(?:the|final|correct|my)[ \t]+){0,2}$", re.IGNORECASE)
_CHINESE = re.compile(
    r"(?:答案|正确的?选[项择])[应该就当]{0,3}[*_]{0,2}(?:是|为|选择?(?!项)|[:：])+|答案】[:：]?"
    r"|(?:^|\n)[#*_ \t]*(?:最终|正确|参考)?答案[*_ \t]*\n"
    r"|(?:故|应|所以|因此|本题|我)(?:本题)?应?选(?:择|项)?[为是]?[:：]?|(?<=[，,。；;])选(?:择|项)?[:：]?(?=\s*[（(]?[A-Z])"
)
_JSON_KEY = re.compile(r"([\"'])(?:(?:final|correct)[_ ]?)?answer\1\s*:\s*", re.IGNORECASE)
_JSON_VALUE = re.compile(r"'([^'\n]*)'(?=\s*[,}])|([^\s,{}\[\]\"']+)(?=\s*[,}])")
# GSM8K's mark. A heading of Markdown has the same: it holds words, and more follows it.
_HASHES = re.compile(r"^[ \t]*####[ \t]*(\S[^\n]*)", re.MULTILINE)
_VALUE = re.compile(r"[-+−$€£¥\\(\[{.]*(?:\d|[A-Za-z]\W*$|\\|yes\b|no\b|true\b|false\b)", re.IGNORECASE)


def answer_section(text: str) -> tuple[str, int] | None:
    """What the last ``<answer>`` holds, up to its end tag or the end of the text, and its end; None without one."""
    return _last_tag(text, _ANSWER) if "nswer" in text or "NSWER" in text else None


def last_tag(text: str, tags: re.Pattern[str]) -> str | None:
    """``answer_section`` for other tags; the first group of ``tags`` holds the slash of an end tag."""
    found = _last_tag(text, tags)
    return found[0] if found else None


def _last_tag(text: str, tags: re.Pattern[str]) -> tuple[str, int] | None:
    begin: int | None = None
    end = after = len(text)
    for tag in tags.finditer(text):
        if not tag[1]:
            begin, end, after = tag.end(), len(text), len(text)
        elif begin is not None and end == len(text):
            end, after = tag.start(), tag.end()
    return None if begin is None else (text[begin:end].strip(), after)


@functools.lru_cache(maxsize=64)
def named_tags(name: str) -> re.Pattern[str]:
    """The tags of a caller's own, for ``last_tag``."""
    return re.compile(rf"<(/?){re.escape(name)}\s*>", re.IGNORECASE)


def last_boxed(text: str) -> str | None:
    """What the last closed ``\\boxed{…}`` holds, nested braces included; None without one, or if it is empty."""
    found = _boxes(text)
    return found[-1][2] or None if found else None


def boxed_answer(text: str) -> tuple[str, bool, int] | None:
    """The last box, joined with those that stand right before it, whether there are several, and where it ends."""
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
    return joined, len(parts) > 1, found[-1][1]


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
        end = max(
            [
                end,
                *(
                    match.end()
                    for match in _CHINESE.finditer(text)
                    if not _CHINESE_UNSAID.search(text, max(0, match.start() - 8), match.start())
                ),
            ]
        )
    if "####" in text:
        last = None
        for last in _HASHES.finditer(text):  # noqa: B007
            pass
        if last and last.start(1) > end and (_VALUE.match(last[1]) or not text[last.end() :].strip()):
            end = last.start(1)
    return text[end:] if end >= 0 else None


def says_value(text: str) -> bool:
    """Whether "the answer is" in ``text`` is followed by a number, a letter or the like."""
    rest = after_phrase(text)
    return rest is not None and _VALUE.match(rest.lstrip(" \t\r\n:：*_")) is not None


def json_answer(text: str) -> str | None:
    """The value of the last key "answer" as a text, or as it is written; None without one, or if a phrase follows."""
    if 'nswer"' not in text and "nswer'" not in text:
        return None
    key = None
    for key in _JSON_KEY.finditer(text):  # noqa: B007
        pass
    if not key:
        return None
    decoder = json.JSONDecoder(strict=False)
    end = key.end()
    try:
        value, end = decoder.raw_decode(text, key.end())
        written = value if isinstance(value, str) else text[key.end() : end]
    except (ValueError, RecursionError):
        if not (bare := _JSON_VALUE.match(text, key.end())):
            return None
        written, end = bare[1] if bare[1] is not None else bare[2], bare.end()
    try:  # what else the object says is no later answer
        whole, stop = decoder.raw_decode(text, text.rfind("{", 0, key.start()))
        end = stop if isinstance(whole, dict) else end
    except (ValueError, RecursionError):
        pass
    if _last_end(text) > end or written in ("", "null", "None"):
        return None
    return written.strip() or None


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
            if (
                match
                and heading
                and not _is_letter(text[place - 1 : place])
                and not _UNSAID.search(text, max(0, place - 60), place)
            ):
                found = max(found, match.end())
                break
            place = folded.rfind(word, 0, place)
    return found


def _is_letter(char: str) -> bool:
    return char.isascii() and char.isalpha()
