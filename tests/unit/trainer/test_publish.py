"""Weights pushed to a server that is slow, away, or says no; and the probe that goes with them."""

import json
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from prism.clients.endpoints import Endpoints
from prism.config import PushConfig, RunConfig
from prism.data.blobs import BlobStore
from prism.data.images import decode_image
from prism.errors import WeightsError
from prism.model.broadcast import Receiver
from prism.model.inputs import InputBuilder
from prism.model.packing import pack
from prism.trainer.learn.policy_model import load_policy, response_logprobs
from prism.trainer.weights import publish
from prism.trainer.weights.probe import make_probe
from prism.trainer.weights.publish import Publisher
from prism.wire.v1 import rollout_pb2 as pb
from prism.wire.weights import MANIFEST, Broadcast, Manifest, Probe, verify

ADMIN = "admin-token-0123456789"
TAKEN = {"sync_paused_seconds": 0.125}


class Server:
    """``POST /weights`` answers with each of ``answers`` (status, seconds of delay) in turn, the last one for ever.

    What is broadcast it receives before it answers 200.
    """

    def __init__(self, *answers: tuple[int, float]) -> None:
        self.answers, self.requests = list(answers), list[tuple[str, dict[str, str], Any]]()
        self.received: list[dict[str, torch.Tensor]] = []
        self.draining: bool | None = None
        """Whether answers in flight make progress, while a push is taken; None: there are none."""
        self.turn, self.taken = threading.Lock(), list[Any]()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                progress = time.monotonic() if outer.draining else 0
                look = {"phase": "syncing", "in_flight": int(outer.draining is not None), "progress": [0, progress]}
                content = json.dumps(look).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.requests.append((self.path, dict(self.headers), body))
                status, delay = outer.answers.pop(0) if len(outer.answers) > 1 else outer.answers[0]
                with outer.turn:  # pushes take turns, and one that was taken is answered again
                    if body not in outer.taken:
                        time.sleep(delay)
                        if body["broadcast"] and status == 200:
                            offer = Broadcast.model_validate(body["broadcast"])
                            outer.received.append(dict(Receiver(offer, torch.device("cpu"), 0, 1, 20).tensors()))
                        if status == 200:
                            outer.taken.append(body)
                content = json.dumps(TAKEN if status == 200 else {"detail": f"because of {status}"}).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()


@pytest.fixture
def serve() -> Iterator[Any]:
    started: list[Server] = []

    def start(*answers: tuple[int, float]) -> Server:
        started.append(Server(*answers))
        return started[-1]

    yield start
    for server in started:
        server.http.shutdown()
        server.http.server_close()


def publisher(
    root: Path, url: str, *, deadline: float = 20, attempt: int = 2, broadcasts_from: str | None = None
) -> Publisher:
    config = PushConfig(deadline_seconds=deadline)
    return Publisher("policy", f"{url}/", ADMIN, root, attempt, config, broadcasts_from)


WEIGHTS = [("layers.0.weight", torch.arange(4.0)), ("score.weight", torch.ones(3))]


@pytest.mark.parametrize("broadcasts_from", [None, "cpu"])
def test_a_server_may_finish_answers_for_longer_than_the_deadline(
    tmp_path: Path, serve: Any, broadcasts_from: str | None
) -> None:
    server = serve((200, 2.5))
    server.draining = True
    pushing = publisher(tmp_path, server.url, deadline=1, broadcasts_from=broadcasts_from)
    assert pushing.push(7, WEIGHTS, "{}").paused_seconds == 0.125
    assert len(server.taken) == 1 < len(server.requests), "asked again what became of the push, which is not made again"
    assert len(server.received) == (broadcasts_from is not None)
    pushing.settle()


@pytest.mark.parametrize("draining", [False, None])
def test_a_server_that_makes_nothing_has_the_deadline(
    tmp_path: Path, serve: Any, draining: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publish, "DRAINS_SECONDS", 0.5)
    server = serve((200, 3))
    server.draining = draining
    with pytest.raises(WeightsError, match="did not take version 7 of the policy weights within 1 s: ReadTimeout"):
        publisher(tmp_path, server.url, deadline=1).push(7, WEIGHTS, "{}")


