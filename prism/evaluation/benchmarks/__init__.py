"""The public benchmarks, a file each: rows, prompts, official rules, figures. (No torch, no network.)"""

from prism.evaluation.benchmarks.base import Benchmark
from prism.evaluation.benchmarks.hallusionbench import HallusionBench
from prism.evaluation.benchmarks.mathverse import MathVerse
from prism.evaluation.benchmarks.mathvision import MathVision
from prism.evaluation.benchmarks.mathvista import MathVista
from prism.evaluation.benchmarks.mmmu import Mmmu
from prism.evaluation.benchmarks.mmmu_pro import MmmuPro
from prism.evaluation.benchmarks.own import Own
from prism.evaluation.benchmarks.wemath import WeMath

__all__ = ["BENCHMARKS", "Benchmark"]

BENCHMARKS: dict[str, Benchmark] = {
    one.name: one
    for one in (MathVista(), MathVerse(), MathVision(), WeMath(), Mmmu(), MmmuPro(), HallusionBench(), Own())
}
"""By the name that a configuration gives them."""
