"""Keys: from the environment or a file of secrets alone, never from a configuration or a command line."""

import os
from pathlib import Path

from pydantic import SecretStr

from prism.errors import ConfigError

TEACHER_KEY, JUDGE_KEY = "PRISM_TEACHER_KEY", "PRISM_CURATION_JUDGE_KEY"


def read_key(variable: str) -> SecretStr:
    """``variable``, else the file of its name in lower case in $PRISM_SECRETS_DIR. Raises ConfigError for neither.

    A server of one's own that wants no key is given any text.
    """
    key = os.environ.get(variable, "").strip()
    folder = os.environ.get("PRISM_SECRETS_DIR")
    if not key and folder:
        file = Path(folder) / variable.lower()
        try:
            key = file.read_text().strip() if file.is_file() else ""
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{file} cannot be read: {error}") from None
    if not key:
        raise ConfigError(
            f"{variable} is not set: give the key in the environment, or in $PRISM_SECRETS_DIR/{variable.lower()}"
        )
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ConfigError(f"{variable}: holds what no key has (a space, a line break, a letter that is not ASCII)")
    return SecretStr(key)
