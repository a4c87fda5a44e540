"""The policy service on real vLLM, against transformers on the same folder. Tests run in order on one server."""

import asyncio
import base64
import io
import json
import random
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, cast

import httpx
import psutil
import pytest
import torch
from PIL import Image
from policy_process import ADMIN_TOKEN, DATA_TOKEN, PIXELS, PolicyProcess, data_uri, policy_process
from transformers import Qwen3VLForConditionalGeneration

from bench.padded import collate
from prism.clients.http import Refused, Unavailable
from prism.clients.services import PolicyAnswer, PolicyClient
from prism.config import LoraConfig, PushConfig, RunConfig
from prism.errors import WeightsError
from prism.http.client import async_client
from prism.model.broadcast import Sender
from prism.model.inputs import Example, InputBuilder
from prism.trainer.learn.adapted import adapter_tensors, learning, load_policy_adapter, save_learnt
from prism.trainer.learn.policy_model import load_policy
from prism.trainer.weights.named import config_json, named_weights
from prism.trainer.weights.publish import Publisher, PushTimes
from prism.wire.v1 import rollout_pb2 as pb
from prism.wire.weights import Broadcast, Manifest, Probe

torch.set_num_threads(1)  # leave the other core to the server

VERSION, ATTEMPT = "x-prism-policy-version", "x-prism-policy-attempt"
TOLERANCE = 1e-3  # nats, mean absolute: float32 against float32
QUESTION = "What is the sum of row 1? " * 30  # several blocks of the prefix cache

pytestmark = pytest.mark.timeout(600)


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


