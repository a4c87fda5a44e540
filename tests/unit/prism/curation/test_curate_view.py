"""What a page is told of curations: jobs, rows, rejects with their reasons; read at any time, never written."""

import os
import tempfile
from pathlib import Path

import pytest
from curation_world import World
from fake_services import response, served, write_rows
from sqlalchemy import insert
from test_curate import asked_of

from prism.curation.state.store import Store
from prism.curation.state.tables import Job, Purse
from prism.curation.view import View
from prism.errors import ServiceError


def test_jobs_rows_and_rejects_with_their_reasons(world: World) -> None:
    write_rows(world.folder, [0.0] * 5 + [1.0])
    wrong = {"101": response("5"), "102": response("102", seen="9"), "103": "no sections"}
    world.teacher.answer = lambda body: wrong.get(asked_of(body), response(asked_of(body)))
    world.judge.answer = lambda body: '{"verdict": "no"}' if "a 9" in str(body) else '{"verdict": "yes"}'
    with served(world.teacher) as teacher, served(world.judge) as judge:
        config = world.config(teacher, judge, split={"validation": 0.0, "align": 1})
        world.curate(config)
    view = View.of_folder(config.folder)
    (job,) = view.jobs()
    assert view.job("job") == job
    assert view.job("another") is None
    assert (job.problems, job.routes, job.starts, job.stopped) == (6, {"solved": 1, "teacher": 5}, 1, None)
    assert job.answers == {"rejected": 3, "verified": 2}
    assert job.reasons == {"answer": 1, "caption": 1, "format": 1}
    assert job.fates == {"align": 1, "sft": 1}
    assert {one.purse: one.sends for one in job.money} == {"judge": {"settled": 6}, "teacher": {"settled": 5}}
    assert all(0 < one.spent <= one.cap and not one.reserved for one in job.money)
    assert job.facts["terms"]["accepted_by"] == "Ada"
    (by_caption,) = view.rows("job", check="caption")
    assert (by_caption.id, by_caption.state, by_caption.golds) == ("r2", "rejected", ("102",))
    assert by_caption.reason == "caption: the images do not show it: a 9"
    assert by_caption.text == response("102", seen="9")
    assert by_caption.checks["caption"]["by"] == "judge"
    assert (config.folder / "blobs" / by_caption.images[0][:2] / by_caption.images[0]).exists()
    first = view.rows("job", states=["verified", "rejected"], limit=2)
    others = view.rows("job", states=["verified", "rejected"], after=first[-1].number)
    assert [row.id for row in first + others] == [f"r{number}" for number in range(5)]
    assert [row.id for row in view.rows("job", check="%")] == []
    with Store(config.database_url) as store, store.writing() as connection:
        connection.execute(Purse.__table__.update().values(spent=7))  # pyright: ignore[reportAttributeAccessIssue]
        assert view.jobs() == [job], "what is not written yet is not seen, and nobody waits for it"
    assert {one.spent for one in view.jobs()[0].money} == {7}
    view.close()


def test_looking_makes_no_database(tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match="cannot be read"):
        View.of_folder(tmp_path).jobs()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "curation.db").write_text("this is no database at all, and it is long enough to tell")
    with pytest.raises(ServiceError, match="cannot be read"):
        View.of_folder(tmp_path).jobs()


def test_looking_leaves_nothing_and_needs_no_right_to_write() -> None:
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to others
        folder = Path(name)
        with Store(f"sqlite:///{folder / 'curation.db'}") as store, store.writing() as connection:
            connection.execute(
                insert(Job).values(name="job", folder="here", created=1.0, start=1, facts={}, stopped=None)
            )
        assert [file.name for file in folder.iterdir()] == ["curation.db"]
        folder.chmod(0o555)
        was = os.geteuid()
        os.seteuid(was or 65534)  # root may write anywhere
        try:
            assert [job.name for job in View.of_folder(folder).jobs()] == ["job"]
        finally:
            os.seteuid(was)
            folder.chmod(0o755)
        assert [job.name for job in View.of_folder(folder).jobs()] == ["job"]
        assert [file.name for file in folder.iterdir()] == ["curation.db"]
