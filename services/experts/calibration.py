"""What a raw score means beside those of other responses to its prompt: percentiles and a probability.

Bradley-Terry fixes differences within a prompt alone. What a prompt's scores have in common says nothing of a response
(pooled over prompts, scores told teacher from policy at an AUC of 0.67, within them at 0.89 to 0.92). So what is
fitted, and read, are *leads*: a score less the mean of the other responses to the same prompt.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Self

import numpy as np
from pydantic import BaseModel, ValidationError

from prism.files import write_text
from prism.wire.experts import CalibrationRequest, CalibrationState, Percentile, PromptScores

log = logging.getLogger(__name__)

FILE = "calibration.json"
FOLDS = 5  # fits that leave out a share of the prompts, to be judged on it


@dataclass(frozen=True)
class _Leads:
    """Of responses to some prompts of the reference."""

    values: Any
    """[responses], teacher's over the mean of the policy's to the prompt, policy's over that of the teacher's."""
    is_teacher: Any
    """[responses] bool."""
    weights: Any
    """[responses], of mean 1: both sides of every prompt weigh the same. How many responses there are of either is an
    accident of the file (sixteen rollouts to one demonstration)."""

    @classmethod
    def of(cls, prompts: Sequence[PromptScores]) -> Self:
        values: list[float] = []
        is_teacher: list[bool] = []
        weights: list[float] = []
        for prompt in prompts:
            for own, others, teacher in ((prompt.teacher, prompt.policy, True), (prompt.policy, prompt.teacher, False)):
                middle = fmean(others)
                values += [score - middle for score in own]
                is_teacher += [teacher] * len(own)
                weights += [1 / len(own)] * len(own)
        weight = np.array(weights)
        return cls(np.array(values), np.array(is_teacher), weight / weight.mean())

    def slope(self) -> float:
        """Log-odds a unit of lead. Without an intercept: one who leads by nothing is as likely either."""
        # Here, for it takes 2 s and 100 MB, and most experts are never calibrated.
        from sklearn.linear_model import LogisticRegression

        # In units of the leads' own size, so that the fit's regularisation, which keeps it finite where the teacher
        # always leads, weighs the same whatever the scores' scale.
        size = math.sqrt(float(np.average(self.values**2, weights=self.weights)))
        size = size if size > 1e-9 else 1.0
        fit: Any = LogisticRegression(fit_intercept=False)
        fit.fit((self.values / size)[:, None], self.is_teacher, sample_weight=self.weights)
        return float(fit.coef_[0, 0]) / size

    def judged(self, slope: float) -> tuple[float, float]:
        """The sums of weights of what is on the right side of 0.5, ties half, and of -log of the right probability."""
        logits = np.where(self.is_teacher, 1, -1) * slope * self.values
        right = (logits > 0) + 0.5 * (logits == 0)
        return float(self.weights @ right), float(self.weights @ np.logaddexp(0, -logits))


class Calibration:
    """Made for one version of one expert, and for one way of judging. Nothing else may be read by it."""

    def __init__(self, request: CalibrationRequest) -> None:
        self.request = request
        found = _Leads.of(request.prompts)
        self._teacher, self._policy = (np.sort(found.values[found.is_teacher == side]) for side in (True, False))
        self._slope = found.slope()
        self._accuracy, self._log_loss = _held_out(request.prompts)

    def fits(self, version: int, attempt: int, section: str) -> bool:
        made_for = self.request
        return (made_for.version, made_for.attempt, made_for.section) == (version, attempt, section)

    def percentile(self, lead: float) -> Percentile:
        """``lead``: a score less the mean of the other responses to its prompt."""
        return Percentile(teacher=_mid_rank(self._teacher, lead), policy=_mid_rank(self._policy, lead))

    def probability(self, lead: float) -> float:
        """That a response with this lead is the teacher's, where it or the others are equally likely beforehand."""
        return sigmoid(self._slope * lead)

    def state(self, *, current: bool) -> CalibrationState:
        made_for = self.request
        return CalibrationState(
            reference=made_for.reference,
            version=made_for.version,
            attempt=made_for.attempt,
            section=made_for.section,
            prompts=len(made_for.prompts),
            teacher=len(self._teacher),
            policy=len(self._policy),
            accuracy=self._accuracy,
            log_loss=self._log_loss,
            current=current,
        )


def leads(scores: Sequence[float]) -> list[float] | None:
    """Of the responses to one prompt; None for fewer than two, of which none leads another."""
    if len(scores) < 2:
        return None
    total = math.fsum(scores)
    return [score - (total - score) / (len(scores) - 1) for score in scores]


def _held_out(prompts: Sequence[PromptScores]) -> tuple[float, float]:
    """Accuracy and log loss over all prompts, each judged by a fit that has not seen it."""
    folds = min(FOLDS, len(prompts))
    accuracy = log_loss = 0.0
    for fold in range(folds):
        seen = _Leads.of([prompt for place, prompt in enumerate(prompts) if place % folds != fold])
        unseen = _Leads.of(prompts[fold::folds])
        right, loss = unseen.judged(seen.slope())
        share = len(prompts[fold::folds]) / len(prompts) / len(unseen.values)  # so each prompt counts alike
        accuracy += right * share
        log_loss += loss * share
    return accuracy, log_loss


def sigmoid(logit: float) -> float:
    return (1 + math.tanh(logit / 2)) / 2  # which overflows nowhere


def _mid_rank(reference: Any, score: float) -> float:
    below, up_to = np.searchsorted(reference, score, "left"), np.searchsorted(reference, score, "right")
    return float(below + up_to) / 2 / len(reference) * 100


class Kept(BaseModel):
    """The file. ``base`` is what the service started from: version 0 of another model is another expert."""

    base: str
    request: CalibrationRequest


def keep(state_dir: Path, base: str, calibration: Calibration) -> None:
    write_text(state_dir / FILE, Kept(base=base, request=calibration.request).model_dump_json())


def read_kept(state_dir: Path, base: str) -> Calibration | None:
    """What ``keep`` kept; None if there is nothing, or nothing that can be used here, which is then logged."""
    file = state_dir / FILE
    try:
        kept = Kept.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        again = "run prism calibrate again"  # also for one of a release that did not keep prompts apart
        log.warning(
            "the calibration in %s cannot be used, scores will carry none, %s: %s", file, again, str(error)[:500]
        )
        return None
    if kept.base != base:
        log.warning("the calibration in %s was made for %s, not for %s: scores will carry none", file, kept.base, base)
        return None
    return Calibration(kept.request)
