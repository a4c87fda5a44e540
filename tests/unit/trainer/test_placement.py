"""What a run takes of each card, and whether that fits, before anything starts."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from bench.learner.workload import SIZES
from configs.demo import task
from configs.demo.model import save_shape
from prism.config import DevicesConfig, GroundingConfig, LoraConfig, MixtureConfig, RunConfig, load_config
from prism.errors import ConfigError
from prism.stack import cards
from prism.stack.cards import card_bytes, expert_cards, policy_cards
from prism.trainer.learn.adapted import Wanted, learning, load_adapted
from prism.trainer.learn.offload import CHUNK
from prism.trainer.learn.policy_model import load_policy
from prism.trainer.run import placement
from prism.trainer.run.estimate import ModelSize, checkpoint_bytes, expert_size, policy_size
from prism.trainer.run.launch import Launch
from prism.trainer.run.pipeline import learner_cards, of_cards
from prism.trainer.run.placement import disk_of, learners_of, memory_of, place, served_experts, share_for_policy
from prism.wire.response import EXPERTS

GIB = 2**30
GROUNDING = GroundingConfig(epochs=1)
# Qwen3-VL-2B's, and a card's worth of it.
TWO_BILLION = ModelSize(
    trained=2_130_000_000,
    frozen=0,
    per_token=28 * 52_224,
    once_per_token=0,
    per_patch=0,
    states_per_token=28 * 2048,
    of_one_layer=52_224,
    vocabulary=151_936,
)


def config(*overrides: str) -> RunConfig:
    gpu = ["device=cuda", "dtype=bfloat16", "stack.device=cuda", "stack.max_model_len=2048"]
    return load_config(Path("configs/demo.toml"), [*gpu, *overrides])


def launch(**values: Any) -> Launch:
    return Launch.model_validate(values)


def placed(made: RunConfig, learners: int = 3) -> placement.Placement:
    stage = made.stages["align" if learners > 1 else "sft"]
    sized = [(TWO_BILLION, 16_384)] * learners
    return place(made, "it", sized, memory_of(made, stage, sized, 1, 0), experts=[TWO_BILLION, TWO_BILLION])


def test_what_fits_two_cards_does_not_fit_one() -> None:
    apart = 'stack.devices={policy="0",experts="0",learner="1"}'
    two = placed(config(apart, "stack.card_gib=140"))
    assert two.problems == []
    (doubt,) = two.doubts
    assert doubt.startswith("stage it does not fit card 1: about ")
    assert "in full passes" in doubt
    assert placed(config(apart, "stack.card_gib=180")).doubts == []
    assert {name: set(card.parts) for name, card in two.cards.items()} == {
        "1": {"learners"},
        "0": {"perception", "reasoning", "policy"},
    }
    assert two.cards["1"].taken > 3 * 16 * 2e9, "16 bytes a parameter, of three"
    assert two.policy_share
    assert 0.7 < two.policy_share < 0.8
    assert two.cards["0"].taken == pytest.approx(0.93 * 140 * GIB, rel=0.02), "vLLM has what the experts leave"
    (problem,) = placed(config(apart, "stack.card_gib=80")).problems
    assert problem.startswith("stage it does not fit card 1: about ")
    assert "of 85.9 GB: learners " in problem
    assert "more cards for the learner (stack.devices.learner, which shards it), freeze parts" in problem
    (problem,) = placed(config("stack.card_gib=120")).problems
    assert "other cards for some (stack.devices)" in problem


def test_a_card_of_unknown_size_refuses_nothing_and_a_share_that_is_given_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(placement, "card_bytes", dict)
    made = placed(config())
    assert (made.problems, made.policy_share, made.cards["0"].size) == ([], None, None)
    own = 'stack.policy_options={vllm_flags="--gpu-memory-utilization=0.3"}'
    assert placed(config("stack.card_gib=500", own)).policy_share is None
    large = 'stack.policy_options={vllm_flags="--enforce-eager --gpu-memory-utilization 0.9"}'
    (problem,) = placed(config("stack.card_gib=500", large)).problems
    assert "does not fit card 0" in problem
    assert ", policy 483.9 GB" in problem


def test_one_network_of_both_experts_is_held_once_by_one_process() -> None:
    """In use, and while a push is loaded; broadcasts fill a copy for each expert."""
    together = "stack.experts_together=true"

    def bytes_of(*sets: str) -> float:
        return placed(config(together, *sets)).cards["0"].parts["experts"]

    two = bytes_of()
    shared, loaded = "stages.align.experts.shared=true", 2 * 2 * TWO_BILLION.parameters
    assert two - bytes_of(shared) == pytest.approx(placement.ALLOCATOR * loaded)
    assert bytes_of(shared, "push.transport=broadcast") == two


def test_on_cpus_no_card_is_taken() -> None:
    made = load_config(Path("configs/demo.toml"))
    assert placed(made).cards == {}


def test_a_run_that_cannot_fit_is_refused_by_name(tiny_model: Path) -> None:
    made = config("stack.card_gib=1.5")
    with pytest.raises(ConfigError, match=r"stage align does not fit card 0: about .* of 1\.6 GB: learners "):
        share_for_policy(made, tiny_model, {"align": made.stages["align"]}, 1, served=True)
    alone = {"sft": made.stages["sft"]}
    assert share_for_policy(made, tiny_model, alone, 1, served=True) is None
    share = share_for_policy(config("stack.card_gib=80"), tiny_model, made.stages, 1, served=True)
    assert share
    assert 0.8 < share < 0.93
    mixture, _ = served_experts(made, tiny_model)
    (policy, _), *_ = learners_of(made, made.stages["sft"], tiny_model)
    assert mixture.parameters > 1.5 * policy.parameters, "as alignment makes it, in whatever stage"


def test_each_process_sees_the_cards_that_are_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    made = config('stack.devices={policy="0,1",experts="2,3",learner="4,5"}')
    monkeypatch.delenv(cards.VISIBLE, raising=False)
    policy = policy_cards(made.stack, 0.8)
    assert policy == {
        "CUDA_VISIBLE_DEVICES": "0,1",
        "PRISM_VLLM_FLAGS": "--gpu-memory-utilization=0.8 --tensor-parallel-size=2",
    }
    assert [expert_cards(made.stack, number)["CUDA_VISIBLE_DEVICES"] for number in (0, 1)] == ["2", "3"]
    assert learner_cards(made) == {"CUDA_VISIBLE_DEVICES": "4,5"}
    assert of_cards(made, launch()).node_processes == 2
    assert of_cards(config(), launch()).node_processes == 1
    with pytest.raises(ConfigError, match=r"PRISM_NODE_PROCESSES is 3, stack\.devices\.learner names 2 cards"):
        of_cards(made, launch(node_processes=3))
    monkeypatch.setenv(cards.VISIBLE, "GPU-a,GPU-b,7,6,5,4")
    assert learner_cards(made) == {"CUDA_VISIBLE_DEVICES": "5,4"}
    assert expert_cards(config().stack, 0) == {}
    monkeypatch.setenv(cards.VISIBLE, "0,1")
    with pytest.raises(ConfigError, match=r"there is no card 2, CUDA_VISIBLE_DEVICES shows 2"):
        expert_cards(made.stack, 0)
    cpu = load_config(Path("configs/demo.toml"), ['stack.devices={policy="1"}'])
    assert (policy_cards(cpu.stack, 0.5), expert_cards(cpu.stack, 0), learner_cards(cpu)) == ({}, {}, {})


@pytest.mark.parametrize(
    ("devices", "why"),
    [
        ('{policy="0,0"}', "names a card twice"),
        ('{experts="0,1,2"}', "there are two experts"),
        ('{learner="a"}', "should match pattern"),
    ],
)
def test_devices_that_make_no_sense_are_refused(devices: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        config(f"stack.devices={devices}")


def test_the_machines_cards_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho '0, GPU-a, 81559'\necho '1, GPU-b, [N/A]'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert card_bytes() == {"0": 81559 * 2**20, "GPU-a": 81559 * 2**20}
    tool.unlink()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert card_bytes() == {}


def test_sharding_takes_a_part_of_each_card(monkeypatch: pytest.MonkeyPatch) -> None:
    made: Any = config("stack.card_gib=80")
    stage = made.stages["align"]
    sized = [(replace(TWO_BILLION, per_token=0), 16_384)] * 3
    one, two = (memory_of(made, stage, sized, ranks, 0).total for ranks in (1, 2))
    assert two < 0.65 * one


@pytest.fixture(scope="module")
def two_billion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that has Qwen3-VL-2B's configuration, and no weights."""
    folder = tmp_path_factory.mktemp("2b")
    save_shape(folder, task.corpus(), task.TAGS, SIZES["qwen3-vl-2b"])
    return folder


