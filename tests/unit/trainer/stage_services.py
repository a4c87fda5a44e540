"""What a stage meets in its tests: servers that take its weights, a rollout worker that answers by a script, a journal.

Streams, Redis, intake, publisher and checkpoints are the real ones; only models that sample, score and grade are not.
"""

import asyncio
import json
import random
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from prism.data.blobs import BlobStore
from prism.data.images import decode_image
from prism.errors import WeightsError
from prism.model.inputs import InputBuilder
from prism.streams.keys import StreamNames, parse_group
from prism.streams.trainer import TrainerStream
from prism.streams.worker import WorkerRedis, WorkerStream
from prism.trainer.checkpoint.folder import checkpoints
from prism.wire.response import DISCRIMINATOR, EXPERTS
from prism.wire.v1 import rollout_pb2 as pb
from prism.wire.weights import Manifest, verify

DATA_TOKEN, ADMIN_TOKEN = "data-token-0123456789", "admin-token-0123456789"
TEXTS = [
    f"<caption>- a {one}</caption><think>{two}+1={two + 1}</think><answer>{two + 1}</answer>"
    for one, two in (("one", 1), ("two", 4), ("three", 7))
]


class Killed(BaseException):
    """What ends a stage as SIGKILL would: nothing that it still does may reach Redis."""


@dataclass(frozen=True)
class Event:
    """``kind`` is pushed, asked, sealed or acknowledged."""

    kind: str
    whose: str = ""
    """The model pushed; the learner that acknowledged."""
    number: int = 0
    """The version pushed; the step sealed."""
    positions: tuple[int, ...] = ()


