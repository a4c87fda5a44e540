"""Experts that start from folders of their own: taken as they are, refused by name where they do not fit."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from prism.config import AlignConfig, RunConfig, load_config
from prism.errors import ConfigError, WeightsError
from prism.model.expert import load_expert, save_expert, upcycle
from prism.model.inputs import InputBuilder
from prism.trainer.run.expert_start import expert_start, refuse_unfit_starts, served_experts
from prism.trainer.run.placement import disk_of, learners_of, memory_of
from prism.trainer.run.placement import served_experts as served_sizes
from prism.wire.response import EXPERTS, Expert

DEMO = Path("configs/demo.toml")
Make = Callable[..., RunConfig]


@pytest.fixture
def make(tmp_path: Path, tiny_model: Path) -> Make:
    """A run of one alignment from the tiny model, its experts by these keys."""

    def config(*, warmup_steps: int = 20, **experts: Any) -> RunConfig:
        stage = {"kind": "align", "steps": 4, "warmup_steps": warmup_steps, "policy": {"optimizer": {"lr": 1e-6}}}
        stage |= {"rollouts": {"data": "x", "prompts": 4, "n": 4, "max_tokens": 64}}
        return RunConfig.model_validate(
            {
                "name": "it",
                "runs_dir": tmp_path / "runs",
                "model": str(tiny_model),
                "stages": {"align": stage | {"experts": {"optimizer": {"lr": 1e-6}} | experts}},
                "evaluate": {"data": "x", "max_tokens": 8},
                "stack": {"max_model_len": 256},
            }
        )

    return config


def stage_of(config: RunConfig) -> AlignConfig:
    stage = config.stages["align"]
    assert isinstance(stage, AlignConfig)
    return stage


def start_of(config: RunConfig, expert: Expert) -> Path:
    return Path(expert_start(config, "align", stage_of(config), expert))


def refusal(config: RunConfig, policy: Path) -> str:
    with pytest.raises(ConfigError) as refused:
        refuse_unfit_starts(config, config.stages, policy)
    return str(refused.value)


@pytest.fixture(scope="module")
def trained(other_size: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[Expert, Path]:
    """Experts with heads, as `prism experts warmup` leaves them."""
    folder, inputs = tmp_path_factory.mktemp("trained"), InputBuilder(tiny_model)
    for seed, expert in enumerate(EXPERTS, 11):
        save_expert(load_expert(other_size, seed=seed), folder / expert, inputs)
        (folder / expert / "warmup.json").write_text(json.dumps({"expert": expert}))
    return {expert: folder / expert for expert in EXPERTS}


def names(folders: dict[Expert, Path]) -> dict[str, str]:
    return {expert: str(folder) for expert, folder in folders.items()}


# -------------------------------------------------------------------------------- what is started from


def test_experts_start_from_what_was_warmed_up_head_included(
    make: Make, trained: dict[Expert, Path], tiny_model: Path
) -> None:
    config = make(start=names(trained), warmup_steps=0)
    refuse_unfit_starts(config, config.stages, tiny_model)
    assert served_experts(config) == trained
    for expert, folder in trained.items():
        assert start_of(config, expert) == folder
        model = load_expert(folder, seed=999)
        assert torch.equal(model.score.weight, load_file(folder / "model.safetensors")["score.weight"])
        assert model.config.text_config.hidden_size == 64
    assert not (config.run_dir / "experts").exists(), "nothing had to be made"


def test_one_folder_is_for_both_and_the_policys_own_is_none(make: Make, other_size: Path, tiny_model: Path) -> None:
    config = make(start=str(other_size))
    refuse_unfit_starts(config, config.stages, tiny_model)
    assert {start_of(config, expert) for expert in EXPERTS} == {other_size}
    same = make(start=f"{tiny_model}/../{tiny_model.name}")
    assert start_of(same, "reasoning") == tiny_model, "adapters over it share the policy's"
    config.run_dir.mkdir(parents=True)
    (config.run_dir / "mine").symlink_to(other_size)
    assert start_of(make(start="mine"), "perception") == config.run_dir / "mine"


def test_a_dense_start_is_upcycled_once_and_a_mixture_is_taken_as_it_is(
    make: Make, other_size: Path, tiny_model: Path, tmp_path: Path
) -> None:
    mixture = {"experts": 3, "top_k": 1}
    config = make(start=str(other_size), mixture=mixture)
    refuse_unfit_starts(config, config.stages, tiny_model)
    folders = {start_of(config, expert) for expert in EXPERTS}
    assert folders == {config.run_dir / "experts" / "align" / "mixture"}
    made = load_expert(folders.pop(), strict=True)
    assert (made.mixture, made.config.text_config.hidden_size) == ((3, 1), 64)

    upcycled = tmp_path / "upcycled"
    save_expert(upcycle(other_size, experts=3, top_k=1), upcycled, InputBuilder(tiny_model))
    equal = make(start=str(upcycled), mixture=mixture)
    refuse_unfit_starts(equal, equal.stages, tiny_model)
    assert start_of(equal, "perception") == upcycled
    other = make(start=str(upcycled), mixture={"experts": 4, "top_k": 2})
    assert "a mixture of 3 experts already, 1 for each token, and experts.mixture says 4 and 2" in refusal(
        other, tiny_model
    )
    adapters = make(start=str(upcycled), mixture=mixture, lora={})
    assert "with lora experts.mixture is over dense MLPs: leave mixture out" in refusal(adapters, tiny_model)


def test_one_network_starts_from_one_folder_and_from_what_was_warmed_up_as_both(
    make: Make, trained: dict[Expert, Path], other_size: Path, tiny_model: Path
) -> None:
    config = make(shared=True, mixture={"experts": 3, "top_k": 1})
    made = Path(expert_start(config, "align", stage_of(config), "discriminator"))
    assert served_experts(config) == dict.fromkeys(EXPERTS, made)
    (policy, _), *learners = learners_of(config, stage_of(config), tiny_model)
    two = make(mixture={"experts": 3, "top_k": 1})
    (size, _) = learners[0]
    assert [each for each, _ in learners_of(two, stage_of(two), tiny_model)] == [policy, size, size]
    assert len(learners) == 1
    assert served_sizes(config, tiny_model) == [size] * 2
    both, one = (
        memory_of(each, stage_of(each), learners_of(each, stage_of(each), tiny_model), 1, 0) for each in (two, config)
    )
    assert both.optimizer - one.optimizer == 8 * size.trained
    parts = [disk_of(each, tiny_model, each.stages, 1).parts for each in (two, config)]
    assert parts[0]["pushed weights"] - parts[1]["pushed weights"] == 4 * 4 * size.trained
    assert parts[0]["results"] - parts[1]["results"] == 4 * size.parameters

    problem = refusal(make(shared=True, start=str(trained["reasoning"])), tiny_model)
    assert "experts.start: " in problem
    assert "was warmed up as the reasoning expert alone: shared experts start from one of both" in problem
    note = trained["reasoning"] / "warmup.json"
    kept = note.read_text()
    note.write_text(json.dumps({"expert": "discriminator"}))
    try:
        shared = make(shared=True, start=str(trained["reasoning"]), warmup_steps=0)
        refuse_unfit_starts(shared, shared.stages, tiny_model)
        problem = refusal(make(start=str(trained["reasoning"])), tiny_model)
        assert "was warmed up as both experts in one: set shared = true" in problem
    finally:
        note.write_text(kept)


def test_starts_of_two_folders_become_two_mixtures(make: Make, trained: dict[Expert, Path]) -> None:
    config = make(start=names(trained), mixture={"experts": 2, "top_k": 1})
    heads = {}
    for expert in EXPERTS:
        folder = start_of(config, expert)
        assert folder.name == f"{expert}-mixture"
        heads[expert] = load_expert(folder, strict=True).score.weight
        assert torch.equal(heads[expert], load_expert(trained[expert]).score.weight), "its own head is kept"
    assert not torch.equal(*heads.values())


def test_the_published_discriminators_head_is_read(other_size: Path, tmp_path: Path) -> None:
    folder = tmp_path / "published"
    shutil.copytree(other_size, folder)
    weights = load_file(folder / "model.safetensors")
    head = torch.arange(64, dtype=torch.float32)[None]
    save_file(weights | {"v_head.1.weight": head}, folder / "model.safetensors", {"format": "pt"})
    assert torch.equal(load_expert(folder, seed=3).score.weight, head)
    save_file(weights | {"v_head.1.weight": head[:, :7]}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(WeightsError, match=r"the head v_head\.1\.weight is \[1, 7\], not \[1, 64\]"):
        load_expert(folder)


# -------------------------------------------------------------------------------- what is refused


def changed(folder: Path, file: str, *path: str, value: Any) -> None:
    content: Any = json.loads((folder / file).read_text())
    inner = content
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    (folder / file).write_text(json.dumps(content))


def spoil(folder: Path, how: str) -> None:
    if how == "vocabulary":
        tokenizer = (folder / "tokenizer.json").read_text()
        (folder / "tokenizer.json").write_text(tokenizer.replace('"<caption>"', '"<caption2>"'))
    if how == "template":
        for file in folder.glob("chat_template.*"):
            file.write_text(file.read_text().replace("<|im_start|>", "<|im_start|>the "))
    if how == "images":
        for file, *path in (("preprocessor_config.json", "size"), ("processor_config.json", "image_processor", "size")):
            if (folder / file).is_file():
                changed(folder, file, *path, value={"shortest_edge": 32 * 32, "longest_edge": 64 * 64})
    if how == "patches":
        changed(folder, "config.json", "vision_config", "spatial_merge_size", value=1)
    if how == "image token":
        changed(folder, "config.json", "image_token_id", value=1)
    if how == "embeddings":
        changed(folder, "config.json", "text_config", "vocab_size", value=64)
    if how == "positions":
        changed(folder, "config.json", "text_config", "max_position_embeddings", value=128)
    if how == "family":
        changed(folder, "config.json", "model_type", value="qwen2_vl")
    if how == "no folder":
        shutil.rmtree(folder)
    if how == "no processor":
        for file in (*folder.glob("*processor*"), folder / "tokenizer.json"):
            file.unlink()


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("vocabulary", "has another vocabulary than the policy: 2 of "),
        ("template", "has another chat template than the policy"),
        ("images", "processes images otherwise than the policy (size, patches, pixels)"),
        ("patches", "is made for other patches of images than the policy's processor cuts: spatial_merge_size 1"),
        ("image token", "takes token 1 for an image, the policy "),
        ("embeddings", "has embeddings of 64 tokens, and the policy's tokens go up to "),
        ("positions", "has 128 positions, fewer than stack.max_model_len = 256"),
        ("family", "is a qwen2_vl: policy and experts start from a qwen3_vl or a qwen3_vl_moe"),
        ("no folder", "is no folder; download a hub model first: hf download NAME --local-dir "),
        ("no processor", "no processor can be loaded from "),
    ],
)
def test_a_folder_that_does_not_fit_is_refused_by_name(
    make: Make, other_size: Path, tiny_model: Path, tmp_path: Path, how: str, why: str
) -> None:
    folder = tmp_path / "start"
    shutil.copytree(other_size, folder)
    spoil(folder, how)
    said = refusal(make(start=str(folder)), tiny_model)
    assert said.startswith(f"stages.align.experts.start.perception: {folder}")
    assert why in said
    assert f"\nstages.align.experts.start.reasoning: {folder}" in said


def test_a_missing_head_and_the_other_experts_folder_are_refused(
    make: Make, other_size: Path, trained: dict[Expert, Path], tiny_model: Path
) -> None:
    headless = {"perception": str(trained["perception"]), "reasoning": str(other_size)}
    said = refusal(make(start=headless, warmup_steps=0), tiny_model)
    assert said.count("\n") == 0
    assert said.startswith(f"stages.align.experts.start.reasoning: {other_size} has no head, and with warmup_steps = 0")
    grounded = make(start=headless, warmup_steps=0, grounding={"epochs": 1})
    refuse_unfit_starts(grounded, grounded.stages, tiny_model)
    warmed = make(start=headless)
    refuse_unfit_starts(warmed, warmed.stages, tiny_model)
    swapped = make(start=str(trained["reasoning"]))
    assert refusal(swapped, tiny_model) == (
        f"stages.align.experts.start.perception: {trained['reasoning']} was warmed up as the reasoning expert: "
        "name the perception expert's own folder"
    )


def test_keys_that_contradict_each_other_are_refused_when_read() -> None:
    def refused(match: str, *overrides: str) -> None:
        with pytest.raises(ConfigError, match=match):
            load_config(DEMO, list(overrides))

    refused(r"align\.experts\.start\.reasoning: is not set", 'stages.align.experts.start={perception="a"}')
    both = stage_of(load_config(DEMO, ["stages.align.experts.start=warm/both"])).experts.start
    assert both
    assert both.model_dump() == dict.fromkeys(EXPERTS, "warm/both")


def test_no_warm_up_needs_experts_that_can_judge(make: Make, other_size: Path) -> None:
    make(start=str(other_size), warmup_steps=0)
    make(grounding={"epochs": 1}, warmup_steps=0)
    with pytest.raises(ValueError, match="0 is for experts that can judge from the first step"):
        make(warmup_steps=0)


# -------------------------------------------------------------------------------- what it takes of a machine


def test_each_expert_is_sized_by_its_own_start(make: Make, other_size: Path, tiny_model: Path) -> None:
    numbers = {folder: sum(t.numel() for t in load_expert(folder).parameters()) for folder in (tiny_model, other_size)}
    config = make(start={"perception": str(tiny_model), "reasoning": str(other_size)})
    (_, perception, reasoning) = (size for size, _ in learners_of(config, config.stages["align"], tiny_model))
    assert (perception.parameters, reasoning.parameters) == (numbers[tiny_model], numbers[other_size])
    assert [size.parameters for size in served_sizes(config, tiny_model)] == [numbers[tiny_model], numbers[other_size]]
    usual = make()
    weights = [
        memory_of(each, each.stages["align"], learners_of(each, each.stages["align"], tiny_model), 1, 0).weights
        for each in (usual, config)
    ]
    assert weights[0] - weights[1] == 4 * (numbers[tiny_model] - numbers[other_size])
    disk = [disk_of(each, tiny_model, each.stages, 1).parts["results"] for each in (usual, config)]
    assert disk[0] - disk[1] == 4 * (numbers[tiny_model] - numbers[other_size])


def test_adapters_over_another_base_do_not_share_the_policys(make: Make, other_size: Path, tiny_model: Path) -> None:
    lora = {"rank": 4}

    def bases(**experts: Any) -> tuple[list[str | None], float]:
        config = make(lora=lora, **experts)
        stage = stage_of(config)
        stage = stage.model_copy(update={"policy": stage.policy.model_copy(update={"lora": stage.experts.lora})})
        config.stages["align"] = stage
        learners = learners_of(config, stage, tiny_model)
        return [size.base for size, _ in learners], memory_of(config, stage, learners, 1, 0).weights

    (policy, *experts), shared = bases()
    assert {policy, *experts} == {str(tiny_model)}
    (policy, *experts), apart = bases(start=str(other_size))
    assert len(set(experts)) == 1, "they share their own"
    assert policy not in experts
    frozen = sum(tensor.numel() for tensor in load_expert(other_size).model.parameters())
    assert apart - shared == pytest.approx(4 * frozen, rel=0.2)
    assert bases(start=str(tiny_model))[0] == [str(tiny_model)] * 3, "the very folder of the policy is shared"
    run = load_config(DEMO, [f"stages.align.experts.start={json.dumps(str(tiny_model))}", "stages.align.policy.lora={}",
                             "stages.align.experts.lora={}", f"model={json.dumps(str(tiny_model))}"])  # fmt: skip
    policy, perception, _ = (size.base for size, _ in learners_of(run, run.stages["align"], tiny_model))
    assert policy != perception, "the game's policy is what SFT makes of that folder"