@pytest.mark.parametrize(
    ("values", "devices", "gib"),
    [
        (None, {"policy": "0", "experts": "0", "learner": "1"}, 79.6),
        ("single-gpu", {"policy": "0", "experts": "0", "learner": "0"}, 140),
        ("8gpu", {"policy": "0", "experts": "1,2", "learner": "3,4,5,6"}, 79.6),
    ],
)
def test_presets_fit_the_cards_they_name(
    two_billion: Path, values: str | None, devices: dict[str, str], gib: float
) -> None:
    chart: Any = yaml.safe_load(Path(f"deploy/helm/prism/values-{values}.yaml").read_text()) if values else {}
    overrides = chart.get("run", {}).get("overrides", [])
    made: Any = load_config(Path("configs/qwen3-vl-2b.toml"), [*overrides, f"stack.card_gib={gib}"])
    if values:
        flags = {"vllm_flags": chart["policy"].get("vllmFlags", "")}
        update = {"devices": DevicesConfig.model_validate(devices), "policy_options": flags}
        stack = made.stack.model_copy(update=update)
        made = made.model_copy(update={"stack": stack})
    ranks = chart.get("trainer", {}).get("gpus", 1)
    assert ranks == len(devices["learner"].split(","))
    for name, stage in made.stages.items():
        learners = learners_of(made, stage, two_billion)
        memory = memory_of(made, stage, learners, ranks, 0)
        found = place(made, name, learners, memory, experts=served_experts(made, two_billion))
        assert (found.problems, found.doubts) == ([], []), name
    experts = made.stages["align"].experts
    assert experts.mixture
    assert experts.grounding, "as the demo's"
    if values:
        size = chart["storage"]["size"]
        room = int(size[:-2]) * {"Gi": GIB, "Ti": 1024 * GIB}[size[-2:]]
        assert sum(disk_of(made, two_billion, made.stages, ranks).parts.values()) < 0.9 * room
    if not values:  # nor would it on one
        alone = made.model_copy(update={"stack": made.stack.model_copy(update={"devices": None})})
        with pytest.raises(ConfigError, match="does not fit card 0"):
            share_for_policy(alone, two_billion, alone.stages, 1, served=True)


