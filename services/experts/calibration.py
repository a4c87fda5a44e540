"""What a raw score means: percentiles among reference scores, and a probability fitted to them."""

import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ValidationError

from prism.wire.experts import CalibrationRequest, CalibrationState, Percentile

log = logging.getLogger(__name__)

FILE = "calibration.json"


class Calibration:
    """Made for one version of one expert, and for one way of judging. Nothing else may be read by it."""

    def __init__(self, request: CalibrationRequest) -> None:
        # Here, for they take 2 s and 100 MB, and most experts are never calibrated.
        from sklearn.linear_model import LogisticRegression
        from sklearn.metrics import balanced_accuracy_score

        self.request = request
        self._teacher, self._policy = np.sort(request.teacher), np.sort(request.policy)
        scores = np.concatenate([self._teacher, self._policy])  # [references]
        is_teacher = np.repeat([True, False], [len(self._teacher), len(self._policy)])  # [references]
        # Standardised, so that the fit's regularisation, which keeps it finite where the two sides do not overlap,
        # weighs the same whatever the scores' scale.
        spread = float(scores.std())
        self._center, self._spread = float(scores.mean()), spread if spread > 1e-9 else 1.0
        # Balanced: how many responses of either side are in the reference is an accident of the file (sixteen rollouts
        # to one demonstration), so neither is likelier before its score is seen.
        standard = ((scores - self._center) / self._spread)[:, None]  # [references, 1]
        fit: Any = LogisticRegression(class_weight="balanced").fit(standard, is_teacher)
        self._slope, self._intercept = float(fit.coef_[0, 0]), float(fit.intercept_[0])
        self._accuracy = float(balanced_accuracy_score(is_teacher, fit.predict(standard)))

    def fits(self, version: int, attempt: int, section: str) -> bool:
        made_for = self.request
        return (made_for.version, made_for.attempt, made_for.section) == (version, attempt, section)

    def percentile(self, score: float) -> Percentile:
        return Percentile(teacher=_mid_rank(self._teacher, score), policy=_mid_rank(self._policy, score))

    def probability(self, score: float) -> float:
        """That a response with this score is the teacher's, where both are equally likely beforehand."""
        return sigmoid(self._slope * (score - self._center) / self._spread + self._intercept)

    def state(self, *, current: bool) -> CalibrationState:
        made_for = self.request
        return CalibrationState(
            reference=made_for.reference,
            version=made_for.version,
            attempt=made_for.attempt,
            section=made_for.section,
            teacher=len(made_for.teacher),
            policy=len(made_for.policy),
            accuracy=self._accuracy,
            current=current,
        )


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
    state_dir.mkdir(parents=True, exist_ok=True)
    partial = state_dir / f"{FILE}.partial"
    partial.write_text(Kept(base=base, request=calibration.request).model_dump_json())
    partial.replace(state_dir / FILE)


def read_kept(state_dir: Path, base: str) -> Calibration | None:
    """What ``keep`` kept; None if there is nothing, or nothing that can be used here, which is then logged."""
    file = state_dir / FILE
    try:
        kept = Kept.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        log.warning("the calibration in %s cannot be used, scores will carry none: %s", file, str(error)[:500])
        return None
    if kept.base != base:
        log.warning("the calibration in %s was made for %s, not for %s: scores will carry none", file, kept.base, base)
        return None
    return Calibration(kept.request)
