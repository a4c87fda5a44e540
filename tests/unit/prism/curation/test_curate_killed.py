"""kill -9 at any moment, and the same command again. (``python -m bench.curation.kills`` does it 200 times.)"""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from curation_world import World, write_config
from fake_services import response, served, write_rows
from sqlalchemy import insert, select
from test_curate import asked_of

from prism.clients.teacher.reply import NANO
from prism.curation.config import CurateConfig
from prism.curation.state.books import Books
from prism.curation.state.job import begin
from prism.curation.state.store import Store
from prism.curation.state.tables import Batch, Demo, Problem, Purse, SendRow
from prism.errors import Superseded

ROOT = Path(__file__).parents[4]


def killed(world: World, config: CurateConfig, kills: int) -> dict[str, Any]:
    file = write_config(config, world.folder / "job.toml")
    command = [
        sys.executable,
        "-m",
        "bench.curation.killed",
        str(file),
        "--kills",
        str(kills),
        "--seed",
        "3",
        "--seconds",
        "0.4",
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("batch", [False, True])
def test_no_stored_answer_is_asked_again_and_the_books_cover_the_bill(world: World, batch: bool) -> None:
    write_rows(world.folder, [0.0] * 24)
    world.teacher.answer = lambda body: response(asked_of(body))
    world.teacher.delay = world.judge.delay = 0.02
    world.judge.answer = lambda body: '{"verdict": "yes"}'
    with served(world.teacher) as teacher, served(world.judge) as judge:
        settings = {"concurrency": 4, "batch": batch, "batch_rows": 7, "max_sends": 50, "url": f"{teacher}/v1"}
        config = world.config(teacher, judge, teacher=settings, split={"validation": 0.0}, verify={"concurrency": 4})
        seen = killed(world, config, kills=4)
    assert (seen["status"], seen["kills"]) == (0, 4)
    assert seen["demos"] == {"verified": 24}
    assert seen["asked_again_though_stored"] == 0
    assert seen["sends"].get("open", 0) == 0
    for name, fake in (("teacher", world.teacher), ("judge", world.judge)):
        purse = seen["purses"][name]
        assert purse["spent"] <= fake.billed <= purse["spent"] + purse["reserved"] <= purse["cap"]


def test_what_was_under_way_is_lost_and_stays_reserved(tmp_path: Path) -> None:
    """As after a kill: a send with no batch, one of a batch that nobody named yet, one of a batch that goes on."""
    with Store(f"sqlite:///{tmp_path / 'curation.db'}") as store:
        job = begin(store, "job", tmp_path, {"teacher": 1.0})
        with store.writing() as connection:
            rows = [
                {"id": n, "job": job.id, "position": n, "route": "teacher", "row": {"id": str(n)}} for n in range(3)
            ]
            connection.execute(insert(Problem), rows)
            demos = [{"job": job.id, "problem": n, "attempt": 0, "state": "queued", "key": f"k{n}"} for n in range(3)]
            connection.execute(insert(Demo), demos)
            for name, remote in (("unnamed", None), ("known", "batch_1")):
                connection.execute(
                    insert(Batch).values(id=name, job=job.id, purse="teacher", remote=remote, created=0.0)
                )
        for number, batch in enumerate((None, "unnamed", "known")):
            assert asyncio.run(Books(job, "teacher", batch).reserve(f"k{number}", 100))
        again = begin(store, "job", tmp_path, {"teacher": 1.0})
        with store.reading() as connection:
            sends = connection.execute(select(SendRow.key, SendRow.state).order_by(SendRow.key)).all()
            states = connection.execute(select(Demo.key, Demo.state).order_by(Demo.key)).all()
            assert connection.scalar(select(Purse.reserved)) == 300
            assert list(connection.scalars(select(Batch.id).where(Batch.ended))) == ["unnamed"]
        assert [tuple(row) for row in sends] == [("k0", "lost"), ("k1", "lost"), ("k2", "open")]
        assert [tuple(row) for row in states] == [("k0", "queued"), ("k1", "queued"), ("k2", "sent")]
        with pytest.raises(Superseded):
            asyncio.run(Books(job, "teacher").reserve("k0", 1))
        assert asyncio.run(Books(again, "teacher").reserve("k0", NANO - 300))
        assert asyncio.run(Books(again, "teacher").reserve("k1", 1)) is None, "what is lost counts under the cap"
