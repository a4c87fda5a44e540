"""What a user writes first: the library's processor and model over padded batches, every sequence whole."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from bench.experts.workload import Workload
from prism.model import torchvision_cpu
from prism.model.expert import load_expert
from prism.model.inputs import InputBuilder

torchvision_cpu.install()

from transformers import AutoConfig  # noqa: E402  (torchvision must find its operators declared)


class PlainLoop:
    """One padded batch a group: as many sequences as responses, each with the picture and the prompt again."""

    def __init__(self, folder: Path, inputs: InputBuilder, device: str) -> None:
        dtype: Any = AutoConfig.from_pretrained(folder).dtype
        self.model: Any = load_expert(folder, dtype=dtype, strict=True).to(device).eval()
        self.model.set_attn_implementation({"text_config": "sdpa"})  # transformers' own: ours takes packed rows alone
        self.processor, self.end, self.device = inputs.processor, inputs.tokenizer.eos_token, device

    def score(self, groups: Sequence[Workload]) -> list[list[float]]:
        return list(map(self._batch, groups))

    @torch.inference_mode()
    def _batch(self, group: Workload) -> list[float]:
        content = [{"type": "image"}, {"type": "text", "text": group.question}]
        prompt = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        picture = Image.open(io.BytesIO(group.image)).convert("RGB")
        inputs = self.processor(
            text=[prompt + response + self.end for response in group.responses],
            images=[picture] * len(group.responses),
            padding=True,
            padding_side="right",
            return_tensors="pt",
        ).to(self.device)
        hidden = self.model.model(**inputs, use_cache=False).last_hidden_state  # [B, L, H]
        last = inputs["attention_mask"].sum(-1) - 1
        return self.model.score(hidden[torch.arange(len(hidden), device=hidden.device), last]).squeeze(-1).tolist()
