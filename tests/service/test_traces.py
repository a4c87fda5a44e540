"""One trace of a group: trainer, worker, an expert and the grader as processes of their own, and a collector."""

import http.server
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from policy_events import policy_events

from prism.stack.ports import free_port

DATA, ADMIN = "data-token-0123456789", "admin-token-0123456789"
TRAINER = """
import sys
from pathlib import Path
import redis
from prism import telemetry
from prism.config import RolloutConfig
from prism.streams.trainer import TrainerStream
from prism.wire.v1 import rollout_pb2 as pb
from prism.trainer.flow.intake import Admission, Intake, PromptSequence
from prism.trainer.run.recorder import Recorder

url, folder = sys.argv[1:]
telemetry.start("prism-trainer")
stream = TrainerStream(redis.Redis.from_url(url), "traced", ["policy"], 1)
message = pb.Message(role="user", parts=[pb.Part(text="What is the sum?")])
prompts = PromptSequence([pb.Prompt(id="q", messages=[message], gold="7", kind="number")], 0)
settings = RolloutConfig(data="x", prompts=1, n=2, max_tokens=4)
intake = Intake(stream, prompts, "rlvr", settings, 1, 0)
intake.resume(None)
intake.admit(Admission(0, 0, 1, 2, ("perception",), True), version=0, expert_version=0)
groups = intake.collect(0, print).groups
assert len(groups) == 1, groups
assert [s.verdict.reward for s in groups[0].samples] == [1, 1], groups
assert all(s.scores[0].HasField("value") for s in groups[0].samples), groups
recorder = Recorder(Path(folder), "rlvr", 1)
recorder.step(1, {"step_seconds": 0.5, "policy_version": 1}, groups=groups)
print(sorted({"opentelemetry.sdk.trace", "opentelemetry.exporter"} & set(sys.modules)))
"""
TEXT = "<caption>- a</caption><think>b</think><answer>7</answer>"


class Policy(http.server.BaseHTTPRequestHandler):
    """Answers two samples, and remembers what it was called with."""

    traceparents: list[str | None] = []  # noqa: RUF012  (of the one server of a test)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.traceparents.append(self.headers["traceparent"])
        body = policy_events(TEXT, TEXT)
        self.send_response(200)
        for name, value in (("x-prism-policy-version", "0"), ("content-length", str(len(body)))):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None: ...


@contextmanager
def policy() -> Iterator[str]:
    Policy.traceparents.clear()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Policy)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@contextmanager
def serving(name: str, environment: dict[str, str], **settings: Any) -> Iterator[str]:
    """A service's address, once it is ready; told to end afterwards, it sends what it has."""
    port = free_port()
    values = {"port": port, "token": DATA, "admin_token": ADMIN} | settings
    environment = environment | {f"PRISM_{key.upper()}": str(value) for key, value in values.items()}
    process = subprocess.Popen([sys.executable, "-m", "prism", "serve", name], env=environment)
    url = f"http://127.0.0.1:{port}"
    try:
        until(lambda: is_ready(f"{url}/readyz", process), 120)
        yield url
        process.terminate()
        process.wait(30)
    finally:
        process.kill()
        process.wait()


