"""What only a GPU can show of optimizers whose state lies in host memory. ``make test-gpu``."""

import pytest
import torch
from torch import nn

from prism.trainer.learn.offload import Offload, Room
from prism.trainer.learn.optimizer import Optimizer
from tests.unit.trainer.test_offload import CHUNKS, CONFIG, flat

SIDE = 4096


def model() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(*(nn.Linear(SIDE, SIDE) for _ in range(4))).to("cuda", torch.bfloat16)


def learn(each: nn.Module, optimizer: Optimizer, step: int) -> None:
    random = torch.Generator("cuda").manual_seed(step)
    optimizer.prepare()
    inputs = torch.randn(64, SIDE, generator=random, device="cuda", dtype=torch.bfloat16)
    each(inputs).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("chunk_bytes", [CHUNKS[0], 2.0**28])
def test_learners_that_take_turns_on_a_card_learn_as_those_that_stay(chunk_bytes: float) -> None:
    """Both at once, with no pause between them; the states of two take the room of one, or of a chunk."""
    model()(torch.zeros(64, SIDE, device="cuda", dtype=torch.bfloat16)).sum().backward()  # cuBLAS takes its workspace
    room = Room(torch.device("cuda"))
    moved = [model() for _ in range(2)]
    moving = [Optimizer(each.named_parameters(), CONFIG, 9, Offload(room, chunk_bytes)) for each in moved]
    held = torch.cuda.memory_allocated()
    for step in range(3):
        for each, optimizer in zip(moved, moving, strict=True):
            learn(each, optimizer, step)
    whole = 12 * sum(parameter.numel() for parameter in moved[0].parameters())
    assert torch.cuda.memory_allocated() - held < 1.05 * min(whole, chunk_bytes) + 2**20
    stays = model()
    staying = Optimizer(stays.named_parameters(), CONFIG, 9)
    for step in range(3):
        learn(stays, staying, step)
    ours = flat(staying.state_dict())
    for optimizer in moving:
        for name, tensor in flat(optimizer.state_dict()).items():
            if isinstance(tensor, torch.Tensor):
                torch.testing.assert_close(tensor.cuda(), ours[name], rtol=1e-4, atol=1e-6, msg=name)
