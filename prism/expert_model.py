"""An expert of the discriminator: a Qwen3-VL backbone with one scalar read at the last token (method: Discriminator).

Tensor names are the policy's own plus ``score.weight``, so any Qwen3-VL folder is a starting point, and a folder
written here can be served by whatever serves a Qwen3-VL with a classification head.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForImageTextToText

from prism.errors import WeightsError
from prism.inputs import Batch, InputBuilder, hidden_states

WEIGHTS_FILE = "model.safetensors"


class ExpertModel(nn.Module):
    """Raw Bradley-Terry scores: only differences between responses to one prompt mean something."""

    def __init__(self, backbone: Any, dropout: float = 0.0) -> None:
        super().__init__()
        self.model = backbone
        self.dropout = nn.Dropout(dropout)
        self.score = nn.Linear(backbone.config.text_config.hidden_size, 1, bias=False)

    def forward(self, batch: Batch) -> torch.Tensor:
        """Scores [B] in float32."""
        hidden = hidden_states(self.model, batch)  # [B, L, H]
        last = hidden[torch.arange(len(hidden), device=hidden.device), batch.lengths - 1]  # [B, H]
        return self.score(self.dropout(last)).squeeze(-1).float()


def load_expert(
    folder: Path | str,
    *,
    seed: int,
    dropout: float = 0.0,
    dtype: torch.dtype = torch.float32,
    attention: str = "sdpa",
) -> ExpertModel:
    """An expert from a folder written by ``save_expert``, or from a policy with a new head, N(0, 0.02) by ``seed``."""
    policy = AutoModelForImageTextToText.from_pretrained(str(folder), dtype=dtype, attn_implementation=attention)
    expert = ExpertModel(policy.model, dropout).to(dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        expert.score.weight.copy_(torch.randn(expert.score.weight.shape, generator=generator) * 0.02)
    weights = Path(folder) / WEIGHTS_FILE
    if weights.is_file():
        tensors = load_file(weights)
        if "score.weight" in tensors:
            load_tensors(expert, tensors)
    return expert


def load_tensors(expert: ExpertModel, tensors: dict[str, torch.Tensor]) -> None:
    """Raises WeightsError unless ``tensors`` are exactly this model's."""
    try:
        expert.load_state_dict(tensors)
    except RuntimeError as error:
        raise WeightsError(f"these are not the weights of this expert: {str(error)[:500]}") from None


def save_expert(expert: ExpertModel, folder: Path, inputs: InputBuilder) -> None:
    """Write the expert as a folder, with the processor its inputs were built by."""
    folder.mkdir(parents=True, exist_ok=True)
    inputs.processor.save_pretrained(folder)
    config = expert.model.config.to_dict()
    (folder / "config.json").write_text(json.dumps(config, indent=1, default=str))
    save_file(
        {name: tensor.detach().contiguous().cpu() for name, tensor in expert.state_dict().items()},
        folder / WEIGHTS_FILE,
        metadata={"format": "pt"},
    )