@pytest.mark.parametrize(
    ("preset", "size", "whole"),
    [
        ("2b-lora", "2b", 0),
        ("4b-lora", "4b", 0),
        ("8b-lora", "8b", 0),
        ("2b-offload", "2b", 2.1e9),
        ("4b-offload", "4b", 4.4e9),
    ],
)
def test_presets_of_adapters_and_of_offloaded_optimizers_fit_what_they_say(
    tmp_path: Path, preset: str, size: str, whole: float
) -> None:
    shape = SIZES[f"qwen3-vl-{size}"]
    save_shape(tmp_path, task.corpus(), task.TAGS, shape)
    made: Any = load_config(Path(f"configs/qwen3-vl-{preset}.toml"), ["stack.card_gib=79.6"])
    stage = made.stages["align"]
    learners = learners_of(made, stage, tmp_path)
    memory = memory_of(made, stage, learners, 1, 0)
    found = place(made, "align", learners, memory, experts=served_experts(made, tmp_path))
    assert (found.problems, found.doubts) == ([], [])
    sizes = [size for size, _ in learners]
    frozen = sizes[0].frozen
    if whole:
        assert all(size.trained > whole for size in sizes)
        assert memory.optimizer == CHUNK
        stays = memory_of(made.model_copy(update={"offload": False}), stage, learners, 1, 0)
        idle = memory_of(made.model_copy(update={"offload": "idle"}), stage, learners, 1, 0)
        assert stays.optimizer == 12 * sum(size.trained for size in sizes)
        assert idle.optimizer == 12 * max(size.trained for size in sizes)
    else:
        assert all(size.trained < 0.01 * frozen for size in sizes)
        assert memory.weights < 1.03 * 2 * frozen, "one base for the three"
        assert checkpoint_bytes(made, sizes) == 12 * sum(size.trained for size in sizes), "without it"
        grounded = stage.model_copy(update={"experts": stage.experts.model_copy(update={"grounding": GROUNDING})})
        assert memory_of(made, grounded, learners_of(made, grounded, tmp_path), 1, 0).weights > 2.7 * 2 * frozen
        apart = made.model_copy(update={"stack": made.stack.model_copy(update={"experts_together": False})})
        more = place(apart, "align", learners, memory, experts=served_experts(made, tmp_path))
        taken = {name: value for name, value in more.cards["0"].parts.items() if name in EXPERTS}
        assert sum(taken.values()) > found.cards["0"].parts["experts"] + 2 * frozen


def test_adapters_are_sized_as_they_are_made(tiny_model: Path) -> None:
    lora, mixture = LoraConfig(rank=4), MixtureConfig(experts=3, top_k=2)
    run = config("device=cpu", "dtype=float32", "stack.device=cpu")
    wanted = {"policy": Wanted(lora), "perception": Wanted(lora, mixture), "reasoning": Wanted(lora)}
    made = load_adapted(tiny_model, run, wanted)
    sizes = [
        policy_size(tiny_model, [], lora=lora),
        expert_size(tiny_model, mixture, [], lora=lora),
        expert_size(tiny_model, None, [], lora=lora),
    ]
    for size, model in zip(sizes, made.values(), strict=True):
        assert size.trained == sum(parameter.numel() for parameter in learning(model).values())
        assert size.base == str(tiny_model)


def test_a_model_of_another_family_is_refused_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "llava"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llava", "architectures": ["Llava"]}))
    for load in (partial(policy_size, folder, []), partial(load_policy, folder, dtype=torch.float32)):
        with pytest.raises(
            ConfigError, match=r"is a llava: policy and experts start from a qwen3_vl or a qwen3_vl_moe"
        ):
            load()
