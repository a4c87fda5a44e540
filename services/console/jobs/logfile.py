"""A job's log, in parts and as it grows."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

from starlette.concurrency import run_in_threadpool

from prism.services.console.jobs import queue
from prism.services.console.store.engine import Store
from prism.services.console.store.models import ENDED

PART = 65536  # bytes
LOOK_SECONDS = 0.5


def read(folder: Path, job: int, offset: int) -> tuple[str, int]:
    """Text from ``offset`` bytes on, or so many before the end where it is negative, and where the next part begins."""
    try:
        with (folder / str(job) / "log").open("rb") as file:
            size = file.seek(0, 2)
            start = file.seek(max(0, size + offset) if offset < 0 else min(offset, size))
            data = file.read(PART)
    except FileNotFoundError:
        return "", 0
    # What is half a character belongs to the next part, unless there is nothing else.
    for cut in range(4):
        try:
            whole = data[: len(data) - cut] if cut else data
            return whole.decode(), start + len(whole)
        except UnicodeDecodeError:
            continue
    return data.decode(errors="replace"), start + len(data)


async def follow(store: Store, folder: Path, job: int, offset: int) -> AsyncIterator[str]:
    """``log`` events until the job has ended, then ``end``; a comment now and then finds a dead client."""
    silent = 0.0
    while True:
        ended = (await run_in_threadpool(queue.get, store, job)).state in ENDED
        text, offset = await run_in_threadpool(read, folder, job, offset)
        if text:
            silent = 0
            yield f"event: log\ndata: {json.dumps({'text': text, 'offset': offset})}\n\n"
        elif ended:
            yield "event: end\ndata: {}\n\n"
            return
        else:
            await asyncio.sleep(LOOK_SECONDS)
            silent += LOOK_SECONDS
            if silent >= 10:
                silent = 0
                yield ": on\n\n"
