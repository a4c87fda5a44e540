"""``prism export`` of what was trained as adapters: merged as anything loads it, or alone as PEFT does."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from typer.testing import CliRunner

from bench.padded import load_stock
from bench.padded import response_logprobs as padded_logprobs
from prism import cli
from prism.config import LoraConfig, OptimizerConfig, RunConfig, load_config, save_resolved
from prism.errors import ConfigError
from prism.model.expert import load_expert
from prism.model.inputs import Example, InputBuilder
from prism.model.packing import pack
from prism.trainer.checkpoint.folder import write_description
from prism.trainer.checkpoint.saver import Checkpoints
from prism.trainer.learn import ranks
from prism.trainer.learn.adapted import POLICY, Wanted, learning, load_adapted, save_learnt
from prism.trainer.learn.optimizer import Optimizer
from prism.trainer.learn.policy_model import response_logprobs
from prism.trainer.run.result import finish_stage, stage_folder
from prism.wire.response import EXPERTS
from prism.wire.v1 import rollout_pb2 as pb

SFT = LoraConfig(rank=4)


@pytest.fixture
def config(tmp_path: Path, tiny_model: Path) -> RunConfig:
    """A demo with adapters everywhere; RLVR's policy is trained whole."""
    lora = "{ rank = 4 }"
    sets = [f"stages.sft.lora={lora}", f"stages.align.policy.lora={lora}", f"stages.align.experts.lora={lora}"]
    sets += [f"runs_dir={json.dumps(str(tmp_path))}", f"model={tiny_model}", "stages.align.experts.mixture={}"]
    made: Any = load_config(Path("configs/demo.toml"), [*sets, "stages.align.experts.mixture.experts=3"])
    align = made.stages["align"]
    experts = align.experts.model_copy(update={"grounding": None})
    stages = made.stages | {"align": align.model_copy(update={"experts": experts})}
    made = made.model_copy(update={"stages": stages})
    save_resolved(made)
    return made


@pytest.fixture
def rows(tiny_model: Path) -> list[Example]:
    inputs = InputBuilder(tiny_model)
    prompt = inputs.prompt([pb.Message(role="user", parts=[pb.Part(text="How many are there?")])], [])
    return [inputs.with_text(prompt, text) for text in ("1 2 3", "4")]


def shaken(models: dict[str, Any]) -> dict[str, Any]:
    random = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for model in models.values():
            for parameter in learning(model.eval()).values():
                parameter.add_(torch.randn(parameter.shape, generator=random) * 0.05)
    return models


def export(config: RunConfig, out: Path, *options: str) -> Any:
    return CliRunner().invoke(cli.app, ["export", str(config.run_dir), str(out), *options])


@torch.no_grad()
def test_a_run_of_adapters_is_exported_finished_or_from_a_checkpoint(
    config: RunConfig, rows: list[Example], tiny_model: Path, tmp_path: Path
) -> None:
    inputs = InputBuilder(tiny_model)
    wanted = {name: Wanted(SFT) for name in (POLICY,)}
    policy = shaken(load_adapted(tiny_model, config, wanted))[POLICY]

    def train(folder: Path) -> dict[str, Any]:
        save_learnt(policy, folder, inputs)
        return {"version": 3}

    finish_stage(config, "sft", "sft", train)
    ours = response_logprobs(policy, pack(rows, inputs))
    assert export(config, tmp_path / "alone", "--adapter").output.endswith(
        "the adapter of the policy of sft, finished\n"
    )
    loaded: Any = PeftModel.from_pretrained(load_stock(tiny_model), tmp_path / "alone").eval()
    torch.testing.assert_close(padded_logprobs(loaded.base_model.model, rows, inputs), ours, rtol=0, atol=1e-5)
    assert str(tiny_model) in (tmp_path / "alone" / "README.md").read_text()
    assert export(config, tmp_path / "whole").exit_code == 0
    torch.testing.assert_close(
        padded_logprobs(load_stock(tmp_path / "whole").eval(), rows, inputs), ours, rtol=0, atol=1e-5
    )

    stage: Any = config.stages["align"]
    start = stage_folder(config, "sft")
    wanted = {POLICY: Wanted(stage.policy.lora)}
    wanted |= dict.fromkeys(EXPERTS, Wanted(stage.experts.lora, stage.experts.mixture))
    models = shaken(load_adapted(start, config, wanted))
    with Checkpoints(config.run_dir / "checkpoints" / "align", keep=2) as saved:
        settings = OptimizerConfig.model_validate({"lr": 1e-3})
        tensors = {name: Optimizer(learning(m).items(), settings, 1).state_dict() for name, m in models.items()}
        saved.save(7, {"step": 7, "policy_version": 9}, tensors, partial(write_description, config, models))
    ours = response_logprobs(models[POLICY], pack(rows, inputs))
    for options in ((), ("--adapter",)):
        out = tmp_path / f"align{len(options)}"
        assert export(config, out, *options).output.endswith("policy of align, after step 7\n")
        stock: Any = PeftModel.from_pretrained(load_stock(start), out).base_model.model if options else load_stock(out)
        torch.testing.assert_close(padded_logprobs(stock.eval(), rows, inputs), ours, rtol=0, atol=1e-5)
    judge = models["reasoning"]
    scores = ranks.run_sharded(judge, lambda: judge(pack(rows, inputs)))
    assert export(config, tmp_path / "judge", "--model=reasoning").exit_code == 0
    expert = load_expert(tmp_path / "judge", strict=True).eval()
    assert expert.mixture == (3, 2)
    torch.testing.assert_close(expert(pack(rows, inputs)), scores, rtol=0, atol=1e-5)
    refused = export(config, tmp_path / "no", "--model=reasoning", "--adapter").exception
    assert isinstance(refused, ConfigError)
    assert "which PEFT does not know" in str(refused)
    whole = export(config, tmp_path / "no", "--stage=rlvr", "--adapter").exception
    assert "leave out --adapter" in str(whole)


@torch.no_grad()
def test_an_experts_adapter_is_one_of_pefts_with_its_head(
    config: RunConfig, rows: list[Example], tiny_model: Path, tmp_path: Path
) -> None:
    expert = shaken(load_adapted(tiny_model, config, {"perception": Wanted(SFT)}))["perception"]
    save_learnt(expert, tmp_path / "out", InputBuilder(tiny_model))
    batch = pack(rows, InputBuilder(tiny_model))
    ours = ranks.run_sharded(expert, lambda: expert(batch))
    loaded: Any = PeftModel.from_pretrained(load_expert(tiny_model, seed=99), tmp_path / "out" / "adapter").eval()
    torch.testing.assert_close(loaded.base_model.model(batch), ours, rtol=0, atol=1e-5)
