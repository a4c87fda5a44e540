"""Lets the torchvision of the package index, a CUDA build, import beside a CPU build of torch.

Its compiled operators cannot load there, but its Python (all that image processors use) works once two of their
schemas are declared. Installed as an import hook, so that nothing is paid until someone imports torchvision.
"""

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType

_libraries: list[object] = []  # a torch.library.Library takes its schemas with it when it is collected


class _DeclareOperators(importlib.abc.MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname == "torchvision":
            sys.meta_path.remove(self)
            import torch

            if torch.version.cuda is None and not hasattr(torch.ops.torchvision, "nms"):
                library = torch.library.Library("torchvision", "DEF")
                library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
                library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
                _libraries.append(library)
        return None


def install() -> None:
    """Idempotent; costs nothing until torchvision is imported."""
    if "torchvision" not in sys.modules and not any(isinstance(f, _DeclareOperators) for f in sys.meta_path):
        sys.meta_path.insert(0, _DeclareOperators())
