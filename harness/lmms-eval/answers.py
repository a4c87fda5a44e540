"""lmms-eval's own scorers, given what stands in <answer>; a response that never came ends the evaluation.

Loaded by the YAML files beside it, in lmms-eval's environment. What its scorers do with an answer is theirs: the
MMMU ones still draw an option at random where they can read none.
"""

import re
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

FAILED = "[LMMS_EVAL_REQUEST_FAILED"
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)

Process = Callable[[Any, Sequence[str]], Any]


def answer(response: str) -> str:
    """The last <answer>; the whole response where there is none. Exits with status 1 if a request failed."""
    if response.startswith(FAILED):
        raise SystemExit(f"no score, a request failed: {response}")
    found = _ANSWER.findall(response)
    return found[-1].strip() if found else response


def _reading(module: str, name: str) -> Process:
    stock: Process = getattr(import_module(f"lmms_eval.tasks.{module}"), name)
    return lambda row, results: stock(row, [answer(one) for one in results])


def __getattr__(name: str) -> Process:
    """Each is imported when a task asks for it: one whose needs are not installed stops no other."""
    try:
        return _reading(*PROCESSES[name])
    except KeyError:
        raise AttributeError(name) from None


PROCESSES = {
    "mmmu": ("mmmu.utils", "mmmu_process_results"),
    "mmmu_pro": ("mmmu_pro.utils", "mmmu_pro_process_results"),
    "mathvista": ("mathvista.utils", "mathvista_process_results"),
    "mathverse": ("mathverse.utils", "mathverse_process_results"),
    "mathvision": ("mathvision.utils", "mathvision_process_results"),
    "hallusionbench": ("hallusion_bench.evaluate_hb", "hb_process_results"),
}
