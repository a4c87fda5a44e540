"""Packed rows on a real model: what they compute is what the stock model computes of each sequence alone."""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from bench.padded import collate, load_stock
from bench.padded import response_logprobs as padded_logprobs
from prism.model.inputs import Example, InputBuilder
from prism.model.packing import hidden_states, pack, run_backbone, split_by_tokens
from prism.trainer.learn.policy_model import load_policy, response_logprobs
from prism.wire.v1 import rollout_pb2 as pb

SIZES = {"one image": [(96, 64)], "no image": [], "two images": [(64, 64), (96, 32)]}


@pytest.fixture(scope="module")
def inputs(tiny_model: Path) -> InputBuilder:
    return InputBuilder(tiny_model)


@pytest.fixture(scope="module")
def examples(inputs: InputBuilder) -> list[Example]:
    """Groups of four, two, three and one response of all lengths from 1 on, shuffled, with and without images."""
    made: list[Example] = []
    for seed, (name, sizes) in enumerate([*SIZES.items(), ("alone", [(64, 96)])]):
        pixels = [torch.randint(0, 255, (h, w, 3), generator=torch.Generator().manual_seed(seed)) for w, h in sizes]
        parts = [*(pb.Part(image_sha256="x") for _ in sizes), pb.Part(text=f"What is it? {name}")]
        images = [Image.fromarray(each.to(torch.uint8).numpy()) for each in pixels]
        prompt = inputs.prompt([pb.Message(role="user", parts=parts)], images)
        ids = inputs.text_ids("<caption>- a one\n- b two</caption><think>9-1=8</think>" * 4)
        made += [inputs.with_ids(prompt, ids[seed : seed + 1 + 17 * n]) for n in range((4, 2, 3, 1)[seed])]
    random.Random(0).shuffle(made)
    return made


@pytest.fixture(scope="module")
def load(tiny_model: Path) -> Callable[..., tuple[Any, Any]]:
    """The model that takes packed rows, and the stock one."""

    def both(dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
        return load_policy(tiny_model, dtype=dtype), load_stock(tiny_model, dtype=dtype, attention="eager")

    return both


def alone(stock: Any, examples: Sequence[Example], inputs: InputBuilder) -> torch.Tensor:
    """Log-probabilities [R] from one forward pass of the stock model an example: no padding, no sharing."""
    return torch.cat([padded_logprobs(stock, [example], inputs) for example in examples])


def gradients(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad(set_to_none=True)
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).detach().norm() / theirs.detach().norm())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_states_losses_and_gradients_are_those_of_each_sequence_alone(
    load: Callable[..., tuple[Any, Any]], examples: list[Example], inputs: InputBuilder, checkpointing: bool
) -> None:
    ours, stock = load()
    ours.train()
    if checkpointing:
        ours.gradient_checkpointing_enable()
    computed, expected = response_logprobs(ours, pack(examples, inputs)), alone(stock, examples, inputs)
    assert relative(computed, expected) < 1e-5
    torch.testing.assert_close(computed, expected, rtol=0, atol=1e-5)
    weights = torch.linspace(-1, 1, len(computed))
    packed, plain = gradients(ours, (computed * weights).sum()), gradients(stock, (expected * weights).sum())
    assert packed.keys() == plain.keys()
    for name, gradient in plain.items():
        assert relative(packed[name], gradient) < 1e-5, name


def test_each_example_ends_where_its_last_token_stands(
    load: Callable[..., tuple[Any, Any]], examples: list[Example], inputs: InputBuilder
) -> None:
    ours, stock = load()
    batch = pack(examples, inputs)
    with torch.no_grad():
        last = hidden_states(ours.model, batch)[batch.ends]
        expected = torch.cat([stock.model(**collate([e], inputs)).last_hidden_state[:, -1] for e in examples])
    torch.testing.assert_close(last, expected, rtol=0, atol=1e-5)


def test_in_bfloat16_it_is_as_near_to_float32_as_the_stock_model(
    load: Callable[..., tuple[Any, Any]], examples: list[Example], inputs: InputBuilder
) -> None:
    """Log-probabilities within 0.1 nats, 0.02 in the mean; gradients at most 1.5 times as far as the stock model's."""
    ours, stock = load(torch.bfloat16)
    _, exact = load()
    batches = (response_logprobs(ours, pack(examples, inputs)), *(alone(m, examples, inputs) for m in (stock, exact)))
    weights = torch.linspace(-1, 1, len(batches[0]))
    found = [
        torch.cat([g.flatten().float() for g in gradients(model, (logprobs * weights).sum()).values()])
        for model, logprobs in zip((ours, stock, exact), batches, strict=True)
    ]
    off = (batches[0] - batches[2]).abs()
    assert off.max() < 0.1
    assert off.mean() < 0.02
    assert relative(found[0], found[2]) < 1.5 * relative(found[1], found[2])


