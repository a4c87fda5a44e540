"""Decoder layers through torch.compile: one program, whatever the rows, that computes what the layers do."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters
from torch.library import opcheck

from prism.data.blobs import BlobStore
from prism.data.rows import open_image
from prism.model.inputs import Example, InputBuilder
from prism.model.packing import pack
from prism.model.shared_prefix import PackedLayout, _branches
from prism.trainer.learn import policy_model
from prism.trainer.learn.learner_model import compile_layers
from prism.trainer.learn.policy_model import compile_head, load_policy, response_tokens
from prism.wire.v1 import rollout_pb2 as pb


@pytest.fixture(scope="module")
def inputs(tiny_model: Path) -> InputBuilder:
    return InputBuilder(tiny_model)


@pytest.fixture(scope="module")
def rows(inputs: InputBuilder, teacher_prompts: list[pb.Prompt], blobs: BlobStore) -> list[list[Example]]:
    """Of other lengths each, of one and of two groups; the last has no prompt that is shared."""

    def group(prompt: pb.Prompt, lengths: tuple[int, ...]) -> list[Example]:
        built = inputs.prompt(prompt.messages, [open_image(blobs.get(prompt.messages[0].parts[0].image_sha256))])
        return [inputs.with_text(built, prompt.teacher[:length]) for length in lengths]

    one, two = teacher_prompts[:2]
    return [
        group(one, (30, 20, 7)),
        group(two, (11, 40)),
        group(one, (9, 8, 7, 6)) + group(two, (30, 3)),
        group(one, (50,)),
    ]


def learnt(model: Any, rows: list[list[Example]], inputs: InputBuilder) -> list[torch.Tensor]:
    """Log-probabilities, entropies and all gradients of each row."""
    found: list[torch.Tensor] = []
    for examples in rows:
        tokens = response_tokens(model, pack(examples, inputs), 0.7)
        (tokens.logprobs * torch.linspace(-1, 1, len(tokens.logprobs))).sum().backward()
        gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        model.zero_grad(set_to_none=True)
        found += [tokens.logprobs.detach(), tokens.entropy, torch.cat(gradients)]
    return found


@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiled_layers_compute_what_layers_do_and_are_two_programs_for_any_rows(
    tiny_model: Path,
    rows: list[list[Example]],
    inputs: InputBuilder,
    monkeypatch: pytest.MonkeyPatch,
    *,
    checkpointing: bool,
) -> None:
    stock, model = (load_policy(tiny_model, dtype=torch.float32).train() for _ in range(2))
    monkeypatch.setattr(policy_model, "LOGITS", {"cpu": 5 * model.lm_head.out_features})
    if checkpointing:
        model.gradient_checkpointing_enable()
    torch.compiler.reset()
    counters.clear()
    compile_layers(model, backend="aot_eager")
    compile_head(model, backend="aot_eager")
    for ours, theirs in zip(learnt(model, rows, inputs), learnt(stock, rows, inputs), strict=True):
        assert (ours - theirs).norm() <= 1e-5 * theirs.norm()
    assert not counters["graph_break"]
    # With branches and without; the head's, of chunks of several tokens and of one.
    assert counters["stats"]["unique_graphs"] <= 4


@pytest.mark.parametrize("branches", [(), (2, 1)])
def test_the_operator_is_what_torch_asks_of_one(branches: tuple[int, ...]) -> None:
    layout = PackedLayout([6, 5, 4, 3, 2], prompts=[6, 5][: len(branches)], branches=branches)
    q = torch.randn(20, 4, 8, requires_grad=True)
    k, v = (torch.randn(20, 2, 8, requires_grad=True) for _ in range(2))
    opcheck(_branches, (q, k, v, None, None, *layout.tensors, 0.5))


def test_a_prefix_is_not_learnt_from() -> None:
    layout = PackedLayout([3, 2], prompts=[4], branches=[2])
    q = torch.randn(5, 2, 8, requires_grad=True)
    k, v, prefix_k, prefix_v = (torch.randn(tokens, 2, 8) for tokens in (5, 5, 4, 4))
    out, _ = _branches(q, k, v, prefix_k, prefix_v, *layout.tensors, 0.5)
    with pytest.raises(NotImplementedError, match="prefix"):
        out.sum().backward()
