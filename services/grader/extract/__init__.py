"""Where a response's answer is, and whether the response keeps the format. Linear in the text: it runs in the server.

``<answer>`` first; inside it, or in the whole response where the rules allow, the last ``\\boxed{}`` and then "the
answer is …". Each place where an answer may stand gives a candidate. They are tried in turn: the first that can be read
as the gold answer's kind is the answer. Only what a candidate says decides whether it can be read, never whether it is
right; and one that names two answers ends the search, so that no hedged answer is rewarded for one of its halves.
"""

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from prism.services.grader.extract.sentences import HEDGE, first_sentence, taken_back, without_explanation
from prism.services.grader.extract.sources import (
    after_phrase,
    answer_section,
    boxed_answer,
    json_answer,
    last_boxed,
    last_tag,
    named_tags,
    says_value,
)
from prism.services.grader.extract.thinking import without_thinking
from prism.services.grader.verdict import AnswerKind, AnswerPair, Item, Rules
from prism.wire.grading import PATTERN
from prism.wire.patterns import compiled
from prism.wire.response import parse_response

__all__ = ["Reading", "last_boxed", "pattern_steps", "read_gold", "read_item", "read_response"]

# What only the second candidate or a later one holds: longer texts are no number, letter or box.
MAX_OTHER_CHARS = 400
MIN_SENTENCE_CHARS = 8
# A judge reads prose. Nobody else does.
_JSON = re.compile(r"\s*(?:```\w*\s*)?\{.*\}(?:\s*```)?\s*", re.DOTALL)
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
    if item.kind not in _READS_PROSE:
        for raw, gold in zip(item.golds, golds, strict=True):
            if _repeated(raw, item.response):  # whatever its sentences are cut into, a gold answer is right for itself
                return replace(reading, answer=gold, others=()), AnswerPair(item.kind, gold, golds, item.options)
    return reading, AnswerPair(item.kind, reading.answer, golds, item.options, reading.others)


def _repeated(gold: str, response: str) -> bool:
    """Whether the response is the gold answer itself, of which a sentence was made."""
    wanted = gold.strip()
    if len(wanted) < MIN_SENTENCE_CHARS or wanted not in response:
        return False
    section = answer_section(response)
    return wanted == (section[0] if section else response.strip())


def read_response(text: str, kind: AnswerKind, rules: Rules) -> Reading:
    """Never raises. A broken format has no answer to compare, but the answer it would have had is shown."""
    if rules.format == "required":
        parsed = parse_response(text)
        if not parsed.valid:
            return Reading(parsed.answer or None, 0.0, "; ".join(parsed.problems))
        candidates = _Candidates(kind)
        candidates.narrow(without_thinking(parsed.answer), rules)
        return candidates.reading(1.0)
    candidates, said = _Candidates(kind), without_thinking(text)
    for source in rules.extract:
        match source:
            case "answer":
                candidates.section(said, rules)
            case "boxed":
                candidates.boxed(said, rules)
            case "phrase":
                candidates.phrase(said, rules)
            case "whole":
                candidates.narrow(said.strip(), rules)
            case own:
                candidates.own(own, said, rules)
    return candidates.reading(None, f"no answer found (looked for: {', '.join(rules.extract)})")


def pattern_steps(rules: Rules) -> int:
    """How many steps a character of a response may cost, for the caller's own patterns; 0 without any."""
    return sum(compiled(source.removeprefix(PATTERN)).steps for source in rules.extract if source.startswith(PATTERN))


@functools.lru_cache(maxsize=8192)  # a group of responses has one gold answer
def read_gold(text: str) -> str:
    """The gold answer without its data set's wrapper: ``#### 42``, "The answer is 7", ``\\boxed{7}``, ``<answer>``."""
    text = without_thinking(text) or text
    if (section := answer_section(text)) and section[0] != text:
        return read_gold_text(section[0])
    return read_gold_text(text)


def read_gold_text(text: str) -> str:
    if found := boxed_answer(text):
        return found[0]
    if _JSON.fullmatch(text) and (value := json_answer(text)):
        return value
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

    def section(self, text: str, rules: Rules) -> None:
        """What the last ``<answer>`` holds, unless what follows takes it back."""
        if found := answer_section(text):
            section, end = found
            self._unless_taken_back(text, end, rules, lambda: self.narrow(section, rules))

    def narrow(self, section: str | None, rules: Rules, *, own: bool = True) -> None:
        """The answer inside an answer section: its last box, or what follows "the answer is", or all of it.

        ``own``: tags and patterns of the caller's own are looked for in it too.
        """
        if not section:
            return
        if self._kind not in _READS_PROSE:
            for source in rules.extract:
                if source == "boxed":
                    self.boxed(section, rules)
                elif source == "phrase":
                    self.phrase(section, rules)
                elif own and source not in ("answer", "whole"):
                    self.own(source, section, rules)
        self._add(section)

    def own(self, source: str, text: str, rules: Rules) -> None:
        """A tag or a pattern of the caller's own. Neither is looked for again in what it holds."""
        kind, _, rest = source.partition(":")
        found = last_tag(text, named_tags(rest)) if kind == "tag" else compiled(rest).answer(text)
        self.narrow(found, rules, own=False)

    def boxed(self, text: str, rules: Rules) -> None:
        if not (found := boxed_answer(text)):
            return
        answer, several, end = found

        def add() -> None:
            sure = not several and not HEDGE.search(answer)
            if sure and "phrase" in rules.extract and says_value(later := text[end:]):
                self.phrase(later, rules)  # said last
            self._add(answer)
            self._closed = self._closed or several

        self._unless_taken_back(text, end, rules, add)

    def phrase(self, text: str, rules: Rules) -> None:
        if value := json_answer(text):
            if "boxed" in rules.extract:
                self.boxed(value, rules)
            self._add(value)
            return
        rest = after_phrase(text)
        sentence = rest and first_sentence(rest)
        if not sentence:
            return
        if "boxed" in rules.extract and (found := boxed_answer(sentence)) and not HEDGE.search(sentence):
            self.boxed(sentence, rules)
            self._closed = self._closed or found[1]
        self._add(sentence)

    def _unless_taken_back(self, text: str, end: int, rules: Rules, add: Callable[[], None]) -> None:
        """An answer that is taken back, at ``end``, counts no more: only what is said instead, by a phrase."""
        if self._closed:
            return
        if not taken_back(text, end):
            add()
            return
        if "phrase" in rules.extract:
            self.phrase(text[end:], rules)
        self._closed = True

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
