"""Migrations up and down, by Alembic, whose scripts lie in ``migrations/``."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import text

from prism.errors import ConfigError
from prism.services.console.store.engine import CLAIMS, Store

SCRIPTS = Path(__file__).parent / "migrations"


def upgrade(store: Store, revision: str = "head") -> None:
    """Bring the tables up to ``revision``. Raises ConfigError for a database that a newer version has made."""
    scripts = ScriptDirectory.from_config(_config())
    with store.engine.connect() as connection:
        found = MigrationContext.configure(connection).get_current_revision()
    if found and found not in {script.revision for script in scripts.walk_revisions()}:
        raise ConfigError(f"the console's database is of a newer version of PRISM (revision {found}): use that version")
    if found != scripts.get_current_head() or revision != "head":
        _run(store, "upgrade", revision)


def downgrade(store: Store, revision: str = "base") -> None:
    """Back down to ``revision``; what its tables do not hold is lost."""
    _run(store, "downgrade", revision)


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(SCRIPTS))
    return config


def _run(store: Store, way: str, revision: str) -> None:
    config = _config()
    with store.engine.execution_options(prism_write=True).connect() as connection:
        if not store.is_sqlite:  # several processes may start at once; in SQLite the transaction itself excludes
            connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": CLAIMS})
            connection.commit()
        config.attributes["connection"] = connection
        try:
            getattr(command, way)(config, revision)
        finally:
            if not store.is_sqlite:
                connection.rollback()
                connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": CLAIMS})
                connection.commit()
