"""What an update that was not finite learnt from, kept for whoever looks into it. (No torch.)"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from google.protobuf.json_format import MessageToDict

from prism.wire.v1 import rollout_pb2 as pb


def keep_groups(run_dir: Path, name: str, step: int, groups: Iterable[pb.RolloutGroup]) -> Path:
    """As ``keep_rows``: a group a line, as its JSON form."""
    return keep_rows(run_dir, name, step, map(MessageToDict, groups))


def keep_rows(run_dir: Path, name: str, step: int, rows: Iterable[dict[str, Any]]) -> Path:
    """Write ``not-finite/NAME-STEP.jsonl`` into the run's folder; returns the file."""
    file = run_dir / "not-finite" / f"{name}-{step:06d}.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file
