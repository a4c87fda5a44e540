"""The demo's model: a Qwen3-VL of about 1.5 million parameters with random weights, as an ordinary Hugging Face folder.

Architecture, tokenizer class, image processor and file layout are those of Qwen/Qwen3-VL-4B-Instruct, so whatever loads
that loads this. Only sizes differ, and the vocabulary: a byte-level BPE trained on the demo's own text. The response's
tags are single, visible tokens, as `<think>` is in Qwen3's own vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from tokenizers import AddedToken, pre_tokenizers
from tokenizers.trainers import BpeTrainer

from prism.model import torchvision_cpu

torchvision_cpu.install()  # transformers imports torchvision

from transformers import Qwen2Tokenizer, Qwen3VLConfig, Qwen3VLForConditionalGeneration, Qwen3VLTextConfig  # noqa: E402

END, PAD = "<|im_end|>", "<|endoftext|>"
SPECIAL_TOKENS = (PAD, "<|im_start|>", END, "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
PATCH, MERGE = 16, 2

CHAT_TEMPLATE = Path(__file__).with_name("chat_template.jinja")


@dataclass(frozen=True)
class Size:
    """What decides the parameter count. Head sizes are 32: vLLM's CPU attention wants a multiple of 32."""

    hidden: int = 128
    layers: int = 4
    heads: int = 4
    key_value_heads: int = 2
    head: int = 32
    mlp: int = 352
    vision_hidden: int = 96
    vision_layers: int = 2
    vision_heads: int = 3
    vision_mlp: int = 192
    initializer_range: float = 0.04
    vocabulary: int = 448
    max_positions: int = 1024
    max_side: int = 96  # pixels: the largest image, which also sets the grid of learned positions
    deepstack: tuple[int, ...] = (0,)  # vision layers whose features the first text layers are given
    embeddings: int = 0  # rows of the embedding, where there are more than the vocabulary needs
    tied: bool = True  # the head is the embedding, as in Qwen3-VL up to 4B
    dtype: str = "float32"


def build_tokenizer(texts: Iterable[str], size: Size, visible_tokens: Sequence[str]) -> Qwen2Tokenizer:
    """Byte-level BPE trained on `texts`; any other text still round-trips, byte by byte."""
    trained = Qwen2Tokenizer().backend_tokenizer  # splits text as Qwen3 does
    reserved = len(SPECIAL_TOKENS) + len(visible_tokens)
    trainer = BpeTrainer(
        vocab_size=size.vocabulary - reserved,
        min_frequency=2,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    trained.train_from_iterator(_without(texts, visible_tokens), trainer)
    learned: dict[str, Any] = json.loads(trained.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=learned["vocab"],
        merges=cast(list[str], [tuple(merge) for merge in learned["merges"]]),
        unk_token=cast(str, None),  # bytes cover everything
        eos_token=END,
        pad_token=PAD,
    )
    for names, special in ((SPECIAL_TOKENS, True), (visible_tokens, False)):
        added = [AddedToken(name, special=special, normalized=False) for name in names]
        tokenizer.add_tokens(cast(Any, added), special_tokens=special)
    tokenizer.chat_template = CHAT_TEMPLATE.read_text()
    tokenizer.model_max_length = size.max_positions
    return tokenizer


def _without(texts: Iterable[str], tokens: Sequence[str]) -> Iterable[str]:
    for text in texts:
        for token in tokens:
            text = text.replace(token, "\x00")
        yield from filter(None, text.split("\x00"))


def build_config(tokenizer: Qwen2Tokenizer, size: Size) -> Qwen3VLConfig:
    token_id = tokenizer.get_vocab()
    third = size.head // 2 // 3
    vocabulary = max(size.embeddings, -(-len(tokenizer) // 64) * 64)
    return Qwen3VLConfig(
        architectures=["Qwen3VLForConditionalGeneration"],
        text_config={
            "vocab_size": vocabulary,
            "hidden_size": size.hidden,
            "intermediate_size": size.mlp,
            "num_hidden_layers": size.layers,
            "num_attention_heads": size.heads,
            "num_key_value_heads": size.key_value_heads,
            "head_dim": size.head,
            "max_position_embeddings": size.max_positions,
            "initializer_range": size.initializer_range,
            # Three axes of position (time, height, width) share the head's half dimensions, interleaved.
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10_000.0,
                "mrope_section": [size.head // 2 - 2 * third, third, third],
                "mrope_interleaved": True,
            },
            "bos_token_id": token_id[PAD],
            "eos_token_id": token_id[END],
            "pad_token_id": token_id[PAD],
            "tie_word_embeddings": size.tied,
        },
        vision_config={
            "depth": size.vision_layers,
            "hidden_size": size.vision_hidden,
            "intermediate_size": size.vision_mlp,
            "num_heads": size.vision_heads,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 2,
            "out_hidden_size": size.hidden,
            "num_position_embeddings": (size.max_side // PATCH) ** 2,
            "deepstack_visual_indexes": list(size.deepstack),
            "initializer_range": size.initializer_range,
        },
        image_token_id=token_id["<|image_pad|>"],
        video_token_id=token_id["<|video_pad|>"],
        vision_start_token_id=token_id["<|vision_start|>"],
        vision_end_token_id=token_id["<|vision_end|>"],
        tie_word_embeddings=size.tied,
        dtype=size.dtype,
    )


def save_model(folder: Path, texts: Iterable[str], visible_tokens: Sequence[str], seed: int, size: Size) -> int:
    """Write the whole Hugging Face folder; returns the parameter count."""
    config = save_shape(folder, texts, visible_tokens, size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3VLForConditionalGeneration._from_config(config)
    assert model.generation_config is not None
    text = cast(Qwen3VLTextConfig, config.text_config)
    end, pad = text.eos_token_id, text.pad_token_id
    model.generation_config.update(bos_token_id=text.bos_token_id, eos_token_id=[end, pad], pad_token_id=pad)
    model.save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


def save_shape(folder: Path, texts: Iterable[str], visible_tokens: Sequence[str], size: Size) -> Qwen3VLConfig:
    """Write all of the Hugging Face folder but its weights."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer(texts, size, visible_tokens)
    tokenizer.save_pretrained(folder)
    config = build_config(tokenizer, size)
    config.save_pretrained(folder)
    _write_processors(folder, size)
    return config


def _write_processors(folder: Path, size: Size) -> None:
    """The processors' settings, in the files where the published models keep them."""
    shared: dict[str, Any] = {
        "patch_size": PATCH,
        "temporal_patch_size": 2,
        "merge_size": MERGE,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "processor_class": "Qwen3VLProcessor",
        "size": {"shortest_edge": (2 * PATCH * MERGE) ** 2, "longest_edge": size.max_side**2},
    }
    for name, own in (
        ("preprocessor_config.json", {"image_processor_type": "Qwen2VLImageProcessorFast"}),
        ("video_preprocessor_config.json", {"video_processor_type": "Qwen3VLVideoProcessor"}),
    ):
        (folder / name).write_text(json.dumps(shared | own, indent=2) + "\n")