def test_a_push_is_sealed_before_it_is_sent(tmp_path: Path, serve: Any) -> None:
    server = serve((200, 0))
    probe = Probe(messages=[], logprobs=[-1.0], tolerance=1e-3)
    result = publisher(tmp_path, server.url).push(7, WEIGHTS, "{}", probe)
    ((path, headers, body),) = server.requests
    assert (path, headers["Authorization"]) == ("/weights", f"Bearer {ADMIN}")
    manifest = Manifest.model_validate(body)
    assert (manifest.model, manifest.version, manifest.attempt, manifest.probe) == ("policy", 7, 2, probe)
    folder = verify(tmp_path, manifest)
    assert folder == (tmp_path / "policy" / "0002-000007").resolve()
    assert Manifest.model_validate_json((folder / MANIFEST).read_bytes()) == manifest
    assert (result.paused_seconds, result.bytes_saved) == (0.125, 0)
    assert result.bytes_written == sum(file.bytes for file in manifest.files.values())
    assert result.total_seconds > 0


@pytest.mark.parametrize("broadcasts_from", [None, "cpu"])
def test_weights_of_the_policy_alone_are_pushed_under_answers_in_flight(
    tmp_path: Path, serve: Any, broadcasts_from: str | None
) -> None:
    server, config = serve((200, 0)), PushConfig(in_flight=True)
    for model in ("policy", "perception"):
        pushing = Publisher(model, server.url, ADMIN, tmp_path, 2, config, broadcasts_from)
        pushing.push(7, WEIGHTS, "{}")
        pushing.settle()
    paths = {body["model"]: path for path, _, body in server.requests}
    assert paths == {"policy": "/weights?in_flight=true", "perception": "/weights"}


def test_a_server_that_is_busy_is_asked_again(tmp_path: Path, serve: Any) -> None:
    server = serve((503, 0), (500, 0), (200, 0))
    publisher(tmp_path, server.url).push(1, WEIGHTS, "{}")
    assert len(server.requests) == 3
    assert server.requests[0][2] == server.requests[2][2]


@pytest.mark.parametrize("status", [401, 403, 409, 422])
def test_a_refusal_is_final(tmp_path: Path, serve: Any, status: int) -> None:
    server = serve((status, 0), (200, 0))
    with pytest.raises(WeightsError, match=f"did not take version 3 of the policy weights: {status} .*because"):
        publisher(tmp_path, server.url).push(3, WEIGHTS, "{}")
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("answers", "reason"),
    [([(503, 0.0)], "503 "), ([(200, 30.0)], "ReadTimeout"), ([(503, 0.5), (200, 30.0)], "ReadTimeout")],
)
def test_a_deadline_is_kept_however_the_server_fails(
    tmp_path: Path, serve: Any, answers: list[tuple[int, float]], reason: str
) -> None:
    server = serve(*answers)
    started = time.monotonic()
    with pytest.raises(WeightsError, match=rf"did not take version 3 .* within 1 s: {reason}"):
        publisher(tmp_path, server.url, deadline=1.0).push(3, WEIGHTS, "{}")
    assert 1.0 <= time.monotonic() - started < 3.5


def test_a_server_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"http://127\.0\.0\.1:9 did not take .*ConnectError"):
        publisher(tmp_path, "http://127.0.0.1:9", deadline=0.2).push(0, WEIGHTS, "{}")


def test_old_versions_are_removed_once_a_newer_one_is_taken(tmp_path: Path, serve: Any) -> None:
    server = serve((200, 0))
    first = publisher(tmp_path, server.url, attempt=1)
    for version in (1, 2, 10):
        first.push(version, WEIGHTS, "{}")
    publisher(tmp_path, server.url, attempt=2).push(3, WEIGHTS, "{}")
    names = sorted(path.name for path in (tmp_path / "policy").iterdir())
    assert names == ["0001-000002", "0001-000010", "0002-000003"]
    few = Publisher("policy", f"{server.url}/", ADMIN, tmp_path, 3, PushConfig(keep_gib=1e-9))
    few.push(11, WEIGHTS, "{}")
    names = sorted(path.name for path in (tmp_path / "policy").iterdir())
    assert names == ["0002-000003", "0003-000011"], "two, where three take more than keep_gib"


