"""verl's custom reward function. (No torch, no verl.)

A file of yours names it, and verl's configuration that file::

    from prism.adapters.verl import compute_score

    reward.custom_reward_function.path=my_reward.py reward.custom_reward_function.name=compute_score
    +reward.custom_reward_function.reward_kwargs.url=http://127.0.0.1:8104

The shape is that of verl's ``verl/experimental/reward_loop/reward_manager/naive.py``, read in November 2026: it is
called by keyword, in threads, with ``data_source``, ``solution_str``, ``ground_truth``, ``extra_info``, the configured
``reward_kwargs`` and, beside a reward model, ``reward_router_address`` and ``reward_model_tokenizer``. Of a dict it
takes ``score``; the other keys, the same for every answer, are metrics (DAPO can filter by ``acc``). Earlier releases,
which name it ``custom_reward_function.*``, call it in the same way.
"""

import functools
import json
import threading
from collections.abc import Mapping
from typing import Any

from prism.adapters.grading import Grading, Value, plain
from prism.errors import NotJudgedError

_MAKING = threading.Lock()


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: Mapping[str, Any] | None = None,
    *,
    url: str | None = None,
    token: str | None = None,
    kind: str = "auto",
    rules: Mapping[str, Any] | None = None,
    value: Value = "accuracy",
    patience_seconds: float = 120.0,
    reward_router_address: str | None = None,
    reward_model_tokenizer: Any = None,
) -> dict[str, Any]:
    """The grader's verdict on one answer: ``score``, ``acc`` and ``status``.

    ``ground_truth`` is the gold answer, or a list of equally right ones; ``extra_info["prism"]`` may hold a row's own
    ``kind`` and ``options``. The rest is Grading's. verl cannot leave out an answer, so one without a verdict raises
    NotJudgedError rather than being given a number: find such rows before training with ``prism grade``.
    """
    grading = _grading(url, token, kind, json.dumps(plain(rules)), value, patience_seconds)
    own = (extra_info or {}).get("prism") or {}
    [verdict] = grading.grade([{**own, "response": solution_str, "gold": ground_truth}])
    score = getattr(verdict, value)
    if score is None or verdict.accuracy is None:
        told = f"{verdict.status}: {verdict.detail}"
        raise NotJudgedError(f"data source {data_source}, gold answer {str(ground_truth)[:200]!r}: {told}")
    return {"score": score, "acc": verdict.accuracy, "status": verdict.status}


def _grading(
    url: str | None, token: str | None, kind: str, rules: str, value: Value, patience_seconds: float
) -> Grading:
    with _MAKING:  # threads that ask at once share one grader
        return _made(url, token, kind, rules, value, patience_seconds)


@functools.cache
def _made(url: str | None, token: str | None, kind: str, rules: str, value: Value, patience_seconds: float) -> Grading:
    return Grading(url, token=token, kind=kind, rules=json.loads(rules), value=value, patience_seconds=patience_seconds)
