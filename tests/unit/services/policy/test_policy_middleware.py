"""Tokens, the generation gate and pushes of weights, over a stand-in for vLLM."""

import asyncio
import contextlib
import json
from typing import Any

import httpx
import pytest
from fake_vllm import Service
from starlette.types import Message, Scope

from prism.services.policy.gate import Phase
from prism.services.policy.settings import PolicySettings
from prism.stack.ports import free_port
from prism.wire.weights import Manifest, Probe, read_newest, seal

PROBE_MESSAGES: list[dict[str, object]] = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


def probe(*logprobs: float) -> Probe:
    return Probe(messages=PROBE_MESSAGES, logprobs=list(logprobs), tolerance=0.01)


def versions(answer: httpx.Response) -> tuple[str, str]:
    return answer.headers["x-prism-policy-version"], answer.headers["x-prism-policy-attempt"]


# ── tokens and limits ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("path", "data_status"),
    [
        ("/v1/models", 200),
        ("/tokenize", 200),
        ("/version", 200),
        ("/collective_rpc", 403),
        ("/update_weights", 403),
        ("/docs", 403),
        ("/invocations", 403),
        ("/v1/chat/completions/", 403),
        ("/a-route-of-a-later-release", 403),
        ("/weights", 403),
    ],
)
async def test_a_route_takes_its_own_token(service: Service, path: str, data_status: int) -> None:
    assert (await service.nobody.get(path)).status_code == 401
    assert (await service.nobody.get(path, headers={"Authorization": "Bearer wrong"})).status_code == 401
    assert (await service.data.get(path)).status_code == data_status
    assert (await service.admin.get(path)).status_code == (405 if path == "/weights" else 200)


async def test_admin_routes_move_to_the_admin_port(settings: PolicySettings) -> None:
    port = free_port()
    service = Service(settings.model_copy(update={"admin_port": port}))
    await service.settled()
    refused = await service.admin.get("/weights")
    assert (refused.status_code, "PRISM_ADMIN_PORT" in refused.text) == (403, True)
    assert (await service.data.get("/v1/models")).status_code == 200
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=service.admin.headers) as admin:
        for _ in range(100):  # it is being started
            with contextlib.suppress(httpx.ConnectError):
                assert (await admin.get("/weights")).status_code == 405
                break
            await asyncio.sleep(0.05)
        assert (await admin.get("/v1/models")).status_code == 200


async def test_health_and_metrics_are_open_and_every_answer_names_the_version(service: Service) -> None:
    for path in ("/healthz", "/readyz", "/metrics"):
        answer = await service.nobody.get(path)
        assert (answer.status_code, versions(answer)) == (200, ("0", "0"))
    await service.push(service.seal(3, attempt=2))
    refused, generated = await service.nobody.get("/v1/models"), await service.generate()
    assert versions(refused) == versions(generated) == ("3", "2")


async def test_a_body_over_the_limit_is_refused_by_name(service: Service) -> None:
    answer = await service.data.post("/v1/chat/completions", content=b"x" * 5000)
    assert (answer.status_code, "4096" in answer.text) == (413, True)


async def test_websockets_are_closed(service: Service) -> None:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    scope: Scope = {"type": "websocket", "path": "/v1/realtime", "headers": []}
    await service.middleware(scope, receive, send)
    assert [message["type"] for message in sent] == ["websocket.close"]


@pytest.mark.parametrize(
    ("message", "kind", "status"),
    [
        ("This model's maximum context length is 16 tokens. However, …", "BadRequestError", 413),
        ("Image dimensions 9x9 (81 pixels) exceed the maximum of 80 pixels. Set VLLM_MAX_…", "BadRequestError", 413),
        ("At most 8 image(s) may be provided in one prompt.", "BadRequestError", 422),
        ("1 validation error: JSON decode error", "Bad Request", 422),
        ("temperature must be non-negative", "BadRequestError", 400),
    ],
)
async def test_bad_requests_get_the_status_that_says_which(
    service: Service, message: str, kind: str, status: int
) -> None:
    service.vllm.answer = (400, {"error": {"message": message, "type": kind, "code": 400}})
    answer = await service.generate()
    assert answer.status_code == answer.json()["error"]["code"] == status
    assert len(answer.content) == int(answer.headers["content-length"])


async def test_what_vllm_raises_still_names_the_version(service: Service) -> None:
    service.vllm.answer = RuntimeError("unexpected")
    answer = await service.generate()
    assert (answer.status_code, versions(answer)) == (500, ("0", "0"))
    service.vllm.answer = RuntimeError("Cannot load local files without `--allowed-local-media-path`.")
    assert (await service.generate()).status_code == 422
    assert service.middleware.gate.in_flight == 0


