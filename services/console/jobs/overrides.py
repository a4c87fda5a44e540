"""Overrides of configurations that name servers, keys and files: numbers and switches alone, so that none of these
changes."""

import math
import tomllib
from collections.abc import Collection, Sequence

from prism.errors import ConfigError


def refuse_all_but_numbers(overrides: Sequence[str], sealed: Collection[str] = ()) -> None:
    """Raises ConfigError for any other value, and for a key whose last part is in ``sealed``."""
    for override in overrides:
        key, separator, text = override.partition("=")
        parts = [part.strip(" \"'") for part in key.split(".")]
        if not separator or not all(part and part.replace("-", "_").isidentifier() for part in parts):
            raise ConfigError(f"override {override!r}: write it as dotted.key=value")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except (tomllib.TOMLDecodeError, RecursionError):
            value = text
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise ConfigError(f"{key}: here numbers and switches can be changed; all else stands in the file alone")
        if parts[-1] in sealed:
            raise ConfigError(f"{key} can be set in a configuration file alone")
