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
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from threading import BoundedSemaphore
from typing import TYPE_CHECKING, Any

from prism.files import make_folder
from prism.wire.weights import (
    ADAPTER,
    ADAPTER_CONFIG,
    HASHERS,
    Manifest,
    WeightFile,
    file_sha256,
    known_sha256,
)

if TYPE_CHECKING:
    from torch import Tensor

CONFIG, INDEX = "config.json", "model.safetensors.index.json"
# As safetensors names them.
DTYPES = {"float64": "F64", "float32": "F32", "bfloat16": "BF16", "float16": "F16", "int64": "I64", "uint8": "U8"}
Content = list[bytes | memoryview]
"""Of a file, in pieces that follow one another."""


class WeightFolder:
    """A folder being filled. ``base`` is the manifest of another version under the same root, if there is one."""

    def __init__(self, root: Path, path: str, base: Manifest | None) -> None:
        self.files: dict[str, WeightFile] = {}
        self.bytes_written = self.bytes_saved = 0
        self._folder = root / path
        self._base_folder, self._base = (root / base.path, base.files) if base else (root, {})
        shutil.rmtree(self._folder, ignore_errors=True)
        make_folder(self._folder)

    def add_tensors(self, tensors: Iterable[tuple[str, "Tensor"]], config: str) -> None:
        """All tensors of a model under their checkpoint's names, those of a block in a row, and its ``config.json``.

        Blocks are hashed and written by several threads, so a few are in memory at a time; tensors that lie in the
        host's memory are not copied. Raises ValueError for a block that comes twice: that would lose tensors.
        """
        weight_map: dict[str, str] = {}
        added: dict[str, Future[tuple[WeightFile, bool]]] = {}
        room = BoundedSemaphore(HASHERS)

        def add(name: str, content: Content) -> tuple[WeightFile, bool]:
            try:
                return self._add(name, content)
            finally:
                room.release()

        with ThreadPoolExecutor(HASHERS, "weights-folder") as threads:
            for block, members in groupby(tensors, key=lambda named: block_of(named[0])):
                file = f"{block}.safetensors"
                if file in added:
                    raise ValueError(f"the tensors of {block} do not come in a row")
                room.acquire()
                content = {name: tensor.detach().cpu().contiguous() for name, tensor in members}
                added[file] = threads.submit(add, file, _encoded(content))
                weight_map |= dict.fromkeys(content, file)
        for file, done in added.items():
            self._note(file, *done.result())
        total = sum(file.bytes for file in self.files.values())
        index = json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map})
        for name, text in ((INDEX, index), (CONFIG, config)):
            self._note(name, *self._add(name, [text.encode()]))

    def add_folder(self, source: Path) -> None:
        """The weights and the configuration of a finished model folder, which nobody changes any more."""

        def add(file: Path) -> tuple[WeightFile, bool]:
            noted = WeightFile(sha256=file_sha256(file), bytes=file.stat().st_size)
            linked = self._link(file)
            if not linked:
                shutil.copyfile(file, self._folder / file.name)
            return noted, linked

        files = [*sorted(source.glob("*.safetensors*")), source / CONFIG]
        with ThreadPoolExecutor(HASHERS, "weights-folder") as threads:
            for file, done in zip(files, threads.map(add, files), strict=True):
                self._note(file.name, *done)

    def add_adapter(self, base: Path, tensors: dict[str, "Tensor"], config: dict[str, Any]) -> None:
        """An adapter, and beside it the model folder that it is over, which nobody changes: linked, and read once."""

        def add(file: Path) -> tuple[WeightFile, bool]:
            noted = WeightFile(sha256=known_sha256(file), bytes=file.stat().st_size)
            linked = self._link(file.resolve(), name=file.name)
            if not linked and self._base.get(file.name) == noted:  # of another file system, copied once
                linked = self._link(self._base_folder / file.name)
            if not linked:
                shutil.copyfile(file, self._folder / file.name)
            return noted, linked

        files = [*sorted(base.glob("*.safetensors*")), base / CONFIG]
        with ThreadPoolExecutor(HASHERS, "weights-folder") as threads:
            for file, done in zip(files, threads.map(add, files), strict=True):
                self._note(file.name, *done)
        content = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        self._note(ADAPTER, *self._add(ADAPTER, _encoded(content)))
        self._note(ADAPTER_CONFIG, *self._add(ADAPTER_CONFIG, [json.dumps(config, indent=2).encode()]))

    def _add(self, name: str, content: Content) -> tuple[WeightFile, bool]:
        """What the file is, and whether it was linked."""
        digest = hashlib.sha256()
        for piece in content:
            digest.update(piece)
        noted = WeightFile(sha256=digest.hexdigest(), bytes=sum(map(len, content)))
        linked = self._base.get(name) == noted and self._link(self._base_folder / name, noted.sha256)
        if not linked:
            with (self._folder / name).open("wb", buffering=0) as file:
                for piece in content:
                    left = memoryview(piece)
                    while left:
                        left = left[file.write(left) :]
        return noted, linked

    def _link(self, source: Path, sha256: str | None = None, name: str | None = None) -> bool:
        """Whether the file could be linked. One that is no longer what it was is left to be written again."""
        try:
            if sha256 is not None and file_sha256(source) != sha256:
                return False
            os.link(source, self._folder / (name or source.name))
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


def _encoded(tensors: dict[str, "Tensor"]) -> Content:
    """The safetensors file of these. The library's own writers copy every tensor while no other thread runs."""
    import torch

    order = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in order:
        tensor, begin = tensors[name], end
        end += tensor.nbytes
        dtype = DTYPES[str(tensor.dtype).removeprefix("torch.")]
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    arrays: list[Any] = [tensors[name].reshape(-1).view(torch.uint8).numpy() for name in order]
    return [len(text).to_bytes(8, "little"), text, *map(memoryview, arrays)]
