"""Generation through the policy server, and by transformers' ``generate``: same weights, prompts, n and length."""

import asyncio
import time
from typing import Any

import torch

from bench.padded import load_stock
from prism.clients.endpoints import load_endpoints
from prism.clients.rollout import open_services
from prism.config import RunConfig
from prism.data.blobs import BlobStore
from prism.data.rows import open_image, read_rows, to_prompt
from prism.model.inputs import InputBuilder
from prism.trainer.run.result import stage_folder
from prism.wire.messages import image_sha256s, to_template
from prism.wire.v1 import rollout_pb2 as pb

PROMPTS, N, MAX_TOKENS, REPEATS = 16, 8, 96, 3


def compare_generation(config: RunConfig) -> dict[str, float]:
    """Response tokens a second, best of a few bursts each; the live server must hold the RLVR stage's result."""
    endpoints = load_endpoints(config.run_dir / "stack.json")
    blobs = BlobStore(endpoints.blobs)
    file = read_rows(config.run_dir / "data/prompts.jsonl", "fail")
    prompts = [to_prompt(row, file, blobs) for row in file.rows[:PROMPTS]]
    served = max(asyncio.run(_burst(endpoints, prompts, seed)) for seed in range(REPEATS))
    plain = max(_transformers(config, prompts, blobs, seed) for seed in range(REPEATS))
    return {"prism_tokens_per_second": served, "instead_tokens_per_second": plain}


async def _burst(endpoints: Any, prompts: list[pb.Prompt], seed: int) -> float:
    requests = [
        pb.RolloutRequest(
            prompt=prompt, sampling=pb.Sampling(n=N, temperature=1.0, max_tokens=MAX_TOKENS, seed=seed * 1000 + i)
        )
        for i, prompt in enumerate(prompts)
    ]
    async with open_services(endpoints, connections=PROMPTS, patience_seconds=60) as judges:
        started = time.perf_counter()
        groups = await asyncio.gather(*(judges.rollout(request, "bench") for request in requests))
        seconds = time.perf_counter() - started
    return sum(len(sample.token_ids) for group in groups for sample in group.samples) / seconds


@torch.inference_mode()
def _transformers(config: RunConfig, prompts: list[pb.Prompt], blobs: BlobStore, seed: int) -> float:
    """One padded batch of all prompts, as the library's own documentation does it."""
    torch.manual_seed(seed)
    folder = stage_folder(config, "rlvr")
    inputs = InputBuilder(folder)
    model = load_stock(folder)
    processor: Any = inputs.processor
    processor.tokenizer.padding_side = "left"
    texts = [
        processor.apply_chat_template(to_template(prompt.messages), tokenize=False, add_generation_prompt=True)
        for prompt in prompts
    ]
    images = [open_image(blobs.get(sha256)) for prompt in prompts for sha256 in image_sha256s(prompt.messages)]
    batch = processor(text=texts, images=images, padding=True, return_tensors="pt")
    started = time.perf_counter()
    out = model.generate(
        **batch,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        num_return_sequences=N,
        max_new_tokens=MAX_TOKENS,
        eos_token_id=inputs.end_token_id,
        pad_token_id=inputs.end_token_id,
    )
    seconds = time.perf_counter() - started
    responses = out[:, batch["input_ids"].shape[1] :]
    ended = (responses == inputs.end_token_id).int().argmax(-1)
    lengths = torch.where(ended > 0, ended + 1, responses.shape[1])
    return float(lengths.sum()) / seconds
