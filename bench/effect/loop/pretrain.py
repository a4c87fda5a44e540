"""Pretraining: what every arm starts from, so that only its end matters. Plain supervised learning on padded batches
with transformers' own model, all of the data on the device.

The platform's SFT makes each example when it is needed, and packs it: a step of 256 took a second on an H200 at the
study's size. Loss and gradients of a batch are the platform's (tests/unit/bench/test_effect_pretrain.py).
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface
from transformers.vision_utils import get_vision_position_ids

from bench.effect.loop.pretrain_rows import NO_TOKEN, Rows, load_rows
from bench.padded import load_stock
from prism.config import RunConfig, SftConfig
from prism.files import append_json
from prism.model.inputs import InputBuilder
from prism.trainer.flow.demonstrations import Order
from prism.trainer.learn.optimizer import Optimizer
from prism.trainer.learn.policy_model import save_policy

ALIKE = "images_of_one_size_flash"  # "flash": transformers hands such an attention all images at once
SAID_EVERY = 100  # steps


def pretrain(config: RunConfig, stage: SftConfig, start: Path, work: Path, out: Path) -> dict[str, Any]:
    """Train ``start`` on all rows of the stage's file and write it to ``out``; returns figures."""
    (file,) = stage.data
    assert isinstance(file, str)
    inputs, dtype = InputBuilder(start), getattr(torch, config.dtype)
    sizes = [rows.to(config.device) for rows in load_rows(Path(file), start, dtype)]
    model = stock(start, dtype, config.device)
    optimizer = Optimizer(model.named_parameters(), stage.optimizer, stage.steps)
    draw = np.random.default_rng(config.seed)
    counts = np.array([len(rows.ids) for rows in sizes])
    orders = [Order(int(count), stage.batch, config.seed) for count in counts]
    taken = [0] * len(sizes)
    total = torch.zeros((), device=config.device)
    for step in range(stage.steps):
        size = int(draw.choice(len(sizes), p=counts / counts.sum()))  # all pictures of a step have one size
        places = torch.tensor(orders[size].at(taken[size]), device=config.device)
        taken[size] += 1
        loss = loss_of(model, sizes[size], places)
        loss.backward()
        optimizer.step(1.0)  # a loss that is no number has a gradient that is none
        total += loss.detach()
        if (step + 1) % SAID_EVERY == 0:
            append_json(work / "metrics.jsonl", {"step": step + 1, "loss": total.item() / SAID_EVERY}, sync=False)
            total.zero_()
    save_policy(model, out, inputs)
    return {"steps": stage.steps, "rows": int(counts.sum())}


def stock(folder: Path, dtype: torch.dtype, device: str) -> Any:
    model = load_stock(folder, dtype=dtype).to(device).train()
    model.model.visual.config._attn_implementation = ALIKE
    return model


def loss_of(model: Any, rows: Rows, places: Tensor) -> Tensor:
    """Mean negative log-likelihood of the response tokens of these rows, in nats."""
    backbone, ids = model.model, rows.ids[places]
    longest = int((rows.targets[places] != NO_TOKEN).nonzero()[:, 1].max()) + 1
    ids, targets = ids[:, :longest], rows.targets[places][:, :longest]
    is_image = ids == backbone.config.image_token_id
    embeds = backbone.get_input_embeddings()(ids)
    pixels = rows.pixels[rows.picture[places]]  # [B, patches, patch size]
    count, patches = pixels.shape[:2]
    seen = backbone.visual(
        pixels.flatten(0, 1),
        grid_thw=rows.grid.expand(count, -1),
        return_dict=True,
        position_ids=get_vision_position_ids(rows.grid, backbone.visual.spatial_merge_size).repeat(count, 1),
        cu_seqlens=torch.arange(count + 1, dtype=torch.int32, device=ids.device) * patches,
        max_seqlen=patches,
    )
    states = backbone.language_model(
        inputs_embeds=embeds.masked_scatter(is_image[..., None], seen.pooler_output.to(embeds.dtype)),
        position_ids=rows.positions[:, places, :longest],
        use_cache=False,
        visual_pos_masks=is_image,
        deepstack_visual_embeds=list(seen.deepstack_features),
    ).last_hidden_state
    return F.cross_entropy(model.lm_head(states).float().flatten(0, 1), targets.flatten(), ignore_index=NO_TOKEN)


def attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, scaling: float, **kwargs: Any
) -> tuple[Tensor, None]:
    """Of each image to itself; query, key, value [1, heads, images * patches, D]."""
    patches = kwargs["max_length_q"]
    q, k, v = (each[0].unflatten(1, (-1, patches)).transpose(0, 1) for each in (query, key, value))
    out = F.scaled_dot_product_attention(q, k, v, scale=scaling)  # [images, heads, patches, D]
    return out.transpose(1, 2).flatten(0, 1)[None], None


AttentionInterface.register(ALIKE, attend)
