"""State in PostgreSQL: what SQLite takes for granted and it does not, over a real server."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from curation_world import World
from fake_services import response, served, write_rows
from pgserver.postgres_server import get_server
from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url
from test_curate import asked_of, state
from test_curate_killed import killed

from prism.curation.state.job import begin
from prism.curation.state.store import Store, reading_engine
from prism.curation.state.tables import Demo
from prism.errors import ConfigError, Superseded


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    server = get_server(tmp_path_factory.mktemp("postgres") / "data", cleanup_mode="delete")
    try:
        url = make_url(server.get_uri()).set(drivername="postgresql+psycopg")
        yield url.render_as_string(hide_password=False)
    finally:
        server.cleanup()


def test_two_jobs_share_a_database_and_its_answers(world: World, database: str) -> None:
    write_rows(world.folder, [0.0] * 6)
    world.teacher.answer = lambda body: response(asked_of(body))
    world.judge.answer = lambda body: '{"verdict": "yes"}'
    with served(world.teacher) as teacher, served(world.judge) as judge:
        one = world.config(teacher, judge, database=database, name="one")
        world.curate(one)
        asked = len(world.teacher.seen)
        two = world.config(teacher, judge, database=database, name="two", mine=None)
        world.curate(two)
    assert len(world.teacher.seen) == asked == 6
    assert state(two, Demo.state) == {"verified": 12}
    assert (two.folder / "samples.html").exists()
    assert not (two.folder / "curation.db").exists()


def test_it_is_killed_and_goes_on(world: World, database: str) -> None:
    write_rows(world.folder, [0.0] * 16)
    world.teacher.answer = lambda body: response("again " + asked_of(body))
    world.teacher.delay = 0.02
    with served(world.teacher) as teacher:
        settings = {"concurrency": 4, "model": "another", "max_sends": 50}
        seen = killed(world, world.config(teacher, database=database, name="killed", teacher=settings), kills=3)
    assert (seen["status"], seen["kills"], seen["asked_again_though_stored"]) == (0, 3, 0)
    purse = seen["purses"]["teacher"]
    assert purse["spent"] <= world.teacher.billed <= purse["spent"] + purse["reserved"] <= purse["cap"]


def test_an_older_start_writes_no_more_and_a_name_belongs_to_one_folder(database: str, tmp_path: Path) -> None:
    with Store(database) as store:
        older = begin(store, "fenced", tmp_path, {"teacher": 1.0})
        newer = begin(store, "fenced", tmp_path, {"teacher": 1.0})
        with pytest.raises(Superseded, match="started again"):
            older.note(by="the older one")
        newer.note(by="the newer one")
        with pytest.raises(ConfigError, match="has a job fenced already"):
            begin(store, "fenced", tmp_path / "elsewhere", {"teacher": 1.0})


def test_a_database_in_ascii_is_one_too(database: str) -> None:
    server = create_engine(database, isolation_level="AUTOCOMMIT")
    with server.connect() as connection:
        connection.execute(
            text("CREATE DATABASE ascii TEMPLATE template0 ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C'")
        )
    server.dispose()
    url = make_url(database).set(database="ascii").render_as_string(hide_password=False)
    with Store(url) as store, store.engine.connect() as writing, reading_engine(url).connect() as reading:
        assert [each.execute(text("SELECT 'grün'")).scalar() for each in (writing, reading)] == ["grün", "grün"]
