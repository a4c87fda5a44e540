"""The response format, parsed in one place for grader, experts, learners and reports.

``<caption>`` bullets of visual facts ``</caption><think>`` steps ``</think><answer>`` final answer ``</answer>``

The caption is the *perception section*; think and answer are the *reasoning section* (method: arXiv 2604.28123).
"""

import re
from collections import Counter
from dataclasses import dataclass
from typing import Literal

# Named for the section of a response that each judges.
Expert = Literal["perception", "reasoning"]
EXPERTS: tuple[Expert, ...] = ("perception", "reasoning")

Network = Literal["perception", "reasoning", "discriminator"]
"""A network that scores responses: an expert's own, or the one that both experts share."""
DISCRIMINATOR: Network = "discriminator"

JudgedSection = Literal["own", "whole"]
"""What of a response an expert is shown: its own section, or all three, in which case both are shown the same."""

TAGS = ("caption", "think", "answer")
_TAG = re.compile(r"<(/?)(caption|think|answer)>")
_SLASHES, _NAMES = ["", "/"] * len(TAGS), [name for name in TAGS for _ in range(2)]


def experts_of(network: str) -> tuple[Expert, ...]:
    """The experts that a network is: itself, or both; none for the policy."""
    return EXPERTS if network == DISCRIMINATOR else tuple(expert for expert in EXPERTS if expert == network)


@dataclass(frozen=True)
class ParsedResponse:
    """A response taken apart. ``problems`` names what breaks the format; it is empty for a valid response."""

    caption: str
    think: str
    answer: str
    problems: tuple[str, ...]

    @property
    def valid(self) -> bool:
        return not self.problems

    def section(self, expert: Expert) -> str:
        """What this expert judges of a valid response, tags included. The reasoning expert never sees the caption."""
        if expert == "perception":
            return f"<caption>{self.caption}</caption>"
        return f"<think>{self.think}</think><answer>{self.answer}</answer>"

    def judged(self, expert: Expert, section: JudgedSection) -> str:
        """What this expert is shown of a valid response, in learning and in scoring alike."""
        return self.section(expert) if section == "own" else "".join(map(self.section, EXPERTS))

    @property
    def bullets(self) -> tuple[str, ...]:
        """The caption's visual facts, one per line, without bullet marks and outer white space."""
        lines = (line.strip().lstrip("-*•").strip() for line in self.caption.splitlines())
        return tuple(line for line in lines if line)


def parse_response(text: str) -> ParsedResponse:
    """Take a response apart. Never raises: whatever is wrong is named in ``problems``."""
    # One pass over the tags: a pattern for the whole would take cubic time on repeated tags, 4 s for 13 kB.
    parts = _TAG.split(text)
    between, slashes, names = parts[0::3], parts[1::3], parts[2::3]
    if slashes == _SLASHES and names == _NAMES:
        before, caption, gap, think, another_gap, answer, after = map(str.strip, between)
        if not (before or gap or another_gap or after):
            if caption and think and answer:
                return ParsedResponse(caption, think, answer, ())
            held = zip(TAGS, (caption, think, answer), strict=True)
            return ParsedResponse(caption, think, answer, tuple(f"empty <{name}>" for name, text in held if not text))
    tags = Counter(zip(names, map(bool, slashes), strict=True))
    return ParsedResponse("", "", "", problems=_problems(tags))


def _problems(tags: Counter[tuple[str, bool]]) -> tuple[str, ...]:
    problems: list[str] = []
    for name in TAGS:
        opened, closed = tags[name, False], tags[name, True]
        if not opened:
            problems.append(f"missing <{name}>")
        elif not closed:
            problems.append(f"unclosed <{name}>")
        if opened > 1 or closed > 1:
            problems.append(f"more than one <{name}>")
        if closed and not opened:
            problems.append(f"</{name}> without <{name}>")
    return tuple(problems) or ("sections out of order, nested, or with text around them",)


def caption_f1(candidate: str, reference: str) -> float | None:
    """F1 of the candidate's caption bullets against the reference's, as multisets, in [0, 1].

    A candidate that does not parse has said nothing that can be checked and gets 0 (its facts are all missed).
    None if the reference has no bullets: there is nothing to compare with.
    """
    truth = Counter(parse_response(reference).bullets)
    if not truth:
        return None
    said = Counter(parse_response(candidate).bullets)
    hits = (said & truth).total()
    return 2 * hits / (said.total() + truth.total())
