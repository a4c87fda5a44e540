"""A worker as `prism serve jobs` starts it, with shorter times, the task of this bench, and a clock that may jump."""

import json
import os
import sys
import time
from pathlib import Path

from prism.services.console.jobs import queue
from prism.services.console.jobs.bell import answer, celery_app
from prism.services.console.jobs.queue import Claimed
from prism.services.console.jobs.runner import Runner, Start, Timing
from prism.services.console.store.engine import Store

TIMING = Timing(beat=0.2, keep=4.0, kill=0.5, lease=7.0, grace=0.5, poll=0.5)


def main() -> None:
    given = json.loads(sys.argv[1])
    journal, offset, now = Path(given["journal"]), Path(given["clock"]), time.time

    def jumping() -> float:
        return now() + float(offset.read_text())

    time.time = jumping
    queue.MAX_LOSSES = 1000  # here faults are the rule

    def start_of(job: Claimed, _: Path) -> Start:
        task = [sys.executable, str(Path(__file__).with_name("task.py")), str(journal), str(job.id)]
        return Start([*task, str(job.parameters["seconds"])], dict(os.environ), journal)

    runner = Runner(Store(given["database"]), Path(given["jobs"]), start_of, slots=2, timing=Timing(**given["timing"]))
    app = celery_app(given["broker"])
    answer(app, runner)
    worker = app.Worker(
        pool="threads", concurrency=1, hostname=f"jobs@{runner.name}", without_gossip=True, without_mingle=True
    )
    worker.start()


if __name__ == "__main__":
    main()
