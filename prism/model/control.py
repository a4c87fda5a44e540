"""Control tokens: what a chat template writes, and no text of a user's or a model's may become. (No torch.)"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prism.errors import ConfigError


class ControlTokens:
    """A tokenizer's special tokens, by how they are written: ``ids``.

    Its other added tokens, such as ``<think>``, are words of a text that happen to have a token of their own.
    """

    def __init__(self, ids: Mapping[str, int]) -> None:
        self.ids = dict(ids)
        written = "|".join(map(re.escape, sorted(ids, key=len, reverse=True))) or "(?!)"
        self._pattern = re.compile(f"({written})")

    def find(self, text: str) -> str | None:
        """The first that is written out in the text."""
        found = self._pattern.search(text)
        return found and found[0]

    def split(self, text: str) -> list[str]:
        """Pieces of the text that hold none, each but the last followed by one: an odd number, tokens at odd places."""
        return self._pattern.split(text)

    def masked(self, text: str, mask: str) -> str:
        """The text with ``mask`` inside each that is written out, which is none then."""
        return self._pattern.sub(lambda found: found[0][0] + mask + found[0][1:], text)


def control_tokens(folder: Path) -> ControlTokens:
    """Of a model folder's tokenizer; without one, none. Raises ConfigError for files that are no tokenizer's."""
    try:
        added = _read(folder / "tokenizer.json").get("added_tokens", [])
        decoder = _read(folder / "tokenizer_config.json").get("added_tokens_decoder", {})
        added = [*added, *({**token, "id": int(number)} for number, token in decoder.items())]
        return ControlTokens({token["content"]: token["id"] for token in added if token.get("special")})
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ConfigError(f"the tokenizer's files in {folder} cannot be read: {error!r}") from None


def vision_tokens(config: Any) -> list[int]:
    """Of a model's configuration, the tokens that stand for a picture or film and its ends: no response holds one."""
    names = ("image", "video", "vision_start", "vision_end")
    found = {getattr(config, f"{name}_token_id", None) for name in names}
    return sorted(token for token in found if token is not None)


def _read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_bytes()) if file.is_file() else {}
