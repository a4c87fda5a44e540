"""Host memory from which files are written behind a broadcast."""

import torch

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
