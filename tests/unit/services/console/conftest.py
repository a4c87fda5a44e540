"""A console over a store of its own, on SQLite and on PostgreSQL."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from pgserver.postgres_server import get_server
from sqlalchemy import make_url, text

from prism.services.console.access.identity import new_token
from prism.services.console.app import create_app
from prism.services.console.settings import ConsoleSettings
from prism.services.console.store.engine import Store, sqlite_url
from prism.services.console.store.migrate import upgrade
from prism.services.console.store.models import SCOPES
from prism.settings import load_settings


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """A database in SQL_ASCII, as one is made where no locale is set. As root it runs as another user, who can reach no
    folder of pytest's."""
    with tempfile.TemporaryDirectory(prefix="prism-postgres-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        server = get_server(Path(folder) / "data", cleanup_mode="delete")
        server.psql("CREATE DATABASE console TEMPLATE template0 ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C'")
        yield make_url(server.get_uri()).set(database="console").render_as_string(hide_password=False)
        server.cleanup()


@pytest.fixture(scope="session")
def tables(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A SQLite file with all tables and a token of each scope, which most tests begin with a copy of: migrations take
    longer than they do."""
    file = tmp_path_factory.mktemp("tables") / "console.db"
    store = Store(sqlite_url(file))
    upgrade(store)
    tokens = {scope: new_token(store, scope, scope, "test") for scope in SCOPES}
    store.close()
    return file, tokens


@pytest.fixture(params=["sqlite", "postgres"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """Empty, with all tables."""
    if request.param == "sqlite":
        made = Store(sqlite_url(tmp_path / "console.db"))
    else:
        made = Store(request.getfixturevalue("postgres"))
        with made.engine.begin() as connection:
            connection.execute(text("DROP SCHEMA public CASCADE"))
            connection.execute(text("CREATE SCHEMA public"))
    upgrade(made)
    yield made
    made.close()


@pytest.fixture
def settings(tmp_path: Path, tables: tuple[Path, dict[str, str]]) -> ConsoleSettings:
    state = tmp_path / "runs" / ".console"
    state.mkdir(parents=True, exist_ok=True)
    shutil.copy(tables[0], state / "console.db")
    configs = Path(__file__).parents[4] / "configs"
    return load_settings(ConsoleSettings, runs=tmp_path / "runs", configs=configs, state_dir=state)


@pytest.fixture
def app(settings: ConsoleSettings) -> FastAPI:
    return create_app(settings)


@pytest.fixture
def tokens(tables: tuple[Path, dict[str, str]]) -> dict[str, str]:
    """One of each scope."""
    return dict(tables[1])


@pytest.fixture
def client(app: FastAPI, tokens: dict[str, str]) -> Iterator[TestClient]:
    """Signed in as an admin, by its token."""
    with TestClient(app, headers={"Authorization": f"Bearer {tokens['admin']}"}) as made:
        yield made
