"""A model as a learner of a run holds it."""

from collections.abc import Callable
from typing import Any

import torch
import torch._dynamo.config as dynamo

from prism.config import RunConfig
from prism.trainer.learn import ranks

# Compiled of a decoder layer, policy's and experts' together; torch's 8 would be too few for three models.
PROGRAMS = 64


def learner_model(load: Callable[[torch.dtype], Any], config: RunConfig, *, held: torch.dtype = torch.float32) -> Any:
    """The model that ``load(dtype of its weights)`` makes, over all ranks; it saves time and memory as the run says.

    ``held``: the precision of shards.
    """
    model = ranks.shard_model(load, config.device, getattr(torch, config.dtype), held)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    if config.compile:
        compile_layers(model)
    return model


def compile_layers(model: Any, backend: str = "inductor") -> None:
    """Decoder layers through ``torch.compile``: what stands between matrix products is fused.

    All layers are one program, for rows of any length; a few lengths make torch compile another. Shards (FSDP2) are
    gathered outside of it.
    """
    dynamo.recompile_limit = PROGRAMS
    for layer in model.model.language_model.layers:
        layer.forward = torch.compile(layer.forward, dynamic=True, backend=backend)
