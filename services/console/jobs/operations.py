"""What people do to jobs: done, written into the audit log, and the workers told."""

from typing import Any

from prism.errors import ConfigError
from prism.services.console.jobs import queue, registry
from prism.services.console.state import Asked


def add(caller: Asked, command: str, parameters: dict[str, Any], priority: int = 0) -> int:
    """Queue a job; returns its number. Raises ConfigError for parameters that are wrong."""
    _refuse_without_workers(caller)
    wanted = registry.plan(command, parameters, caller.console.place)
    number = queue.add(caller.store, wanted, caller.by.name, priority=priority)
    caller.record("job queued", f"job {number}", wanted.title)
    caller.console.bell.ring()
    return number


def cancel(caller: Asked, job: int) -> None:
    """Raises JobError."""
    queue.cancel(caller.store, job, caller.by.name)
    caller.record("job cancelled", f"job {job}")


def retry(caller: Asked, job: int) -> None:
    """Raises JobError."""
    _refuse_without_workers(caller)
    queue.retry(caller.store, job, caller.by.name)
    caller.record("job retried", f"job {job}")
    caller.console.bell.ring()


def prioritise(caller: Asked, job: int, priority: int) -> None:
    """Raises JobError."""
    queue.prioritise(caller.store, job, priority, caller.by.name)
    caller.record("job prioritised", f"job {job}", str(priority))


def _refuse_without_workers(caller: Asked) -> None:
    if not caller.console.settings.jobs:
        raise ConfigError("this console has no workers (PRISM_JOBS is false): it shows runs alone")
