"""What an update that was not finite learnt from, or what taught nothing, kept to be looked into. (No torch.)"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from google.protobuf.json_format import MessageToDict

from prism.files import write_text
from prism.wire.v1 import rollout_pb2 as pb

FOLDER = "not-finite"


def keep_groups(
    run_dir: Path, name: str, step: int, groups: Iterable[pb.RolloutGroup], *, folder: str = FOLDER
) -> Path:
    """As ``keep_rows``: a group a line, as its JSON form."""
    return keep_rows(run_dir, name, step, map(MessageToDict, groups), folder=folder)


def keep_rows(run_dir: Path, name: str, step: int, rows: Iterable[dict[str, Any]], *, folder: str = FOLDER) -> Path:
    """Write ``FOLDER/NAME-STEP.jsonl`` into the run's folder; returns the file."""
    file = run_dir / folder / f"{name}-{step:06d}.jsonl"
    write_text(file, "".join(json.dumps(row) + "\n" for row in rows))
    return file
