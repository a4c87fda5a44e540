"""Log-probabilities as the learner computes them, against the plain way."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from prism.blobs import BlobStore
from prism.data import open_image
from prism.errors import ConfigError
from prism.inputs import Batch, InputBuilder, hidden_states
from prism.v1 import rollout_pb2 as pb
from trainer import policy_model
from trainer.policy_model import load_policy, response_logprobs, save_policy


@pytest.fixture(scope="module")
def inputs(tiny_model: Path) -> InputBuilder:
    return InputBuilder(tiny_model)


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Any:
    return load_policy(tiny_model, dtype=torch.float32, attention="sdpa").eval()


@pytest.fixture(scope="module")
def batch(inputs: InputBuilder, teacher_prompts: list[pb.Prompt], blobs: BlobStore) -> Batch:
    """Three responses of different lengths, images included."""
    examples = []
    for prompt, length in zip(teacher_prompts, (1000, 20, 7), strict=False):
        image = open_image(blobs.get(prompt.messages[0].parts[0].image_sha256))
        examples.append(inputs.with_text(inputs.prompt(prompt.messages, [image]), prompt.teacher[:length]))
    return inputs.collate(examples)


def plain(model: Any, batch: Batch, temperature: float) -> torch.Tensor:
    logits = model(**batch.model_inputs).logits.float() / temperature  # [B, L, V]
    logprobs = logits.log_softmax(-1)
    return torch.cat(
        [
            logprobs[row, position - 1, batch.model_inputs["input_ids"][row, position]][None]
            for row in range(len(logits))
            for position in batch.response_mask[row].nonzero().flatten().tolist()
        ]
    )


@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.0])
def test_they_are_the_log_softmax_of_the_models_logits(model: Any, batch: Batch, temperature: float) -> None:
    with torch.no_grad():
        computed = response_logprobs(model, batch, temperature)
        expected = plain(model, batch, temperature)
    assert computed.dtype == torch.float32
    assert len(computed) == int(batch.response_mask.sum())
    torch.testing.assert_close(computed, expected, rtol=0, atol=1e-5)


def gradients(model: Any, logprobs: torch.Tensor) -> dict[str, torch.Tensor]:
    weights = torch.linspace(-1, 1, len(logprobs))
    (logprobs * weights).sum().backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize("chunk", [1, 7, 10_000])
def test_chunks_change_neither_value_nor_gradient(
    model: Any, batch: Batch, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(policy_model, "LOGITS_CHUNK", chunk)
    computed = response_logprobs(model, batch, 0.7)
    expected = plain(model, batch, 0.7)
    torch.testing.assert_close(computed, expected, rtol=0, atol=1e-5)
    ours, theirs = gradients(model, computed), gradients(model, expected)
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-3, atol=1e-5 * float(gradient.abs().max() + 1))


def test_a_batch_without_a_response_has_no_logprobs(model: Any, inputs: InputBuilder) -> None:
    prompt = inputs.prompt([pb.Message(role="user", parts=[pb.Part(text="?")])], [])
    assert response_logprobs(model, inputs.collate([prompt])).shape == (0,)


def test_a_saved_policy_is_a_folder_like_the_one_it_came_from(
    model: Any, inputs: InputBuilder, batch: Batch, tmp_path: Path
) -> None:
    save_policy(model, tmp_path, inputs)
    loaded = load_policy(tmp_path, dtype=torch.float32, attention="eager").eval()
    again = InputBuilder(tmp_path)
    assert again.text_ids("<caption>- a one") == inputs.text_ids("<caption>- a one")
    assert again.tokenizer.chat_template == inputs.tokenizer.chat_template
    with torch.no_grad():
        torch.testing.assert_close(response_logprobs(loaded, batch), response_logprobs(model, batch), rtol=0, atol=1e-5)


def test_a_folder_without_a_model_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=str(tmp_path)):
        load_policy(tmp_path, dtype=torch.float32, attention="sdpa")


def test_encoding_each_image_once_changes_neither_states_nor_gradients(model: Any, inputs: InputBuilder) -> None:
    messages = [pb.Message(role="user", parts=[pb.Part(image_sha256="x"), pb.Part(text="What is it?")])]
    pictures = [Image.new("RGB", size, colour) for size, colour in (((96, 64), "red"), ((64, 64), "blue"))]
    prompts = [inputs.prompt(messages, [picture]) for picture in pictures]
    texts = ["one", "two two", "three"]
    batch = inputs.collate([inputs.with_text(prompt, text) for prompt in prompts for text in texts])
    assert batch.image_grid_thw is not None
    assert len(batch.image_grid_thw) == 2, "six sequences, two images"

    def states_and_gradient(shared: bool) -> tuple[torch.Tensor, torch.Tensor]:
        model.zero_grad()
        states = (hidden_states(model.model, batch) if shared else model.model(**batch.model_inputs).last_hidden_state)[
            batch.attention_mask.bool()
        ]
        states.square().sum().backward()
        gradient = next(model.model.visual.parameters()).grad
        assert gradient is not None
        return states.detach(), gradient.clone()

    for ours, stock in zip(states_and_gradient(True), states_and_gradient(False), strict=True):
        assert torch.allclose(ours, stock, rtol=1e-5, atol=1e-5 * float(stock.abs().max()))
