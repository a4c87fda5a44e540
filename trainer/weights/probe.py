"""A probe: logprobs by the learner, for the server that loads its weights to be compared with."""

from typing import Any

import torch

from prism.data.blobs import BlobStore
from prism.data.images import canonical_image, decode_image
from prism.model.inputs import InputBuilder
from prism.model.packing import pack
from prism.trainer.learn.policy_model import response_logprobs
from prism.wire.messages import image_sha256s, to_openai
from prism.wire.v1 import rollout_pb2 as pb
from prism.wire.weights import Probe


@torch.no_grad()
def make_probe(
    model: Any, inputs: InputBuilder, prompt: pb.Prompt, text: str, blobs: BlobStore, tolerance: float
) -> Probe | None:
    """The learner's own logprobs of ``text`` after ``prompt``, for the server to be compared with.

    None if the text does not tokenise by itself as it does behind the prompt: the server could not be asked the same.
    """
    names = image_sha256s(prompt.messages)
    images = {name: canonical_image(blobs.get(name), max_pixels=None) for name in names}
    example = inputs.prompt(prompt.messages, [decode_image(images[name], max_pixels=None) for name in names])
    ids = inputs.text_ids(text)
    joined = inputs.tokenizer(
        inputs.tokenizer.decode(example.input_ids[-4:]) + text, add_special_tokens=False
    )["input_ids"]  # fmt: skip
    if not ids or joined[-len(ids) :] != ids:
        return None
    training = model.training
    model.eval()
    logprobs = response_logprobs(model, pack([inputs.with_ids(example, ids)], inputs, model.device))
    model.train(training)
    messages = [*to_openai(prompt.messages, images), {"role": "assistant", "content": text}]
    return Probe(messages=messages, logprobs=logprobs.tolist(), tolerance=tolerance)