# ── pushes ────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_push_loads_flushes_probes_and_switches_in_this_order(service: Service) -> None:
    answer = await service.push(service.seal(1, probe=probe(-2.0, -3.001)))
    assert answer.status_code == 200
    result = answer.json()
    assert (result["version"], result["attempt"]) == (1, 1)
    assert result["probe_difference"] == pytest.approx(0.0005)
    assert 0 <= result["sync_paused_seconds"] <= result["sync_total_seconds"]
    assert service.vllm.calls == [
        "/collective_rpc",
        "/reset_prefix_cache",
        "/reset_mm_cache",
        "/reset_encoder_cache",
        "/v1/chat/completions",
    ]
    assert (await service.generate()).text == "1-1 1-1"


async def test_a_prefix_cache_that_is_still_held_is_flushed_again(service: Service) -> None:
    service.vllm.busy_flushes = 2
    assert (await service.push(service.seal(1))).status_code == 200
    assert service.vllm.calls.count("/reset_prefix_cache") == 3


async def test_only_newer_weights_are_taken(service: Service) -> None:
    manifest = service.seal(2)
    assert (await service.push(manifest)).status_code == 200
    service.vllm.calls.clear()
    assert (await service.push(manifest)).status_code == 200, "the same again is no mistake"
    assert service.vllm.calls == []
    assert (await service.push(service.seal(1))).status_code == 409
    assert (await service.push(manifest.model_copy(update={"probe": probe(-1.0)}))).status_code == 409
    assert (await service.push(service.seal(0, attempt=2))).status_code == 200, "a resumed run may go back a version"
    assert (await service.push(service.seal(3))).status_code == 409, "the run before it may not go on"
    assert versions(await service.generate()) == ("0", "2")


@pytest.mark.parametrize("body", [b"{nope", b"[]", b'{"version": 1}'])
async def test_a_malformed_manifest_is_refused(service: Service, body: bytes) -> None:
    assert (await service.admin.post("/weights", content=body)).status_code == 422


async def test_weights_that_are_not_what_they_should_be_are_refused_before_the_gate_closes(service: Service) -> None:
    async def refused(manifest: Any, reason: str) -> None:
        answer = await service.push(manifest)
        assert (answer.status_code, reason in answer.text) == (422, True), answer.text

    root = service.settings.weights_root

    def reseal(made: Manifest) -> Manifest:
        return seal(root, made.path, model=made.model, version=made.version, attempt=made.attempt)

    corrupt = service.seal(1)
    (root / corrupt.path / "model.safetensors").write_bytes(b"other")
    await refused(corrupt, "sha256")
    await refused(service.seal(2).model_copy(update={"path": "../base"}), "outside")
    await refused(service.seal(2).model_copy(update={"model": "perception"}), "perception")
    await refused(service.seal(3, shape=(3, 3)), "shape [3, 3]")
    await refused(service.seal(4, name="other.weight"), "1 tensors missing, 1 unknown")
    stray = service.seal(5)
    (root / stray.path / "stray.safetensors").write_bytes((root / stray.path / "model.safetensors").read_bytes())
    await refused(stray, "not in the manifest")
    await refused(reseal(stray), "'layer.weight' stands in 'model.safetensors' and in 'stray.safetensors'")
    for index, reason in (
        ({"weight_map": {"layer.weight": "other.safetensors"}}, "does not name exactly"),
        ({"weight_map": {}}, "does not name exactly"),
        ({}, "is not an index"),
    ):
        indexed = service.seal(6)
        (root / indexed.path / "model.safetensors.index.json").write_text(json.dumps(index))
        await refused(reseal(indexed), reason)
    assert service.vllm.calls == []
    assert (await service.generate()).text == "base base"


# ── the gate ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_response_has_one_version_from_first_token_to_last(service: Service) -> None:
    service.settings.drain_deadline = 10
    service.vllm.slow = True
    first = asyncio.create_task(service.generate())
    await service.vllm.started.wait()
    push = asyncio.create_task(service.push(service.seal(1)))
    await service.phase_is_not(Phase.SERVING)
    second = asyncio.create_task(service.generate(**{"x-prism-min-policy-version": "1"}))
    await asyncio.sleep(0.05)
    assert not push.done()
    assert not second.done()
    assert service.vllm.calls == [], "nothing is loaded while a response is being written"
    assert (await service.nobody.get("/readyz")).status_code == 200
    assert (await service.data.get("/v1/models")).status_code == 200, "what generates nothing does not wait"
    service.vllm.finish.set()
    assert ((await first).text, versions(await first)) == ("base base", ("0", "0"))
    assert (await push).status_code == 200
    assert ((await second).text, versions(await second)) == ("1-1 1-1", ("1", "1"))


