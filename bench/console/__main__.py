"""`python -m bench.console`: random faults against the console's jobs; ``--postgres`` on a PostgreSQL of its own."""

import argparse
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from bench.console.faults import Playground
from prism.services.console.jobs import queue
from prism.services.console.store.engine import sqlite_url


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--port", type=int, default=18_050, help="of a Redis of its own")
    parser.add_argument("--postgres", action="store_true", help="needs the package pgserver")
    given = parser.parse_args()
    began = time.monotonic()
    with ExitStack() as open_things:
        folder = Path(open_things.enter_context(tempfile.TemporaryDirectory(prefix="prism-faults-")))
        database = sqlite_url(folder / "console.db")
        if given.postgres:
            from pgserver.postgres_server import get_server

            folder.chmod(0o755)  # as root, PostgreSQL runs as another user
            server = get_server(folder / "postgres", cleanup_mode="delete")
            open_things.callback(server.cleanup)
            database = server.get_uri()
        played = Playground(folder, database, workers=given.workers, seed=given.seed, redis_port=given.port)
        open_things.enter_context(played)
        jobs: list[int] = []
        cancelled: set[int] = set()
        while played.faults.total() < given.faults:
            jobs += played.add(2, lambda: played.random.uniform(0.1, 4))
            played.bell.ring()
            time.sleep(played.random.random())
            if played.random.random() < 0.2:
                job = played.random.choice(jobs)
                try:
                    queue.cancel(played.store, job, "bench")
                except queue.JobError:
                    pass  # it has ended
                else:
                    cancelled.add(job)
            print(f"{played.faults.total():4} {played.fault()}", flush=True)
        played.settle(600)
        problems = played.problems(jobs, cancelled)
        events = [event.what for job in jobs for event in queue.events(played.store, job)]
        print(f"{dict(played.faults)}")
        took = time.monotonic() - began
        attempts = events.count("started")
        print(f"{len(jobs)} jobs, {attempts} attempts, {len(cancelled)} cancelled, in {took:.0f} s")
        print("\n".join(problems) or "none lost, none twice at once, none left")
        return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