def test_under_autocast_it_computes_in_bfloat16_as_the_stock_model_does(
    load: Callable[..., tuple[Any, Any]], examples: list[Example], inputs: InputBuilder
) -> None:
    ours, stock = load()
    exact = alone(stock, examples, inputs).detach()
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        off = (response_logprobs(ours, pack(examples, inputs)) - exact).abs().mean()
        theirs = (alone(stock, examples, inputs) - exact).abs().mean()
    assert 1e-4 < off < 1.5 * theirs


def test_a_prompt_and_an_image_are_in_the_row_once(examples: list[Example], inputs: InputBuilder) -> None:
    batch = pack(examples, inputs)
    prompts = {id(e.pixel_values) if e.pixel_values is not None else 0: e.prompt_length for e in examples}
    assert batch.tokens == sum(prompts.values()) + sum(len(e.response_ids) for e in examples)
    assert batch.image_grid_thw is not None
    assert len(batch.image_grid_thw) == sum(map(len, SIZES.values())) + 1
    assert batch.image_rows == list(range(len(batch.image_grid_thw)))
    # Two questions about one picture are two prompts and one image.
    picture = next(e for e in examples if e.pixel_values is not None)
    other = replace(picture, input_ids=[5, *picture.input_ids], prompt_length=picture.prompt_length + 1)
    two = pack([picture, other], inputs)
    assert two.image_grid_thw is not None
    assert picture.image_grid_thw is not None
    assert len(two.image_grid_thw) == len(picture.image_grid_thw)
    assert two.image_rows == 2 * list(range(len(picture.image_grid_thw)))


def test_a_response_does_not_see_its_siblings(
    load: Callable[..., tuple[Any, Any]], examples: list[Example], inputs: InputBuilder
) -> None:
    model, _ = load()
    one, two = [e for e in examples if e.pixel_values is None]
    with torch.no_grad():
        before = response_logprobs(model, pack([one, two], inputs))[: len(one.response_ids)]
        changed = replace(two, input_ids=[*two.input_ids[:-1], two.input_ids[-1] + 1])
        after = response_logprobs(model, pack([one, changed], inputs))[: len(one.response_ids)]
    assert torch.equal(before, after)


def test_examples_without_a_response_end_with_their_prompt(
    load: Callable[..., tuple[Any, Any]], examples: list[Example], inputs: InputBuilder
) -> None:
    model, _ = load()
    answered = examples[0]
    prompt = inputs.with_ids(answered, [])
    with torch.no_grad():
        expected = response_logprobs(model, pack([answered], inputs))
        for group in ([prompt, answered], [answered, prompt, prompt], [prompt, prompt]):
            batch = pack(group, inputs)
            states = run_backbone(model.model, batch).last_hidden_state[0]
            alone = hidden_states(model.model, pack([prompt], inputs))
            torch.testing.assert_close(states[batch.ends[group.index(prompt)]], alone[-1], rtol=0, atol=1e-5)
            if answered in group:
                torch.testing.assert_close(response_logprobs(model, batch), expected, rtol=0, atol=1e-5)


def test_attention_dropout_is_refused(
    load: Callable[..., tuple[Any, Any]], examples: list[Example], inputs: InputBuilder
) -> None:
    model, _ = load()
    for layer in model.model.language_model.layers:
        layer.self_attn.attention_dropout = 0.1
    with pytest.raises(ValueError, match="attention_dropout"):
        response_logprobs(model.train(), pack(examples, inputs))


def of_tokens(prompt: int, *responses: int) -> list[Example]:
    """Responses of these lengths to one prompt; prompts of other lengths are other prompts."""
    return [Example([prompt] * prompt + [0] * length, prompt, None, None) for length in responses]


@pytest.mark.parametrize(
    ("tokens", "batches"),
    [
        (100, [[0, 1, 2, 3, 4]]),
        (60, [[0, 1, 2, 3], [4]]),  # a prompt counts once, and again in the next batch that needs it
        (30, [[0, 1], [2], [3, 4]]),
        (1, [[0], [1], [2], [3], [4]]),  # larger than a batch: alone
    ],
)
def test_batches_hold_what_fits_and_count_a_prompt_once(tokens: int, batches: list[list[int]]) -> None:
    units = [[e] for e in [*of_tokens(10, 10, 8), *of_tokens(11, 7), *of_tokens(12, 1), *of_tokens(12, 15)]]
    assert split_by_tokens(units, tokens) == batches
    costs = [
        sum({unit[0].prompt_length: unit[0].prompt_length for unit in map(units.__getitem__, batch)}.values())
        + sum(len(units[index][0].response_ids) for index in batch)
        for batch in batches
    ]
    assert all(cost <= tokens or len(batch) == 1 for cost, batch in zip(costs, batches, strict=True))


def test_units_stay_whole() -> None:
    units = [of_tokens(5, 4, 4), of_tokens(6, 4, 4), of_tokens(7, 20, 20)]
    assert split_by_tokens(units, 30) == [[0, 1], [2]]
    assert split_by_tokens(units, 26) == [[0], [1], [2]]
    assert split_by_tokens([], 10) == []
