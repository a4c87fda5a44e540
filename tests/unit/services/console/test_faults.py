"""What `python -m bench.console` plays two hundred times, a few times."""

import socket
import time
from pathlib import Path

from bench.console.faults import Playground
from prism.services.console.jobs import queue
from prism.services.console.jobs.runner import Timing
from prism.services.console.store.engine import sqlite_url

TIMING = Timing(beat=0.1, keep=2.5, kill=0.2, lease=3, grace=0.3, poll=0.3)


def test_no_fault_loses_a_job_or_runs_it_twice_or_leaves_a_process(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    database = sqlite_url(tmp_path / "console.db")
    with Playground(tmp_path, database, workers=2, seed=0, redis_port=port, timing=TIMING) as played:
        jobs = played.add(4, lambda: 0.5)
        [cancelled] = played.add(1, lambda: 60)
        deadline = time.monotonic() + 60
        while queue.get(played.store, jobs[0]).state == "queued":
            assert time.monotonic() < deadline
            time.sleep(0.05)
        played.kill_both()
        queue.cancel(played.store, cancelled, "test")
        played.lose_messages()
        played.kill_keeper()
        played.settle(120)
        assert played.problems(jobs, {cancelled}) == []
