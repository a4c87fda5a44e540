"""Groups as training examples: the prompt built once, and checked against what the policy server saw."""

from cachetools import LRUCache

from prism.data.blobs import BlobStore
from prism.data.images import decode_image
from prism.errors import StreamError
from prism.model.inputs import Example, InputBuilder
from prism.wire.messages import image_sha256s
from prism.wire.v1 import rollout_pb2 as pb


class GroupExamples:
    """Builds prompts from groups; the ``remember`` prompts used last (pixels included) are kept."""

    def __init__(self, inputs: InputBuilder, blobs: BlobStore, remember: int = 256) -> None:
        self.inputs, self._blobs = inputs, blobs
        self._prompts: LRUCache[str, Example] = LRUCache(remember)

    def prompt(self, group: pb.RolloutGroup) -> Example:
        """Raises StreamError if the server's prompt tokens are not the learner's, DataError if an image is missing."""
        prompt = group.request.prompt
        example = self._prompts.get(prompt.id)
        if example is None:
            images = [decode_image(self._blobs.get(sha256)) for sha256 in image_sha256s(prompt.messages)]
            example = self.inputs.prompt(prompt.messages, images)
            self._prompts[prompt.id] = example
        if example.input_ids != list(group.prompt_token_ids):
            raise StreamError(
                f"prompt {prompt.id}: the policy server saw other tokens than the learner builds; "
                "do both load the same tokenizer, chat template and image processor?"
            )
        return example

    def sampled(self, prompt: Example, sample: pb.Sample) -> Example | None:
        """The prompt with the very tokens sampled; None if they hold a vision token, which no learner can place."""
        if self.inputs.vision_token_ids.intersection(sample.token_ids):
            return None
        return self.inputs.with_ids(prompt, sample.token_ids)
