"""From a run's files to one tracker, from where it stood; beside a run at work, or once it has ended."""

import json
import logging
import secrets
import signal
import threading
from pathlib import Path
from typing import Any

from prism.errors import ConfigError, ServiceError
from prism.files import write_json
from prism.trainer.track.run_files import RunFiles
from prism.trainer.track.trackers import Tracker, open_tracker

log = logging.getLogger("prism.track")

FIRST_WAIT, LONGEST_WAIT = 5.0, 300.0  # seconds until a tracker that is away is tried again


class Sender:
    """One run at one tracker. What was sent is noted after it was sent: a kill may send a poll's lines twice."""

    def __init__(self, run_dir: Path, name: str, project: str) -> None:
        """Raises ConfigError if the folder holds no run."""
        self._folder = run_dir / "track"
        self._note = self._folder / f"{name}.json"
        self._name, self._project, self._run = name, project, run_dir.name
        noted = _noted(self._note)
        self._files = RunFiles(run_dir, noted.get("read"))
        self._run_id: str = noted.get("run_id") or secrets.token_hex(8)
        self._last: int = noted.get("last", 0)
        self._tracker: Tracker | None = None

    def poll(self) -> int:
        """How many figures and rollouts were sent. Raises what the tracker's library raises, and ConfigError."""
        before = dict(self._files.read)
        try:
            figures, rollouts = self._files.new_figures(), self._files.new_rollouts()
            if self._tracker is None and (figures or rollouts):
                self._tracker = open_tracker(
                    self._name, self._project, self._run, self._folder, self._run_id, self._files.config
                )
                self._run_id = self._tracker.run_id
            if self._tracker is not None:
                # A step that is done again after a resume stands there as it was done first.
                self._tracker.figures([one for one in figures if one.held_out or one.step > self._last])
                self._tracker.rollouts(rollouts)
        except BaseException:
            self._files.read = before
            raise
        self._last = max([self._last, *(one.step for one in figures if not one.held_out)])
        if figures or rollouts:
            write_json(self._note, {"run_id": self._run_id, "last": self._last, "read": self._files.read})
        return len(figures) + len(rollouts)

    def finish(self) -> None:
        if self._tracker is not None:
            self._tracker.finish()


def send(run_dir: Path, name: str, project: str) -> int:
    """All that was not sent yet. Raises ServiceError if the tracker fails, and ConfigError."""
    sender = Sender(run_dir, name, project)
    try:
        sent = sender.poll()
        sender.finish()
    except ConfigError:
        raise
    except Exception as error:  # each library raises errors of its own, and none says which
        raise ServiceError(f"{name}: {type(error).__name__}: {str(error)[:500]}; the same command goes on") from None
    return sent


def follow(run_dir: Path, name: str, project: str, every_seconds: float) -> None:
    """Until SIGTERM; what has come until then is still sent. A tracker that is away is tried again."""
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    while not (run_dir / "config.json").exists():  # the run writes it when it begins
        if ended.wait(1):
            return
    sender = Sender(run_dir, name, project)
    wait = FIRST_WAIT
    while True:
        last = ended.is_set()
        try:
            sender.poll()
            wait, pause = FIRST_WAIT, every_seconds
        except ConfigError:
            raise
        except Exception as error:  # as in ``send``
            log.warning("%s: %s: %s", name, type(error).__name__, str(error)[:500])
            pause, wait = wait, min(2 * wait, LONGEST_WAIT)
        if last:
            break
        ended.wait(pause)
    sender.finish()


def _noted(file: Path) -> dict[str, Any]:
    try:
        noted = json.loads(file.read_text())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ConfigError(f"{file}: {error}; delete it to send the run from its beginning") from None
    return noted if isinstance(noted, dict) else {}
