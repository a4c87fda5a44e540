"""Scores of an expert whose layers are in bfloat16: the last norm and the head are computed in float32."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from prism.model.expert import ExpertModel, load_expert
from prism.model.inputs import Example, InputBuilder
from prism.model.packing import Batch, pack, run_backbone
from prism.wire.v1 import rollout_pb2 as pb

RESPONSES = 16
OFFSET = 6.0


@pytest.fixture(scope="module")
def group(tiny_model: Path) -> list[Example]:
    """Sixteen responses to one prompt with a picture."""
    inputs, rng = InputBuilder(tiny_model), random.Random(0)
    parts = [pb.Part(image_sha256="given"), pb.Part(text="What is the sum of row 1?")]
    picture = Image.frombytes("RGB", (96, 96), rng.randbytes(96 * 96 * 3))
    prompt = inputs.prompt([pb.Message(role="user", parts=parts)], [picture])
    return [inputs.with_text(prompt, f"<caption>- {rng.getrandbits(60)}</caption>") for _ in range(RESPONSES)]


def expert(folder: Path, group: list[Example], dtype: torch.dtype) -> ExpertModel:
    """Its scores are near ``OFFSET``, as those of experts that have learnt are near some number: only differences
    between a prompt's responses mean something."""
    model = load_expert(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        states = run_backbone(model.model, batch := pack(group, InputBuilder(folder))).last_hidden_state[0, batch.ends]
        common = states.mean(0)
        model.score.weight.add_(OFFSET * common / common.dot(common))
    return model.to(dtype)


@torch.no_grad()
def stock(model: ExpertModel, batch: Batch) -> Tensor:
    """As the backbone and a linear layer compute it, all in the model's own precision."""
    return model.score(run_backbone(model.model, batch).last_hidden_state[0, batch.ends]).squeeze(-1).float()


@torch.no_grad()
def ours(model: ExpertModel, batch: Batch) -> Tensor:
    return model(batch)


def test_in_float32_they_are_the_stock_models_to_the_bit(tiny_model: Path, group: list[Example]) -> None:
    model, batch = expert(tiny_model, group, torch.float32), pack(group, InputBuilder(tiny_model))
    assert ours(model, batch).tolist() == stock(model, batch).tolist()


@torch.no_grad()
def test_in_bfloat16_they_are_of_the_layers_states_in_float32(tiny_model: Path, group: list[Example]) -> None:
    model, batch = expert(tiny_model, group, torch.bfloat16), pack(group, InputBuilder(tiny_model))
    with model.before_norm() as states:
        scores = ours(model, batch)
    exact = expert(tiny_model, group, torch.bfloat16).float()  # the same weights
    expected = exact.score(exact.model.language_model.norm(states[0][0, batch.ends].float())).squeeze(-1)
    assert states[0].dtype == torch.bfloat16
    torch.testing.assert_close(scores, expected, rtol=1e-6, atol=1e-6)


def test_in_bfloat16_they_vary_less_between_batches(tiny_model: Path, group: list[Example]) -> None:
    """A response in a batch by itself, and among those that share its prompt."""
    model, inputs = expert(tiny_model, group, torch.bfloat16), InputBuilder(tiny_model)
    together, alone = pack(group, inputs), [pack([example], inputs) for example in group]

    def varies(score: Callable[[ExpertModel, Batch], Tensor]) -> tuple[float, float]:
        """The root of the mean square difference, and the share of pairs that are not in the same order."""
        first, second = score(model, together), torch.cat([score(model, batch) for batch in alone])
        orders = [(each[:, None] - each).sign() for each in (first, second)]
        changed = (orders[0] != orders[1]).sum() / (RESPONSES * (RESPONSES - 1))
        return (first - second).square().mean().sqrt().item(), changed.item()

    (difference, changed), (stock_difference, stock_changed) = varies(ours), varies(stock)
    assert 0 < difference < stock_difference / 1.5
    assert changed < stock_changed
    assert len(set(ours(model, together).tolist())) == RESPONSES


def test_the_head_and_the_last_norm_learn(tiny_model: Path, group: list[Example]) -> None:
    model, batch = expert(tiny_model, group, torch.bfloat16), pack(group, InputBuilder(tiny_model))
    model(batch).std().backward()
    for parameter in (model.score.weight, model.model.language_model.norm.weight):
        assert parameter.grad is not None
        assert parameter.grad.any()
