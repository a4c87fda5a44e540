"""What goes through the streams of a run, and what its trainer writes down."""

import base64
import json
import threading
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis

from prism.clients.endpoints import load_endpoints
from prism.config import RunConfig
from prism.files import append_json, read_jsonl
from prism.streams.keys import StreamNames
from prism.wire.v1 import rollout_pb2 as pb
from prism.wire.weights import Manifest


@dataclass
class Seen:
    """The streams of a run, read beside their consumers, without being one, whether Redis is there or not."""

    config: RunConfig
    file: Path | None = None
    """Where it is kept, for a watch that goes on later."""
    first_request: dict[int, tuple[int, int]] = field(default_factory=dict)
    """attempt -> (attempt, version) of the newest weights that the policy server had then."""
    groups: dict[int, list[pb.RolloutGroup]] = field(default_factory=lambda: defaultdict(list))
    """position -> its groups, in order."""

    def __post_init__(self) -> None:
        for line in read_jsonl(self.file) if self.file else ():
            if "group" in line:
                self._came(base64.b64decode(line["group"]))
            else:
                self.first_request[line["attempt"]] = tuple(line["weights"])

    def watch(self, stop: threading.Event) -> None:
        url = load_endpoints(self.config.run_dir / "stack.json").redis_url.get_secret_value()
        streams: Any = redis.Redis.from_url(url, socket_timeout=5)
        names = StreamNames(self.config.name)
        last: dict[str, Any] = {names.prompts: "0", names.rollouts: "0"}
        while not stop.is_set():
            try:
                read = streams.xread(last, block=200)
            except redis.RedisError:  # it is down, as it may be
                stop.wait(0.2)
                continue
            for name, entries in read:
                last[name.decode()] = entries[-1][0]
                for _, fields in entries:
                    if b"request" in fields:
                        self._asked(pb.RolloutRequest.FromString(fields[b"request"]))
                    elif b"group" in fields and self._came(fields[b"group"]):
                        self._keep(group=base64.b64encode(fields[b"group"]).decode())

    def trained(self) -> dict[int, pb.RolloutGroup]:
        """position -> the group that the last line about it was trained on, where it was seen."""
        trained: dict[int, pb.RolloutGroup] = {}
        for line in last_lines(self.lines()):
            for position in line["positions"]:
                # An attempt asks for a position unless it takes over the group of the attempt before.
                groups = [group for group in self.groups[position] if group.request.attempt <= line["attempt"]]
                if groups:
                    newest = max(group.request.attempt for group in groups)
                    trained[position] = next(group for group in groups if group.request.attempt == newest)
        return trained

    def unsure(self) -> set[int]:
        """Positions of which one attempt got several groups that differ: which was trained on is not known."""
        return {
            position
            for position, group in self.trained().items()
            for other in self.groups[position]
            if other.request.attempt == group.request.attempt and tokens(other) != tokens(group)
        }

    def resampled(self) -> set[int]:
        """Positions whose groups differ from attempt to attempt."""
        return {p for p, groups in self.groups.items() if any(tokens(group) != tokens(groups[0]) for group in groups)}

    def lines(self) -> list[dict[str, Any]]:
        """Of the stages that ask for rollouts, as they were written."""
        return [line for line in read_jsonl(self.config.run_dir / "metrics.jsonl") if "positions" in line]

    def attempt(self) -> int:
        """The newest attempt; 0 before the first."""
        file = self.config.run_dir / "attempt.json"
        return json.loads(file.read_text())["attempt"] if file.is_file() else 0

    def _came(self, body: bytes) -> bool:
        """Whether it is a group that was not seen before."""
        group = pb.RolloutGroup.FromString(body)
        known = self.groups[group.request.position]
        if fresh := group not in known:
            known.append(group)
        return fresh

    def _asked(self, request: pb.RolloutRequest) -> None:
        if request.attempt not in self.first_request:
            newest = self.config.run_dir / "services" / "policy" / "newest.json"
            manifest = Manifest.model_validate_json(newest.read_bytes())
            self.first_request[request.attempt] = manifest.attempt, manifest.version
            self._keep(attempt=request.attempt, weights=[manifest.attempt, manifest.version])

    def _keep(self, **line: Any) -> None:
        if self.file:
            append_json(self.file, line, sync=False)


def last_lines(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """In the order of steps; of a step made again the last line counts."""
    return [line for _, line in sorted({line["step"]: line for line in lines}.items())]


def tokens(group: pb.RolloutGroup) -> list[list[int]]:
    return [list(sample.token_ids) for sample in group.samples]
