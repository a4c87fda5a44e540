"""What an answer of the teacher's must pass. Nobody here is told who wrote it, how, or at which attempt."""

from dataclasses import dataclass, field
from typing import Any, Literal

Outcome = Literal["ok", "wrong", "undecided"]


@dataclass(frozen=True)
class Check:
    """What one check says. ``undecided`` is neither: rules that do not apply, a judge that cannot tell."""

    outcome: Outcome
    why: str = ""
    by: str = "rules"
    figures: dict[str, Any] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        return {"outcome": self.outcome, "why": self.why, "by": self.by} | self.figures


class NotChecked(Exception):
    """Who should have checked was away, or gave no verdict: the answer waits, it is not rejected."""
