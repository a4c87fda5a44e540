"""Weights from a learner to the server that works with them: written, sealed, pushed, and verified by a probe."""

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import torch
from PIL import Image

from prism.blobs import BlobStore
from prism.clients import data_uri
from prism.config import PushConfig
from prism.data import open_image
from prism.errors import WeightsError
from prism.inputs import InputBuilder
from prism.v1 import rollout_pb2 as pb
from prism.weights import Manifest, Probe, keep_newest, seal
from trainer.policy_model import response_logprobs

KEEP_VERSIONS = 3  # a server that restarts in the middle of a push still finds the one before


@dataclass(frozen=True)
class PushResult:
    total_seconds: float
    """From the first byte written until the server answered."""
    paused_seconds: float
    """How long the server could not work because of it, as the server says."""


class Publisher:
    """Pushes one model's weights to one server."""

    def __init__(
        self, model: str, url: str, admin_token: str, weights_root: Path, attempt: int, config: PushConfig
    ) -> None:
        self._model, self._url, self._root, self._attempt = model, url.rstrip("/"), weights_root, attempt
        self._deadline = config.deadline_seconds
        self._http = httpx.Client(
            timeout=httpx.Timeout(config.deadline_seconds, connect=5),
            headers={"Authorization": f"Bearer {admin_token}"},
        )

    def push(self, version: int, write: Callable[[Path], None], probe: Probe | None = None) -> PushResult:
        """``write(folder)`` the weights, then give them to the server.

        A server that is away, restarting or draining is retried until the deadline. Raises WeightsError when the
        server refuses the weights or the deadline passes.
        """
        started = time.perf_counter()
        path = f"{self._model}/{self._attempt:04d}-{version:06d}"
        folder = self._root / path
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        write(folder)
        manifest = seal(self._root, path, model=self._model, version=version, attempt=self._attempt, probe=probe)
        answer = self._post(manifest)
        keep_newest(self._root / self._model, KEEP_VERSIONS)
        return PushResult(time.perf_counter() - started, answer["sync_paused_seconds"])

    def _post(self, manifest: Manifest) -> dict[str, Any]:
        body = manifest.model_dump(mode="json")
        give_up = time.monotonic() + self._deadline
        while True:
            try:
                response = self._http.post(f"{self._url}/weights", json=body)
                if response.is_success:
                    return response.json()
                problem = f"{response.status_code} {response.text[:500]}"
                final = response.is_client_error
            except httpx.TransportError as error:
                problem, final = f"{type(error).__name__}: {error}", False
            if final or time.monotonic() > give_up:
                raise WeightsError(
                    f"{self._url} did not take version {manifest.version} of the {self._model} weights"
                    f"{'' if final else f' within {self._deadline:.0f} s'}: {problem}"
                )
            time.sleep(0.5)


@torch.no_grad()
def make_probe(
    model: Any, inputs: InputBuilder, prompt: pb.Prompt, text: str, blobs: BlobStore, tolerance: float
) -> Probe | None:
    """The learner's own logprobs of ``text`` after ``prompt``, for the server to be compared with.

    None if the text does not tokenise by itself as it does behind the prompt: the server could not be asked the same.
    """
    images = [
        blobs.get(part.image_sha256) for m in prompt.messages for part in m.parts if part.HasField("image_sha256")
    ]
    opened: list[Image.Image] = [open_image(image) for image in images]
    example = inputs.prompt(prompt.messages, opened)
    ids = inputs.text_ids(text)
    joined = inputs.tokenizer(
        inputs.tokenizer.decode(example.input_ids[-4:]) + text, add_special_tokens=False
    )["input_ids"]  # fmt: skip
    if not ids or joined[-len(ids) :] != ids:
        return None
    training = model.training
    model.eval()
    logprobs = response_logprobs(model, inputs.collate([inputs.with_ids(example, ids)], model.device))
    model.train(training)
    given = iter(images)
    messages: list[dict[str, object]] = [
        {
            "role": message.role,
            "content": [
                {"type": "image_url", "image_url": {"url": data_uri(next(given))}}
                if part.HasField("image_sha256")
                else {"type": "text", "text": part.text}
                for part in message.parts
            ],
        }
        for message in prompt.messages
    ]
    messages.append({"role": "assistant", "content": text})
    return Probe(messages=messages, logprobs=logprobs.tolist(), tolerance=tolerance)
