"""The policy service on real vLLM, asked: against transformers on the same folder. On the one server of all tests
here, before any push."""

import asyncio
import base64
import io
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from policy_process import DATA_TOKEN, PolicyProcess, data_uri
from policy_reference import (
    ATTEMPT,
    QUESTION,
    TOLERANCE,
    VERSION,
    chat_messages,
    difference,
    picture,
    reference,
)

from prism.clients.http import Refused
from prism.clients.services import PolicyAnswer, PolicyClient
from prism.http.client import async_client
from prism.model.inputs import InputBuilder
from prism.wire.v1 import rollout_pb2 as pb

pytestmark = pytest.mark.timeout(600)


def test_every_route_needs_its_token(policy: PolicyProcess) -> None:
    for path in ("/healthz", "/readyz", "/metrics"):
        assert httpx.get(policy.url + path).status_code == 200
    answer = httpx.post(policy.url + "/v1/chat/completions", json={})
    assert (answer.status_code, answer.headers[VERSION], answer.headers[ATTEMPT]) == (401, "0", "0")
    assert httpx.post(policy.url + "/collective_rpc", json={}).status_code == 401
    routes = json.loads(policy.admin.get("/openapi.json").text)["paths"]
    admin_only = {"/collective_rpc", "/reset_prefix_cache", "/update_weights", "/sleep", "/pause", "/server_info"}
    assert admin_only <= routes.keys(), "vLLM no longer has routes this test knows"
    open_to_data = set()
    for path, methods in routes.items():
        for method in methods:
            assert httpx.request(method, policy.url + path).status_code == (200 if path == "/metrics" else 401), path
            if policy.client.request(method, path).status_code != 403:
                open_to_data.add(path)
    allowed = "/v1/chat/completions /v1/completions /v1/models /tokenize /detokenize /version /health /metrics"
    assert open_to_data == set(allowed.split())


def test_bad_requests_name_the_limit(policy: PolicyProcess) -> None:
    def refused(content: Any, **headers: str) -> tuple[int, str]:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        headers = {"content-type": "application/json"} | headers
        answer = policy.client.post("/v1/chat/completions", content=body, headers=headers)
        assert answer.headers[VERSION] == "0"
        return answer.status_code, answer.text

    def with_image(url: str, count: int = 1) -> dict[str, Any]:
        part = {"type": "image_url", "image_url": {"url": url}}
        return {"model": "policy", "messages": [{"role": "user", "content": [part] * count}]}

    def status_and_limit(content: Any, limit: str) -> int:
        status, text = refused(content)
        assert limit in text
        return status

    assert refused(b"{nope")[0] == 422
    assert refused({"model": "policy"})[0] == 422
    text_of = lambda text: {"model": "policy", "messages": [{"role": "user", "content": text}]}  # noqa: E731
    assert status_and_limit(text_of("7 " * 1100), "1024") == 413
    assert status_and_limit(text_of("7 " * 100_000), "1024") == 413
    assert status_and_limit(b"x" * (128 * 2**20 + 1), str(128 * 2**20)) == 413
    huge = io.BytesIO()
    Image.new("L", (4097, 4096)).save(huge, "PNG")
    uri = "data:image/png;base64," + base64.b64encode(huge.getvalue()).decode()
    assert status_and_limit(with_image(uri), "PRISM_MAX_IMAGE_PIXELS") == 413
    assert status_and_limit(with_image(data_uri(picture(0)), 9), "At most 8") == 422
    for url in ("file:///etc/hostname", f"{policy.url}/metrics", "data:image/png;base64,AAAA", "ftp://x"):
        assert refused(with_image(url))[0] == 422, url


def test_no_request_samples_a_vision_token(policy: PolicyProcess, models: list[Path]) -> None:
    """However much it asks for one."""
    vision = reference(models[0]).inputs.vision_token_ids
    wanted = {str(token): 100 for token in vision}
    answer = policy.chat(chat_messages(picture(3)), n=4, seed=5, max_tokens=16, logit_bias=wanted).json()
    assert not vision.intersection(token for choice in answer["choices"] for token in choice["token_ids"])
    assert difference(models[0], answer, picture(3)) < TOLERANCE


def test_images_are_scaled_within_the_settings_bounds(policy: PolicyProcess, models: list[Path]) -> None:
    """As the learner scales them, and not as the model's own folder says."""
    for size in ((32, 32), (160, 64)):
        image = picture(2).resize(size)
        answer = policy.chat(chat_messages(image), n=2, seed=7, max_tokens=16, temperature=1.0).json()
        assert difference(models[0], answer, image) < TOLERANCE  # which compares the prompt's tokens first
    own = InputBuilder(models[0])
    assert own.image_tokens(160, 64) != reference(models[0]).inputs.image_tokens(160, 64)


def test_a_burst_of_seeded_groups_is_served_by_one_and_the_same_server(policy: PolicyProcess) -> None:
    """More prompt tokens at once than a forward pass takes by default: the engine died of a split, seeded prefill."""

    def group(seed: int) -> int:
        return len(
            policy.chat(chat_messages(picture(seed)), n=8, seed=seed, max_tokens=4, temperature=1.0).json()["choices"]
        )

    before = policy.server().pid
    with ThreadPoolExecutor(16) as clients:
        assert list(clients.map(group, range(100, 132))) == [8] * 32
    assert policy.server().pid == before


def test_a_streamed_answer_is_the_one_given_in_one_piece(policy: PolicyProcess) -> None:
    image, file = picture(5), io.BytesIO()
    image.save(file, "PNG")
    messages = [pb.Message(role="user", parts=[pb.Part(image_sha256="it"), pb.Part(text=QUESTION)])]
    sampling = pb.Sampling(n=3, temperature=1.0, max_tokens=100, seed=11)  # three events of tokens, and a few over

    async def sample(sampling: pb.Sampling) -> PolicyAnswer:
        async with async_client(timeout=60) as http:
            client = PolicyClient(http, policy.url, DATA_TOKEN, 60, 50)
            return await client.sample(messages, {"it": file.getvalue()}, sampling, 0)

    streamed = asyncio.run(sample(sampling))
    options = {"n": 3, "temperature": 1.0, "top_p": 1.0, "max_tokens": 100, "seed": 11}
    answer = policy.chat(chat_messages(image), **options)
    assert streamed.version == int(answer.headers[VERSION])
    assert streamed.prompt_token_ids == answer.json()["prompt_token_ids"]
    for sample_, choice in zip(streamed.samples, answer.json()["choices"], strict=True):
        assert sample_.text == choice["message"]["content"]
        assert list(sample_.token_ids) == choice["token_ids"]
        assert list(sample_.logprobs) == pytest.approx([token["logprob"] for token in choice["logprobs"]["content"]])
        assert sample_.finish_reason == choice["finish_reason"]
    assert any(len(sample_.token_ids) > 64 for sample_ in streamed.samples), "take another seed: all are short"
    sampling.max_tokens = 10**6
    with pytest.raises(Refused, match="max_tokens=1000000 cannot be greater") as refused:
        asyncio.run(sample(sampling))
    assert refused.value.status == 400
