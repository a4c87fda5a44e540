"""A policy server of two workers, each with its shard, takes a broadcast. On two GPUs, or slowly on a CPU."""

import asyncio
import secrets
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.learner.workload import SIZES
from bench.pushes import logprobs
from bench.shared import prism_service
from configs.demo import task
from configs.demo.model import save_model
from prism.config import PushConfig
from prism.data.blobs import BlobStore
from prism.model.inputs import InputBuilder
from prism.trainer.learn.policy_model import load_policy
from prism.trainer.weights.named import config_json, named_weights
from prism.trainer.weights.probe import make_probe
from prism.trainer.weights.publish import Publisher
from prism.wire.v1 import rollout_pb2 as pb

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = 5e-2 if DEVICE == "cuda" else 1e-3
PUSHES = 20


@pytest.mark.timeout(900)
def test_each_shard_gets_its_part_and_pushing_it_again_changes_nothing(tmp_path: Path) -> None:
    folders = [tmp_path / f"seed-{seed}" for seed in range(2)]
    for seed, folder in enumerate(folders):
        save_model(folder, list(task.corpus()), task.TAGS, seed, SIZES["larger"])
    admin = secrets.token_urlsafe(24)
    dtype = torch.bfloat16 if DEVICE == "cuda" else torch.float32
    flags = "--tensor-parallel-size 2 --enforce-eager"
    settings: dict[str, object] = {
        "PRISM_MODEL": folders[0],
        "PRISM_WEIGHTS_ROOT": tmp_path / "weights",
        "PRISM_STATE_DIR": tmp_path / "state",
        "PRISM_ADMIN_TOKEN": admin,
        "PRISM_DEVICE": DEVICE,
        "PRISM_DTYPE": str(dtype).removeprefix("torch."),
        "PRISM_MAX_MODEL_LEN": 512,
        "PRISM_VLLM_FLAGS": f"{flags} --gpu-memory-utilization 0.2" if DEVICE == "cuda" else flags,
    }
    if DEVICE == "cpu":
        settings["VLLM_CPU_OMP_THREADS_BIND"] = "0|1"  # a core for each worker: else vLLM wants a NUMA node for each
    model: Any = load_policy(folders[1], dtype=dtype, device=DEVICE)
    inputs, blobs = InputBuilder(folders[1]), BlobStore(str(tmp_path / "blobs"))
    prompt = pb.Prompt(messages=[pb.Message(role="user", parts=[pb.Part(text="Sum of the top row?")])])
    text = "<caption>- a seven</caption><think>7+3=10</think><answer>10</answer>"
    probe = make_probe(model, inputs, prompt, text, blobs, TOLERANCE)
    assert probe
    with prism_service("policy", settings) as server:
        config = PushConfig(deadline_seconds=300)
        publisher = Publisher("policy", server.url, admin, tmp_path / "weights", 1, config, DEVICE)
        publisher.push(1, named_weights(model), config_json(model), probe)  # refused if they compute other weights
        before = asyncio.run(logprobs({"policy": server}, experts=()))
        for version in range(2, 2 + PUSHES):
            publisher.push(version, named_weights(model), config_json(model), probe)
        publisher.settle()
        assert asyncio.run(logprobs({"policy": server}, experts=())) == before
