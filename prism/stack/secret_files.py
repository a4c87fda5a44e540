"""``prism secrets``: what the services of one deployment share, made up once and kept in files. None has a default."""

import os
import secrets
from pathlib import Path

VARIABLES = ("PRISM_TOKEN", "PRISM_ADMIN_TOKEN", "PRISM_REDIS_PASSWORD")


def write_secrets(folder: Path, redis_folder: Path, redis_address: str) -> list[str]:
    """A file for each variable, read where PRISM_SECRETS_DIR names ``folder``; returns what was made up.

    A value comes from the environment, else from the file of an earlier call, else it is made up. Redis may run as
    another user, so it has a folder to itself.
    """
    made_up = []
    values = {}
    for variable in VARIABLES:
        file = folder / variable.lower()
        value = os.environ.get(variable) or (file.read_text() if file.is_file() else "")
        if not value:
            value = secrets.token_urlsafe(32)
            made_up.append(variable)
        values[variable] = value
        _write(file, value, 0o400)
    password = values["PRISM_REDIS_PASSWORD"]
    _write(folder / "prism_redis_url", f"redis://:{password}@{redis_address}/0", 0o400)
    _write(redis_folder / "password.conf", f"requirepass {password}\n", 0o444)
    return made_up


def _write(file: Path, text: str, mode: int) -> None:
    partial = file.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    partial.touch(mode=0o600)
    partial.write_text(text)
    partial.chmod(mode)
    partial.replace(file)
