"""Weights into the policy service on real vLLM, and its answers meanwhile. Tests run in order on one server."""

import asyncio
import json
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import torch
from policy_process import ADMIN_TOKEN, PolicyProcess
from policy_reference import (
    ATTEMPT,
    QUESTION,
    TOLERANCE,
    VERSION,
    absolute_difference,
    assert_serves,
    chat_messages,
    difference,
    picture,
    probe_of,
    reference,
)

from prism.clients.http import Unavailable
from prism.config import LoraConfig, PushConfig, RunConfig
from prism.errors import WeightsError
from prism.model.broadcast import Sender
from prism.model.inputs import InputBuilder
from prism.trainer.learn.adapted import adapter_tensors, learning, load_policy_adapter, save_learnt
from prism.trainer.learn.policy_model import load_policy
from prism.trainer.weights.named import config_json, named_weights
from prism.trainer.weights.publish import Publisher, PushTimes
from prism.wire.v1 import rollout_pb2 as pb
from prism.wire.weights import Broadcast, Manifest

pytestmark = pytest.mark.timeout(600)


def cache_hits(policy: PolicyProcess) -> float:
    lines = policy.client.get("/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("vllm:prefix_cache_hits_total"))


def test_the_base_model_serves(policy: PolicyProcess, models: list[Path]) -> None:
    assert_serves(policy, models[0], version=0)
    hits = cache_hits(policy)
    assert_serves(policy, models[0], version=0)
    assert cache_hits(policy) > hits, "nothing was cached: the next test would show nothing"


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