async def test_a_push_waits_for_an_answer_that_is_being_made_however_long(service: Service) -> None:
    service.settings.drain_deadline = 0.1
    service.vllm.slow = True
    answer = asyncio.create_task(service.generate())
    await service.vllm.started.wait()
    push = asyncio.create_task(service.push(service.seal(1)))
    seen: list[object] = []
    for _ in range(20):  # half a second, in which the engine makes tokens
        service.middleware._progress.chunks += 1
        await asyncio.sleep(0.025)
        seen.append((await service.nobody.get("/readyz")).json())
    assert not push.done()
    assert {(look["phase"], look["in_flight"]) for look in seen} == {("syncing", 1)}  # pyright: ignore[reportIndexIssue]
    assert seen[0] != seen[-1], "a learner sees that something is made"
    service.vllm.finish.set()
    assert (await answer).text == "base base"
    assert (await push).status_code == 200


async def test_a_push_gives_up_at_the_drain_deadline_and_generation_goes_on(service: Service) -> None:
    service.vllm.slow = True
    stuck = asyncio.create_task(service.generate())
    await service.vllm.started.wait()
    push = asyncio.create_task(service.push(service.seal(1)))
    await asyncio.sleep(0.05)
    waiting = asyncio.create_task(service.generate())
    answer = await push
    assert (answer.status_code, "1 requests in flight made no progress" in answer.text) == (503, True)
    service.vllm.finish.set()
    assert (await stuck).text == (await waiting).text == "base base"
    assert (await service.push(service.seal(1))).status_code == 200


async def test_a_client_that_leaves_is_no_longer_in_flight(service: Service) -> None:
    service.vllm.slow = True
    leaving = asyncio.create_task(service.generate())
    await service.vllm.started.wait()
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    assert (await service.push(service.seal(1))).status_code == 200


async def test_a_push_whose_client_leaves_is_finished(service: Service) -> None:
    service.vllm.busy_flushes = 5
    leaving = asyncio.create_task(service.push(service.seal(1)))
    await service.phase_is_not(Phase.SERVING)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    assert versions(await service.generate()) == ("1", "1")


async def test_a_request_may_ask_for_a_version(service: Service) -> None:
    await service.push(service.seal(2))
    assert (await service.generate(**{"x-prism-min-policy-version": "2"})).status_code == 200
    assert (await service.generate(**{"x-prism-min-policy-version": "3"})).status_code == 409
    assert (await service.generate(**{"x-prism-min-policy-version": "newest"})).status_code == 422
    assert service.middleware.gate.in_flight == 0


# ── what must not serve ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("route", ["/collective_rpc", "/reset_prefix_cache", "/reset_encoder_cache"])
@pytest.mark.parametrize("failure", ["fails", "hangs"])
async def test_a_push_that_fails_half_way_stops_the_server_from_serving(
    service: Service, route: str, failure: str
) -> None:
    (service.vllm.failing if failure == "fails" else service.vllm.hanging).add(route)
    assert (await service.push(service.seal(1))).status_code == 500
    await assert_broken(service)


@pytest.mark.parametrize("given", [(-2.5, -3.0), (float("nan"), -3.0), (0.0,) * 9])
async def test_a_probe_that_differs_stops_the_server_from_serving(service: Service, given: tuple[float, ...]) -> None:
    manifest = service.seal(1)
    service.vllm.logprobs = [-1.0, -2.0, given[0]] if given[0] != given[0] else service.vllm.logprobs
    scored = probe(-2.0, -3.0) if given[0] != given[0] else probe(*given)
    answer = await service.push(manifest.model_copy(update={"probe": scored}))
    assert answer.status_code == (500 if len(given) == 9 else 422)
    await assert_broken(service)


async def assert_broken(service: Service) -> None:
    assert (await service.nobody.get("/healthz")).status_code == 200
    readiness = await service.nobody.get("/readyz")
    assert (readiness.status_code, readiness.json()["phase"]) == (503, "broken")
    refused = await service.generate()
    assert (refused.status_code, "retry-after" in refused.headers) == (503, True)
    assert (await service.push(service.seal(7))).status_code == 503
    assert read_newest(service.settings.state_dir) is None


async def test_an_engine_that_is_not_healthy_is_not_ready(service: Service) -> None:
    service.vllm.failing.add("/health")
    assert (await service.nobody.get("/readyz")).status_code == 503


