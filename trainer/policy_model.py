"""The policy as the learner holds it: an ordinary Hugging Face vision-language model."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForImageTextToText

from prism.errors import ConfigError
from prism.inputs import Batch, InputBuilder, hidden_states

LOGITS_CHUNK = 1024  # response tokens whose logits exist at one time: [chunk, vocabulary]


def load_policy(folder: Path | str, *, dtype: torch.dtype, attention: str, device: str = "cpu") -> Any:
    """Raises ConfigError if there is no model to load."""
    try:
        model: Any = AutoModelForImageTextToText.from_pretrained(
            str(folder), dtype=dtype, attn_implementation=attention
        )
        return model.to(device)
    except (OSError, ValueError) as error:
        raise ConfigError(f"no model can be loaded from {folder}: {str(error)[:500]}") from None


def save_policy(model: Any, folder: Path, inputs: InputBuilder) -> None:
    """An ordinary Hugging Face folder, processor included: whatever loads the base model loads this."""
    model.save_pretrained(folder)
    inputs.processor.save_pretrained(folder)


def response_logprobs(model: Any, batch: Batch, temperature: float = 1.0) -> Tensor:
    """Log-probabilities [T] in float32 of all response tokens of the batch, sample after sample.

    ``temperature`` is the sampler's: the ratio compares the distributions that are sampled from.

    Logits are made for response tokens alone, a chunk at a time, and again in the backward pass.
    """
    hidden = hidden_states(model.model, batch)  # [B, L, H]
    predicts = batch.response_mask[:, 1:]  # position l predicts token l + 1
    states = hidden[:, :-1][predicts]  # [T, H]
    targets = batch.input_ids[:, 1:][predicts]  # [T]

    def chunk_logprobs(chunk: Tensor, target: Tensor) -> Tensor:
        logits = model.lm_head(chunk).float() / temperature
        return logits.gather(-1, target[:, None]).squeeze(-1) - logits.logsumexp(-1)

    parts = [
        checkpoint(chunk_logprobs, chunk, target, use_reentrant=False)
        if torch.is_grad_enabled() and len(states) > LOGITS_CHUNK
        else chunk_logprobs(chunk, target)
        for chunk, target in zip(states.split(LOGITS_CHUNK), targets.split(LOGITS_CHUNK), strict=True)
    ]
    return torch.cat(parts)
