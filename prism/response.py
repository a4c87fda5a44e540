"""The response format, parsed in one place for grader, experts, learners and reports.

``<caption>`` bullets of visual facts ``</caption><think>`` steps ``</think><answer>`` final answer ``</answer>``

The caption is the *perception section*; think and answer are the *reasoning section* (method: arXiv 2604.28123).
"""

import re
from collections import Counter
from dataclasses import dataclass

SECTIONS = ("caption", "think", "answer")
_TAG = re.compile(r"<(/?)(caption|think|answer)>")
_WHOLE = re.compile(
    r"\s*<caption>(?P<caption>.*?)</caption>\s*<think>(?P<think>.*?)</think>\s*<answer>(?P<answer>.*?)</answer>\s*",
    re.DOTALL,
)


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

    @property
    def perception(self) -> str:
        """The section the perception expert judges, tags included."""
        return f"<caption>{self.caption}</caption>"

    @property
    def reasoning(self) -> str:
        """The section the reasoning expert judges, tags included; it never holds the caption."""
        return f"<think>{self.think}</think><answer>{self.answer}</answer>"

    @property
    def bullets(self) -> tuple[str, ...]:
        """The caption's visual facts, one per line, without bullet marks and outer white space."""
        lines = (line.strip().lstrip("-*•").strip() for line in self.caption.splitlines())
        return tuple(line for line in lines if line)


def parse_response(text: str) -> ParsedResponse:
    """Take a response apart. Never raises: whatever is wrong is named in ``problems``."""
    tags = Counter((name, bool(slash)) for slash, name in _TAG.findall(text))
    # Counted first: on repeated tags the pattern would take cubic time, 4 s for 13 kB.
    once = all(tags[name, closing] == 1 for name in SECTIONS for closing in (False, True))
    if once and (match := _WHOLE.fullmatch(text)):
        sections = {name: match[name].strip() for name in SECTIONS}
        empty = tuple(f"empty <{name}>" for name in SECTIONS if not sections[name])
        return ParsedResponse(**sections, problems=empty)
    return ParsedResponse("", "", "", problems=_problems(tags))


def _problems(tags: Counter[tuple[str, bool]]) -> tuple[str, ...]:
    problems: list[str] = []
    for name in SECTIONS:
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
