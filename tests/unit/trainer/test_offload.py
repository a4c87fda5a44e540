"""Optimizers whose state lies in host memory: the same updates, and checkpoints written from there.

On a CPU both memories are one, and what moves are copies all the same.
"""

import math
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from prism.config import OptimizerConfig, RunConfig
from prism.trainer.checkpoint import saver as saver_module
from prism.trainer.checkpoint.saver import Checkpoints
from prism.trainer.checkpoint.tensors import read_tensors
from prism.trainer.learn.offload import Offload, Room
from prism.trainer.learn.optimizer import Optimizer

CONFIG = OptimizerConfig.model_validate({"lr": 1e-2, "weight_decay": 0.1, "max_grad_norm": 0.5})
CHUNKS = [math.inf, 2000.0]  # bytes: the whole, and four pieces


def model(dtype: torch.dtype) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 8), nn.Linear(8, 16), nn.Linear(16, 4)).to(dtype)


def learn(each: nn.Module, optimizer: Optimizer, step: int, *, scale: float = 1.0) -> tuple[float, bool]:
    random = torch.Generator().manual_seed(step)
    optimizer.prepare()
    dtype = next(each.parameters()).dtype
    (each(torch.randn(32, 16, generator=random).to(dtype)).square().mean() * scale).backward()
    return optimizer.step()


@pytest.mark.parametrize("chunk_bytes", CHUNKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_learners_that_take_turns_in_one_room_learn_as_those_that_stay(dtype: torch.dtype, chunk_bytes: float) -> None:
    """Also where an update is skipped, or not wanted."""
    offload = Offload(Room(torch.device("cpu")), chunk_bytes)
    here, there = list[tuple[nn.Module, Optimizer]](), list[tuple[nn.Module, Optimizer]]()
    for _ in range(2):
        stays, moves = model(dtype), model(dtype)
        here.append((stays, Optimizer(stays.named_parameters(), CONFIG, 9)))
        there.append((moves, Optimizer(moves.named_parameters(), CONFIG, 9, offload)))
    for step in range(4):
        scale = math.inf if step == 2 else 1.0
        for one, other in zip(here, there, strict=True):
            assert learn(*one, step, scale=scale) == pytest.approx(learn(*other, step, scale=scale), nan_ok=True)
        one, other = here[0], there[0]
        for each, optimizer in (one, other):
            optimizer.prepare()
            each(torch.ones(1, 16, dtype=dtype)).sum().backward()
            optimizer.clear()
    for (stays, one), (moves, other) in zip(here, there, strict=True):
        for mine, its in zip(stays.parameters(), moves.parameters(), strict=True):
            torch.testing.assert_close(its, mine)
        ours, theirs = flat(one.state_dict()), flat(other.state_dict())
        assert ours.keys() == theirs.keys()
        for name, tensor in ours.items():
            torch.testing.assert_close(theirs[name], tensor, msg=name)


def flat(state: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in state.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


def test_the_card_holds_one_learners_state_at_a_time() -> None:
    room = Room(torch.device("cpu"))
    made = [model(torch.bfloat16) for _ in range(3)]
    optimizers = [Optimizer(each.named_parameters(), CONFIG, 9, Offload(room)) for each in made]
    for each, optimizer in zip(made, optimizers, strict=True):
        learn(each, optimizer, 0)
    parameters = sum(p.numel() for p in made[0].parameters())
    assert 12 * parameters <= len(room.of(0).untyped_storage()) < 13 * parameters + 64 * 24
    stored = {tensor.untyped_storage().data_ptr() for o in optimizers for tensor in moved(o)}
    assert stored == {storage for o in optimizers for storage in o.host_storages}
    assert len(stored) == 3


def moved(optimizer: Optimizer) -> list[torch.Tensor]:
    state = optimizer.state_dict()
    moments = [m for of_weight in state["moments"].values() for n, m in of_weight.items() if n != "step"]
    return [*state["weights"].values(), *moments]


@pytest.mark.parametrize("chunk_bytes", CHUNKS)
def test_a_checkpoint_is_written_from_host_memory_which_the_next_update_waits_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk_bytes: float
) -> None:
    each = model(torch.bfloat16)
    optimizer = Optimizer(each.named_parameters(), CONFIG, 9, Offload(Room(torch.device("cpu")), chunk_bytes))
    learn(each, optimizer, 0)
    before = {name: tensor.clone() for name, tensor in flat(optimizer.state_dict()).items() if hasattr(tensor, "clone")}
    written, go = saver_module.write_tensors, threading.Event()
    copied: list[Any] = []

    def write(folder: Path, tensors: dict[str, Any]) -> None:
        copied.extend(
            tensor
            for tensor in flat(tensors).values()
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in optimizer.host_storages
        )
        go.wait(10)
        written(folder, tensors)

    monkeypatch.setattr(saver_module, "write_tensors", write)
    with Checkpoints(tmp_path, keep=1) as saved:
        state = {"it": optimizer.state_dict()}
        returned = saved.save(1, {"step": 1}, state, lambda folder: None, lent=optimizer.host_storages)
        optimizer.lend(returned)
        update = threading.Thread(target=partial(learn, each, optimizer, 1))
        update.start()
        update.join(0.3)
        assert update.is_alive()  # it would write over what is being read
        go.set()
        update.join(10)
        assert not update.is_alive()
    assert all(tensor.numel() == 1 for tensor in copied)  # AdamW's counts of steps alone
    again = {"it": Optimizer(model(torch.bfloat16).named_parameters(), CONFIG, 9).state_dict()}
    read_tensors(tmp_path / "000001", again)
    found = flat(again["it"])
    for name, tensor in before.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0, msg=name)
    optimizer.load_state_dict(again["it"])
    assert all(torch.equal(flat(optimizer.state_dict())[name], tensor) for name, tensor in before.items())


def test_one_learner_is_never_idle() -> None:
    stage = {"kind": "sft", "data": ["x"], "steps": 1, "batch": 1, "optimizer": {"lr": 1e-3}}
    values = {"name": "a", "model": "m", "stages": {"sft": stage}, "evaluate": {"data": "x", "max_tokens": 8}}
    for offload in (False, "optimizer"):
        RunConfig.model_validate(values | {"stack": {"max_model_len": 64}, "offload": offload})
    with pytest.raises(ValidationError, match="idle"):
        RunConfig.model_validate(values | {"stack": {"max_model_len": 64}, "offload": "idle"})
