"""Both experts as one process: two ports, one base, adapters pushed to each; and as one network."""

import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from expert_process import ADMIN, expert, is_ready, until

from prism.config import LoraConfig, PushConfig, RunConfig
from prism.model.expert import load_expert
from prism.model.inputs import InputBuilder
from prism.model.packing import pack
from prism.stack.ports import free_port
from prism.trainer.learn import ranks
from prism.trainer.learn.adapted import Wanted, adapter_tensors, learning, load_adapted
from prism.trainer.weights.named import as_saved, config_json, own_weights
from prism.trainer.weights.publish import Publisher
from prism.wire.response import EXPERTS, parse_response
from prism.wire.v1 import rollout_pb2 as pb

TEXTS = [f"<caption>- a {n}</caption><think>{n}</think><answer>{n}</answer>" for n in ("one", "two and three")]


def test_both_experts_are_pushed_asked_and_stopped_as_one_process(tiny_model: Path, tmp_path: Path) -> None:
    stage = {"kind": "sft", "data": ["x"], "steps": 1, "batch": 1, "optimizer": {"lr": 1e-3}}
    config = RunConfig.model_validate(
        {
            "name": "both",
            "model": str(tiny_model),
            "stages": {"sft": stage},
            "evaluate": {"data": "x", "max_tokens": 8},
            "stack": {"max_model_len": 512},
        }
    )
    models = load_adapted(tiny_model, config, dict.fromkeys(EXPERTS, Wanted(LoraConfig(rank=4))))
    inputs, port = InputBuilder(tiny_model), free_port(in_a_row=len(EXPERTS))
    prompt = inputs.prompt([pb.Message(role="user", parts=[pb.Part(text="How many?")])], [])
    headers = {"Authorization": f"Bearer {ADMIN}"}
    asked = {"items": [{"messages": [{"role": "user", "content": "How many?"}], "responses": TEXTS}]}
    with (
        expert(tmp_path, tiny_model, name="experts", port=port) as (process, first),
        httpx.Client(base_url=f"http://127.0.0.1:{port + 1}", headers=headers, timeout=60) as second,
    ):
        until(lambda: is_ready(process, second), 60)
        clients = dict(zip(EXPERTS, (first, second), strict=True))
        for seed, name in enumerate(EXPERTS):
            model = models[name]
            shake(model, seed)
            publisher = Publisher(name, str(clients[name].base_url), ADMIN, tmp_path / "weights", 1, PushConfig())
            publisher.push_adapter(3, tiny_model, adapter_tensors(model), model.adapted.config)
        for name in EXPERTS:
            model = models[name].eval()
            answer = clients[name].post("/v1/score", json=asked).json()
            assert (answer["expert"], answer["version"]) == (name, 3)
            sections = [inputs.with_text(prompt, parse_response(text).section(name)) for text in TEXTS]
            with torch.no_grad():
                ours = ranks.run_sharded(model, lambda m=model, s=sections: m(pack(s, inputs))).tolist()
            assert [score["score"] for score in answer["items"][0]["scores"]] == pytest.approx(ours, abs=1e-5)
        mixed = first.post("/v1/mixture", json=asked)
        assert mixed.status_code == 200, mixed.text
        assert {(tmp_path / "state" / name / "newest.json").is_file() for name in EXPERTS} == {True}
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 128 + signal.SIGTERM


def test_one_network_is_pushed_once_and_judges_both_sections_across_a_restart(tiny_model: Path, tmp_path: Path) -> None:
    """In a process for each expert, then in one for both: what was pushed stands in the same folder."""
    inputs, model = InputBuilder(tiny_model), load_expert(tiny_model, seed=3)
    prompt = inputs.prompt([pb.Message(role="user", parts=[pb.Part(text="How many?")])], [])
    asked = {"items": [{"messages": [{"role": "user", "content": "How many?"}], "responses": TEXTS}]}

    def refuse_other_scores(clients: Sequence[httpx.Client], version: int) -> None:
        for name, client in zip(EXPERTS, clients, strict=True):
            answer = client.post("/v1/score", json=asked).json()
            assert (answer["expert"], answer["version"]) == (name, version)
            sections = [inputs.with_text(prompt, parse_response(text).section(name)) for text in TEXTS]
            with torch.no_grad():
                ours = model(pack(sections, inputs)).tolist()
            assert [score["score"] for score in answer["items"][0]["scores"]] == pytest.approx(ours, abs=1e-5)

    def push(clients: Sequence[httpx.Client], version: int) -> None:
        with torch.no_grad():
            model.score.weight.mul_(-1.5)
        urls = [str(client.base_url) for client in clients]
        publisher = Publisher("discriminator", urls, ADMIN, tmp_path / "weights", 1, PushConfig())
        publisher.push(version, as_saved(model, own_weights(model, dict(model.state_dict()))), config_json(model))

    states = {name: tmp_path / "state" / name for name in EXPERTS}
    with (
        expert(tmp_path, tiny_model, name="perception", state_dir=states["perception"]) as (_, first),
        expert(tmp_path, tiny_model, name="reasoning", state_dir=states["reasoning"]) as (_, second),
    ):
        push((first, second), 1)
        refuse_other_scores((first, second), 1)
    assert [path.name for path in (tmp_path / "weights").iterdir()] == ["discriminator"]
    port = free_port(in_a_row=len(EXPERTS))
    headers = {"Authorization": f"Bearer {ADMIN}"}
    with (
        expert(tmp_path, tiny_model, name="experts", port=port) as (process, first),
        httpx.Client(base_url=f"http://127.0.0.1:{port + 1}", headers=headers, timeout=60) as second,
    ):
        until(lambda: is_ready(process, second), 60)
        refuse_other_scores((first, second), 1)
        push((first, second), 2)
        refuse_other_scores((first, second), 2)


def shake(model: Any, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in learning(model).values():
            parameter.add_(torch.randn(parameter.shape, generator=random) * 0.05)
