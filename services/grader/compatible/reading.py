"""How a route of another trainer's shape reads responses: its query parameters, as the body's shape is not ours."""

from typing import Literal

from pydantic import BaseModel, Field, ValidationError, model_validator

from prism.services.grader.protocol import GradeRules
from prism.services.grader.verdict import AnswerKind
from prism.settings import describe
from prism.wire.grading import split_sources


class Reading(BaseModel):
    """The defaults are for any model: other trainers' do not write PRISM's sections."""

    kind: AnswerKind = Field("auto", description="kind of the gold answers")
    format: Literal["required", "ignored"] = Field(
        "ignored", description="required: a response that breaks PRISM's response format earns 0"
    )
    extract: str = Field(
        "answer,boxed,phrase",
        max_length=1_200,
        description="where the answer is, first match first, by commas: answer, boxed, phrase, whole, tag:NAME, "
        "pattern:REGULAR EXPRESSION, which takes all that follows it",
    )
    value: Literal["accuracy", "reward"] = Field(
        "accuracy", description="accuracy: 1 right, 0 wrong. reward: by the service's formula, format included"
    )

    @model_validator(mode="after")
    def _rules_are_rules(self) -> "Reading":
        try:
            self.rules()
        except ValidationError as error:
            raise ValueError("; ".join(describe(error))) from None
        return self

    def rules(self) -> GradeRules:
        """Raises ValidationError."""
        return GradeRules.model_validate({"format": self.format, "extract": split_sources(self.extract)})
