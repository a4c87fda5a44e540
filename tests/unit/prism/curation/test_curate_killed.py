"""kill -9 at any moment, and the same command again. (``python -m bench.curation.kills`` does it 200 times.)"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from curation_world import World, write_config
from fake_services import response, served, write_rows
from test_curate import asked_of

from prism.curation.config import CurateConfig

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
