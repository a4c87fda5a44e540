"""Whether the experts look, measured in the game: its learner waits, so one version of each gives all the scores."""

import logging
import time
from typing import Any

from prism.config import AlignConfig
from prism.errors import DataError, PrismError
from prism.evaluation.looks import Looked, measure_looks, read_looked
from prism.trainer.learn import ranks
from prism.trainer.stages.context import Context
from prism.wire.response import EXPERTS

log = logging.getLogger("prism.trainer")


class Looks:
    """Of one alignment. No failure of it ends the stage, and none becomes a number."""

    def __init__(self, context: Context, stage: AlignConfig) -> None:
        self._context, self._stage = context, stage
        self._looked: list[Looked] | None = None  # until they are needed

    def is_due(self, step: int) -> bool:
        """After ``step`` steps, the warm-up's included. Experts that are shown no pictures cannot look."""
        settings, warmup = self._context.config.evaluate.looks, self._stage.warmup_steps
        if not settings.pairs or not self._stage.experts.pictures or step < warmup:
            return False
        played = step - warmup
        return played in (0, self._stage.steps) or bool(settings.every and played % settings.every == 0)

    def measure(self, step: int, version: int, expert_version: int) -> dict[str, Any]:
        """The figures of ``step``, when the servers have these versions; none if it is not their turn, or they failed.

        All ranks must ask, and get the first's answer.
        """
        return ranks.from_first(lambda: self._measure(step, version, expert_version)) if self.is_due(step) else {}

    def _measure(self, step: int, version: int, expert_version: int) -> dict[str, Any]:
        began, config = time.perf_counter(), self._context.config
        try:
            if self._looked is None:
                self._looked = []  # data that cannot be used is said once
                self._looked = read_looked(config, config.evaluate.looks.pairs)
            if not self._looked:
                return {}
            figures = measure_looks(config, self._stage, self._looked, version, expert_version)
        except DataError as error:
            self._context.say(f"whether the experts look at pictures is not measured: {error} (evaluate.looks)")
            return {}
        except PrismError as error:
            self._context.say(f"whether the experts look at pictures was not measured after step {step}: {error}")
            return {}
        except Exception:  # whatever a library raises: the stage goes on
            log.exception("whether the experts look was not measured after step %d", step)
            return {}
        for expert in EXPERTS:
            self._context.say(_said(step, expert, {name: figures[f"{expert}_looks_{name}"] for name in SAID}))
        return figures | {"looks_seconds": time.perf_counter() - began}


SAID = ("pairs", "right", "right_stderr", "shuffled", "blank", "close")


def _said(step: int, expert: str, figures: dict[str, Any]) -> str:
    if not figures["pairs"]:
        return f"after step {step} no held-out pair differs for the {expert} expert: whether it looks is not known"
    right, shuffled, blank = (f"{figures[name]:.0%}" for name in ("right", "shuffled", "blank"))
    text = (
        f"after step {step} the {expert} expert tells {right} ± {100 * figures['right_stderr']:.0f} of "
        f"{figures['pairs']} held-out pairs apart, {shuffled} with another prompt's picture, {blank} with a blank one"
    )
    return f"{text}: it hardly looks at the picture" if figures["close"] else text
