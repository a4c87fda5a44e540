"""Groups like those of alignment: one prompt with a picture, 16 responses; lengths spread over what occurs."""

import io
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from configs.demo import task
from configs.demo.model import Size, save_model
from prism.model.expert import load_expert, save_expert, upcycle
from prism.model.inputs import InputBuilder
from prism.wire.messages import data_uri

RESPONSES = 16
PROMPT_TOKENS, RESPONSE_TOKENS = (300, 1200), (40, 400)
SIZES = {
    "demo": Size(max_positions=4096, max_side=1024),
    "8m": Size(hidden=256, layers=6, heads=8, key_value_heads=4, mlp=704, vision_hidden=192, vision_layers=4,
               vision_heads=6, vision_mlp=384, max_positions=4096, max_side=1024),
    # The sizes of Qwen/Qwen3-VL-2B-Instruct.
    "2b": Size(hidden=2048, layers=28, heads=16, key_value_heads=8, head=128, mlp=6144, vision_hidden=1024,
               vision_layers=24, vision_heads=16, vision_mlp=4096, initializer_range=0.02, embeddings=151_936,
               max_positions=8192, max_side=768, deepstack=(5, 11, 17), dtype="bfloat16"),
}  # fmt: skip


@dataclass(frozen=True)
class Workload:
    question: str
    image: bytes
    responses: list[str]

    @property
    def item(self) -> dict[str, Any]:
        """As the service takes it."""
        return {"prompt": self.question, "images": [data_uri(self.image)], "responses": self.responses}


def make_model(folder: Path, size: str, experts: int, device: str) -> InputBuilder:
    """An expert with random weights in ``folder``: dense, or a mixture of ``experts`` of which each token sees 2."""
    dense = folder / "policy"
    with torch.device(device):
        save_model(dense, task.corpus(), task.TAGS, 0, SIZES[size])
    dtype: torch.dtype = getattr(torch, SIZES[size].dtype)
    expert = upcycle(dense, experts=experts, noise=0, dtype=dtype) if experts else load_expert(dense, dtype=dtype)
    inputs = InputBuilder(dense)
    save_expert(expert, folder / "expert", inputs)
    return inputs


def make_groups(inputs: InputBuilder, count: int, seed: int) -> list[Workload]:
    """Prompts of 300 to 1,200 tokens, most of them the picture's, and responses of 40 to 400; no two texts alike."""
    rng = random.Random(seed)
    return [_group(inputs, rng) for _ in range(count)]


def _group(inputs: InputBuilder, rng: random.Random) -> Workload:
    tokens = rng.randint(*PROMPT_TOKENS)
    text_tokens = rng.randint(60, 200)
    side = 32 * max(2, round((tokens - text_tokens) ** 0.5))
    pixels = np.frombuffer(rng.randbytes(side // 8 * (side // 8)), np.uint8).reshape(side // 8, side // 8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((side, side)).save(file, "PNG")
    texts = [_text(inputs, rng, rng.randint(*RESPONSE_TOKENS)) for _ in range(RESPONSES)]
    return Workload(_text(inputs, rng, text_tokens), file.getvalue(), [f"<caption>{text}" for text in texts])


def _text(inputs: InputBuilder, rng: random.Random, tokens: int) -> str:
    """About that many tokens (end token and tag included) of the demo's own language, in no order."""
    text = ""
    while len(inputs.text_ids(text)) < tokens - 2:
        puzzle = task.draw_puzzle(rng, rng.choice(task.LEVELS))
        text += f" {task.question_text(puzzle)} {rng.randint(0, 10**6)}"
    return inputs.tokenizer.decode(inputs.text_ids(text)[: tokens - 2])
