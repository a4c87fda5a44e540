"""Where the images of a file's rows may lie: in its folder, links followed, or in one that a person has named."""

import os
import stat
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from prism.data.images import naming_image
from prism.wire.messages import data_uri_bytes, is_data_uri

FOLDERS = 4096  # whose true paths are remembered


class ImageFolder:
    """Images by the names that rows give them. Rows are not trusted to name other files of the machine."""

    def __init__(self, folder: Path, root: Path | None = None) -> None:
        """``root`` is the folder they must lie in, by default ``folder``: names are relative to that, or else to it."""
        self.folder, self.root = folder, root
        self._bases = [str(folder)] if root is None else [str(folder), str(root)]
        self._true_path: Callable[[str], str] = lru_cache(FOLDERS)(lambda path: os.path.realpath(path))

    def __reduce__(self) -> tuple[type["ImageFolder"], tuple[Path, Path | None]]:
        return ImageFolder, (self.folder, self.root)

    def find(self, name: str) -> str:
        """The file. Raises DataError that names the image: there is none, or it lies elsewhere."""
        with naming_image(name):
            if name[:8].lower().startswith(("http://", "https://")):
                raise ValueError("is an address, and nothing is fetched: download it, and name its file")
            path, is_link = self._there(name)
            true = self._inside(path, is_link)
            root = self._true_path(self._bases[-1])
            if true != root and not true.startswith(root.rstrip("/") + "/"):
                raise ValueError(
                    f"lies outside of {root}, and rows are not trusted to name other files; if these are, name the "
                    "folder of their images: --image-root (image_root)"
                )
            return path

    def read(self, name: str) -> bytes:
        """The bytes of an image, by its path or of a data: URL. Raises DataError that names it."""
        path = None if is_data_uri(name) else self.find(name)
        with naming_image(name):
            return data_uri_bytes(name) if path is None else Path(path).read_bytes()

    def _there(self, name: str) -> tuple[str, bool]:
        *others, last = (os.path.join(base, name) for base in self._bases)
        for path in others:
            if os.path.lexists(path):
                last = path
        return last, stat.S_ISLNK(os.lstat(last).st_mode)

    def _inside(self, path: str, is_link: bool) -> str:
        folder, file = os.path.split(path)
        if is_link or file in ("", ".", ".."):
            true = os.path.realpath(path)
            os.stat(true)  # a link to nothing is no image
            return true
        return os.path.join(self._true_path(folder), file)
