"""A policy update by the learner, and by the plain way: one padded batch, logits of every position at once."""

import time
from collections.abc import Callable
from typing import Any

import torch

from bench.padded import load_stock
from bench.padded import response_logprobs as padded_logprobs
from prism.blobs import BlobStore
from prism.config import RlvrConfig, RunConfig
from prism.data import open_image, read_rows, to_prompt
from prism.inputs import Example, InputBuilder
from prism.packing import pack
from trainer.losses import PackedTokens, policy_loss
from trainer.policy_model import load_policy, response_logprobs
from trainer.result import stage_folder

PROMPTS, N, REPEATS = 16, 8, 5


def compare_update(config: RunConfig) -> dict[str, float]:
    """Response tokens a second through forward, backward and loss (GRPO, float32), best of a few each."""
    stage = config.stages["rlvr"]
    assert isinstance(stage, RlvrConfig)
    torch.set_num_threads(config.threads or torch.get_num_threads())
    folder = stage_folder(config, "rlvr")
    inputs = InputBuilder(folder)
    model, stock = load_policy(folder, dtype=torch.float32), load_stock(folder, attention="eager")
    examples = _examples(config, inputs)
    tokens = sum(len(example.response_ids) for example in examples)
    index = torch.tensor([i for i, example in enumerate(examples) for _ in example.response_ids])

    def learner() -> None:
        _backward(model, response_logprobs(model, pack(examples, inputs)))

    def plain() -> None:
        _backward(stock, padded_logprobs(stock, examples, inputs))

    def _backward(model: Any, logprobs: torch.Tensor) -> None:
        packed = PackedTokens(logprobs, logprobs.detach(), torch.linspace(-1, 1, len(examples)), index)
        policy_loss("grpo", packed).loss.backward()
        model.zero_grad(set_to_none=True)

    return {
        "prism_tokens_per_second": tokens / _best(learner),
        "instead_tokens_per_second": tokens / _best(plain),
    }


def _best(work: Callable[[], None]) -> float:
    seconds: list[float] = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def _examples(config: RunConfig, inputs: InputBuilder) -> list[Example]:
    """Groups of the demo's size with responses of the demo's lengths: public demonstrations behind their prompts."""
    file = read_rows(config.run_dir / "data/public.jsonl", "fail")
    blobs = BlobStore(str(config.run_dir / "blobs"))
    texts = [row.response or "" for row in file.rows[: PROMPTS * N]]
    examples: list[Example] = []
    for i, row in enumerate(file.rows[:PROMPTS]):
        images = [open_image(file.image(name)) for name in row.image_paths]
        prompt = inputs.prompt(to_prompt(row, file, blobs).messages, images)
        examples += [inputs.with_text(prompt, text) for text in texts[i * N : (i + 1) * N]]
    return examples
