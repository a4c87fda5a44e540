"""Celery tells workers that a job waits. It holds nothing: a message that is lost or doubled changes nothing.

A message says "look at the table". Which job is run, by whom, and how it ended stands in SQL alone, so a Redis that is
away, empty or late costs the seconds between two looks that workers take anyway.
"""

import logging
import threading
from typing import Any

from celery import Celery, bootsteps
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from prism.services.console.jobs.runner import Runner

TASK = "prism.look"
QUEUE = "prism-jobs"
log = logging.getLogger("prism.console")


def celery_app(broker_url: str) -> Celery:
    """The application that rings. Workers add their runner with ``answer``."""
    app = Celery("prism", broker=broker_url, set_as_current=False)
    app.conf.update(
        task_acks_late=False,  # late, a message would come again while what it began still runs
        worker_disable_prefetch=True,
        worker_prefetch_multiplier=1,
        task_ignore_result=True,
        task_default_queue=QUEUE,
        task_serializer="json",
        accept_content=["json"],
        worker_hijack_root_logger=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_connection_timeout=2,
        broker_transport_options={"socket_timeout": 5, "socket_connect_timeout": 2, "max_retries": 0},
        task_publish_retry=False,
    )
    return app


class Bell:
    """Rings without waiting; a bell without a broker does nothing."""

    def __init__(self, broker_url: str) -> None:
        self._app = celery_app(broker_url) if broker_url else None
        self._wanted = threading.Event()
        if self._app:
            threading.Thread(target=self._ring, name="bell", daemon=True).start()

    def ring(self) -> None:
        self._wanted.set()

    def _ring(self) -> None:
        assert self._app
        while self._wanted.wait():
            self._wanted.clear()
            try:
                self._app.send_task(TASK, expires=60)
            except (OperationalError, RedisError, OSError) as error:
                log.warning("workers were not told of a job, and will find it: %s", error)


def answer(app: Celery, runner: Runner) -> None:
    """Have a worker of ``app`` run ``runner``, from its start to its end, and look when it is rung."""

    class Jobs(bootsteps.StartStopStep):
        def start(self, parent: Any) -> None:
            runner.start()

        def stop(self, parent: Any) -> None:
            runner.stop()

    app.steps["worker"].add(Jobs)  # pyright: ignore[reportOptionalSubscript]

    @app.task(name=TASK)
    def look() -> None:
        runner.ring()
