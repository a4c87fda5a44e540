"""Whether a push holds the tensors of the model being served: of files read from their headers, without loading any.

vLLM only logs a warning about tensors a checkpoint lacks and would go on with a mixture of old and new.
"""

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from prism.errors import WeightsError
from prism.model.adapters.merging import A, B, read_adapter
from prism.wire.weights import ADAPTER, Manifest

MAX_HEADER = 100 * 2**20  # bytes, the format's own limit

INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class FolderTensors:
    """What the headers of a folder's safetensors files say."""

    shapes: dict[str, tuple[int, ...]]
    files: dict[str, list[str]]
    """Of each tensor, the names of the files that hold it."""


def folder_tensors(folder: Path) -> FolderTensors:
    """Of a model, without an adapter beside it. Raises WeightsError if a file is malformed."""
    found = FolderTensors({}, {})
    for path in sorted(path for path in folder.glob("*.safetensors") if path.name != ADAPTER):
        shapes = _shapes(path)
        found.shapes.update(shapes)
        for name in shapes:
            found.files.setdefault(name, []).append(path.name)
    return found


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    try:
        with path.open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(size)) if size <= MAX_HEADER else None
        assert isinstance(header, dict)
        header.pop("__metadata__", None)
        return {name: tuple(entry["shape"]) for name, entry in header.items()}
    except (AssertionError, KeyError, TypeError, ValueError, struct.error):
        raise WeightsError(f"{path.name!r} is not a safetensors file") from None


def check_folder(base: Path, folder: Path, manifest: Manifest) -> None:
    """Raises WeightsError unless ``folder`` holds the tensors of the model in ``base``, in files the manifest names."""
    stray = sorted({path.name for path in folder.glob("*.safetensors")} - manifest.files.keys())
    if stray:
        raise WeightsError(f"weights file {stray[0]!r} of {manifest.path!r} is not in the manifest")
    given = folder_tensors(folder)
    _check_files(folder, given)
    check_shapes(base, given.shapes)
    if manifest.is_adapter:
        _check_adapter(folder, given.shapes)


def _check_adapter(folder: Path, model: Mapping[str, tuple[int, ...]]) -> None:
    """Raises WeightsError unless the adapter is one of this model's layers, and nothing else."""
    adapter = read_adapter(folder)
    shapes = {name: tuple(tensor.shape) for name, tensor in adapter.tensors.items()}
    rank = adapter.config["r"]
    expected: dict[str, tuple[int, ...]] = {}
    for name in adapter.changes:
        outputs, inputs = model[name] if len(model.get(name, ())) == 2 else (0, 0)
        layer = name.removesuffix(".weight")
        expected |= {layer + A: (rank, inputs), layer + B: (outputs, rank)}
    if wrong := sorted(name for name in shapes | expected if shapes.get(name) != expected.get(name)):
        raise WeightsError(f"not an adapter of the served model: {', '.join(wrong[:3])}, …")


def check_shapes(base: Path, given: Mapping[str, tuple[int, ...]]) -> None:
    """Raises WeightsError unless these are the tensors of the model in ``base``."""
    expected = folder_tensors(base).shapes
    if not expected:
        return  # the base came in another format: nothing to compare with
    for name, shape in given.items():
        if name in expected and expected[name] != shape:
            raise WeightsError(f"tensor {name!r} has shape {list(shape)}, the model's has {list(expected[name])}")
    missing = expected.keys() - given.keys()
    unknown = given.keys() - expected.keys()
    if _tied(base):
        missing, unknown = missing - {"lm_head.weight"}, unknown - {"lm_head.weight"}
    if missing or unknown:
        names = ", ".join(sorted(missing or unknown)[:3])
        raise WeightsError(
            f"not weights of the served model: {len(missing)} tensors missing, {len(unknown)} unknown ({names}, …)"
        )


def _check_files(folder: Path, given: FolderTensors) -> None:
    """Raises WeightsError where vLLM would load a tensor twice, or, since the index does not name its file, never."""
    for name, files in given.files.items():
        if len(files) > 1:
            raise WeightsError(f"tensor {name!r} stands in {files[0]!r} and in {files[1]!r}")
    if (folder / INDEX).exists():
        try:
            indexed = json.loads((folder / INDEX).read_bytes())["weight_map"]
        except (KeyError, TypeError, ValueError):
            raise WeightsError(f"{INDEX!r} is not an index of safetensors files") from None
        if indexed != {name: files[0] for name, files in given.files.items()}:
            raise WeightsError(f"{INDEX!r} does not name exactly the tensors that are there")


def _tied(base: Path) -> bool:
    config = json.loads((base / "config.json").read_text())
    return bool(config.get("tie_word_embeddings") or config.get("text_config", {}).get("tie_word_embeddings"))
