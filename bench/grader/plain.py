"""What a user would write instead: math-verify as its documentation shows it, in a loop or in a process pool."""

import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor

from math_verify import StringExtractionConfig, parse, verify

from bench.grader.pairs import Pair

CHOICES = [StringExtractionConfig(strings=tuple("ABCDEFGH"))]


def judge(pair: Pair) -> bool:
    """With math-verify's own timeouts, which are its defaults."""
    if pair.kind == "choice":
        return verify(parse(pair.gold, CHOICES), parse(pair.answer, CHOICES))
    if pair.kind == "text":
        return verify(parse(f"$\\text{{{pair.gold}}}$"), parse(f"$\\text{{{pair.answer}}}$"))
    return verify(parse(_tex(pair.gold)), parse(_tex(pair.answer)))


def _tex(text: str) -> str:
    """math-verify looks for TeX between delimiters, and for plain numbers outside of them."""
    return text if "$" in text or "boxed" in text or not any(char in text for char in "\\^=[({") else f"${text}$"


def loop(pairs: Sequence[Pair]) -> tuple[float, float, list[bool]]:
    """Verdicts a second, seconds of processor time in all, and the verdicts."""
    start, cpu = time.perf_counter(), time.process_time()
    verdicts = [judge(pair) for pair in pairs]
    return len(pairs) / (time.perf_counter() - start), time.process_time() - cpu, verdicts


def process_pool(pairs: Sequence[Pair], workers: int) -> float:
    """Verdicts a second, once its processes have started."""
    with ProcessPoolExecutor(workers) as pool:
        list(pool.map(judge, pairs[: 4 * workers]))
        start = time.perf_counter()
        list(pool.map(judge, pairs, chunksize=16))
        return len(pairs) / (time.perf_counter() - start)
