"""A stage trained once more, undisturbed, on the very groups that another run of it was trained on.

A policy server that was killed samples other words, now and then: it batches and caches otherwise, rounds otherwise,
and of two words that are about as likely takes the other. So the run that was disturbed is not compared with one that
sampled for itself, but with one that learnt from the same data: every step of it, and to the last digits.
"""

import asyncio
import http.server
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from bench.shared import beside, console
from prism.config import RunConfig
from prism.stack.local import Stack
from prism.streams.worker import WorkerRedis, WorkerStream
from prism.trainer.run.pipeline import served_model, train_in_process
from prism.wire.v1 import rollout_pb2 as pb


def replay(config: RunConfig, stage: str, command: list[str], groups: Mapping[int, pb.RolloutGroup]) -> None:
    """Train ``stage`` of ``config``, whose stages before it are done. Raises ServiceError if that fails.

    ``groups``: position -> group; of positions that it lacks the requests are buried.
    """
    stack = Stack(config, served_model(config), console)
    stack.services = [service for service in stack.services if service.name == "redis"]
    environment = stack.environment()

    def work(stopping: threading.Event) -> None:
        asyncio.run(_serve(environment["PRISM_REDIS_URL"], config.name, groups, stopping))

    with stack, _weight_server() as url, beside(work):
        servers = {f"PRISM_{name}_URL": url for name in ("POLICY", "PERCEPTION", "REASONING", "GRADER")}
        train_in_process(command, stage, None, environment | servers)


async def _serve(redis_url: str, run: str, groups: Mapping[int, pb.RolloutGroup], stopping: threading.Event) -> None:
    async with WorkerRedis.from_url(redis_url) as client:
        stream = WorkerStream(client, run, "replay", lease_seconds=3600)
        while not stopping.is_set():
            delivery = await stream.next(block_seconds=0.1)
            if delivery is None or delivery.request is None:
                continue
            known = groups.get(delivery.request.position)
            if known is None:
                await stream.bury(delivery, "the run that was disturbed has not trained on it")
                continue
            group = pb.RolloutGroup()
            group.CopyFrom(known)
            group.request.CopyFrom(delivery.request)
            await stream.finish(delivery, group)


@contextmanager
def _weight_server() -> Iterator[str]:
    """Its address. Nobody samples or scores here, so it takes all weights and keeps none."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            body = json.dumps({"sync_paused_seconds": 0.0}).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