def test_what_the_version_before_holds_is_not_written_again(tmp_path: Path, serve: Any) -> None:
    server = serve((200, 0))
    whole = publisher(tmp_path, server.url, attempt=1).push(1, WEIGHTS, "{}")
    again = publisher(tmp_path, server.url, attempt=2).push(1, WEIGHTS, "{}")  # by another process, after a resume
    assert (again.bytes_written, again.bytes_saved) == (0, whole.bytes_written)
    changed = publisher(tmp_path, server.url, attempt=2).push(2, [WEIGHTS[0], ("score.weight", torch.zeros(3))], "{}")
    newest = Manifest.model_validate(server.requests[-1][2])
    assert changed.bytes_written == newest.files["score.safetensors"].bytes
    assert changed.figures("perception_")["perception_sync_bytes_saved"] == changed.bytes_saved
    assert changed.bytes_written + changed.bytes_saved == whole.bytes_written
    for old in ("0001-000001", "0002-000001"):
        shutil.rmtree(tmp_path / "policy" / old)
    verify(tmp_path, newest)  # needs no version but itself


def test_a_finished_folder_is_pushed_without_copying_it(tmp_path: Path, serve: Any) -> None:
    finished = tmp_path / "finished"
    finished.mkdir()
    (finished / "config.json").write_text("{}")
    (finished / "tokenizer.json").write_text("{}")
    save_file({"score.weight": torch.ones(3)}, finished / "model.safetensors")
    server = serve((200, 0))
    result = publisher(tmp_path, server.url).push_folder(4, finished)
    manifest = Manifest.model_validate(server.requests[0][2])
    assert manifest.files.keys() == {"model.safetensors", "config.json"}
    assert (result.bytes_written, result.bytes_saved) == (0, sum(file.bytes for file in manifest.files.values()))
    assert (verify(tmp_path, manifest) / "model.safetensors").samefile(finished / "model.safetensors")


def test_files_follow_a_broadcast_and_hold_what_was_sent(tmp_path: Path, serve: Any) -> None:
    server = serve((200, 0))
    learner = [(name, tensor.clone()) for name, tensor in WEIGHTS]
    pushing = publisher(tmp_path, server.url, broadcasts_from="cpu")
    probe = Probe(messages=[], logprobs=[-1.0], tolerance=1e-3)
    result = pushing.push(7, learner, "{}", probe)
    for _, tensor in learner:
        tensor.zero_()  # the learner's next update
    settled = pushing.settle()
    sent, followed = (Manifest.model_validate(body) for _, _, body in server.requests)
    assert (sent.order, sent.probe, sent.files) == ((2, 7), probe, {})
    assert (followed.order, followed.probe, followed.broadcast) == ((2, 7), None, None)
    torch.testing.assert_close(server.received, [dict(WEIGHTS)], rtol=0, atol=0)
    folder = verify(tmp_path, followed)
    files = {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}
    torch.testing.assert_close(files, dict(WEIGHTS), rtol=0, atol=0)
    assert (result.paused_seconds, result.bytes_written, result.bytes_saved) == (0.125, 0, 0)
    assert settled is not None
    assert settled.bytes_written == sum(file.bytes for file in followed.files.values())
    assert pushing.settle() is None
    assert pushing.push(8, WEIGHTS, "{}").bytes_written == 0
    assert pushing.push(9, WEIGHTS, "{}").bytes_saved == settled.bytes_written  # version 8's files, finished since


def test_a_broadcast_that_a_server_cannot_take_now_is_offered_again(tmp_path: Path, serve: Any) -> None:
    server = serve((503, 0), (500, 0.5), (200, 0))
    pushing = publisher(tmp_path, server.url, broadcasts_from="cpu")
    pushing.push(1, WEIGHTS, "{}")
    pushing.settle()
    offers = [body["broadcast"] for _, _, body in server.requests]
    assert [bool(offer) for offer in offers] == [True, True, True, False]
    assert len(server.received) == 1


def test_a_broadcast_that_is_refused_is_final_and_nothing_is_written(tmp_path: Path, serve: Any) -> None:
    server = serve((422, 0))
    pushing = publisher(tmp_path, server.url, broadcasts_from="cpu")
    with pytest.raises(WeightsError, match=r"did not take version 3 of the policy weights: 422 .*because"):
        pushing.push(3, WEIGHTS, "{}")
    assert (len(server.requests), pushing.settle(), list(tmp_path.iterdir())) == (1, None, [])


