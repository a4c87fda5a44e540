"""How a route of another trainer's shape reads responses: its query parameters, as the body's shape is not ours."""

from typing import Literal

from pydantic import BaseModel, Field, ValidationError, model_validator

from prism.services.grader.protocol import GradeRules
from prism.services.grader.verdict import AnswerKind


class Reading(BaseModel):
    """The defaults are for any model: other trainers' do not write PRISM's sections."""

    kind: AnswerKind = Field("auto", description="kind of the gold answers")
    format: Literal["required", "ignored"] = Field(
        "ignored", description="required: a response that breaks PRISM's response format earns 0"
    )
    extract: str = Field(
        "answer,boxed,phrase",
        max_length=100,
        description="where the answer is, first match first, by commas: answer, boxed, phrase, whole, tag:NAME",
    )
    value: Literal["accuracy", "reward"] = Field(
        "accuracy", description="accuracy: 1 right, 0 wrong. reward: by the service's formula, format included"
    )

    @model_validator(mode="after")
    def _rules_are_rules(self) -> "Reading":
        try:
            self.rules()
        except ValidationError:
            raise ValueError("extract: some of answer, boxed, phrase, whole, tag:NAME, by commas") from None
        return self

    def rules(self) -> GradeRules:
        """Raises ValidationError."""
        sources = [source.strip() for source in self.extract.split(",")]
        return GradeRules.model_validate({"format": self.format, "extract": sources})
