"""``prism serve jobs``: a worker, which runs jobs. Any number of them may share one database."""

import signal
import threading

from prism import logs
from prism.services.console.jobs.bell import answer, celery_app
from prism.services.console.jobs.runner import Runner
from prism.services.console.jobs.start import start_in
from prism.services.console.settings import WorkerSettings
from prism.services.console.store.migrate import upgrade
from prism.settings import load_settings


def main() -> None:
    """Until SIGTERM: then jobs are ended politely and go back to the queue."""
    settings = load_settings(WorkerSettings)
    logs.configure(settings.log_level, settings.log_format)
    store = settings.open_store()
    upgrade(store)
    runner = Runner(
        store, settings.jobs_dir, start_in(settings.place), slots=settings.slots, cards=tuple(settings.cards)
    )
    if url := settings.broker_url.get_secret_value():
        app = celery_app(url)
        answer(app, runner)
        # Threads: a message takes no time, and jobs are processes of their own.
        worker = app.Worker(
            pool="threads", concurrency=1, hostname=f"jobs@{runner.name}", without_gossip=True, without_mingle=True
        )
        worker.start()
        return
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    runner.start()
    ended.wait()
    runner.stop()