def test_files_that_a_server_refuses_after_their_broadcast_end_the_run(tmp_path: Path, serve: Any) -> None:
    pushing = publisher(tmp_path, serve((200, 0), (409, 0)).url, broadcasts_from="cpu")
    pushing.push(3, WEIGHTS, "{}")
    with pytest.raises(WeightsError, match=r"did not take version 3 of the policy weights: 409 .*because"):
        pushing.push(4, WEIGHTS, "{}")


@pytest.mark.parametrize(
    ("transport", "model", "broadcast"),
    [("file", "policy", False), ("broadcast", "policy", True), ("broadcast", "reasoning", True)],
)
def test_weights_are_broadcast_where_asked_for(
    tmp_path: Path, tiny_model: Path, serve: Any, transport: str, model: str, broadcast: bool
) -> None:
    server = serve((200, 0))
    config = RunConfig.model_validate(
        {
            "name": "it",
            "runs_dir": tmp_path,
            "model": str(tiny_model),
            "stages": {"sft": {"kind": "sft", "data": ["x"], "steps": 1, "batch": 1, "optimizer": {"lr": 1e-3}}},
            "evaluate": {"data": "x", "max_tokens": 8},
            "stack": {"max_model_len": 256},
            "push": {"transport": transport},
        }
    )
    urls = dict.fromkeys(("redis_url", "policy_url", "perception_url", "reasoning_url", "grader_url"), server.url)
    endpoints = Endpoints.model_validate(urls | {"blobs": "x", "token": "x", "admin_token": ADMIN})
    config.run_dir.mkdir()
    opened = publish.open_publisher(config, endpoints, model, 1)
    opened.push(1, WEIGHTS, "{}")
    opened.settle()
    assert bool(server.requests[0][2]["broadcast"]) == broadcast


@pytest.fixture(scope="module")
def inputs(tiny_model: Path) -> InputBuilder:
    return InputBuilder(tiny_model)


def test_a_probe_holds_what_the_learner_thinks_of_the_text(
    tiny_model: Path, inputs: InputBuilder, teacher_prompts: list[pb.Prompt], blobs: BlobStore
) -> None:
    model = load_policy(tiny_model, dtype=torch.float32).train()
    prompt = teacher_prompts[0]
    probe = make_probe(model, inputs, prompt, prompt.teacher, blobs, 1e-3)
    assert probe is not None
    images = [
        decode_image(blobs.get(part.image_sha256))
        for message in prompt.messages
        for part in message.parts
        if part.HasField("image_sha256")
    ]
    example = inputs.with_ids(inputs.prompt(prompt.messages, images), inputs.text_ids(prompt.teacher))
    with torch.no_grad():
        expected = response_logprobs(model.eval(), pack([example], inputs))
    assert probe.logprobs == pytest.approx(expected.tolist(), abs=1e-6)
    assert probe.tolerance == 1e-3
    user, assistant = probe.messages
    assert assistant == {"role": "assistant", "content": prompt.teacher}
    assert "data:image/png;base64," in json.dumps(user)


def test_a_probe_leaves_the_model_as_it_was(
    tiny_model: Path, inputs: InputBuilder, teacher_prompts: list[pb.Prompt], blobs: BlobStore
) -> None:
    model = load_policy(tiny_model, dtype=torch.float32).train()
    make_probe(model, inputs, teacher_prompts[0], "x", blobs, 1e-3)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_no_probe_is_made_of_no_text(
    tiny_model: Path, inputs: InputBuilder, teacher_prompts: list[pb.Prompt], blobs: BlobStore
) -> None:
    model = load_policy(tiny_model, dtype=torch.float32)
    assert make_probe(model, inputs, teacher_prompts[0], "", blobs, 1e-3) is None


def test_every_replica_that_a_name_stands_for_gets_the_weights(
    serve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server: Server = serve((200, 0))
    port = server.http.server_port

    def resolve(host: str, port: int, **_: Any) -> list[Any]:
        assert host == "policy-replicas"
        return [(socket.AF_INET, 0, 0, "", (f"127.0.0.{last}", port)) for last in (1, 2)]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    assert publish.replica_urls(f"http://policy-replicas:{port}") == [
        f"http://127.0.0.{last}:{port}" for last in (1, 2)
    ]
    monkeypatch.undo()
    monkeypatch.setattr(publish, "replica_urls", lambda url: [server.url, server.url])
    pusher = Publisher("policy", "http://policy-replicas", ADMIN, tmp_path, 1, PushConfig())
    pusher.push(1, WEIGHTS, "{}")
    assert len(server.requests) == 2
