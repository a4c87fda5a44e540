"""``prism secrets``: what the services of one deployment share, made up once and kept in files. None has a default."""

import os
import secrets
from pathlib import Path

from prism.files import write_text

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
        write_text(file, value, mode=0o400)
    password = values["PRISM_REDIS_PASSWORD"]
    write_text(folder / "prism_redis_url", f"redis://:{password}@{redis_address}/0", mode=0o400)
    write_text(redis_folder / "password.conf", f"requirepass {password}\n", mode=0o444)
    return made_up
