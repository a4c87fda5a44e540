"""Validation behind the learner: a thread asks the live services while steps go on; the first rank alone has one."""

import logging
import threading

from prism.config import RunConfig
from prism.data.rows import Mixture
from prism.errors import PrismError
from prism.evaluation.held_out import read_questions
from prism.evaluation.slices import read_slices
from prism.evaluation.suite.questions import QuestionSet
from prism.evaluation.validation import validate
from prism.trainer.checkpoint.kept import Kept
from prism.trainer.learn import ranks
from prism.trainer.stages.context import Context

log = logging.getLogger("prism.trainer")


class Validation:
    """Of one stage. One measurement at a time: a step that comes while one is at work is left out, and that is said.

    No failure of it ends the stage, and none becomes a number.
    """

    def __init__(self, context: Context, steps: int) -> None:
        """``steps`` are the stage's: its last is measured after the stage, on the reported data."""
        self._context, self._steps = context, steps
        self._thread: threading.Thread | None = None
        self._rows: Mixture | None = None
        self._slices: list[QuestionSet] = []
        on = ranks.is_first() and self._config.evaluate.every
        root = self._config.run_dir / "checkpoints" / context.stage
        self._kept = Kept(root) if on and self._config.evaluate.keep_best else None

    @property
    def _config(self) -> RunConfig:
        return self._context.config

    def begin(self, step: int, version: int) -> None:
        """After ``step`` steps, when the servers have ``version``: measure it, if its turn has come."""
        every = self._config.evaluate.every
        if not every or step % every or step == self._steps or not ranks.is_first():
            return
        if self._thread is not None and self._thread.is_alive():
            self._context.say(f"validation is still at work: step {step} is not measured; raise evaluate.every")
            return
        if self._kept:
            self._kept.hold(step)
        self._thread = threading.Thread(target=self._measure, args=(step, version), name="validation", daemon=True)
        self._thread.start()

    def _measure(self, step: int, version: int) -> None:
        figure, value = self._config.evaluate.keep_best, None
        try:
            if self._rows is None:
                assert self._config.evaluate.validation is not None
                self._slices = read_slices(self._config)
                self._rows = read_questions(self._config, self._config.evaluate.validation, None)
            figures = validate(self._config, self._context.stage, step, version, self._rows, self._slices)
            value = figures[figure] if figure else None
            flagged = f", {figures['other_versions']} of newer weights left out" if figures["other_versions"] else ""
            accuracy = "no data" if figures["accuracy"] is None else f"{figures['accuracy']:.1%}"
            self._context.say(f"validation after step {step}: accuracy {accuracy} of {figures['judged']}{flagged}")
        except PrismError as error:
            self._context.say(f"validation after step {step} failed, and has no figures: {error}")
        except Exception:  # whatever a library raises: the stage goes on
            log.exception("validation after step %d failed", step)
        finally:
            if self._kept and self._kept.release(step, figure, value):
                self._context.say(f"best checkpoint so far: step {step}, {figure} {value:.3f}")

    def is_over(self) -> bool:
        """Whether the stage is to end by ``stop_after``. All ranks must ask, and get the first's answer."""
        limit = self._config.evaluate.stop_after
        return bool(limit) and ranks.from_first(lambda: self._kept is not None and self._kept.since_best >= limit)

    def close(self) -> None:
        """Wait for the measurement at work."""
        if self._thread is not None:
            self._thread.join()
