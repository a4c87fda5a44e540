"""Experts that are adapters over one base: pushed as megabytes, scored with as the learner computes them."""

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from prism.config import LoraConfig, MixtureConfig, RunConfig
from prism.errors import WeightsError
from prism.model.adapters.experts import Bases
from prism.model.expert import expert_over, load_expert, unfilled_expert, upcycle
from prism.model.inputs import InputBuilder
from prism.model.packing import pack
from prism.services.experts.engine import ScoringEngine, ScoringGroup, Version
from prism.trainer.learn import ranks
from prism.trainer.learn.adapted import Wanted, adapter_tensors, learning, load_adapted, save_learnt
from prism.trainer.weights.folder import WeightFolder
from prism.wire.response import EXPERTS, Expert
from prism.wire.v1 import rollout_pb2 as pb
from prism.wire.weights import ADAPTER, Manifest, seal

TEXTS = ("- a one", "- a seven\n- a two", "x")
LORA = LoraConfig(rank=4)


@pytest.fixture(scope="module")
def inputs(tiny_model: Path) -> InputBuilder:
    return InputBuilder(tiny_model)


@pytest.fixture(scope="module")
def config(tiny_model: Path) -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": "adapters",
            "model": str(tiny_model),
            "stages": {"sft": {"kind": "sft", "data": ["x"], "steps": 1, "batch": 1, "optimizer": {"lr": 1e-3}}},
            "evaluate": {"data": "x", "max_tokens": 8},
            "stack": {"max_model_len": 512},
        }
    )


@pytest.fixture(scope="module")
def groups(inputs: InputBuilder) -> list[ScoringGroup]:
    example = inputs.prompt([pb.Message(role="user", parts=[pb.Part(text="What is 1 + 2?")])], [])
    return [ScoringGroup(example, "a", (), [[*inputs.text_ids(text), inputs.end_token_id] for text in TEXTS])]


@pytest.fixture
def engine(inputs: InputBuilder, tiny_model: Path) -> Iterator[Callable[..., ScoringEngine]]:
    started: list[ScoringEngine] = []

    def start(expert: Expert, folder: Path = tiny_model, **options: Any) -> ScoringEngine:
        limits = {"device": "cpu", "max_batch_tokens": 4096, "max_queue": 8, "start": folder} | options
        model = options["base"].model if "base" in options else load_expert(folder, seed=1)
        started.append(ScoringEngine(expert, model, inputs, **limits))
        return started[-1]

    yield start
    for each in started:
        each.close()


def learners(tiny_model: Path, config: RunConfig, mixture: MixtureConfig | None = None) -> dict[str, Any]:
    """Both experts', shaken so that each scores in its own way."""
    models = load_adapted(tiny_model, config, dict.fromkeys(EXPERTS, Wanted(LORA, mixture)))
    for seed, model in enumerate(models.values()):
        shake(model, seed)
    return models


