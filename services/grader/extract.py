"""Where a response's answer is, and whether the response keeps the format. Linear in the text: it runs in the server.

``<answer>`` first; inside it, or in the whole response where the rules allow, the last ``\\boxed{}`` and then "the
answer is …".
"""

import re
from dataclasses import dataclass

from prism.services.grader.verdict import AnswerKind, Rules
from prism.wire.response import parse_response

_BOXED = re.compile(r"\\f?box(?:ed)?\s*\{")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_PHRASE = re.compile(r"\banswers?\s*(?:is|are|=|:|：)|答案(?:是|为|:|：)", re.IGNORECASE)
# Ends what "the answer is" begins: a line, or a full stop that no digit follows.
_PHRASE_END = re.compile(r"\n|\.(?!\d)|。")
_ANSWER = re.compile(r"<answer>|</answer>")
# math-verify reads a whole section: several boxes are a set to it, and it has anchors of its own.
_READS_WHOLE_SECTION = frozenset({"math"})


@dataclass(frozen=True, slots=True)
class Reading:
    """``answer`` is None if there is none to compare. ``format``: 1 kept, 0 broken, None not looked at."""

    answer: str | None
    format: float | None
    problem: str | None = None


def read_response(text: str, kind: AnswerKind, rules: Rules) -> Reading:
    """Never raises. A broken format has no answer to compare, but the answer it would have had is shown."""
    if rules.format == "required":
        parsed = parse_response(text)
        if not parsed.valid:
            return Reading(parsed.answer or None, 0.0, "; ".join(parsed.problems))
        return Reading(narrow(parsed.answer, kind, rules), 1.0)
    for source in rules.extract:
        match source:
            case "answer":
                section = answer_section(text)
                found = None if section is None else narrow(section, kind, rules)
            case "boxed":
                found = last_boxed(text)
            case "phrase":
                found = after_phrase(text)
                found = found and narrow(found, kind, rules)
            case "whole":
                found = narrow(text.strip(), kind, rules) or None
        if found:
            return Reading(found, None)
    return Reading(None, None, f"no answer found (looked for: {', '.join(rules.extract)})")


def narrow(section: str, kind: AnswerKind, rules: Rules) -> str:
    """The answer inside an answer section: its last box, or what follows "the answer is", or all of it."""
    if kind in _READS_WHOLE_SECTION:
        return section
    if "boxed" in rules.extract and (boxed := last_boxed(section)):
        return boxed
    if "phrase" in rules.extract and (phrase := after_phrase(section)):
        return phrase
    return section


def answer_section(text: str) -> str | None:
    """What the last ``<answer>`` holds, up to its end tag or the end of the text; None without one."""
    begin: int | None = None
    end = len(text)
    for tag in _ANSWER.finditer(text):
        if tag[0] == "<answer>":
            begin, end = tag.end(), len(text)
        elif begin is not None and end == len(text):
            end = tag.start()
    return None if begin is None else text[begin:end].strip()


def last_boxed(text: str) -> str | None:
    """What the last closed ``\\boxed{…}`` holds, nested braces included; None without one, or if it is empty."""
    if "box" not in text:
        return None
    starts = [match.end() for match in _BOXED.finditer(text)]
    if not starts:
        return None
    # One pass over all braces: many unclosed boxes must not make it quadratic.
    opened: list[int] = []
    closing: dict[int, int] = {}
    for brace in _BRACE.finditer(text, starts[0] - 1):
        if brace[0] == "{":
            opened.append(brace.end())
        elif brace[0] == "}" and opened:
            closing[opened.pop()] = brace.start()
    for start in reversed(starts):
        if start in closing:
            return text[start : closing[start]].strip() or None
    return None


def after_phrase(text: str) -> str | None:
    """What follows the last "the answer is", "answer:" or the like, up to the end of its sentence; None without one."""
    last = None
    for last in _PHRASE.finditer(text):  # noqa: B007
        pass
    if last is None:
        return None
    rest = text[last.end() :].strip(" \t:：*")
    end = _PHRASE_END.search(rest)
    return rest[: end.start() if end else None].strip(" \t*") or None
