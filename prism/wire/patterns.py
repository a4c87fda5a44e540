"""A caller's own regular expressions, in RE2's syntax: none takes more than linear time, whoever wrote it.

RE2 is google-re2, which the grader installs. Clients that only send a pattern do without, and do not import this.
"""

import functools
import itertools
import re
from dataclasses import dataclass
from typing import Any

import re2

# Of what a pattern compiles to, since each byte of a text may visit all of it and carries its groups along. With both
# limits the worst pattern found takes 1.3 s of processor time for 65,536 characters, a grader's longest text (with 128
# groups 5.9 s); "the answer is (\d+)" has 50 steps and takes 3 ms. \pL, all letters, has 1,200 steps.
MAX_STEPS, MAX_GROUPS = 1_500, 8
MAX_MEMORY = 2 * 2**20  # bytes of one compiled pattern, RE2's automata included; without room for them it is slower
KEPT = 32  # compiled patterns
_BYTES = re.compile(r"(?<!\\)(?:\\\\)*\\C")


class BadPattern(ValueError):
    """A pattern that cannot be used. The message completes "the pattern …" and holds RE2's words."""


@dataclass(frozen=True, slots=True)
class Pattern:
    """``compiled`` makes one."""

    alone: Any
    to_last: Any
    """Runs from the text's start to the end of its last match, its group 1."""

    @property
    def steps(self) -> int:
        return self.to_last.programsize

    def answer(self, text: str) -> str | None:
        """What the last match in ``text`` holds: its group ``answer``, else its first group, else all of it.

        None without a match, or if the group has no part in it.
        """
        # One pass finds the match that is last of finditer's. Iterating may look at the rest of the text again after
        # each match, which is quadratic.
        if not (found := self.to_last.match(text)):
            return None
        # Again by itself: a group that has no part in the last match would hold what it had in the one before.
        match = self.alone.match(text, found.start(1))
        assert match, "what matched at a place matches there again"
        answer = match["answer" if "answer" in self.alone.groupindex else min(1, self.alone.groups)]
        return answer and answer.strip()


@functools.lru_cache(maxsize=KEPT)
def compiled(pattern: str) -> Pattern:
    """Raises BadPattern: for what RE2 refuses, what is too large, and what matches where there is nothing."""
    if _BYTES.search(pattern):
        raise BadPattern(r"has \C, which splits characters")
    options = re2.Options()
    options.log_errors = False
    options.max_mem = MAX_MEMORY
    try:
        alone = re2.compile(pattern, options)
        made = Pattern(alone, re2.compile(rf"(?:(?s:.*?)({pattern}))+", options))
    except (re2.error, UnicodeError) as error:
        words = error.args[0]
        said = words.decode(errors="replace") if isinstance(words, bytes) else str(error)
        raise BadPattern(f"is none of RE2's: {said}") from None
    if made.steps > MAX_STEPS:
        raise BadPattern(f"has {made.steps} steps, over the limit of {MAX_STEPS}: repeat less")
    if alone.groups > MAX_GROUPS:
        raise BadPattern(f"has {alone.groups} groups, over the limit of {MAX_GROUPS}: write (?:…) for those not needed")
    if _matches_nothing(alone):
        raise BadPattern("matches where there is nothing, so its last match is empty: ask for a character, as .+ does")
    return made


def _matches_nothing(alone: Any) -> bool:
    """Whether there is a place at which the pattern matches no character.

    What it may look at there is whether the text or a line begins or ends, and whether a word does.
    """
    places = itertools.product(("", "\n", " ", "a"), repeat=2)
    return any(alone.match(before + after, len(before), len(before)) for before, after in places)
