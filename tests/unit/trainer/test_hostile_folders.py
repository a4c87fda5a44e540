"""A run's folder or a model's may come from anyone: whatever lies in it, none of it is executed."""

import io
import json
import os
import pickle
import shutil
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict_saver import save as save_as_earlier

from prism.config import OptimizerConfig, RunConfig, load_config, save_resolved
from prism.errors import ConfigError, PrismError, WeightsError
from prism.logs import console
from prism.model.expert import load_expert
from prism.model.inputs import InputBuilder
from prism.trainer.checkpoint.folder import write_description
from prism.trainer.checkpoint.resume import StageCheckpoints
from prism.trainer.checkpoint.saver import Checkpoints
from prism.trainer.checkpoint.tensors import READ_ERRORS, TENSORS
from prism.trainer.learn.learner import Learner
from prism.trainer.learn.optimizer import Optimizer
from prism.trainer.learn.policy_model import load_policy
from prism.trainer.run.export import export
from prism.wire.weights import file_sha256

OPTIMIZER = OptimizerConfig.model_validate({"lr": 1e-3})


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch '{self.mark}'",)


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """What a payload would create; it can, which is tried first."""
    file = tmp_path / "executed"
    pickle.loads(pickle.dumps(Payload(file)))  # noqa: S301
    assert file.exists()
    file.unlink()
    return file


@pytest.fixture
def run(tmp_path: Path, tiny_model: Path) -> tuple[RunConfig, StageCheckpoints, Path]:
    """A run whose SFT has a checkpoint, and what resumes it."""
    config = load_config(Path("configs/demo.toml"), [f"runs_dir={json.dumps(str(tmp_path))}", f"model={tiny_model}"])
    save_resolved(config)
    model = load_policy(tiny_model, dtype=torch.float32)
    learner = Learner(model, Optimizer(model.named_parameters(), OPTIMIZER, 1), 0)
    root = config.run_dir / "checkpoints" / "sft"
    with Checkpoints(root, 2) as saved:
        state = {"step": 1, "policy_version": 0, "expert_versions": {}}
        saved.save(
            1, state, {"policy": learner.state_dict()}, partial(write_description, config, {"policy": learner.model})
        )
    return config, StageCheckpoints(Checkpoints(root, 2), config, {"policy": learner}, lambda _: None), root / "000001"


def metadata(tensors: Path, mark: Path) -> None:
    """As earlier releases wrote it."""
    save_as_earlier({"policy": {"steps": 1}}, storage_writer=FileSystemWriter(tensors), no_dist=True)
    (tensors / ".metadata").write_bytes(pickle.dumps(Payload(mark)))


def item(tensors: Path, mark: Path) -> None:
    """As a number of theirs: torch reads such with ``weights_only=False``."""
    save_as_earlier({"policy": {"steps": Payload(mark)}}, storage_writer=FileSystemWriter(tensors), no_dist=True)
    for file in tensors.glob("*.safetensors"):
        file.unlink()


def pickled(tensors: Path, mark: Path) -> None:
    whole = io.BytesIO()
    torch.save({"policy": Payload(mark)}, whole)
    (tensors / "rank-00000.safetensors").write_bytes(whole.getvalue())


def header(sharding: str, tensors: Path, mark: Path) -> None:
    given = {"policy.weights.lm_head.weight": torch.zeros(1), "policy.steps": torch.zeros(())}
    save_file(given, tensors / "rank-00000.safetensors", {"DCP_SHARDING_INFO": sharding})


def nothing(tensors: Path, mark: Path) -> None:
    shutil.rmtree(tensors)


HOSTILE: dict[str, Callable[[Path, Path], None]] = {
    "metadata": metadata,
    "item": item,
    "pickled tensors": pickled,
    "no json": partial(header, "__import__('os')"),
    "no offsets": partial(header, "{}"),
    "odd offsets": partial(header, json.dumps({"policy.weights.lm_head.weight": {"saved_offsets": "x"}})),
    "a list": partial(header, "[]"),
    "nothing": nothing,
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_checkpoint_is_refused_by_resume_and_export_and_not_executed(
    run: tuple[RunConfig, StageCheckpoints, Path], mark: Path, tmp_path: Path, what: str
) -> None:
    config, stage, folder = run
    HOSTILE[what](folder / TENSORS, mark)
    files = [file for file in folder.rglob("*") if file.is_file() and file.name != "manifest.json"]
    # Who made the folder made its checksums.
    (folder / "manifest.json").write_text(json.dumps({str(f.relative_to(folder)): file_sha256(f) for f in files}))
    words = "earlier release" if what in ("metadata", "item") else "cannot be read"
    with pytest.raises(WeightsError, match=f"000001 .*{words}"):
        stage.resume()
    with pytest.raises(WeightsError, match=f"000001 .*{words}"):
        export(config.run_dir, tmp_path / "out", stage="sft", model="policy", console=console())
    assert not mark.exists()
    assert not (tmp_path / "out").exists()


def test_what_a_failing_rank_raises_is_a_refusal_too() -> None:
    """torch's own exception of several ranks is no Exception: an ``except Exception`` would let it through."""
    assert not all(issubclass(error, Exception) for error in READ_ERRORS)


@pytest.fixture
def hostile_model(tmp_path: Path, tiny_model: Path, mark: Path) -> Path:
    """A model with pickled weights and with code of its own, which its configurations ask for."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    (folder / "model.safetensors").unlink()
    torch.save({"lm_head.weight": Payload(mark)}, folder / "pytorch_model.bin")
    return folder


def with_code(folder: Path, mark: Path) -> None:
    (folder / "evil.py").write_text(f"import os\nos.system({f'touch {mark}'!r})\n")
    classes = {"AutoConfig": "evil.C", "AutoModelForImageTextToText": "evil.M", "AutoProcessor": "evil.P"}
    for name in ("config.json", "processor_config.json", "tokenizer_config.json"):
        if (file := folder / name).is_file():
            file.write_text(json.dumps(json.loads(file.read_text()) | {"auto_map": classes}))


LOADERS: dict[str, Callable[[Path], Any]] = {
    "policy": lambda folder: load_policy(folder, dtype=torch.float32),
    "expert": load_expert,
}


@pytest.mark.parametrize("loader", LOADERS)
def test_pickled_weights_are_not_even_opened(
    hostile_model: Path, mark: Path, loader: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Any] = []
    monkeypatch.setattr(torch, "load", lambda *a, **_: opened.append(a))
    with pytest.raises((ConfigError, WeightsError), match=r"safetensors"):
        LOADERS[loader](hostile_model)
    assert (opened, mark.exists()) == ([], False)


@pytest.mark.parametrize("loader", [*LOADERS, "inputs"])
def test_code_in_a_model_folder_is_never_run_nor_offered(
    tmp_path: Path, tiny_model: Path, mark: Path, loader: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    with_code(folder, mark)
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # whoever is asked might say yes
    with suppress(PrismError):  # it may also go on without: the code is not needed
        (LOADERS | {"inputs": InputBuilder})[loader](folder)
    assert not mark.exists()
