"""Weights on the move: a folder of safetensors, and a manifest that says what must lie in it.

A learner writes the folder under the weights root and posts the manifest to a server's ``POST /weights``; the server
verifies every file before it loads one. Folders are named by version and immutable once the manifest exists.
"""

import contextlib
import hashlib
import math
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from prism.errors import WeightsError
from prism.files import sync_tree, write_text

MANIFEST = "manifest.json"
ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"  # as PEFT names them
SMALL = 2**25  # bytes of all files, hashed sooner than threads begin
MOST_KNOWN = 4096  # files
HASHERS = 8  # files hashed at a time, where there are as many cores: one core does 1 to 2 GB a second


class WeightFile(BaseModel):
    model_config = ConfigDict(extra="forbid")

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


class Probe(BaseModel):
    """A response the learner has scored, to be scored again by the server that loaded the weights.

    ``messages`` are OpenAI chat messages (images as data URIs); the last is the assistant's, continued.
    """

    model_config = ConfigDict(extra="forbid")

    messages: list[dict[str, object]]
    logprobs: list[float] = Field(description="the learner's log-probability of each of the response's last tokens")
    tolerance: float = Field(gt=0, description="largest mean absolute difference that passes")


class BroadcastTensor(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str
    dtype: str = Field(pattern="^(float32|bfloat16|float16)$")
    shape: list[int]


class Broadcast(BaseModel):
    """Weights that come from a learner's memory (``prism.model.broadcast``), before there are files of them."""

    model_config = ConfigDict(extra="forbid")

    host: str = Field(description="where the learner is met, as the server reaches it")
    port: int = Field(ge=1, le=65535)
    backend: str = Field(description="gloo, or NCCL with its release: both sides must have the same")
    machine: str | None = Field(
        default=None, description="boot id of the learner's machine, whose processes may read its GPU's memory"
    )
    config: str | None = Field(default=None, description="an expert's config.json; names are then its learner's own")
    tensors: list[BroadcastTensor] = Field(description="all of the model's, in the order in which they are sent")


class Manifest(BaseModel):
    """One version of one model's weights: files, or a broadcast that files of the same version will follow.

    ``(attempt, version)`` orders them: no zombie pushes over a resumed run.
    """

    model_config = ConfigDict(extra="forbid")

    model: str = Field(description="whose weights: policy, perception or reasoning")
    version: int = Field(ge=0, description="how many updates these weights have seen in this run")
    attempt: int = Field(ge=1, description="how often the run was started or resumed")
    path: str = Field(description="folder of the files, relative to the weights root both sides share")
    files: dict[str, WeightFile]
    probe: Probe | None = None
    broadcast: Broadcast | None = Field(default=None, description="then there are no files yet")

    @property
    def order(self) -> tuple[int, int]:
        return self.attempt, self.version

    @property
    def is_adapter(self) -> bool:
        """Whether these files are a base and an adapter over it."""
        return ADAPTER in self.files

    @property
    def base(self) -> dict[str, WeightFile]:
        """The files without the adapter's."""
        return {name: file for name, file in self.files.items() if name not in (ADAPTER, ADAPTER_CONFIG)}


def file_sha256(path: Path) -> str:
    """Of a file that may be larger than memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_known: dict[tuple[int, int, int, int], str] = {}  # sha256 of files that were read, by what stat says of them


def known_sha256(path: Path) -> str:
    """``file_sha256``, by reading what an unchanged file was read as before, under whatever name: linked files are one.

    For the base of adapters, which every push names again.
    """
    stat = path.stat()
    key = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)
    if key not in _known:
        if len(_known) >= MOST_KNOWN:
            _known.clear()
        _known[key] = file_sha256(path)
    return _known[key]


def seal(
    root: Path,
    path: str,
    *,
    model: str,
    version: int,
    attempt: int,
    probe: Probe | None = None,
    files: dict[str, WeightFile] | None = None,
) -> Manifest:
    """Describe the finished folder ``root/path`` and write its manifest into it, last: it marks the folder as ready.

    ``files``: what was written, by whoever wrote it; without, what lies there is read again.
    """
    folder = root / path
    if not files:
        found = [file for file in sorted(folder.iterdir()) if file.is_file() and file.name != MANIFEST]
        described = zip(found, _sha256s(found), strict=True)
        files = {file.name: WeightFile(sha256=sha256, bytes=file.stat().st_size) for file, sha256 in described}
    manifest = Manifest(model=model, version=version, attempt=attempt, path=path, files=files, probe=probe)
    sync_tree(folder)
    write_text(folder / MANIFEST, manifest.model_dump_json(indent=1))
    return manifest


def verify(root: Path, manifest: Manifest) -> Path:
    """The folder of the manifest's files, once every one of them is what the manifest says.

    Raises WeightsError if the folder lies outside ``root``, or a file is missing, differs or cannot be read.
    """
    try:
        return _verify(root, manifest)
    except (OSError, ValueError) as error:  # not a path at all (null bytes, too long), or not readable
        raise WeightsError(f"weights path {manifest.path[:200]!r} cannot be used: {error}") from None


def _verify(root: Path, manifest: Manifest) -> Path:
    folder = (root / manifest.path).resolve()
    if not folder.is_relative_to(root.resolve()):
        raise WeightsError(f"weights path {manifest.path!r} leads outside the weights root")
    if not any(name.endswith(".safetensors") for name in manifest.files):
        raise WeightsError("the manifest names no .safetensors file")
    for name, expected in manifest.files.items():
        file = folder / name
        if Path(name).name != name or not file.is_file():
            raise WeightsError(f"weights file {name!r} is missing from {manifest.path!r}")
        if file.stat().st_size != expected.bytes:
            raise WeightsError(f"weights file {name!r} of {manifest.path!r} does not match its sha256: other size")
    found = _sha256s([folder / name for name in manifest.files], known=manifest.is_adapter)
    for (name, expected), sha256 in zip(manifest.files.items(), found, strict=True):
        if sha256 != expected.sha256:
            raise WeightsError(f"weights file {name!r} of {manifest.path!r} does not match its sha256")
    return folder


def _sha256s(files: list[Path], *, known: bool = False) -> list[str]:
    """``known``: as ``known_sha256``."""
    of_file = known_sha256 if known else file_sha256
    if sum(file.stat().st_size for file in files) < SMALL:
        return list(map(of_file, files))
    with ThreadPoolExecutor(HASHERS, "sha256") as threads:
        return list(threads.map(of_file, files))


def note_newest(state_dir: Path, manifest: Manifest) -> None:
    """Remember, across restarts of the service, which weights it was given last."""
    write_text(state_dir / "newest.json", manifest.model_dump_json(indent=1))


def read_newest(state_dir: Path) -> Manifest | None:
    """What ``note_newest`` noted; None if the service was given no weights yet."""
    try:
        return Manifest.model_validate_json((state_dir / "newest.json").read_bytes())
    except FileNotFoundError:
        return None


def newest_sealed(folder: Path) -> Manifest | None:
    """The manifest of the newest version folder under ``folder`` that has a readable one."""
    for version in reversed(_versions(folder)):
        with contextlib.suppress(OSError, ValueError):
            return Manifest.model_validate_json((version / MANIFEST).read_bytes())
    return None


def keep_newest(folder: Path, count: int, most_bytes: float = math.inf) -> None:
    """Delete all but the ``count`` newest version folders under ``folder``; of these all but two, should they take more
    than ``most_bytes``. A file that several versions share counts once."""
    versions = _versions(folder)
    kept = versions[max(0, len(versions) - count) :]
    while len(kept) > 2 and _bytes_of(kept) > most_bytes:
        del kept[0]
    for old in versions[: len(versions) - len(kept)]:
        shutil.rmtree(old, ignore_errors=True)


def _bytes_of(folders: list[Path]) -> int:
    stats = [file.stat() for folder in folders for file in folder.iterdir()]
    return sum({stat.st_ino: stat.st_size for stat in stats}.values())


def _versions(folder: Path) -> list[Path]:
    """Oldest first: names sort by version."""
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
