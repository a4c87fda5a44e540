"""The folder of one version of the weights, always whole: what the version before holds already is linked, not written.

Tensors lie in one file a block, a transformer layer or another module with weights of its own, so that a frozen part of
the model is never written twice. A linked file is the same file: no chain of versions has to be restored, and deleting
one takes nothing from another. Where the file system cannot link, the bytes are written. (No torch until there are
tensors.)
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from prism.wire.weights import Manifest, WeightFile, file_sha256

if TYPE_CHECKING:
    from torch import Tensor

CONFIG, INDEX = "config.json", "model.safetensors.index.json"


class WeightFolder:
    """A folder being filled. ``base`` is the manifest of another version under the same root, if there is one."""

    def __init__(self, root: Path, path: str, base: Manifest | None) -> None:
        self.files: dict[str, WeightFile] = {}
        self.bytes_written = self.bytes_saved = 0
        self._folder = root / path
        self._base_folder, self._base = (root / base.path, base.files) if base else (root, {})
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)

    def add_tensors(self, tensors: Iterable[tuple[str, "Tensor"]], config: str) -> None:
        """All tensors of a model under their checkpoint's names, those of a block in a row, and its ``config.json``.

        One block at a time is in memory. Raises ValueError for a block that comes twice: that would lose tensors.
        """
        from safetensors.torch import save

        weight_map: dict[str, str] = {}
        for block, members in groupby(tensors, key=lambda named: block_of(named[0])):
            file = f"{block}.safetensors"
            if file in self.files:
                raise ValueError(f"the tensors of {block} do not come in a row")
            content = {name: tensor.detach().cpu().contiguous() for name, tensor in members}
            self._add(file, save(content, metadata={"format": "pt"}))
            weight_map |= dict.fromkeys(content, file)
        total = sum(file.bytes for file in self.files.values())
        self._add(INDEX, json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}).encode())
        self._add(CONFIG, config.encode())

    def add_folder(self, source: Path) -> None:
        """The weights and the configuration of a finished model folder, which nobody changes any more."""
        for file in [*sorted(source.glob("*.safetensors*")), source / CONFIG]:
            noted = WeightFile(sha256=file_sha256(file), bytes=file.stat().st_size)
            linked = self._link(file)
            if not linked:
                shutil.copyfile(file, self._folder / file.name)
            self._note(file.name, noted, linked)

    def _add(self, name: str, content: bytes) -> None:
        noted = WeightFile(sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))
        linked = self._base.get(name) == noted and self._link(self._base_folder / name, noted.sha256)
        if not linked:
            (self._folder / name).write_bytes(content)
        self._note(name, noted, linked)

    def _link(self, source: Path, sha256: str | None = None) -> bool:
        """Whether the file could be linked. One that is no longer what it was is left to be written again."""
        try:
            if sha256 is not None and file_sha256(source) != sha256:
                return False
            os.link(source, self._folder / source.name)
        except OSError:  # it is gone, or the file system has no links
            return False
        return True

    def _note(self, name: str, file: WeightFile, linked: bool) -> None:
        self.files[name] = file
        self.bytes_saved += file.bytes if linked else 0
        self.bytes_written += 0 if linked else file.bytes


def block_of(tensor: str) -> str:
    """``model.layers.3.mlp.up_proj.weight`` -> ``model.layers.3``, ``lm_head.weight`` -> ``lm_head``."""
    numbered = re.match(r".*?\.\d+(?=\.)", tensor)
    return numbered[0] if numbered else tensor.rpartition(".")[0] or tensor