def shake(model: Any, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in learning(model).values():
            parameter.add_(torch.randn(parameter.shape, generator=random) * 0.05)


def written(root: Path, expert: str, version: int, model: Any, base: Path) -> tuple[Manifest, WeightFolder]:
    path = f"{expert}/0001-{version:06d}"
    folder = WeightFolder(root, path, None)
    folder.add_adapter(base, adapter_tensors(model), model.adapted.config)
    return seal(root, path, model=expert, version=version, attempt=1, files=folder.files), folder


def expected(model: Any, inputs: InputBuilder, groups: list[ScoringGroup]) -> list[list[float]]:
    model.eval()

    def of(group: ScoringGroup) -> list[float]:
        batch = pack([inputs.with_ids(group.prompt, ids) for ids in group.responses], inputs)
        return ranks.run_sharded(model, lambda: model(batch)).tolist()

    with torch.inference_mode():
        return [of(group) for group in groups]


def scores(engine: ScoringEngine, groups: list[ScoringGroup]) -> torch.Tensor:
    return torch.tensor(engine.submit(groups).result(60).scores)


def close(given: torch.Tensor, wanted: list[list[float]]) -> bool:
    return bool((given - torch.tensor(wanted)).abs().max() < 1e-5)


@pytest.mark.parametrize("mixture", [None, MixtureConfig(experts=3, top_k=2)])
def test_both_experts_score_over_one_base_as_their_learners_do(
    tiny_model: Path,
    config: RunConfig,
    inputs: InputBuilder,
    groups: list[ScoringGroup],
    engine: Callable[..., ScoringEngine],
    tmp_path: Path,
    mixture: MixtureConfig | None,
) -> None:
    """Pushed again and again; what scored before is let go, and the base stays what it was."""
    models, bases = learners(tiny_model, config, mixture), Bases()
    running: dict[str, ScoringEngine] = {expert: engine(expert, bases=bases) for expert in EXPERTS}
    before = scores(running["perception"], groups)
    for version in (1, 2):
        for expert, model in models.items():
            shake(model, 7 + version)
            running[expert].swap(tmp_path, written(tmp_path, expert, version, model, tiny_model)[0])
            assert running[expert].version == Version(version, 1)
        for expert, model in models.items():
            assert close(scores(running[expert], groups), expected(model, inputs, groups)), (version, expert)
    one, other = (each.model for each in running.values())
    assert one.model is other.model
    assert one.mixture == other.mixture == ((3, 2) if mixture else None)
    # The base, and of each expert an adapter and a head: no version before.
    stored = {
        id(tensor): tensor.numel() for each in (one, other) for tensor in each.state_dict(keep_vars=True).values()
    }
    own = sum(parameter.numel() for model in models.values() for parameter in learning(model).values())
    whole = sum(parameter.numel() for parameter in load_expert(tiny_model).model.parameters())
    assert sum(stored.values()) == whole + own
    with running["perception"]._base._computing(None)():
        ids = [inputs.with_ids(groups[0].prompt, response) for response in groups[0].responses]
        head = load_expert(tiny_model, seed=1).score.weight
        states = running["perception"].model.model
        assert states is one.model
        one.score.weight.data.copy_(head)
        assert close(one(pack(ids, inputs)).detach()[None], before.tolist())


def test_adapters_over_another_base_than_the_service_started_from_bring_theirs(
    tiny_model: Path,
    config: RunConfig,
    inputs: InputBuilder,
    groups: list[ScoringGroup],
    engine: Callable[..., ScoringEngine],
    tmp_path: Path,
) -> None:
    """As in a run: services start before SFT has made what alignment's adapters are over."""
    other = tmp_path / "other"
    shutil.copytree(tiny_model, other)
    weights = load_file(other / "model.safetensors")
    save_file({name: tensor + 0.01 for name, tensor in weights.items()}, other / "model.safetensors", {"format": "pt"})
    models, bases = learners(tiny_model, config), Bases()
    running: dict[str, ScoringEngine] = {expert: engine(expert, other, bases=bases) for expert in EXPERTS}
    for expert, model in models.items():
        running[expert].swap(tmp_path, written(tmp_path, expert, 1, model, tiny_model)[0])
        assert close(scores(running[expert], groups), expected(model, inputs, groups))
    assert running["perception"].model.model is running["reasoning"].model.model


def test_whole_weights_replace_an_adapter_and_an_adapter_whole_weights(
    tiny_model: Path,
    config: RunConfig,
    inputs: InputBuilder,
    groups: list[ScoringGroup],
    engine: Callable[..., ScoringEngine],
    tmp_path: Path,
) -> None:
    """As between two stages, where an expert is served as it was saved: a mixture of adapters merged into a mixture."""
    model = learners(tiny_model, config, MixtureConfig(experts=3, top_k=2))["reasoning"]
    running = engine("reasoning")
    running.swap(tmp_path, written(tmp_path, "reasoning", 1, model, tiny_model)[0])
    save_learnt(model, tmp_path / "saved", inputs)
    folder = WeightFolder(tmp_path, "reasoning/0001-000002", None)
    folder.add_folder(tmp_path / "saved")
    running.swap(
        tmp_path,
        seal(tmp_path, "reasoning/0001-000002", model="reasoning", version=2, attempt=1, files=folder.files),
    )
    assert not running.model.adapter
    assert close(scores(running, groups), expected(model, inputs, groups))
    shake(model, 9)
    running.swap(tmp_path, written(tmp_path, "reasoning", 3, model, tiny_model)[0])
    assert close(scores(running, groups), expected(model, inputs, groups))


def test_an_adapter_is_megabytes_beside_a_base_that_is_linked(
    tiny_model: Path, config: RunConfig, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_model, base)
    model = learners(base, config)["perception"]
    _, folder = written(tmp_path, "perception", 1, model, base)
    weights = (base / "model.safetensors").stat()
    assert (tmp_path / "perception/0001-000001/model.safetensors").stat().st_ino == weights.st_ino
    assert folder.bytes_saved > weights.st_size
    adapter = (tmp_path / "perception/0001-000001" / ADAPTER).stat().st_size
    assert folder.bytes_written < adapter + 4096 < weights.st_size / 4


def test_a_base_of_another_file_system_is_copied_once(
    tiny_model: Path, config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def within(source: Path, target: Path) -> None:
        if not Path(source).is_relative_to(tmp_path):
            raise OSError("Invalid cross-device link")
        link(source, target)

    monkeypatch.setattr("prism.trainer.weights.folder.os.link", within)
    model, before = learners(tiny_model, config)["perception"], None
    written: list[int] = []
    for version in (1, 2):
        folder = WeightFolder(tmp_path, f"perception/{version}", before)
        folder.add_adapter(tiny_model, adapter_tensors(model), model.adapted.config)
        before = seal(
            tmp_path, f"perception/{version}", model="perception", version=version, attempt=1, files=folder.files
        )
        written.append(folder.bytes_written)
    base = (tiny_model / "model.safetensors").stat().st_size
    assert written[0] > base > 4 * written[1]


def test_what_does_not_fit_is_refused_and_changes_nothing(
    tiny_model: Path,
    config: RunConfig,
    inputs: InputBuilder,
    groups: list[ScoringGroup],
    engine: Callable[..., ScoringEngine],
    tmp_path: Path,
) -> None:
    model, running = learners(tiny_model, config)["perception"], engine("perception")
    good, _ = written(tmp_path, "perception", 1, model, tiny_model)
    running.swap(tmp_path, good)
    before = scores(running, groups)

    def refused(version: int, words: str, **changes: Any) -> None:
        made = Path(f"perception/0001-{version:06d}")
        folder = WeightFolder(tmp_path, str(made), None)
        tensors = adapter_tensors(model) | changes.get("tensors", {})
        config = model.adapted.config | changes.get("config", {})
        folder.add_adapter(tiny_model, {k: v for k, v in tensors.items() if v is not None}, config)
        manifest = seal(tmp_path, str(made), model="perception", version=version, attempt=1, files=folder.files)
        if "damaged" in changes:
            (tmp_path / made / ADAPTER).write_bytes(b"x" * (tmp_path / made / ADAPTER).stat().st_size)
        with pytest.raises(WeightsError, match=words):
            running.swap(tmp_path, manifest)

    name = "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_A.weight"
    refused(2, "q_proj", tensors={name: None})
    refused(3, "q_proj.lora_A", tensors={name: torch.zeros(4, 3)})
    refused(4, "does not fit", config={"target_modules": ["nothing"]})
    refused(5, "not the tensors", config={"mixture": [3, 2]})
    refused(6, "cannot be read", config={"r": 0})
    refused(7, "sha256", damaged=True)
    refused(8, "score.weight", tensors={"base_model.model.score.weight": None})
    assert torch.equal(scores(running, groups), before)
    assert not [key for key in running.model.state_dict() if ".v2" in key]


def test_a_shared_base_is_walked_by_one_thread_at_a_time(
    tiny_model: Path,
    config: RunConfig,
    inputs: InputBuilder,
    engine: Callable[..., ScoringEngine],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """To move it while the other expert is given an adapter on a GPU mixed their precisions, or ended the process."""
    models, bases = learners(tiny_model, config), Bases()
    base = bases.started(tiny_model, lambda: load_expert(tiny_model))
    running = {expert: engine(expert, bases=bases, base=base) for expert in EXPERTS}
    shared = {id(module) for module in base.model.model.modules()}
    outside: list[str] = []

    def watch(name: str) -> None:
        method = getattr(torch.nn.Module, name)

        def watched(module: Any, *given: Any, **named: Any) -> Any:
            if id(module) in shared and not base._turn._is_owned():  # type: ignore[attr-defined]
                outside.append(name)
            return method(module, *given, **named)

        monkeypatch.setattr(torch.nn.Module, name, watched)

    for name in ("_apply", "train", "named_parameters", "requires_grad_"):
        watch(name)
    for expert, model in models.items():
        running[expert].swap(tmp_path, written(tmp_path, expert, 1, model, tiny_model)[0])
    engine("perception", bases=bases, base=base)
    assert {each.model.model for each in running.values()} == {base.model.model}
    assert not outside


def test_an_expert_counts_its_own_adapter_and_no_other(
    tiny_model: Path, config: RunConfig, engine: Callable[..., ScoringEngine], tmp_path: Path
) -> None:
    models, bases = learners(tiny_model, config), Bases()
    base = bases.started(tiny_model, lambda: load_expert(tiny_model))
    running = {expert: engine(expert, bases=bases, base=base) for expert in EXPERTS}
    whole = sum(parameter.numel() for parameter in base.model.parameters())
    assert running["perception"].parameters == whole
    for version in (1, 2):
        for expert, model in models.items():
            running[expert].swap(tmp_path, written(tmp_path, expert, version, model, tiny_model)[0])
    own = sum(p.numel() for name, p in learning(models["perception"]).items() if "lora_" in name)
    assert [each.parameters for each in running.values()] == [whole + own] * 2


def test_models_are_made_one_at_a_time(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Meanwhile torch's default dtype is theirs, for all threads; the last to end would leave its own behind."""
    model, config = load_expert(tiny_model), (tiny_model / "config.json").read_text()
    ways: list[Callable[[], Any]] = [
        lambda: load_expert(tiny_model, dtype=torch.bfloat16),
        lambda: expert_over(load_expert(tiny_model, dtype=torch.bfloat16)),
        lambda: upcycle(tiny_model, experts=2, top_k=1, dtype=torch.bfloat16),
        lambda: unfilled_expert(config, model),
    ]
    inside: set[int] = set()
    together: list[int] = []
    set_default = torch.set_default_dtype

    def watched(dtype: torch.dtype) -> None:
        thread = threading.get_ident()
        inside.symmetric_difference_update({thread})  # once to set it, once to set it back
        together.append(len(inside))
        set_default(dtype)
        time.sleep(0.01)

    monkeypatch.setattr(torch, "set_default_dtype", watched)
    with ThreadPoolExecutor(len(ways)) as threads:
        for each in [threads.submit(way) for way in ways]:
            each.result()
    assert len(together) >= 2 * len(ways)
    assert max(together) == 1
    assert torch.get_default_dtype() == torch.float32
