"""What learners need, from their models' configurations alone: no weight is read. These are estimates, in bytes.

Of P parameters that learn and F that are frozen, at b bytes each (4 in float32 and where ranks share a model, else 2):

    weights      b · (P + F)
    optimizer    8 · P for AdamW's moments, and 4 · P for the float32 copies beside bfloat16 weights
    gradients    4 · P, of one learner at a time
    activations  tokens · layers · (6H + 5A + 5K + 4I), plus patches · depth · (11H + 2I) of the images, in the
                 precision that is computed in; plus three times the logits of a chunk, in float32

Adapters are the P of their learner and its base the F, which is held once for all that share it, over ranks in the
precision that is computed in, and which no checkpoint holds. Of what is offloaded one learner's optimizer is counted,
while it works, or a chunk.

H is the hidden size, A and K are heads and key-value heads times their size, I the width of the MLP (of all experts
that a token is sent to). With gradient checkpointing a layer keeps 1.5H a token, and one layer everything. The factors
were counted on what autograd keeps for Qwen3-VL. Ranks share all but the activations. What the allocator, CUDA and the
libraries hold comes on top: allow a fifth. A pass is taken to have all of its ``micro_batch_tokens``.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from prism.config import LoraConfig, MixtureConfig, RunConfig
from prism.errors import ConfigError
from prism.model.adapters.layers import add_adapter
from prism.model.expert import CLASSES, mixture_config, refuse_other_family
from prism.trainer.learn.freeze import freeze
from prism.trainer.learn.offload import CHUNK
from prism.trainer.learn.policy_model import LOGITS


@dataclass(frozen=True)
class ModelSize:
    """Parameters of a model, and numbers that a pass through it keeps for the backward pass."""

    trained: int
    frozen: int
    per_token: float
    """Kept for a token, in all layers."""
    once_per_token: float
    """Kept for a token in the one layer that is computed again; 0 without gradient checkpointing."""
    per_patch: float
    states_per_token: float
    """Keys and values of a token, in all layers."""
    of_one_layer: float
    """Numbers that a token takes in one layer, while that is computed."""
    vocabulary: int
    base: str | None = None
    """Of adapters, the folder whose frozen model they are over."""

    @property
    def parameters(self) -> int:
        return self.trained + self.frozen


@dataclass(frozen=True)
class Memory:
    """Of one rank, in bytes."""

    weights: float
    optimizer: float
    gradients: float
    activations: float

    @property
    def total(self) -> float:
        return self.weights + self.optimizer + self.gradients + self.activations


def policy_size(
    folder: Path, frozen: Sequence[str], *, checkpointing: bool = False, lora: LoraConfig | None = None
) -> ModelSize:
    """Raises ConfigError for a folder without a model, or a frozen part or a layer that it does not have."""
    config = _config(folder)
    refuse_other_family(config.model_type, folder)
    size = _size(AutoModelForImageTextToText.from_config, config, frozen, checkpointing, lora)
    return replace(size, base=str(folder)) if lora else size


def expert_size(
    folder: Path,
    mixture: MixtureConfig | None,
    frozen: Sequence[str],
    *,
    checkpointing: bool = False,
    lora: LoraConfig | None = None,
) -> ModelSize:
    """The expert that a policy's folder becomes. Raises as ``policy_size``."""
    config = _config(folder)
    refuse_other_family(config.model_type, folder)
    if lora:
        size = _size(CLASSES[config.model_type], config, frozen, checkpointing, lora, mixture)
        return replace(size, base=str(folder))
    if mixture and config.model_type == "qwen3_vl":
        config = mixture_config(config, mixture.experts, mixture.top_k)
    return _size(CLASSES[config.model_type], config, frozen, checkpointing)


def learners_memory(
    config: RunConfig,
    learners: Sequence[tuple[ModelSize, int]],
    *,
    ranks: int = 1,
    reference: bool = False,
    autocast: bool = False,
    patches_per_token: float = 0.0,
) -> Memory:
    """Of learners that one process holds, each with its ``micro_batch_tokens``, and of a frozen ``reference``."""
    held = 4 if config.dtype == "float32" or ranks > 1 else 2
    in_precision = 4 if config.dtype == "float32" else 2
    computed = 2 if config.dtype == "bfloat16" or autocast else 4
    sizes = [size for size, _ in learners]
    whole = [size for size in sizes if size.base is None]
    weights = held * sum(size.parameters for size in whole)
    weights += held * sizes[0].parameters if reference and sizes[0].base is None else 0
    bases = {size.base: size.frozen for size in sizes if size.base}
    weights += in_precision * (sum(bases.values()) + sum(size.trained for size in sizes if size.base))
    states = [size.trained * (8 if (in_precision if size.base else held) == 4 else 12) for size in sizes]
    optimizer = sum(states)
    if config.offload:
        optimizer = max(states) if config.offload == "idle" else min(CHUNK, max(states))
        optimizer = sum(states) if config.offload == "idle" and len(states) == 1 else optimizer

    def update(size: ModelSize, tokens: int) -> tuple[float, float]:
        kept = size.per_token + size.once_per_token + patches_per_token * size.per_patch
        logits = min(LOGITS[config.device], tokens * size.vocabulary)  # of a chunk
        return 4 * size.trained / ranks, tokens * kept * computed + 3 * 4 * logits

    gradients, activations = max((update(*learner) for learner in learners), key=sum)
    return Memory(weights / ranks, optimizer / ranks, gradients, activations)


def checkpoint_bytes(config: RunConfig, sizes: Sequence[ModelSize], ranks: int = 1) -> float:
    """Of a checkpoint: float32 weights and moments of what learns, the rest as it is held, but for adapters' base."""
    held = 4 if config.dtype == "float32" or ranks > 1 else 2
    return sum(12 * size.trained + (0 if size.base else held * size.frozen) for size in sizes)


def _config(folder: Path) -> Any:
    try:
        return AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ConfigError(f"no model can be loaded from {folder}: {str(error)[:500]}") from None


def _size(
    make: Any,
    config: Any,
    frozen: Sequence[str],
    checkpointing: bool,
    lora: LoraConfig | None = None,
    mixture: MixtureConfig | None = None,
) -> ModelSize:
    with torch.device("meta"):
        model = make(config)
        if lora:
            model.requires_grad_(False)
            add_adapter(model, "adapter", lora, mixture)
            if head := getattr(model, "score", None):
                head.requires_grad_(True)
    freeze(model, frozen)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    text, vision = config.text_config, config.vision_config
    heads, pairs = text.num_attention_heads * text.head_dim, text.num_key_value_heads * text.head_dim
    experts = getattr(text, "num_experts_per_tok", None)
    width = experts * text.moe_intermediate_size if experts else text.intermediate_size
    if mixture and lora:  # each expert's states, over the shared ones
        width = round(text.intermediate_size * (0.5 + 1.25 * mixture.top_k))
    layer = 6 * text.hidden_size + 5 * heads + 5 * pairs + 4 * width
    pixels = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    return ModelSize(
        trained,
        sum(parameter.numel() for parameter in model.parameters()) - trained,
        per_token=text.num_hidden_layers * (1.5 * text.hidden_size if checkpointing else layer),
        once_per_token=layer if checkpointing else 0,
        per_patch=vision.depth * (11 * vision.hidden_size + 2 * vision.intermediate_size) + 2 * pixels,
        states_per_token=2 * text.num_hidden_layers * pairs,
        of_one_layer=layer,
        vocabulary=text.vocab_size,
    )