def cache_hits(policy: PolicyProcess) -> float:
    lines = policy.client.get("/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("vllm:prefix_cache_hits_total"))


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


def test_the_base_model_serves(policy: PolicyProcess, models: list[Path]) -> None:
    assert_serves(policy, models[0], version=0)
    hits = cache_hits(policy)
    assert_serves(policy, models[0], version=0)
    assert cache_hits(policy) > hits, "nothing was cached: the next test would show nothing"


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


def test_a_push_changes_the_weights_and_no_cache_remembers_the_old(policy: PolicyProcess, models: list[Path]) -> None:
    manifest = policy.seal(models[1], 1, probe=probe_of(models[1]))
    old = policy.chat(chat_messages(picture(1)), max_tokens=24, temperature=0.0).json()
    answer = policy.push(manifest)
    assert answer.status_code == 200, answer.text
    result = answer.json()
    assert (result["version"], result["attempt"]) == (1, 1)
    assert result["probe_difference"] < TOLERANCE
    assert 0 < result["sync_paused_seconds"] <= result["sync_total_seconds"] < 30
    assert_serves(policy, models[1], version=1)
    new = policy.chat(chat_messages(picture(1)), max_tokens=24, temperature=0.0).json()
    assert new["choices"][0]["token_ids"] != old["choices"][0]["token_ids"]
    repeated = policy.push(manifest)
    assert (repeated.status_code, repeated.json()["version"]) == (200, 1)
    page = policy.client.get("/metrics").text
    assert "prism_policy_version 1.0" in page
    assert 'prism_policy_pushes_total{outcome="taken"} 1.0' in page
    assert "vllm:generation_tokens_total" in page


def test_what_cannot_be_verified_is_refused_and_the_old_weights_stay(policy: PolicyProcess, models: list[Path]) -> None:
    corrupt = policy.seal(models[2], 2)
    file = policy.weights_root / corrupt.path / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    answer = policy.push(corrupt)
    assert (answer.status_code, "sha256" in answer.text) == (422, True)
    file.unlink()
    assert policy.push(corrupt).status_code == 422
    assert policy.push(policy.seal(models[2], 0)).status_code == 409
    assert (
        policy.push(policy.seal(models[2], 1, attempt=2).model_copy(update={"model": "perception"})).status_code == 422
    )
    assert policy.client.post("/weights", content=corrupt.model_dump_json()).status_code == 403
    assert policy.admin.post("/weights", content=b'{"version": 3}').status_code == 422
    assert_serves(policy, models[1], version=1)


def test_a_response_in_flight_keeps_its_version_and_one_that_asks_for_the_next_gets_it(
    policy: PolicyProcess, models: list[Path]
) -> None:
    image = picture(2)
    body = {
        "model": "policy",
        "messages": chat_messages(image),
        "max_tokens": 400,
        "ignore_eos": True,
        "stream": True,
        "logprobs": True,
        "return_token_ids": True,
        "temperature": 1.0,
        "seed": 3,
    }
    manifest = policy.seal(models[2], 2, attempt=2, probe=probe_of(models[2]))
    reference(models[1])  # loaded now: it takes longer than the response
    with ThreadPoolExecutor() as pool:
        with policy.client.stream("POST", "/v1/chat/completions", json=body) as stream:
            lines = stream.iter_lines()
            events = [next(lines)]
            push = pool.submit(policy.push, manifest)
            time.sleep(0.3)  # the push has closed the gate by now
            assert not push.done()
            waiting = pool.submit(
                policy.chat, chat_messages(image), {"x-prism-min-policy-version": "2"}, max_tokens=4, temperature=1.0
            )
            events += list(lines)
            assert stream.headers[VERSION] == "1"
        assert push.result().status_code == 200, push.result().text
        late = waiting.result()
    assert (late.headers[VERSION], late.headers[ATTEMPT]) == ("2", "2")
    assert difference(models[2], late.json(), image) < TOLERANCE
    chunks = [json.loads(line[6:]) for line in events if line.startswith("data: {")]
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    ids = [token for choice in choices for token in choice.get("token_ids") or []]
    tokens = [token for choice in choices if choice.get("logprobs") for token in choice["logprobs"]["content"]]
    assert len(ids) == 400
    model = reference(models[1])
    differences = absolute_difference(tokens, model.logprobs(model.prompt(image), ids, sampled=True))
    assert len(differences) == 400
    assert differences.mean() < TOLERANCE
    too_new = policy.client.post(
        "/v1/chat/completions", json=body | {"stream": False}, headers={"x-prism-min-policy-version": "3"}
    )
    assert too_new.status_code == 409


def test_a_push_writes_what_changed_and_the_server_has_all_of_it(
    policy: PolicyProcess, models: list[Path], retrained: Path
) -> None:
    publisher = Publisher("policy", policy.url, ADMIN_TOKEN, policy.weights_root, 2, PushConfig())

    def push(version: int, folder: Path) -> PushTimes:
        model = load_policy(folder, dtype=torch.float32)
        return publisher.push(version, named_weights(model), config_json(model), probe_of(folder))

    whole = push(3, models[2])
    changed = push(4, retrained)
    assert_serves(policy, retrained, version=4)
    vision = sum(p.numel() for p in reference(retrained).model.model.visual.parameters()) * 4
    assert vision <= changed.bytes_saved < vision * 1.2
    assert (changed.bytes_saved + changed.bytes_written, whole.bytes_saved) == (whole.bytes_written, 0)
    shutil.rmtree(policy.weights_root / "policy" / "0002-000003")  # what the newest version was linked to


def test_a_killed_server_comes_back_with_the_newest_weights(
    policy: PolicyProcess, models: list[Path], retrained: Path
) -> None:
    engine = [process for process in policy.server().children(recursive=True) if process.is_running()]
    policy.server().kill()
    _, alive = psutil.wait_procs(engine, timeout=10)
    assert not alive
    policy.wait_ready()
    assert_serves(policy, retrained, version=4)
    assert policy.push(policy.seal(models[3], 9, attempt=1)).status_code == 409


def test_weights_that_fail_their_probe_are_never_served(
    policy: PolicyProcess, models: list[Path], retrained: Path
) -> None:
    failing = policy.seal(models[3], 5, attempt=2, probe=probe_of(models[3], offset=0.5))
    answers: list[httpx.Response] = []
    messages = [{"role": "user", "content": QUESTION}]
    with pytest.raises(Unavailable, match="503 weights failed while the answer was being written"):
        asyncio.run(
            policy.written_under(
                messages, lambda: answers.append(policy.push(failing, in_flight="true")), n=2, tokens=500
            )
        )
    (answer,) = answers
    assert (answer.status_code, "differ" in answer.text) == (422, True)
    refused = policy.client.post("/v1/completions", json={"model": "policy", "prompt": "a", "max_tokens": 1})
    assert refused.status_code == 503
    assert refused.headers["retry-after"]
    assert not policy.is_ready()
    deadline = time.monotonic() + 30
    while not (restarted := "must not serve" in policy.log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert restarted
    policy.wait_ready()
    assert_serves(policy, retrained, version=4)


def test_a_broadcast_comes_from_the_learners_memory_and_its_files_follow(
    policy: PolicyProcess, models: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    written, push_files = threading.Event(), Publisher._push_files

    def push_late(*arguments: Any) -> PushTimes:
        written.wait()
        return push_files(*arguments)

    monkeypatch.setattr(Publisher, "_push_files", push_late)
    publisher = Publisher("policy", policy.url, ADMIN_TOKEN, policy.weights_root, 3, PushConfig(), "cpu")
    model = load_policy(models[3], dtype=torch.float32)
    pushed = publisher.push(6, named_weights(model), config_json(model), probe_of(models[3]))
    assert 0 < pushed.paused_seconds < pushed.total_seconds
    assert not (policy.weights_root / "policy" / "0003-000006").exists()
    assert_serves(policy, models[3], version=6)

    policy.server().kill()  # what it had is nowhere but with the learner: it must not serve anything older
    deadline = time.monotonic() + 240
    while "their files have not come yet" not in policy.log.read_text() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not policy.is_ready()
    written.set()
    settled = publisher.settle()
    assert settled is not None
    assert settled.bytes_written > 0
    policy.wait_ready()
    assert_serves(policy, models[3], version=6)

    publisher.push(7, named_weights(model), config_json(model), probe_of(models[3]))
    publisher.settle()  # this time the server has it, and takes note of the files alone
    assert "followed" in policy.client.get("/metrics").text
    noted = Manifest.model_validate_json((policy.state_dir / "newest.json").read_bytes())
    assert (noted.version, noted.broadcast, len(noted.files) > 2) == (7, None, True)


def test_frozen_weights_pushed_a_hundred_times_change_no_log_probability(
    policy: PolicyProcess, models: list[Path]
) -> None:
    publisher = Publisher("policy", policy.url, ADMIN_TOKEN, policy.weights_root, 3, PushConfig(), "cpu")
    model = load_policy(models[3], dtype=torch.float32)

    def asked() -> list[float]:
        """Of the prompt and of what is sampled. One sequence at a time: beside others it may be rounded otherwise."""
        options = {"seed": 3, "max_tokens": 12, "temperature": 1.0, "prompt_logprobs": 0}
        answer = policy.chat(chat_messages(picture(4)), **options).json()
        of_prompt = [next(iter(entry.values()))["logprob"] for entry in answer["prompt_logprobs"][1:]]
        return of_prompt + [token["logprob"] for token in answer["choices"][0]["logprobs"]["content"]]

    publisher.push(8, named_weights(model), config_json(model))
    before = asked()
    for version in range(9, 109):
        publisher.push(version, named_weights(model), config_json(model))
    publisher.settle()
    after = asked()
    assert after == before, f"up to {max(abs(a - b) for a, b in zip(after, before, strict=True)):.2g} nats apart"
    assert policy.client.get("/v1/models").headers[VERSION] == "108"


def test_a_learner_that_is_lost_in_the_middle_of_a_broadcast_leaves_no_mixture(
    policy: PolicyProcess, models: list[Path]
) -> None:
    tensors = list(named_weights(load_policy(models[1], dtype=torch.float32)))
    manifest = Manifest(model="policy", version=109, attempt=3, path="policy/0003-000109", files={})
    address = ("127.0.0.1", int(policy.url.rpartition(":")[2]))

    def post(offer: Broadcast) -> httpx.Response:
        return policy.push(manifest.model_copy(update={"broadcast": offer}))

    with ThreadPoolExecutor(1) as thread, Sender(address, "cpu", 60) as sender:
        offer = sender.offer(tensors)
        for wrong in (
            offer.model_copy(update={"tensors": offer.tensors[1:]}),
            offer.model_copy(update={"backend": "nccl 1"}),
        ):
            assert post(wrong).status_code == 422
        answer = thread.submit(post, offer)
        sender.send(tensors[:5], answer.done, lambda: False)
    assert answer.result().status_code == 500, answer.result().text
    while policy.is_ready():
        time.sleep(0.1)
    policy.wait_ready()
    assert_serves(policy, models[3], version=108)


@pytest.mark.parametrize(("transport", "old", "new"), [("file", 3, 1), ("broadcast", 1, 2)])
def test_an_answer_goes_on_over_a_push_in_flight_and_says_which_version_wrote_which_token(
    policy: PolicyProcess, models: list[Path], transport: str, old: int, new: int
) -> None:
    """Each token's log-probability is that of the version that it names, over the keys and values that were there."""
    before, after = reference(models[old]), reference(models[new])
    messages = [{"role": "user", "content": QUESTION}]
    prompt = before.inputs.prompt([pb.Message(role="user", parts=[pb.Part(text=QUESTION)])], [])
    version = {"file": 109, "broadcast": 110}[transport]
    device = "cpu" if transport == "broadcast" else None
    config = PushConfig(in_flight=True, deadline_seconds=60)
    publisher = Publisher("policy", policy.url, ADMIN_TOKEN, policy.weights_root, 3, config, device)
    model, probe = load_policy(models[new], dtype=torch.float32), probe_of(models[new])
    assert_serves(policy, models[old], version=version - 1)

    def push() -> PushTimes:
        return publisher.push(version, named_weights(model), config_json(model), probe)

    completion, times, early = asyncio.run(policy.written_under(messages, push, n=2, tokens=500))
    publisher.settle()
    assert early, "the push waited for the answer"
    assert times.paused_seconds < 5
    assert completion.changes
    assert completion.prompt_token_ids == prompt.input_ids
    for index, choice in enumerate(completion.choices):
        first, second = completion.changes.runs(index, 500)
        assert (first.policy_version, second.policy_version) == (version - 1, version)
        made = first.tokens
        expected = torch.cat(
            [
                before.logprobs(prompt, choice.token_ids[:made], sampled=True),
                after.logprobs_over(before, prompt, choice.token_ids, made),
            ]
        )
        apart = (torch.tensor(choice.logprobs) - expected).abs()
        assert apart.mean() < TOLERANCE
        assert apart[made - 3 : made + 3].max() < 10 * TOLERANCE, "the change is at another token"
    assert_serves(policy, models[new], version=version)
    fresh = policy.chat(messages, max_tokens=24, temperature=1.0, seed=1).json()["choices"][0]
    ours = absolute_difference(fresh["logprobs"]["content"], after.logprobs(prompt, fresh["token_ids"], sampled=True))
    assert ours.mean() < TOLERANCE, "it found keys and values of the old weights"


def test_a_push_that_is_not_in_flight_waits_for_an_answer_that_would_take_it(
    policy: PolicyProcess, models: list[Path]
) -> None:
    manifest = policy.seal(models[1], 111, attempt=3)
    messages = [{"role": "user", "content": QUESTION}]
    completion, answer, early = asyncio.run(
        policy.written_under(messages, lambda: policy.push(manifest), n=1, tokens=200)
    )
    assert (answer.status_code, completion.changes, early) == (200, None, False)
    assert policy.client.get("/v1/models").headers[VERSION] == "111"


def test_an_adapter_is_merged_into_its_base_and_comes_back_after_a_restart(
    policy: PolicyProcess, models: list[Path], tmp_path: Path
) -> None:
    """Version after version a small file; what is served is what transformers makes of the merged folder."""
    publisher = Publisher("policy", policy.url, ADMIN_TOKEN, policy.weights_root, 9, PushConfig())
    learner, saved = adapter_over(models[1]), Path()
    for version in (1, 2):
        shake(learner, seed=version)
        saved = tmp_path / str(version)
        save_learnt(learner, saved, InputBuilder(models[1]))
        tensors, config = adapter_tensors(learner), learner.adapted.config
        times = publisher.push_adapter(version, models[1], tensors, config, probe_of(saved))
        assert_serves(policy, saved, version=version)
        assert times.bytes_written < times.bytes_saved / 4
    thin = {name: tensor[:, :-1] if "q_proj.lora_A" in name else tensor for name, tensor in tensors.items()}
    with pytest.raises(WeightsError, match=r"not an adapter of the served model: .*q_proj\.lora_A"):
        publisher.push_adapter(3, models[1], thin, config)
    policy.server().kill()
    policy.wait_ready()
    assert_serves(policy, saved, version=2)


def test_an_exported_adapter_is_one_of_stock_vllms(models: list[Path], tmp_path: Path) -> None:
    """Loaded at run time, over the base as it was published."""
    learner = adapter_over(models[1])
    shake(learner, seed=3)
    save_learnt(learner, tmp_path / "saved", InputBuilder(models[1]))
    prompt = reference(tmp_path / "saved").prompt(picture(3))
    ids = [*prompt.input_ids[-12:], *reference(tmp_path / "saved").inputs.text_ids("<caption>- 7 3 1</caption>")]
    ids = [token for token in ids if token not in reference(tmp_path / "saved").inputs.vision_token_ids]
    script = [sys.executable, str(Path(__file__).parent / "stock_lora.py"), str(models[1])]
    done = subprocess.run(
        [*script, str(tmp_path / "saved/adapter"), json.dumps(ids)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    theirs = torch.tensor(json.loads(done.stdout.splitlines()[-1]))
    with torch.no_grad():
        logits = reference(tmp_path / "saved").model(input_ids=torch.tensor([ids])).logits[0, :-1]
    ours = logits.float().log_softmax(-1).gather(-1, torch.tensor(ids)[1:, None])[:, 0]
    assert (ours - theirs).abs().mean() < TOLERANCE


def adapter_over(base: Path) -> Any:
    stage = {"kind": "sft", "data": ["x"], "steps": 1, "batch": 1, "optimizer": {"lr": 1e-3}}
    config = RunConfig.model_validate(
        {
            "name": "adapter",
            "model": str(base),
            "stages": {"sft": stage},
            "evaluate": {"data": "x", "max_tokens": 8},
            "stack": {"max_model_len": 512},
        }
    )
    return load_policy_adapter(base, config, LoraConfig(rank=8))


def shake(learner: Any, seed: int) -> None:
    """As it begins, an adapter computes nothing."""
    drawn = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in learning(learner).values():
            parameter.add_(torch.randn(parameter.shape, generator=drawn) * 0.05)


def test_a_killed_supervisor_leaves_nothing_behind(policy: PolicyProcess) -> None:
    family = policy.family()
    assert len(family) > 2
    policy.process.kill()
    _, alive = psutil.wait_procs(family, timeout=10)
    assert [process for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []


def test_a_completion_is_a_span_of_its_callers_trace(
    models: list[Path], tmp_path: Path, collector: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in collector.environment.items():
        monkeypatch.setenv(name, value)
    trace_id, caller = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    with policy_process(tmp_path, models[0]) as service:
        service.chat([{"role": "user", "content": "?"}], {"traceparent": f"00-{trace_id}-{caller}-01"}, max_tokens=1)
        assert service.client.get("/v1/models").status_code == 200
        deadline = time.monotonic() + 20
        while not (mine := [span for _, span in collector.spans if span.trace_id.hex() == trace_id]):
            assert time.monotonic() < deadline, "no span came"
            time.sleep(0.1)
    (span,) = mine
    assert (span.name, span.parent_span_id.hex()) == ("POST /v1/chat/completions", caller)
    assert {service for service, _ in collector.spans} == {"prism-policy"}
    assert "GET /v1/models" in {span.name for _, span in collector.spans}
