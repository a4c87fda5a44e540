"""The plain way to run a Qwen3-VL: every sequence whole, padded on the right, its image once for each of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText

from prism.model.inputs import Example, InputBuilder


def load_stock(folder: Path | str, *, dtype: torch.dtype = torch.float32, attention: str = "sdpa") -> Any:
    """transformers' model with transformers' own attention."""
    return AutoModelForImageTextToText.from_pretrained(str(folder), dtype=dtype, attn_implementation=attention)


def collate(examples: Sequence[Example], inputs: InputBuilder, *, left: bool = False) -> dict[str, Tensor]:
    """What the stock model's ``forward`` takes: input_ids, attention_mask, mm_token_type_ids [B, L], and images.

    ``left``: padded there, as ``generate`` wants it.
    """
    lengths = [len(example.input_ids) for example in examples]
    ids = torch.full((len(examples), max(lengths)), inputs.end_token_id)
    for row, example in enumerate(examples):
        place = slice(max(lengths) - lengths[row], None) if left else slice(lengths[row])
        ids[row, place] = torch.tensor(example.input_ids)
    held = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    batch = {
        "input_ids": ids,
        "attention_mask": (held.flip(1) if left else held).long(),
        "mm_token_type_ids": (ids == inputs.image_token_id).int(),
    }
    pixels = [example.pixel_values for example in examples if example.pixel_values is not None]
    grids = [example.image_grid_thw for example in examples if example.image_grid_thw is not None]
    return batch | ({"pixel_values": torch.cat(pixels), "image_grid_thw": torch.cat(grids)} if pixels else {})


def response_mask(examples: Sequence[Example]) -> Tensor:
    """[B, L] bool: True where a token belongs to the response."""
    position = torch.arange(max(len(example.input_ids) for example in examples))
    starts = torch.tensor([example.prompt_length for example in examples])[:, None]
    ends = torch.tensor([len(example.input_ids) for example in examples])[:, None]
    return (starts <= position) & (position < ends)


def response_logprobs(
    model: Any, examples: Sequence[Example], inputs: InputBuilder, temperature: float = 1.0
) -> Tensor:
    """Log-probabilities [R] of all response tokens, example after example, from their logits [R, V]."""
    batch = {name: tensor.to(model.device) for name, tensor in collate(examples, inputs).items()}
    mask = response_mask(examples)[:, 1:].to(model.device)
    states = model.model(**batch, use_cache=False).last_hidden_state[:, :-1][mask]  # [R, H]
    logprobs = (model.lm_head(states).float() / temperature).log_softmax(-1)
    return logprobs.gather(-1, batch["input_ids"][:, 1:][mask][:, None]).squeeze(-1)
