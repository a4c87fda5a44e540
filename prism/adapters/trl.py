"""A reward function for TRL's GRPOTrainer, and its other trainers that take one. (No torch, no TRL.)

::

    from prism.adapters.trl import GraderReward

    trainer = GRPOTrainer(model=..., reward_funcs=GraderReward(gold="answer"), train_dataset=...)

The shape is that of TRL 1.16.0 (November 2026), ``GRPOTrainer._calculate_rewards`` and its documentation, "Using a
custom reward function": it is called with ``prompts``, ``completions`` (texts, or lists of messages),
``completion_ids``, a list for each other column of the data set, ``trainer_state``, ``log_extra`` and ``log_metric``,
and returns a number or None for each completion.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from prism.adapters.grading import Grading, Value
from prism.errors import ConfigError


class GraderReward:
    """The grader's verdict on each completion, by a column of gold answers.

    What has no verdict (a gold answer that cannot be read, a comparison that took too long) gives None: TRL leaves such
    a completion out of its group's mean, and its advantage is 0. (Where there are more reward functions, their numbers
    are that completion's whole reward.) The share of such completions is logged as ``prism/not_judged``, every status
    in the table of completions as ``prism_status``.
    """

    __name__ = "prism_grader"  # TRL logs rewards by it

    def __init__(
        self,
        url: str | None = None,
        *,
        gold: str = "gold",
        kind_column: str | None = None,
        options_column: str | None = None,
        token: str | None = None,
        kind: str = "auto",
        rules: Mapping[str, Any] | None = None,
        value: Value = "accuracy",
        patience_seconds: float = 120.0,
    ) -> None:
        """``gold``, ``kind_column`` and ``options_column`` name columns of the data set; all else is Grading's."""
        self._columns = {"gold": gold, "kind": kind_column, "options": options_column}
        self._grading = Grading(
            url, token=token, kind=kind, rules=rules, value=value, patience_seconds=patience_seconds
        )

    def __call__(
        self,
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]] | None = None,
        log_extra: Callable[[str, list[str]], None] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """Raises ConfigError for a column that the data set lacks, else as ``Grading.grade``."""
        named = {field: column for field, column in self._columns.items() if column}
        if missing := [column for column in named.values() if column not in columns]:
            raise ConfigError(f"the data set has no column {', '.join(missing)}, only {', '.join(sorted(columns))}")
        items = [
            {field: columns[column][index] for field, column in named.items()}
            | {"response": completion_text(completion)}
            | ({"tokens": len(completion_ids[index])} if completion_ids is not None else {})
            for index, completion in enumerate(completions)
        ]
        verdicts = self._grading.grade(items)
        values: list[float | None] = [getattr(verdict, self._grading.value) for verdict in verdicts]
        if log_metric and values:
            log_metric("prism/not_judged", values.count(None) / len(values))
        if log_extra:
            log_extra("prism_status", [verdict.status for verdict in verdicts])
        return values

    def close(self) -> None:
        """End the grader, if it is this process's own. It ends with the process in any case."""
        self._grading.close()


def completion_text(completion: Any) -> str:
    """A completion as TRL has it: a text, or messages, of which the assistant's last one holds the answer."""
    if isinstance(completion, str):
        return completion
    said = [message for message in completion if message.get("role") == "assistant"]
    content = said[-1].get("content") if said else None
    if isinstance(content, list):
        content = "".join(part.get("text") or "" for part in content if part.get("type") == "text")
    return content or ""
