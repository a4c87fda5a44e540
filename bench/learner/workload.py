"""Groups like those of alignment: a prompt that is mostly a picture, and 16 responses of different lengths to it."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from bench.experts.workload import RESPONSES
from bench.experts.workload import SIZES as EXPERT_SIZES
from configs.demo import task
from configs.demo.model import Size, save_model
from prism.config import PolicyLearnerConfig
from prism.model.inputs import Example, InputBuilder
from prism.trainer.learn.losses import LossOptions
from prism.trainer.learn.policy_learner import PolicyLearner, TrainingSample
from prism.trainer.learn.policy_model import load_policy
from prism.wire.v1 import rollout_pb2 as pb

VERSION = 0
NO_SAMPLER = 999.0  # nats that the samples' log-probabilities, which no model gave, may be off
QWEN3_VL_2B = replace(EXPERT_SIZES["2b"], max_side=1280)
SIZES = {
    "demo": EXPERT_SIZES["demo"],
    "larger": Size(hidden=384, layers=8, heads=12, key_value_heads=4, mlp=1024, vision_hidden=192, vision_layers=4,
                vision_heads=6, vision_mlp=384, max_positions=4096, max_side=1024),
    "half-billion": replace(QWEN3_VL_2B, hidden=1024, layers=24, head=64, mlp=3072, vision_hidden=768, vision_layers=12,
                            vision_heads=12, vision_mlp=3072, deepstack=(3, 6, 9)),
    "qwen3-vl-2b": QWEN3_VL_2B,
    "qwen3-vl-4b": replace(QWEN3_VL_2B, hidden=2560, layers=36, heads=32, mlp=9728),
    "qwen3-vl-8b": replace(QWEN3_VL_2B, hidden=4096, layers=36, heads=32, mlp=12288, vision_hidden=1152,
                           vision_layers=27, vision_mlp=4304, deepstack=(8, 16, 24), tied=False),
}  # fmt: skip
LENGTHS = "300+60,1000+200,2000+400"  # tokens of a prompt, of its average response


def make_model(folder: Path, size: str, device: str) -> int:
    """A policy with random weights; returns how many."""
    with torch.device(device):
        return save_model(folder, task.corpus(), task.TAGS, 0, SIZES[size])


def make_learner(folder: Path, dtype: str, device: str, config: PolicyLearnerConfig, updates: int) -> PolicyLearner:
    return learner_of(load_policy(folder, dtype=getattr(torch, dtype), device=device), config, updates)


def learner_of(model: Any, config: PolicyLearnerConfig, updates: int) -> PolicyLearner:
    config = config.model_copy(update={"max_mismatch": NO_SAMPLER})
    return PolicyLearner(model, config, "grpo", LossOptions(), temperature=1.0, updates=updates, version=VERSION)


def make_samples(inputs: InputBuilder, groups: int, prompt: int, response: int) -> list[TrainingSample]:
    """Responses of 0.5 to 1.5 times the average length, of no words; their sampler's logprobs are anything near -5."""
    rng = random.Random(0)
    samples: list[TrainingSample] = []
    for group in range(groups):
        example = _prompt(inputs, rng, prompt)
        for _ in range(RESPONSES):
            ids = [rng.randrange(256) for _ in range(rng.randint(response // 2, response + response // 2))]
            logprobs = [-5 + rng.random() for _ in ids]
            advantage = rng.gauss(0, 1)
            samples.append(TrainingSample(inputs.with_ids(example, ids), logprobs, advantage, group, VERSION))
    return samples


def _prompt(inputs: InputBuilder, rng: random.Random, tokens: int) -> Example:
    """Four fifths of it are the picture's."""
    side = 32 * round((0.8 * tokens) ** 0.5)
    picture = Image.frombytes("L", (side // 8, side // 8), rng.randbytes((side // 8) ** 2)).resize((side, side))

    def asked(question: str) -> Example:
        parts = [pb.Part(image_sha256="given"), pb.Part(text=question)]
        return inputs.prompt([pb.Message(role="user", parts=parts)], [picture.convert("RGB")])

    missing = tokens - len(asked("").input_ids)
    return asked("".join(rng.choice("0123456789") for _ in range(max(1, missing))))
