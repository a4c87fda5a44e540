"""How a run has its responses graded."""

from typing import Literal

from pydantic import Field

from prism.config.strict import ConfigModel
from prism.wire.grading import Sources


class GraderConfig(ConfigModel):
    """How the grader reads responses; how it compares them is each row's ``kind`` and ``options``."""

    extract: Sources = Field(default=["answer", "boxed", "phrase"])
    """Where the answer is inside <answer>, first match first: ``boxed``, ``phrase``, ``tag:NAME``, ``pattern:REGULAR
    EXPRESSION`` (docs/grader.md); what none of them reads is read whole. By default boxes and "the answer is"."""
    unparseable: Literal["wrong", "masked"] = "wrong"
    """What RLVR makes of an answer that cannot be read as its gold answer's kind: ``wrong`` has accuracy 0, ``masked``
    is no reward at all, and the response is left out of its group. Wrong by default, since a policy whose unreadable
    answers cost nothing may come to prefer them. Held-out questions count them as wrong in any case."""

    def rules_json(self, *, held_out: bool = False) -> str:
        """``rules`` of a request to the grader, as JSON; empty for its defaults."""
        rules = self.model_copy(update={"unparseable": "wrong"}) if held_out else self
        return rules.model_dump_json(exclude_defaults=True) if rules != GraderConfig() else ""