# ── weights by broadcast ─────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_broadcast_is_served_and_its_files_are_only_noted(service: Service) -> None:
    await service.push(service.seal(1))
    assert (await service.push(service.offer(2))).status_code == 200
    assert (versions(await service.generate()), service.vllm.loaded) == (("2", "1"), "broadcast-7000")
    files = service.seal(2)
    assert (await service.push(files)).json()["sync_paused_seconds"] == 0
    assert (read_newest(service.settings.state_dir), service.vllm.loaded) == (files, "broadcast-7000")
    service.start()
    assert (await service.settled()).status_code == 200
    assert (versions(await service.generate()), service.vllm.loaded) == (("2", "1"), "1-2")


async def test_a_learner_that_cannot_be_met_leaves_everything_as_it_was(service: Service) -> None:
    await service.push(service.seal(1))
    service.vllm.failing.add("join_broadcast")
    assert (await service.push(service.offer(2))).status_code == 503
    service.vllm.failing.clear()
    assert (versions(await service.generate()), service.vllm.loaded) == (("1", "1"), "1-1")
    assert (await service.push(service.offer(2, port=7001))).status_code == 200
    assert (await service.push(service.offer(2, port=7002))).status_code == 200, "its answer was lost on the way"
    assert (versions(await service.generate()), service.vllm.loaded) == (("2", "1"), "broadcast-7002")


async def test_a_broadcast_that_breaks_off_is_not_served(service: Service) -> None:
    service.vllm.failing.add("load_broadcast")
    assert (await service.push(service.offer(2))).status_code == 500
    await assert_broken(service)


@pytest.mark.parametrize("wrong", [{"shape": (3, 2)}, {"backend": "nccl 2.28.9"}])
async def test_a_broadcast_that_does_not_fit_is_not_met(service: Service, wrong: dict[str, Any]) -> None:
    refused = await service.push(service.offer(2, **wrong))
    assert (refused.status_code, service.vllm.joined) == (422, 0)
    assert versions(await service.generate()) == ("0", "0")


async def test_a_server_restarted_before_the_files_came_waits_for_them(service: Service) -> None:
    await service.push(service.offer(2))
    service.vllm.loaded = "base"
    service.start()
    readiness = await service.settled()
    assert (readiness.status_code, readiness.json()["phase"]) == (503, "unloaded")
    assert (await service.generate()).status_code == 503
    assert (await service.push(service.seal(2))).status_code == 200
    assert (versions(await service.generate()), service.vllm.loaded) == (("2", "1"), "1-2")


# ── after a restart ───────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_restarted_server_has_the_newest_weights_before_it_generates(service: Service) -> None:
    await service.push(service.seal(1))
    await service.push(service.seal(2, probe=probe(-3.0)))
    service.vllm.loaded = "base"
    service.start()
    first = await service.generate()
    assert (first.status_code, "retry-after" in first.headers) == (503, True)
    assert (await service.settled()).status_code == 200
    assert versions(await service.generate()) == ("2", "1")
    assert service.vllm.loaded == "1-2"
    assert (await service.push(service.seal(1))).status_code == 409


async def test_a_restarted_server_whose_weights_are_gone_waits_for_newer_ones(service: Service) -> None:
    await service.push(service.seal(2))
    (service.settings.weights_root / "1-2" / "model.safetensors").unlink()
    service.start()
    readiness = await service.settled()
    assert (readiness.status_code, readiness.json()["phase"]) == (503, "unloaded")
    assert (await service.generate()).status_code == 503
    assert (await service.push(service.seal(1))).status_code == 409
    assert (await service.push(service.seal(2))).status_code == 200, "the same weights, written again"
    assert versions(await service.generate()) == ("2", "1")


async def test_a_note_that_cannot_be_read_is_not_taken_for_no_note(service: Service) -> None:
    service.settings.state_dir.mkdir(exist_ok=True)
    (service.settings.state_dir / "newest.json").write_text("{")
    service.start()
    readiness = await service.settled()
    assert (readiness.status_code, "newest.json" in readiness.json()["reason"]) == (503, True)
    assert (await service.push(service.seal(1))).status_code == 200


async def test_newest_weights_that_fail_after_a_restart_break_it(service: Service) -> None:
    await service.push(service.seal(1, probe=probe(-3.0)))
    service.vllm.logprobs = [0.0]
    service.start()
    assert (await service.settled()).json()["phase"] == "broken"


async def test_a_server_on_another_device_is_not_ready(service: Service) -> None:
    class Root:
        class state:
            class vllm_config:
                class device_config:
                    device_type = "cuda"

    service.start()
    received: list[Message] = []

    async def send(message: Message) -> None:
        received.append(message)

    async def receive() -> Message:
        return {"type": "http.request"}

    scope = {"type": "http", "path": "/healthz", "method": "GET", "headers": [], "app": Root}
    await service.middleware(scope, receive, send)
    assert (await service.settled()).json()["reason"].startswith("the model is on 'cuda'")