@dataclass
class Journal:
    """What one attempt did to the world, in order. Sealed is what lies on the disk before the next event."""

    checkpoints: Path
    killed_at: Event | None = None
    """The stage dies right after this was asked for, or right before this is acknowledged."""
    events: list[Event] = field(default_factory=list)
    dead: bool = False
    _sealed: set[str] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._sealed = {folder.name for folder in checkpoints(self.checkpoints)}

    def add(self, event: Event) -> None:
        with self._lock:
            self._look()
            self.events.append(event)

    def look(self) -> None:
        with self._lock:
            self._look()

    def _look(self) -> None:
        for folder in checkpoints(self.checkpoints):
            if folder.name not in self._sealed:
                self._sealed.add(folder.name)
                self.events.append(Event("sealed", number=int(folder.name)))

    def of(self, *kinds: str) -> list[Event]:
        return [event for event in self.events if event.kind in kinds]

    def positions(self, kind: str, whose: str = "") -> list[int]:
        return [position for event in self.of(kind) if event.whose == whose for position in event.positions]

    def watch(self, client: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
        """Note what the trainer asks for and acknowledges, and die where that was told."""
        admit, acknowledge = TrainerStream.admit, TrainerStream.acknowledge
        rollouts = StreamNames(self.checkpoints.parents[1].name).rollouts
        journal = self

        def watched_admit(stream: TrainerStream, requests: Iterable[pb.RolloutRequest]) -> None:
            if journal.dead:
                raise Killed
            asked = list(requests)
            event = Event("asked", positions=tuple(request.position for request in asked))
            journal.add(event)
            admit(stream, asked)
            journal.die_at(event)

        def watched_acknowledge(stream: TrainerStream, learner: str, entry_ids: Iterable[bytes]) -> None:
            if journal.dead:
                raise Killed
            ids = list(entry_ids)
            if ids:
                entries: Any = client.xrange(rollouts)
                groups = [parse_group(fields[b"group"]) for entry, fields in entries if entry in ids]
                event = Event("acknowledged", learner, positions=tuple(group.request.position for group in groups))
                journal.die_at(event)
                journal.add(event)
            acknowledge(stream, learner, ids)

        monkeypatch.setattr(TrainerStream, "admit", watched_admit)
        monkeypatch.setattr(TrainerStream, "acknowledge", watched_acknowledge)

    def die_at(self, event: Event) -> None:
        if event == self.killed_at:
            self.dead = True
            raise Killed


class JsonHandler(BaseHTTPRequestHandler):
    """Answers in JSON, and logs nothing."""

    def answer(self, status: int, value: Any) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None: ...


class WeightServers:
    """``POST /MODEL/weights`` for the policy and both experts: takes what is sealed and newer, as the real ones do."""

    def __init__(self, weights_root: Path) -> None:
        self.newest: dict[str, Manifest] = {}
        self.journal: Journal | None = None
        outer = self

        class Handler(JsonHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if not self.path.endswith("/weights"):  # nothing else is answered: no model is there
                    self.send_error(404)
                    return
                manifest = Manifest.model_validate_json(body)
                status, answer = 200, {"sync_paused_seconds": 0.0}
                try:
                    server = self.path.split("/")[1]
                    assert manifest.model in (server, DISCRIMINATOR)
                    assert server in EXPERTS or manifest.model == server
                    assert self.headers["Authorization"] == f"Bearer {ADMIN_TOKEN}"
                    verify(weights_root, manifest)
                    before = outer.newest.get(server)
                    assert before is None or manifest.order > before.order, f"{manifest.order} after {before.order}"
                    outer.newest[server] = manifest
                    if outer.journal:
                        outer.journal.add(Event("pushed", server, manifest.version))
                except (AssertionError, WeightsError) as error:
                    status, answer = 409, {"detail": str(error)}
                self.answer(status, answer)

            def do_GET(self) -> None:
                self.send_error(404)

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def version(self, model: str) -> int:
        return self.newest[model].version if model in self.newest else 0

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()


class ScriptedWorker:
    """A rollout worker in a thread: takes each request from the stream, and adds a group that its position alone gives.

    Versions are those that the servers hold. Used in a ``with``; what it could not do is raised at the end.
    """

    def __init__(
        self, redis_url: str, run: str, servers: WeightServers, inputs: InputBuilder, blobs: BlobStore
    ) -> None:
        self.spoilt_from = 1000
        """From this step on, the sampler's log-probabilities are no numbers."""
        self.spoil: Callable[[pb.RolloutGroup], None] = lambda group: None
        """What is done to each group before it is sent."""
        self.served: list[int] = []
        self._redis_url, self._run, self._servers = redis_url, run, servers
        self._inputs, self._blobs = inputs, blobs
        self._stopping = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> "ScriptedWorker":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join(20)
        if self._error:
            raise self._error

    def _work(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            self._error = error

    async def _serve(self) -> None:
        async with WorkerRedis.from_url(self._redis_url) as client:
            stream = WorkerStream(client, self._run, "scripted", lease_seconds=60)
            while not self._stopping.is_set():
                delivery = await stream.next(block_seconds=0.02)
                if delivery is not None and delivery.request is not None:
                    group = self.group(delivery.request)
                    if await stream.finish(delivery, group):
                        self.served.append(group.request.position)

    def group(self, request: pb.RolloutRequest) -> pb.RolloutGroup:
        """A request that wants newer weights than the server holds is answered with what is there."""
        rng = random.Random(request.position)
        group = pb.RolloutGroup(request=request, worker="scripted", policy_version=self._servers.version("policy"))
        group.prompt_token_ids.extend(self._prompt_ids(request.prompt))
        versions = {expert: self._servers.version(expert) for expert in request.experts}

        def score(expert: str) -> pb.Score:
            value, version = rng.gauss(0, 1), versions[expert]
            return pb.Score(expert=expert, status=pb.STATUS_OK, value=value, expert_version=version)

        for number in range(request.sampling.n):
            text = TEXTS[number % len(TEXTS)]
            ids = [*self._inputs.text_ids(text), self._inputs.end_token_id]
            logprob = float("nan") if request.step >= self.spoilt_from else -4.0
            sample = group.samples.add(text=text, token_ids=ids, logprobs=[logprob] * len(ids))
            if request.grade:
                sample.verdict.CopyFrom(pb.Verdict(status=pb.STATUS_OK, reward=rng.random(), accuracy=number % 2))
            sample.scores.extend(score(expert) for expert in request.experts)
        group.teacher_scores.extend(score(expert) for expert in request.experts)
        self.spoil(group)
        return group

    def _prompt_ids(self, prompt: pb.Prompt) -> list[int]:
        parts = [part for message in prompt.messages for part in message.parts if part.HasField("image_sha256")]
        images = [decode_image(self._blobs.get(part.image_sha256)) for part in parts]
        return self._inputs.prompt(prompt.messages, images).input_ids
