"""Votes as a reference for `prism calibrate`: ``teacher`` is what people preferred, ``policy`` the other side."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from prism.data.blobs import BlobStore
from prism.errors import DataError, ServiceError
from prism.services.console.store.models import Vote
from prism.wire.messages import data_uri

OWN_PICTURES = "pictures"  # a folder of blobs in PRISM_STATE_DIR: those that people have uploaded to vote on


def own_pictures(state_dir: Path) -> BlobStore:
    return BlobStore(str((state_dir / OWN_PICTURES).resolve()))


def picture_of(runs: Path, state_dir: Path, vote: Vote, number: int) -> bytes:
    """Raises DataError, also for a run that is no longer there."""
    if number >= len(vote.images):
        raise DataError(f"pair {vote.id} has no picture {number + 1}")
    blobs = BlobStore(str((runs / vote.run / "blobs").resolve())) if vote.run else own_pictures(state_dir)
    return blobs.get(vote.images[number])


def reference(runs: Path, state_dir: Path, votes: Iterable[Vote]) -> Iterator[str]:
    """A line for each vote for a side, with its pictures in it; votes whose pictures are gone are left out."""
    for vote in votes:
        if vote.choice not in ("left", "right"):
            continue
        better, worse = (vote.left, vote.right) if vote.choice == "left" else (vote.right, vote.left)
        try:
            images = [data_uri(picture_of(runs, state_dir, vote, n)) for n in range(len(vote.images))]
        except (DataError, ServiceError):
            continue
        row = {"id": f"vote-{vote.id}", "prompt": vote.question, "images": images}
        row |= {"teacher": better["text"], "policy": worse["text"], "gold": vote.gold}
        row |= {"who": vote.who, "voted": vote.voted, "preferred": better["name"], "over": worse["name"]}
        yield json.dumps(row, ensure_ascii=False) + "\n"
