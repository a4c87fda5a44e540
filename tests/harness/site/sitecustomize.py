"""Runs first in lmms-eval's interpreter: the index's torchvision imports beside a CPU build of torch."""

import importlib.util
from pathlib import Path

_FILE = Path(__file__).parents[3] / "prism/model/torchvision_cpu.py"  # by its place: PRISM is not installed there
_spec = importlib.util.spec_from_file_location("torchvision_cpu", _FILE)
assert _spec
assert _spec.loader
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)
_module.install()
