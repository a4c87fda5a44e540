"""Validation questions while a stage learns: figures of one policy version, though newer weights may come meanwhile."""

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from prism.config import RunConfig
from prism.data.rows import Mixture
from prism.evaluation.held_out import SHOWN, ask, group_figures, shown
from prism.evaluation.slices import ask_slices
from prism.evaluation.suite.questions import QuestionSet
from prism.evaluation.unasked import unasked_figures
from prism.files import append_json

VALIDATIONS, VALIDATION_SAMPLES = "validations.jsonl", "validation_samples.jsonl"


def validate(
    config: RunConfig, stage: str, step: int, version: int, rows: Mixture, slices: Sequence[QuestionSet] = ()
) -> dict[str, Any]:
    """Ask the first of ``rows``, then ``slices`` of benchmarks, and record the figures of ``step`` with the first
    responses.

    Figures are of the responses that ``version`` gave; ``other_versions`` counts those of newer weights, which stand in
    the samples with their version and in no figure. Raises ServiceError if a service is away.
    """
    evaluate = config.evaluate
    assert evaluate.validation is not None
    settings = evaluate.model_copy(update={"data": evaluate.validation, "questions": evaluate.validation_questions})
    started = time.perf_counter()
    _, groups, unasked = asyncio.run(ask(config, settings, version, 0.0, None, rows))
    own = [group for group in groups if group.policy_version == version]
    versions = Counter(group.policy_version for group in groups)
    figures = {
        "stage": stage,
        "step": step,
        "policy_version": version,
        **group_figures(own),
        "other_versions": len(groups) - len(own),
        "versions": {str(number): count for number, count in sorted(versions.items())},
        **unasked_figures(rows, unasked),
        "benchmarks": ask_slices(config, stage, step, version, slices),
        "seconds": time.perf_counter() - started,
        "time": time.time(),
    }
    samples = [shown(stage, group) | {"step": step} for group in groups[:SHOWN]]
    append_json(config.run_dir / VALIDATION_SAMPLES, *samples)
    append_json(config.run_dir / VALIDATIONS, figures)
    return figures
