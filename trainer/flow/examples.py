"""Groups as training examples: the prompt built once, and checked against what the policy server saw."""

from collections.abc import Sequence

from cachetools import LRUCache

from prism.data.blobs import BlobStore
from prism.data.images import decode_image
from prism.data.rows import DataRow, RowCheck, Size
from prism.errors import DataError, StreamError
from prism.model.inputs import Example, InputBuilder
from prism.wire.messages import from_json, image_sha256s
from prism.wire.response import EXPERTS, JudgedSection, parse_response
from prism.wire.sample import first_of
from prism.wire.v1 import rollout_pb2 as pb


class GroupExamples:
    """Builds prompts from groups. As many of those used last as ``cache_bytes`` hold, pixels included, are kept."""

    def __init__(self, inputs: InputBuilder, blobs: BlobStore, *, cache_bytes: int = 2**31) -> None:
        self.inputs, self._blobs = inputs, blobs
        self._prompts: LRUCache[str, Example] = LRUCache(cache_bytes, getsizeof=lambda example: example.nbytes)

    def prompt(self, group: pb.RolloutGroup) -> Example:
        """Raises StreamError if the server's prompt tokens are not the learner's, DataError if an image is missing."""
        prompt = group.request.prompt
        example = self._prompts.get(prompt.id)
        if example is None:
            names = image_sha256s(prompt.messages)
            images = [decode_image(self._blobs.get(sha256), max_pixels=None) for sha256 in names]
            example = self.inputs.prompt(prompt.messages, images)
            if example.nbytes <= self._prompts.maxsize:
                self._prompts[prompt.id] = example
        if example.input_ids != list(group.prompt_token_ids):
            raise StreamError(
                f"prompt {prompt.id}: the policy server saw other tokens than the learner builds; "
                "do both load the same tokenizer, chat template and image processor?"
            )
        return example

    def sampled(self, prompt: Example, sample: pb.Sample) -> Example | None:
        """The prompt with the very tokens sampled, up to the first that stands for a picture, which no learner can
        place; None if nothing stands before it."""
        end = first_of(sample, self.inputs.vision_token_ids)
        return None if end == 0 else self.inputs.with_ids(prompt, sample.token_ids[:end])


def refuse_unservable(
    inputs: InputBuilder, max_model_len: int, max_tokens: int, *, judged: JudgedSection | None = None
) -> RowCheck:
    """What raises DataError for a prompt that the policy server refuses.

    It leaves no room for a response of ``max_tokens``, or writes out a control token. ``judged``, what experts are
    shown of a response: or the teacher's has too much of it for an expert, whose limit is the same. (The policy's
    always have room: what is shown of a response is no more than it.)
    """
    room = max_model_len - max_tokens

    def check(row: DataRow, sizes: Sequence[Size]) -> None:
        messages = from_json(row.messages, str)
        inputs.refuse_control(messages)
        tokens = inputs.prompt_tokens(messages, sizes, room=room)
        if tokens > room:
            raise DataError(
                f"a prompt of {tokens} tokens, over the limit of {room}: stack.max_model_len ({max_model_len}) less "
                f"max_tokens ({max_tokens})"
            )
        if judged and (found := _too_long_to_judge(inputs, row, sizes, tokens, max_model_len, judged)):
            raise DataError(found)

    return check


def _too_long_to_judge(
    inputs: InputBuilder, row: DataRow, sizes: Sequence[Size], prompt: int, max_model_len: int, judged: JudgedSection
) -> str | None:
    """``prompt``: its tokens, or more."""
    parsed = parse_response(row.teacher or "")
    for expert in EXPERTS if parsed.valid else ():
        section = parsed.judged(expert, judged)
        if prompt + len(section.encode()) + 1 <= max_model_len:  # no token is less than a byte
            continue
        tokens = inputs.prompt_tokens(from_json(row.messages, str), sizes, room=-1) + len(inputs.text_ids(section)) + 1
        if tokens > max_model_len:
            what = f"{expert} section" if judged == "own" else "response"
            return (
                f"the teacher's {what} has {tokens} tokens with the prompt, over the experts' limit of "
                f"{max_model_len} (stack.max_model_len)"
            )
    return None
