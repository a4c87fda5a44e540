"""Log-probabilities as the learner computes them, against the plain way."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bench.padded import collate, load_stock
from bench.padded import response_logprobs as padded_logprobs
from prism.data.blobs import BlobStore
from prism.data.images import decode_image
from prism.errors import ConfigError
from prism.model.control import vision_tokens
from prism.model.inputs import Example, InputBuilder
from prism.model.packing import pack
from prism.trainer.learn import policy_model
from prism.trainer.learn.policy_model import load_policy, response_logprobs, response_tokens, save_policy
from prism.wire.v1 import rollout_pb2 as pb


@pytest.fixture(scope="module")
def inputs(tiny_model: Path) -> InputBuilder:
    return InputBuilder(tiny_model)


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Any:
    return load_policy(tiny_model, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def stock(tiny_model: Path) -> Any:
    return load_stock(tiny_model).eval()


@pytest.fixture(scope="module")
def examples(inputs: InputBuilder, teacher_prompts: list[pb.Prompt], blobs: BlobStore) -> list[Example]:
    """Three responses of different lengths, images included."""
    made: list[Example] = []
    for prompt, length in zip(teacher_prompts, (1000, 20, 7), strict=False):
        image = decode_image(blobs.get(prompt.messages[0].parts[0].image_sha256))
        made.append(inputs.with_text(inputs.prompt(prompt.messages, [image]), prompt.teacher[:length]))
    return made


@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.0])
def test_they_are_the_log_softmax_of_the_models_logits(
    model: Any, stock: Any, examples: list[Example], inputs: InputBuilder, temperature: float
) -> None:
    with torch.no_grad():
        computed = response_logprobs(model, pack(examples, inputs), temperature)
        expected = padded_logprobs(stock, examples, inputs, temperature)
    assert computed.dtype == torch.float32
    assert len(computed) == sum(len(example.response_ids) for example in examples)
    torch.testing.assert_close(computed, expected, rtol=0, atol=1e-5)


def test_tokens_that_are_never_sampled_have_no_chance(
    model: Any, stock: Any, examples: list[Example], inputs: InputBuilder
) -> None:
    """As if their logits were infinitely low, also in the entropy of the rest."""
    never = vision_tokens(model.config)
    assert set(never) == inputs.vision_token_ids
    with torch.no_grad():
        made = response_tokens(model, pack(examples, inputs), 0.7, never)
        logits = stock(**collate(examples, inputs)).logits
    for number, example in enumerate(examples):
        own = logits[number, example.prompt_length - 1 : len(example.input_ids) - 1].float() / 0.7
        own[:, never] = -torch.inf
        count = sum(len(each.response_ids) for each in examples[:number])
        rest = own.log_softmax(-1)
        expected = rest.gather(-1, torch.tensor(example.response_ids)[:, None])[:, 0]
        place = slice(count, count + len(expected))
        torch.testing.assert_close(made.logprobs[place], expected, rtol=0, atol=1e-5)
        entropy = -(rest.exp() * rest).nan_to_num(0).sum(-1)
        torch.testing.assert_close(made.entropy[place], entropy, rtol=0, atol=1e-4)


def gradients(model: Any, logprobs: torch.Tensor) -> dict[str, torch.Tensor]:
    weights = torch.linspace(-1, 1, len(logprobs))
    (logprobs * weights).sum().backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize("chunk", [1, 7, 10_000])
def test_chunks_change_neither_value_nor_gradient(
    model: Any, stock: Any, examples: list[Example], inputs: InputBuilder, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(policy_model, "LOGITS", {"cpu": chunk * model.lm_head.out_features})
    computed = response_logprobs(model, pack(examples, inputs), 0.7)
    expected = padded_logprobs(stock, examples, inputs, 0.7)
    torch.testing.assert_close(computed, expected, rtol=0, atol=1e-5)
    ours, theirs = gradients(model, computed), gradients(stock, expected)
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        assert (ours[name] - gradient).norm() < 1e-5 * gradient.norm(), name


class LargestLogits(TorchDispatchMode):
    """The most rows that any tensor with a column for each token of the vocabulary has."""

    def __init__(self, head: torch.nn.Linear) -> None:
        super().__init__()
        self.head, self.rows = head, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor) and tensor.dim() == 2 and tensor.shape[1] == self.head.out_features:
                weights = tensor.shape[0] == self.head.in_features  # of the head, transposed
                self.rows = max(self.rows, 0 if weights else tensor.shape[0])
        return out


def test_no_tensor_of_all_tokens_and_the_vocabulary_exists_forward_or_backward(
    model: Any, examples: list[Example], inputs: InputBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = pack(examples, inputs)
    assert len(batch.targets) > 40
    rows: list[int] = []
    for chunk in (5, 10_000):
        monkeypatch.setattr(policy_model, "LOGITS", {"cpu": chunk * model.lm_head.out_features})
        with LargestLogits(model.lm_head) as largest:
            gradients(model, response_logprobs(model, batch))
        rows.append(largest.rows)
    assert rows == [5, len(batch.targets)]


def test_entropy_is_of_the_distribution_that_is_sampled_from(
    model: Any, stock: Any, examples: list[Example], inputs: InputBuilder
) -> None:
    (example, *_) = examples
    tokens = response_tokens(model, pack([example], inputs), 0.7)
    ids = torch.tensor([example.input_ids])
    with torch.no_grad():
        logits = stock(
            input_ids=ids,
            mm_token_type_ids=(ids == inputs.image_token_id).int(),
            pixel_values=example.pixel_values,
            image_grid_thw=example.image_grid_thw,
        ).logits[0, example.prompt_length - 1 : -1]
    expected = torch.distributions.Categorical(logits=logits / 0.7).entropy()
    torch.testing.assert_close(tokens.entropy, expected, rtol=0, atol=1e-5)
    assert not tokens.entropy.requires_grad


def test_a_batch_without_a_response_has_no_logprobs(model: Any, inputs: InputBuilder) -> None:
    prompt = inputs.prompt([pb.Message(role="user", parts=[pb.Part(text="?")])], [])
    assert response_logprobs(model, pack([prompt], inputs)).shape == (0,)


def test_a_saved_policy_is_a_folder_like_the_one_it_came_from(
    model: Any, inputs: InputBuilder, examples: list[Example], tmp_path: Path
) -> None:
    save_policy(model, tmp_path, inputs)
    loaded = load_stock(tmp_path, attention="eager").eval()  # whatever loads the base model loads this
    again = InputBuilder(tmp_path)
    assert again.text_ids("<caption>- a one") == inputs.text_ids("<caption>- a one")
    assert again.tokenizer.chat_template == inputs.tokenizer.chat_template
    with torch.no_grad():
        torch.testing.assert_close(
            padded_logprobs(loaded, examples, again),
            response_logprobs(model, pack(examples, inputs)),
            rtol=0,
            atol=1e-5,
        )


def test_a_folder_without_a_model_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=str(tmp_path)):
        load_policy(tmp_path, dtype=torch.float32)
