"""What transformers makes of a model folder, to set the policy service's answers beside."""

import random
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from policy_process import PIXELS, PolicyProcess, data_uri
from transformers import Qwen3VLForConditionalGeneration

from bench.padded import collate
from prism.model.inputs import Example, InputBuilder
from prism.wire.v1 import rollout_pb2 as pb
from prism.wire.weights import Probe

torch.set_num_threads(1)  # leave the other core to the server

VERSION, ATTEMPT = "x-prism-policy-version", "x-prism-policy-attempt"
TOLERANCE = 1e-3  # nats, mean absolute: float32 against float32
QUESTION = "What is the sum of row 1? " * 30  # several blocks of the prefix cache


def picture(seed: int) -> Image.Image:
    noise = random.Random(seed).randbytes(96 * 96 * 3)
    return Image.frombytes("RGB", (96, 96), noise)


def chat_messages(image: Image.Image, question: str = QUESTION) -> list[dict[str, Any]]:
    parts = [{"type": "image_url", "image_url": {"url": data_uri(image)}}, {"type": "text", "text": question}]
    return [{"role": "user", "content": parts}]


class Reference:
    """What transformers makes of the same folder, prompt and picture, within the same bounds of pixels."""

    def __init__(self, folder: Path) -> None:
        self.inputs = InputBuilder(folder, PIXELS)
        self.model = Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()

    def prompt(self, image: Image.Image, question: str = QUESTION) -> Example:
        parts = [pb.Part(image_sha256="0" * 64), pb.Part(text=question)]
        return self.inputs.prompt([pb.Message(role="user", parts=parts)], [image])

    @torch.no_grad()
    def logprobs(self, prompt: Example, response_ids: list[int], *, sampled: bool = False) -> torch.Tensor:
        """[T]: of each token of the response, at temperature 1; where it was ``sampled``, of all but vision tokens."""
        assert not self.inputs.vision_token_ids.intersection(response_ids)
        batch = collate([self.inputs.with_ids(prompt, response_ids)], self.inputs)
        logits = self.model(**batch).logits[0, prompt.prompt_length - 1 : -1]
        if sampled:
            logits[:, sorted(self.inputs.vision_token_ids)] = -torch.inf
        return logits.float().log_softmax(-1).gather(-1, torch.tensor(response_ids)[:, None])[:, 0]

    @torch.no_grad()
    def greedy(self, prompt: Example, tokens: int) -> list[int]:
        inputs = collate([prompt], self.inputs)
        # vLLM also stops at the end token alone once --generation-config is "vllm".
        made = cast(Any, self.model).generate(
            **inputs,
            max_new_tokens=tokens,
            do_sample=False,
            eos_token_id=self.inputs.end_token_id,
            suppress_tokens=sorted(self.inputs.vision_token_ids),
        )
        return made[0, prompt.prompt_length :].tolist()

    @torch.no_grad()
    def logprobs_over(self, other: "Reference", prompt: Example, response_ids: list[int], made: int) -> torch.Tensor:
        """[T - made]: of the tokens after the first ``made``, over the keys and values that ``other`` has computed of
        all that stands before the last of those. For a prompt without pictures."""
        batch = collate([self.inputs.with_ids(prompt, response_ids[: made - 1])], self.inputs)
        past = other.model(**batch, use_cache=True).past_key_values
        given = torch.tensor(response_ids[made - 1 : -1])[None]
        positions = torch.arange(given.shape[1]) + prompt.prompt_length + made - 1
        logits = self.model(
            input_ids=given, past_key_values=past, position_ids=positions.expand(3, 1, -1), use_cache=True
        ).logits[0]
        logits[:, sorted(self.inputs.vision_token_ids)] = -torch.inf
        return logits.float().log_softmax(-1).gather(-1, torch.tensor(response_ids[made:])[:, None])[:, 0]


@cache
def reference(folder: Path) -> Reference:
    return Reference(folder)


def probe_of(folder: Path, offset: float = 0.0) -> Probe:
    """What a learner would have the server score; ``offset`` makes it wrong by so many nats a token."""
    model, text = reference(folder), "<caption>- 7 3 1</caption><think>7 + 3</think><answer>10</answer>"
    prompt = model.prompt(picture(9))
    logprobs = model.logprobs(prompt, model.inputs.text_ids(text)) + offset
    messages = [*chat_messages(picture(9)), {"role": "assistant", "content": text}]
    return Probe(messages=messages, logprobs=logprobs.tolist(), tolerance=TOLERANCE)


def difference(folder: Path, answer: dict[str, Any], image: Image.Image) -> float:
    """Mean absolute difference between the answer's logprobs and those of transformers, over all its choices."""
    model = reference(folder)
    prompt = model.prompt(image)
    assert answer["prompt_token_ids"] == prompt.input_ids
    differences = [
        absolute_difference(choice["logprobs"]["content"], model.logprobs(prompt, choice["token_ids"], sampled=True))
        for choice in answer["choices"]
    ]
    return torch.cat(differences).mean().item()


def absolute_difference(tokens: list[dict[str, Any]], theirs: torch.Tensor) -> torch.Tensor:
    ours = torch.tensor([token["logprob"] for token in tokens])
    return (ours[: len(theirs)] - theirs).abs()


def assert_serves(policy: PolicyProcess, folder: Path, version: int, seed: int = 1) -> None:
    """Sampled logprobs and greedy tokens, with a picture, are those of transformers from this folder."""
    image = picture(seed)
    sampled = policy.chat(chat_messages(image), n=4, seed=11, max_tokens=24, temperature=1.0)
    assert sampled.headers[VERSION] == str(version)
    assert len(sampled.json()["choices"]) == 4
    assert difference(folder, sampled.json(), image) < TOLERANCE
    greedy = policy.chat(chat_messages(image), max_tokens=24, temperature=0.0).json()
    model = reference(folder)
    assert greedy["choices"][0]["token_ids"] == model.greedy(model.prompt(image), 24)
