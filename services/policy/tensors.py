"""Whether pushed files hold the tensors of the model being served: read from the files' headers, without loading any.

vLLM only logs a warning about tensors a checkpoint lacks and would go on with a mixture of old and new.
"""

import json
import struct
from pathlib import Path

from prism.errors import WeightsError
from prism.weights import Manifest

MAX_HEADER = 100 * 2**20  # bytes, the format's own limit

Layout = dict[str, tuple[int, ...]]


def layout(folder: Path) -> Layout:
    """Name and shape of every tensor in the folder's safetensors files. Raises WeightsError if one is malformed."""
    shapes: Layout = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with path.open("rb") as file:
                (size,) = struct.unpack("<Q", file.read(8))
                header = json.loads(file.read(size)) if size <= MAX_HEADER else None
            assert isinstance(header, dict)
            shapes |= {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
        except (AssertionError, KeyError, TypeError, ValueError, struct.error):
            raise WeightsError(f"{path.name!r} is not a safetensors file") from None
    return shapes


def check(base: Path, folder: Path, manifest: Manifest) -> None:
    """Raises WeightsError unless ``folder`` holds the tensors of the model in ``base``, in files the manifest names."""
    stray = sorted({path.name for path in folder.glob("*.safetensors")} - manifest.files.keys())
    if stray:
        raise WeightsError(f"weights file {stray[0]!r} of {manifest.path!r} is not in the manifest")
    expected, given = layout(base), layout(folder)
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


def _tied(base: Path) -> bool:
    config = json.loads((base / "config.json").read_text())
    return bool(config.get("tie_word_embeddings") or config.get("text_config", {}).get("tie_word_embeddings"))
