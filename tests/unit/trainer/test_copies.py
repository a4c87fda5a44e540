"""Host memory from which files are written behind a broadcast, and checkpoints behind the loop."""

import threading
from pathlib import Path
from typing import Any

import torch

from prism.trainer.checkpoint.copies import StateCopies
from prism.trainer.checkpoint.folder import checkpoints
from prism.trainer.checkpoint.saver import Checkpoints
from prism.trainer.checkpoint.tensors import read_tensors
from prism.trainer.weights.copies import HostCopies


def tensors(value: float) -> list[tuple[str, torch.Tensor]]:
    return [
        ("a.weight", torch.full((3, 5), value, dtype=torch.bfloat16)),
        ("a.scale", torch.tensor(value)),
        ("b.weight", torch.arange(6.0).view(2, 3).t() + value),  # not in one piece
        ("none", torch.empty(0)),
    ]


def test_copies_hold_what_was_there_and_their_memory_is_kept() -> None:
    copies = HostCopies()
    places: list[list[int]] = []
    for value in (1.0, 2.0):
        given = tensors(value)
        copies.begin(given)
        held = copies.finish()
        for _, tensor in given:
            tensor.zero_()
        torch.testing.assert_close(dict(held), dict(tensors(value)), rtol=0, atol=0)
        places.append([tensor.data_ptr() for _, tensor in held])
    assert places[0] == places[1]


def test_other_tensors_get_other_room() -> None:
    copies = HostCopies()
    copies.begin(tensors(1))
    copies.finish()
    more = [*tensors(3), ("c.weight", torch.ones(2))]
    copies.begin(more)
    torch.testing.assert_close(dict(copies.finish()), dict(more), rtol=0, atol=0)


def state(value: float, **more: torch.Tensor) -> dict[str, Any]:
    weights = dict(tensors(value))
    return {"policy": {"weights": weights | more, "steps": int(value)}, "rng": {"0": {"cpu": torch.get_rng_state()}}}


def test_a_state_is_copied_as_it_is_into_memory_that_is_kept() -> None:
    copies = StateCopies()
    places: list[list[int]] = []
    for value in (1.0, 2.0):
        given = state(value)
        held = copies.take(given)
        for tensor in given["policy"]["weights"].values():
            tensor.zero_()
        assert held["policy"]["steps"] == value
        torch.testing.assert_close(held, state(value), rtol=0, atol=0)
        places.append([tensor.data_ptr() for tensor in held["policy"]["weights"].values()])
    assert places[0] == places[1]


def test_a_state_with_other_tensors_gets_other_memory() -> None:
    copies = StateCopies()
    copies.take(state(1))
    more = state(3, other=torch.ones(1000))
    torch.testing.assert_close(copies.take(more), more, rtol=0, atol=0)
    less = state(4)
    torch.testing.assert_close(copies.take(less), less, rtol=0, atol=0)


def test_what_two_models_share_is_copied_once() -> None:
    base = torch.arange(6.0).view(2, 3)
    given = {"a": {"base": base, "head": torch.ones(1)}, "b": {"base": base.detach(), "turned": base.t()}}
    held = StateCopies().take(given)
    assert held["a"]["base"].data_ptr() == held["b"]["base"].data_ptr()
    torch.testing.assert_close(held, given, rtol=0, atol=0)


def test_a_save_does_not_write_over_what_the_one_before_still_reads(tmp_path: Path) -> None:
    weight, asked = torch.ones(1000), threading.Event()

    with Checkpoints(tmp_path, keep=2) as saved:
        saved.save(1, {"step": 1}, {"weight": weight}, lambda _: late(asked))
        weight += 1
        threading.Timer(0.3, asked.set).start()
        saved.save(2, {"step": 2}, {"weight": weight}, lambda _: None)
    for folder, value in zip(checkpoints(tmp_path), (1.0, 2.0), strict=True):
        found = {"weight": torch.zeros(1000)}
        read_tensors(folder, found)
        assert found["weight"].unique().tolist() == [value]


def late(event: threading.Event) -> None:
    assert event.wait(30)
