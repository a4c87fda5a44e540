"""Whether experts can start from a folder: they are given the inputs that the policy's processor builds."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoConfig

from prism.config import ExpertLearnerConfig
from prism.errors import DataError
from prism.model.expert import find_head, refuse_other_family
from prism.model.inputs import InputBuilder
from prism.wire.response import DISCRIMINATOR, Network
from prism.wire.v1 import rollout_pb2 as pb

WARMED_UP = "warmup.json"
"""Written by ``prism experts warmup``: of what, and for which expert."""
TEXT = "<caption>\n- Größe: 3,5 mm; 一个红球\n</caption><think> x² ≤ 40 \t→ ok</think><answer>7</answer>"
ROUNDING = 0.05  # of pixel values, which span some 2 to 4
PIXELS = np.arange(70 * 45 * 3, dtype=np.uint8).reshape(45, 70, 3)


def misfits(
    folder: Path,
    network: Network,
    settings: ExpertLearnerConfig,
    policy: InputBuilder,
    *,
    max_model_len: int,
    needs_head: bool,
) -> list[str]:
    """Why the network cannot start from this folder beside the policy whose inputs these are; empty if it can.

    ``needs_head``: nothing teaches the expert before it judges. No weight is read but the names of the files' tensors.
    """
    if not folder.is_dir():
        return [f"{folder} is no folder; download a hub model first: hf download NAME --local-dir {folder}"]
    try:
        config: Any = AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
        refuse_other_family(config.model_type, folder)
        own = InputBuilder(folder, policy.pixel_bounds)
        headless = needs_head and find_head(folder) is None
    except (OSError, ValueError, RuntimeError) as error:  # our own among them
        return [f"{folder}: {str(error)[:500]}"]
    found = [*_of_inputs(own, policy), *_of_model(config, policy, max_model_len), *_of_mixture(config, settings)]
    if headless:
        found.append(
            "has no head, and with warmup_steps = 0 nothing would teach one: set warmup_steps, or start from what "
            "`prism experts warmup` wrote"
        )
    if (file := folder / WARMED_UP).is_file() and (whose := json.loads(file.read_text()).get("expert")) != network:
        found.append(_of_another(whose, network))
    return [f"{folder} {problem}" for problem in found]


def _of_another(whose: str, network: Network) -> str:
    if network == DISCRIMINATOR:
        return f"was warmed up as the {whose} expert alone: shared experts start from one of both (--expert {network})"
    if whose == DISCRIMINATOR:
        return f"was warmed up as both experts in one: set shared = true, or name the {network} expert's own folder"
    return f"was warmed up as the {whose} expert: name the {network} expert's own folder"


def _of_inputs(own: InputBuilder, policy: InputBuilder) -> Iterator[str]:
    ours, theirs = own.tokenizer.get_vocab(), policy.tokenizer.get_vocab()
    if differing := [token for token in theirs.keys() | ours.keys() if ours.get(token) != theirs.get(token)]:
        example = min(differing, key=lambda token: (theirs.get(token, len(theirs)), token))
        yield (
            f"has another vocabulary than the policy: {len(differing):,} of {len(theirs):,} tokens differ, such as "
            f"{example!r}, {theirs.get(example)} there and {ours.get(example)} here"
        )
        return
    if own.text_ids(TEXT) != policy.text_ids(TEXT) or own.control.ids != policy.control.ids:
        yield "splits texts into other tokens than the policy: copy its tokenizer.json and tokenizer_config.json here"
    elif own.end_token_id != policy.end_token_id:
        yield "ends responses with another token than the policy: copy its tokenizer_config.json here"
    elif _prompt(own) != _prompt(policy):
        yield "has another chat template than the policy, and would be shown other prompts: copy the policy's here"
    ours, theirs = _images(own), _images(policy)
    if other := [name for name in theirs if not _same(ours[name], theirs[name])]:
        yield (
            f"processes images otherwise than the policy ({', '.join(other)}): copy the policy's "
            "preprocessor_config.json here, or set limits.min_pixels and limits.max_pixels where sizes alone differ"
        )


def _of_model(config: Any, policy: InputBuilder, max_model_len: int) -> Iterator[str]:
    processor, vision = policy.processor.image_processor, config.vision_config
    wanted = {
        "patch_size": processor.patch_size,
        "temporal_patch_size": processor.temporal_patch_size,
        "spatial_merge_size": processor.merge_size,
    }
    if other := [f"{name} {getattr(vision, name)}" for name in wanted if getattr(vision, name) != wanted[name]]:
        yield f"is made for other patches of images than the policy's processor cuts: {', '.join(other)}"
    if config.image_token_id != policy.image_token_id:
        yield f"takes token {config.image_token_id} for an image, the policy {policy.image_token_id}"
    text = config.text_config
    if text.vocab_size <= (last := max(policy.tokenizer.get_vocab().values())):
        yield f"has embeddings of {text.vocab_size:,} tokens, and the policy's tokens go up to {last:,}"
    if text.max_position_embeddings < max_model_len:
        yield f"has {text.max_position_embeddings:,} positions, fewer than stack.max_model_len = {max_model_len:,}"


def _of_mixture(config: Any, settings: ExpertLearnerConfig) -> Iterator[str]:
    if (mixture := settings.mixture) is None or config.model_type != "qwen3_vl_moe":
        return
    text = config.text_config
    if settings.lora:
        yield "is a mixture of experts already, and with lora experts.mixture is over dense MLPs: leave mixture out"
    elif (text.num_experts, text.num_experts_per_tok) != (mixture.experts, mixture.top_k):
        yield (
            f"is a mixture of {text.num_experts} experts already, {text.num_experts_per_tok} for each token, and "
            f"experts.mixture says {mixture.experts} and {mixture.top_k}: leave mixture out, or say the same"
        )


def _prompt(inputs: InputBuilder) -> list[int] | str:
    """Conversations as the template writes them, images left out; what it says where it takes none such."""
    image = pb.Part(image_sha256="0" * 64)
    said = {role: pb.Message(role=role, parts=[pb.Part(text=TEXT)]) for role in ("system", "user", "assistant")}
    shown = pb.Message(role="user", parts=[image, pb.Part(text=TEXT)])
    try:
        many = inputs.prompt([said["user"], said["assistant"], said["user"]], []).input_ids
        with_image = inputs.prompt([said["system"], shown], [Image.fromarray(PIXELS)]).input_ids
    except DataError as error:
        return str(error)
    return many + [token for token in with_image if token != inputs.image_token_id]


def _images(inputs: InputBuilder) -> dict[str, Any]:
    """What decides which pixels and how many tokens the model is shown of an image."""
    processor = inputs.processor.image_processor
    pixels, grid = inputs.images([Image.fromarray(PIXELS)])
    return {
        "size": (processor.size["shortest_edge"], processor.size["longest_edge"]),
        "patches": (processor.patch_size, processor.temporal_patch_size, processor.merge_size, grid.tolist()),
        "pixels": pixels,
    }


def _same(one: Any, other: Any) -> bool:
    """Pixels but for rounding: of one processor there are releases that scale by other code."""
    if isinstance(one, torch.Tensor):
        return one.shape == other.shape and bool((one - other).abs().max() < ROUNDING)
    return one == other
