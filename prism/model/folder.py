"""A model folder as others read it: beside the weights, what its start folder held and what other releases look for."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from prism.errors import ConfigError
from prism.wire.weights import ADAPTER, ADAPTER_CONFIG

# What a folder holds beside weights and configuration, and what is taken over from the folder a model starts from, as
# it stands there. Not its README, which describes another model, and no code.
KEPT = (
    *("generation_config.json", "preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "chat_template.json", "chat_template.jinja"),
    *("LICENSE*", "LICENCE*", "NOTICE*", "COPYING*", "USE_POLICY*"),
)

PIXELS = ("min_pixels", "max_pixels")  # earlier names of ``size``'s edges, which win over it


def complete_folder(
    folder: Path, start: Path | str, processor: Any, pixel_bounds: tuple[int, int] | None = None
) -> None:
    """Add to the model in ``folder`` its ``processor``, what ``start`` held beside weights, and names of earlier
    releases of transformers. ``start`` is a folder, or a model of the hub whose files are in its cache.

    ``pixel_bounds`` are those that the model was trained with, where they are not the start's own.
    """
    processor.save_pretrained(folder)
    for part in (processor.image_processor, getattr(processor, "video_processor", None)):
        if part is not None:  # transformers 5 writes one file for all, earlier ones read one of each
            part.save_pretrained(folder)
    held = _folder_of(start)
    for file in sorted(held.iterdir()) if held else ():
        if file.is_file() and any(fnmatch(file.name, name) for name in KEPT):
            shutil.copyfile(file, folder / file.name)
    if pixel_bounds:
        _bound_images(folder, *pixel_bounds)
    _name_as_earlier(folder / "config.json")


def model_folder(start: Path | str) -> Path:
    """Where the files of a model lie. Raises ConfigError for one of the hub that is not in its cache."""
    folder = _folder_of(start)
    if folder is None:
        raise ConfigError(f"{start} is no folder and not in the cache: hf download {start}")
    return folder


@contextmanager
def without_adapter(folder: Path) -> Iterator[Path]:
    """A folder of links to a model in whose own folder an adapter lies too, which transformers would load with it."""
    with TemporaryDirectory(prefix="prism-base-") as name:
        for file in folder.absolute().iterdir():
            if file.name not in (ADAPTER, ADAPTER_CONFIG):
                Path(name, file.name).symlink_to(file)
        yield Path(name)


def _folder_of(start: Path | str) -> Path | None:
    """Where the files of ``start`` lie; None for a model of the hub that is not in the cache."""
    if Path(start).is_dir():
        return Path(start)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(start), local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError):
        return None


def _bound_images(folder: Path, least: int, most: int) -> None:
    """In the files of the image processor, which may be the start's."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        config = json.loads((folder / name).read_text())
        images = config.get("image_processor", {}) if name.startswith("processor") else config
        if images:
            images["size"] = {"shortest_edge": least, "longest_edge": most}
            images |= {key: value for key, value in zip(PIXELS, (least, most), strict=True) if key in images}
            (folder / name).write_text(json.dumps(config, indent=2) + "\n")


def _name_as_earlier(file: Path) -> None:
    """transformers 4 calls ``rope_parameters`` of a text model ``rope_theta`` and ``rope_scaling``; 5 reads both."""
    config = json.loads(file.read_text())
    for part in (config, config.get("text_config", {})):
        if rope := part.get("rope_parameters"):
            scaling = {name: value for name, value in rope.items() if name != "rope_theta"}
            part |= {"rope_scaling": scaling} | ({"rope_theta": rope["rope_theta"]} if "rope_theta" in rope else {})
    file.write_text(json.dumps(config, indent=2) + "\n")
