"""A model's weights as its checkpoints name them, one tensor at a time."""

import json
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor
from transformers.core_model_loading import revert_weight_conversion

from prism.trainer.learn import ranks


def named_weights(model: Any, weights: dict[str, Tensor] | None = None) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors that ``save_pretrained`` would write, in the model's order; of tied ones the first alone.

    ``weights``: what ``ranks.full_weights`` gathered before, where the model is sharded.
    """
    return as_saved(model, own_weights(model, weights))


def own_weights(model: Any, weights: dict[str, Tensor] | None = None) -> Iterator[tuple[str, Tensor]]:
    """The same as the model itself names and lays them out, which nothing has to be copied for."""
    for name, tensor in (model.state_dict() if weights is None else weights).items():
        if name not in model.all_tied_weights_keys:
            yield name, tensor


def as_saved(model: Any, tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """``own_weights``, or copies of them, as ``save_pretrained`` would write them."""
    for name, tensor in tensors:
        yield from revert_weight_conversion(model, {name: tensor}).items()


def config_json(model: Any, architecture: str | None = None) -> str:
    """The content of ``config.json``; ``architecture`` names the class by which others load it, if not the model's."""
    config = json.loads(model.config.to_json_string())
    name = architecture or type(model).__name__.removeprefix("FSDP")
    return ranks.in_precision(model, json.dumps(config | {"architectures": [name]}, indent=2))