def is_ready(url: str, process: "subprocess.Popen[bytes]") -> bool:
    assert process.poll() is None, "the service has ended"
    try:
        return httpx.get(url, timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def until(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.05)


def train_a_group(environment: dict[str, str], redis_url: str, model: Path, folder: Path) -> str:
    """What the trainer printed last. Every service has ended when this returns."""
    weights = {"model": model, "weights_root": folder / "weights", "state_dir": folder / "state", "threads": 1}
    with ExitStack() as stack:
        perception = stack.enter_context(serving("perception", environment, **weights))
        grader = stack.enter_context(serving("grader", environment, workers=1))
        at = {"policy_url": stack.enter_context(policy()), "perception_url": perception, "reasoning_url": perception}
        at |= {"grader_url": grader, "redis_url": redis_url, "blobs": str(folder)}
        stack.enter_context(serving("rollouts", environment, run="traced", worker="one", patience_seconds=20, **at))
        done = subprocess.run(
            [sys.executable, "-c", TRAINER, redis_url, str(folder)],
            env=environment, check=False, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()[-1]


def without_variables() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}


@pytest.mark.usefixtures("redis_client")
def test_a_group_is_one_trace_from_its_request_to_the_step_that_learnt_from_it(
    collector: Any, redis_url: str, tiny_model: Path, tmp_path: Path
) -> None:
    train_a_group(without_variables() | collector.environment, redis_url, tiny_model, tmp_path)
    (trace_id,) = {span.trace_id for _, span in collector.spans if span.name == "request"}
    of_group = [(service, span) for service, span in collector.spans if span.trace_id == trace_id]
    by_name = {(service, span.name): span for service, span in of_group}
    chain = {
        ("prism-trainer", "request"): None,
        ("prism-rollout-worker", "rollout"): ("prism-trainer", "request"),
        ("prism-rollout-worker", "POST /v1/chat/completions"): ("prism-rollout-worker", "rollout"),
        ("prism-rollout-worker", "POST /v1/score"): ("prism-rollout-worker", "rollout"),
        ("prism-rollout-worker", "POST /v1/grade"): ("prism-rollout-worker", "rollout"),
        ("prism-perception-expert", "POST /v1/score"): ("prism-rollout-worker", "POST /v1/score"),
        ("prism-grader", "POST /v1/grade"): ("prism-rollout-worker", "POST /v1/grade"),
        ("prism-trainer", "learner step: group"): ("prism-trainer", "request"),
    }
    assert by_name.keys() == chain.keys()
    for name, parent in chain.items():
        assert by_name[name].parent_span_id == (by_name[parent].span_id if parent else b""), name
    called = by_name["prism-rollout-worker", "POST /v1/chat/completions"]
    (traceparent,) = Policy.traceparents
    assert traceparent
    assert traceparent.split("-")[1:3] == [trace_id.hex(), called.span_id.hex()]

    (step,) = [span for _, span in collector.spans if span.name == "learner step"]
    assert [(link.trace_id, link.span_id) for link in step.links] == [
        (trace_id, by_name["prism-trainer", "request"].span_id)
    ]
    (back,) = by_name["prism-trainer", "learner step: group"].links
    assert (back.trace_id, back.span_id) == (step.trace_id, step.span_id)
    assert (step.end_time_unix_nano - step.start_time_unix_nano) / 1e9 == pytest.approx(0.5)
    probes = [span.name for _, span in collector.spans if "readyz" in span.name]
    assert probes == []


@pytest.mark.usefixtures("redis_client")
def test_without_variables_nothing_is_traced_or_sent(redis_url: str, tiny_model: Path, tmp_path: Path) -> None:
    assert train_a_group(without_variables(), redis_url, tiny_model, tmp_path) == "[]"
    assert Policy.traceparents == [None]


@pytest.mark.parametrize(
    "module", ["prism.services.grader.app", "prism.services.experts.app", "prism.clients.rollout", "prism.cli"]
)
def test_without_variables_nothing_of_opentelemetry_is_imported(module: str) -> None:
    """By us; redis-py imports its metrics where they are installed, and vLLM its traces."""
    look = f"import sys, {module}; print([name for name in sys.modules if name.startswith('opentelemetry')])"
    done = subprocess.run([sys.executable, "-c", look], env=without_variables(), capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER: 'zipkin' is not known; use otlp, console or none"),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
            "OTEL_EXPORTER_OTLP_PROTOCOL: PRISM sends http/protobuf alone",
        ),
    ],
)
def test_what_cannot_be_sent_is_refused(variables: dict[str, str], told: str) -> None:
    settings = {"PRISM_PORT": "1", "PRISM_TOKEN": DATA, "PRISM_ADMIN_TOKEN": ADMIN, "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, "-m", "prism", "serve", "grader"],
        env=without_variables() | settings | variables, check=False, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert told in done.stderr
    assert "Traceback" not in done.stderr
