"""The study's pretraining learns what the platform's SFT would learn from the same rows."""

from pathlib import Path

import pytest
import torch

from bench.effect.loop.pretrain import loss_of, stock
from bench.effect.loop.pretrain_rows import load_rows
from configs.effect.plan import load_plan
from configs.effect.prepare import prepare
from prism.data.rows import read_rows
from prism.model.inputs import InputBuilder
from prism.model.packing import pack
from prism.trainer.flow.demonstrations import prompt_of
from prism.trainer.learn.policy_model import load_policy, response_logprobs


def test_a_batch_has_the_loss_and_gradients_of_the_platforms_sft(tmp_path: Path) -> None:
    """Rows of unlike length, some of the same picture, and pictures of both sizes."""
    prepare(tmp_path, load_plan(), "toy")
    file, model = tmp_path / "data" / "pretrain.jsonl", tmp_path / "model"
    inputs, data = InputBuilder(model), read_rows(tmp_path / "data" / "pretrain.jsonl", "fail", ("response",))
    sizes = load_rows(file, model, torch.float32)
    assert len(sizes) == 2
    assert sum(len(rows.ids) for rows in sizes) == len(data.rows)
    by_side = {side: [row for row in data.rows if row.meta["side"] == side] for side in (3, 4)}
    for rows, own in zip(sizes, by_side.values(), strict=True):
        places = torch.tensor([2, 0, 1])
        ours = stock(model, torch.float32, "cpu")
        loss = loss_of(ours, rows, places)
        loss.backward()
        theirs = load_policy(model, dtype=torch.float32).train()
        examples = [inputs.with_text(prompt_of(own[i], data, inputs), own[i].response or "") for i in places.tolist()]
        expected = -response_logprobs(theirs, pack(examples, inputs)).mean()
        expected.backward()
        assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
        gradients = dict(theirs.named_parameters())
        for name, parameter in ours.named_parameters():
            assert (parameter.grad is None) == (gradients[name].grad is None), name
            if parameter.grad is not None:
                assert torch.allclose(parameter.grad, gradients[name].grad, atol=1e-5), name
