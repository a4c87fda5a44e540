"""Where a response's answer is, and whether the response keeps the format. Linear in the text: it runs in the server.

``<answer>`` first; inside it, or in the whole response where the rules allow, the last ``\\boxed{}`` and then "the
answer is …". Each place where an answer may stand gives a candidate. They are tried in turn: the first that can be read
as the gold answer's kind is the answer. Only what a candidate says decides whether it can be read, never whether it is
right; and one that names two answers ends the search, so that no hedged answer is rewarded for one of its halves.
"""

import functools
from dataclasses import dataclass

from prism.services.grader.extract.sentences import HEDGE, first_sentence, without_explanation
from prism.services.grader.extract.sources import after_phrase, answer_section, boxed_answer, last_boxed
from prism.services.grader.verdict import AnswerKind, AnswerPair, Item, Rules
from prism.wire.response import parse_response

__all__ = ["Reading", "last_boxed", "read_gold", "read_item", "read_response"]

# What only the second candidate or a later one holds: longer texts are no number, letter or box.
MAX_OTHER_CHARS = 400
# A judge reads prose. Nobody else does.
_READS_PROSE = frozenset({"judge"})


@dataclass(frozen=True, slots=True)
class Reading:
    """``answer`` is None if there is none to compare. ``format``: 1 kept, 0 broken, None not looked at.

    ``others`` are to be tried in turn where the ones before cannot be read.
    """

    answer: str | None
    format: float | None
    problem: str | None = None
    others: tuple[str, ...] = ()

    def candidate(self, index: int) -> str | None:
        return self.others[index - 1] if index else self.answer


def read_item(item: Item, rules: Rules) -> tuple[Reading, AnswerPair]:
    """What the response says, and what is to be compared: of a broken format only the gold answers are looked at."""
    reading = read_response(item.response, item.kind, rules)
    golds = item.golds if item.kind in _READS_PROSE else tuple(map(read_gold, item.golds))
    if reading.format == 0.0:
        return reading, AnswerPair(item.kind, None, golds, item.options)
    return reading, AnswerPair(item.kind, reading.answer, golds, item.options, reading.others)


def read_response(text: str, kind: AnswerKind, rules: Rules) -> Reading:
    """Never raises. A broken format has no answer to compare, but the answer it would have had is shown."""
    if rules.format == "required":
        parsed = parse_response(text)
        if not parsed.valid:
            return Reading(parsed.answer or None, 0.0, "; ".join(parsed.problems))
        candidates = _Candidates(kind)
        candidates.narrow(parsed.answer, rules)
        return candidates.reading(1.0)
    candidates = _Candidates(kind)
    for source in rules.extract:
        match source:
            case "answer":
                candidates.narrow(answer_section(text), rules)
            case "boxed":
                candidates.boxed(text)
            case "phrase":
                candidates.phrase(text, rules)
            case "whole":
                candidates.narrow(text.strip(), rules)
    return candidates.reading(None, f"no answer found (looked for: {', '.join(rules.extract)})")


@functools.lru_cache(maxsize=8192)  # a group of responses has one gold answer
def read_gold(text: str) -> str:
    """The gold answer without its data set's wrapper: ``#### 42``, "The answer is 7", ``\\boxed{7}``, ``<answer>``."""
    if (section := answer_section(text)) and section != text:
        return read_gold_text(section)
    return read_gold_text(text)


def read_gold_text(text: str) -> str:
    if found := boxed_answer(text):
        return found[0]
    rest = after_phrase(text)
    sentence = rest and first_sentence(rest)
    # Nothing may follow: a wrapper's answer is the last thing it says.
    if rest and sentence and rest.strip(" \t\r\n:：*_.。").endswith(sentence.strip(".。")):
        return sentence
    return text


class _Candidates:
    """Collects what may be the answer, until one leaves open which it is."""

    def __init__(self, kind: AnswerKind) -> None:
        self._kind = kind
        self._found: dict[str, None] = {}
        self._closed = False
        self._last = ""  # whether it hedges is looked at when another one comes, which is seldom

    def reading(self, format_: float | None, problem: str | None = None) -> Reading:
        if not self._found:
            return Reading(None, format_, problem)
        first, *others = self._found
        if not others or self._kind in _READS_PROSE:
            return Reading(first, format_)
        return Reading(first, format_, None, tuple(other for other in others if len(other) <= MAX_OTHER_CHARS))

    def narrow(self, section: str | None, rules: Rules) -> None:
        """The answer inside an answer section: its last box, or what follows "the answer is", or all of it."""
        if not section:
            return
        if self._kind not in _READS_PROSE:
            for source in rules.extract:
                if source == "boxed":
                    self.boxed(section)
                elif source == "phrase":
                    self.phrase(section, rules)
        self._add(section)

    def boxed(self, text: str) -> None:
        if found := boxed_answer(text):
            self._add(found[0])
            self._closed = self._closed or found[1]

    def phrase(self, text: str, rules: Rules) -> None:
        rest = after_phrase(text)
        sentence = rest and first_sentence(rest)
        if not sentence:
            return
        if "boxed" in rules.extract and (found := boxed_answer(sentence)) and not HEDGE.search(sentence):
            self.boxed(sentence)
            self._closed = self._closed or found[1]
        self._add(sentence)

    def _add(self, candidate: str) -> None:
        if self._last and HEDGE.search(self._last[-MAX_OTHER_CHARS:]):
            self._closed = True
        if self._closed or (self._found and len(candidate) > MAX_OTHER_CHARS):
            return
        self._found.setdefault(candidate)
        # Most answers are that short, or one word.
        self._last = candidate if len(candidate) > 2 else ""
        if len(candidate) <= 2 or (candidate.isascii() and candidate.isalnum()):
            return
        if len(candidate) <= MAX_OTHER_CHARS and (shorter := without_explanation(candidate)):
            self._found.setdefault(shorter)
