"""``prism secrets``: what the services of one deployment share, made up once and kept in files. None has a default."""

import os
import secrets
from pathlib import Path
from urllib.parse import quote

from prism.files import write_text

VARIABLES = ("PRISM_TOKEN", "PRISM_ADMIN_TOKEN", "PRISM_REDIS_PASSWORD", "PRISM_DATABASE_PASSWORD")
USED_BY = {
    "servers": ("prism_token", "prism_admin_token"),
    "grader": ("prism_token",),
    "rollouts": ("prism_token", "prism_redis_url"),
    "trainer": ("prism_token", "prism_admin_token", "prism_redis_url"),
    "console": ("prism_database_url",),
}
"""Which of the files each service reads; ``servers`` are policy and experts, to which weights are pushed, ``console``
is the console and its workers."""


def write_secrets(folder: Path, shares: Path, redis_address: str, database_address: str) -> list[str]:
    """A file for each variable in ``folder``, for each service a folder of ``shares`` with those that it uses.

    A value comes from the environment, else from the file of an earlier call, else it is made up; returns what was
    made up. Services read a folder where PRISM_SECRETS_DIR names it; ``shares/redis`` and
    ``shares/postgres`` hold the servers' own.
    """
    made_up = []
    values = {}
    for variable in VARIABLES:
        name = variable.lower()
        file = folder / name
        values[name] = os.environ.get(variable) or (file.read_text() if file.is_file() else "")
        if not values[name]:
            values[name] = secrets.token_urlsafe(32)
            made_up.append(variable)
        write_text(file, values[name], mode=0o400)
    password = values["prism_redis_password"]
    values["prism_redis_url"] = f"redis://:{password}@{redis_address}/0"
    database = values["prism_database_password"]
    values["prism_database_url"] = f"postgresql://prism:{quote(database, safe='')}@{database_address}/console"
    for service, names in USED_BY.items():
        for name in names:
            write_text(shares / service / name, values[name], mode=0o400)
    write_text(shares / "redis" / "password.conf", f"requirepass {password}\n", mode=0o444)  # it runs as another user
    write_text(shares / "postgres" / "password", database, mode=0o444)  # so does this
    return made_up
