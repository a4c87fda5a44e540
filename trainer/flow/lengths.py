"""Demonstrations that are longer than a model has positions for: refused by name, with their length."""

from collections.abc import Callable, Sequence
from pathlib import Path

from prism.data.checks import FitsUncounted, RowCheck, Size
from prism.data.rows import DataRow
from prism.errors import ConfigError, DataError
from prism.model.inputs import SAFELY, InputBuilder
from prism.wire.messages import from_json


def max_positions(model: Path | str) -> int:
    """Tokens of a sequence that a model has positions for. Raises ConfigError if its folder does not say."""
    from transformers import AutoConfig

    text = AutoConfig.from_pretrained(str(model), trust_remote_code=SAFELY["trust_remote_code"]).get_text_config()
    if not isinstance(found := getattr(text, "max_position_embeddings", None), int):
        raise ConfigError(f"{model} does not say how many positions it has: set max_tokens")
    return found


def refuse_overlong(inputs: InputBuilder, limit: int, target: str) -> RowCheck:
    """What raises DataError for a row whose prompt and ``target`` come to more than ``limit`` tokens, end included."""

    return _RefuseOverlong(inputs, limit, target)


class _RefuseOverlong:
    """A RowCheck."""

    def __init__(self, inputs: InputBuilder, limit: int, target: str) -> None:
        self._inputs, self._limit, self._target = inputs, limit, target
        self.fits = FitsUncounted(limit, target)

    def __call__(self, row: DataRow, sizes: Sequence[Size]) -> None:
        if self.fits(row, sizes, sum(self._inputs.image_tokens(*size) for size in sizes)):
            return
        prompt = self._inputs.prompt_tokens(from_json(row.messages, str), sizes, room=-1)
        response: str = getattr(row, self._target) or ""
        if (tokens := prompt + len(self._inputs.text_ids(response)) + 1) > self._limit:
            raise DataError(too_long(tokens, self._limit))


def too_long(tokens: int, limit: int) -> str:
    return f"{tokens:,} tokens of prompt and response, over the limit of {limit:,} (max_tokens, by default the model's)"


def count_tokens(inputs: InputBuilder) -> Callable[[DataRow, Sequence[Size]], tuple[int, int]]:
    """What gives the tokens of a row's prompt, images of these sizes included, and of its response with its end."""

    def count(row: DataRow, sizes: Sequence[Size]) -> tuple[int, int]:
        prompt = inputs.prompt_tokens(from_json(row.messages, str), sizes, room=-1)
        return prompt, 0 if row.response is None else len(inputs.text_ids(row.response)) + 1

    return count
