"""The schedule by its values, and updates that must not be made."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from prism.config import OptimizerConfig
from prism.errors import NotFiniteError
from prism.trainer.learn.optimizer import Optimizer, lr_factor


def settings(**values: Any) -> OptimizerConfig:
    return OptimizerConfig.model_validate(values)


@pytest.mark.parametrize(
    ("options", "total", "factors"),
    [
        ({}, 4, [1, 1, 1, 1]),
        ({"schedule": "linear"}, 5, [1, 0.8, 0.6, 0.4, 0.2]),  # 0 would be the sixth
        ({"schedule": "linear", "final_lr_fraction": 0.2}, 5, [1, 0.8, 0.6, 0.4, 0.2]),
        ({"schedule": "cosine"}, 3, [1, 0.75, 0.25]),
        ({"schedule": "cosine", "final_lr_fraction": 0.1}, 5, [1, 0.868198, 0.55, 0.231802, 0.1]),
        ({"warmup_fraction": 0.5}, 4, [1 / 3, 2 / 3, 1, 1]),
        ({"schedule": "linear", "warmup_fraction": 0.4}, 5, [1 / 3, 2 / 3, 1, 2 / 3, 1 / 3]),
        ({"schedule": "linear"}, 1, [1]),
    ],
)
def test_the_schedule_takes_these_values(options: dict[str, Any], total: int, factors: list[float]) -> None:
    config = settings(lr=1, **options)
    assert [lr_factor(config, step, total) for step in range(total)] == pytest.approx(factors, abs=1e-6)


def test_an_experts_rate_climbs_over_so_many_updates_and_a_fifth_at_most() -> None:
    def first(total: int, **options: Any) -> int:
        """The first step at the full rate."""
        factors = [lr_factor(settings(lr=1, **options), step, total, rate_warmup=20) for step in range(total)]
        assert factors == sorted(factors)
        return factors.index(1)

    assert [first(total) for total in (1, 4, 60, 100, 1500)] == [0, 1, 12, 20, 20]
    assert first(60, warmup_fraction=0.5) == 30, "what is asked for goes first"


@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.9])
@pytest.mark.parametrize("total", [1, 2, 3, 50])
@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_every_step_moves_the_weights(schedule: str, total: int, warmup: float) -> None:
    weight = parameter(1.0)
    config = settings(lr=0.1, schedule=schedule, warmup_fraction=warmup)
    optimizer = Optimizer([("weight", weight)], config, total)
    for step in range(total):
        before = weight.item()
        step_with(optimizer, weight, 1.0)
        assert weight.item() != before, step


def test_past_its_end_the_schedule_stays_where_it_ended() -> None:
    config = settings(lr=1, schedule="linear", final_lr_fraction=0.1)
    assert lr_factor(config, 99, 5) == pytest.approx(0.1)


def parameter(*values: float) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values))


def step_with(optimizer: Optimizer, weight: nn.Parameter, *gradient: float) -> tuple[float, bool]:
    weight.grad = torch.tensor(gradient)
    return optimizer.step()


def test_a_first_step_moves_by_the_scheduled_rate() -> None:
    weight = parameter(1.0, -1.0)
    optimizer = Optimizer([("weight", weight)], settings(lr=0.1, schedule="linear", warmup_fraction=0.5), 4)
    assert optimizer.lr == pytest.approx(0.1 / 3)
    norm, updated = step_with(optimizer, weight, 3.0, -4.0)
    assert (norm, updated, weight.grad) == (pytest.approx(5.0), True, None)
    # Adam's first step is the rate itself, against the sign of the gradient.
    torch.testing.assert_close(weight.data, torch.tensor([1 - 0.1 / 3, -1 + 0.1 / 3]), rtol=0, atol=1e-6)
    assert optimizer.lr == pytest.approx(0.2 / 3)


def test_the_gradient_is_clipped_to_the_largest_norm() -> None:
    """Two gradients of one direction: past the limit, how long they are makes no difference."""
    results: list[torch.Tensor] = []
    for scale in (10.0, 1000.0):
        weight = parameter(1.0, 1.0)
        optimizer = Optimizer([("weight", weight)], settings(lr=0.1, max_grad_norm=1.0), 10)
        step_with(optimizer, weight, 0.3, 0.4)
        step_with(optimizer, weight, 0.6 * scale, -0.8 * scale)
        results.append(weight.data)
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_not_finite_changes_nothing_but_is_counted(bad: float) -> None:
    weight = parameter(1.0, 2.0)
    optimizer = Optimizer([("weight", weight)], settings(lr=0.1), 10)
    step_with(optimizer, weight, 1.0, 1.0)
    before = weight.detach().clone()
    norm, updated = step_with(optimizer, weight, bad, 1.0)
    assert not math.isfinite(norm)
    assert not updated
    assert torch.equal(weight, before)
    assert optimizer.steps == 2
    _, updated = step_with(optimizer, weight, 1.0, 1.0)
    assert updated
    assert torch.isfinite(weight).all()
    assert not torch.equal(weight, before)


def test_frozen_parameters_stay() -> None:
    weight, frozen = parameter(1.0), nn.Parameter(torch.ones(1), requires_grad=False)
    optimizer = Optimizer([("weight", weight), ("frozen", frozen)], settings(lr=0.1, weight_decay=0.5), 10)
    step_with(optimizer, weight, 1.0)
    assert frozen.item() == 1.0
    assert weight.item() < 0.95


def test_a_loaded_optimizer_goes_on_as_the_saved_one(tmp_path: Path) -> None:
    config = settings(lr=0.1, schedule="cosine")
    weight = parameter(1.0, -2.0)
    optimizer = Optimizer([("weight", weight)], config, 6)
    for gradient in (0.3, -0.1, 0.2):
        step_with(optimizer, weight, gradient, 1.0)
    copy = parameter(*weight.tolist())
    resumed = Optimizer([("weight", copy)], config, 6)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    resumed.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    assert (resumed.steps, resumed.lr) == (optimizer.steps, optimizer.lr)
    for gradient in (0.5, -0.5):
        step_with(optimizer, weight, gradient, 1.0)
        step_with(resumed, copy, gradient, 1.0)
    assert torch.equal(weight, copy)


def test_a_loss_that_is_not_finite_skips_the_update_whatever_its_gradient() -> None:
    weight = parameter(1.0)
    optimizer = Optimizer([("weight", weight)], settings(lr=0.1), 10)
    weight.grad = torch.ones(1)
    assert optimizer.step(math.nan) == (1.0, False)
    assert (weight.item(), weight.grad) == (1.0, None)


def test_only_skips_in_a_row_end_it() -> None:
    weight = parameter(1.0)
    optimizer = Optimizer([("weight", weight)], settings(lr=0.1, max_skipped=3), 20)
    for _ in range(2):
        for gradient in (math.nan, math.inf, 1.0):
            step_with(optimizer, weight, gradient)
    step_with(optimizer, weight, math.nan)
    resumed = Optimizer([("weight", weight)], settings(lr=0.1, max_skipped=3), 20)
    resumed.load_state_dict(optimizer.state_dict())
    step_with(resumed, weight, math.nan)
    with pytest.raises(NotFiniteError, match="3 updates in a row"):
        step_with(resumed, weight, math.nan)


def test_steps_too_small_for_bfloat16_add_up_and_are_resumed() -> None:
    """Next below 1 in bfloat16 comes 0.996: a step of 0.001 alone is lost in it."""
    weight = nn.Parameter(torch.ones(1, dtype=torch.bfloat16))

    def step(optimizer: Optimizer, parameter: nn.Parameter) -> None:
        parameter.grad = torch.ones(1, dtype=torch.bfloat16)
        optimizer.step()

    optimizer = Optimizer([("weight", weight)], settings(lr=1e-3), 10)
    step(optimizer, weight)
    assert weight.item() == 1.0
    copy = nn.Parameter(weight.detach().clone())
    resumed = Optimizer([("weight", copy)], settings(lr=1e-3), 10)
    resumed.load_state_dict(optimizer.state_dict())
    for _ in range(4):
        step(optimizer, weight)
        step(resumed, copy)
    assert weight.item() == pytest.approx(0.995, abs=0.002)  # 5 steps, to the nearest bfloat16
    assert weight.grad is None
    assert torch.equal(weight, copy)


def test_gradients_that_are_not_wanted_are_forgotten() -> None:
    weight = parameter(1.0)
    optimizer = Optimizer([("weight", weight)], settings(lr=0.1), 10)
    weight.grad = torch.ones(1)
    optimizer.clear()
    assert weight.grad is None
    assert optimizer.steps == 0
