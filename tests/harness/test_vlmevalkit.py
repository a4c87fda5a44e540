"""VLMEvalKit, as it is published, over our policy service by `harness/vlmevalkit`: `make harness`.

It runs in the environment of PRISM_VLMEVALKIT, its interpreter; this test runs in the checkout's own.
"""

import base64
import csv
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from configs.demo import task
from configs.demo.model import Size, save_model
from tests.service.policy.policy_process import DATA_TOKEN, policy_process
from tests.unit.prism.evaluation.benchmark_rows import png
from tests.unit.prism.evaluation.fake_server import KEY, FakeServer, pictures_of, serve, text_of

PYTHON = Path(os.environ.get("PRISM_VLMEVALKIT", ".venv-vlmevalkit/bin/python")).absolute()
RUN = Path("harness/vlmevalkit/run.py").absolute()
SETTINGS = json.loads(RUN.with_name("policy.json").read_text())
SITE = Path(__file__).parent / "site"
SECTIONS = "<caption>A line.</caption><think>A is short, so it is not A but I\nsay B.</think><answer>B</answer>"
OPTIONS = {"A": "short", "B": "long", "C": "round", "D": "square"}


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """Four rows as VLMEvalKit's own files have them, in the folder that LMUData names."""
    (tmp_path / "data").mkdir()
    with (tmp_path / "data/FOUR.tsv").open("w", newline="") as file:
        rows = csv.DictWriter(file, ["index", "image", "question", *OPTIONS, "answer"], dialect="excel-tab")
        rows.writeheader()
        for number in range(4):
            image = base64.b64encode(png("red", (40 + number, 30))).decode()
            row = {"index": number, "image": image, "question": f"How is line {number}?", "answer": "B"}
            rows.writerow(row | OPTIONS)
    return tmp_path


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    server = FakeServer()
    server.answer = lambda _: SECTIONS
    end = serve(server)
    yield server
    end()


def vlmevalkit(world: Path, url: str, token: str, **more: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    """Our settings with another address and data of four rows; ``more``: models beside it. No key is an argument."""
    address = {"api_base": f"{url}/chat/completions", "max_tokens": 24, "timeout": 120}
    models = {"policy": SETTINGS["model"]["policy"] | address} | {name: one | address for name, one in more.items()}
    data = {"FOUR": {"class": "ImageMCQDataset", "dataset": "FOUR"}}
    (world / "settings.json").write_text(json.dumps({"model": models, "data": data}))
    unset = ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "all_proxy", "ALL_PROXY", "OPENAI_API_KEY")
    own = {"PRISM_TOKEN": token, "LMUData": str(world / "data"), "PRED_FORMAT": "tsv", "PYTHONPATH": str(SITE)}
    own |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(world / "hub"), "HOME": str(world)}
    own |= {"OPENAI_API_KEY": KEY} if more else {}
    environment = {variable: value for variable, value in os.environ.items() if variable not in unset} | own
    command = [PYTHON, RUN, "--config", world / "settings.json", "--work-dir", world / "out"]
    command += ["--judge", "exact_matching"]
    return subprocess.run(command, cwd=world, env=environment, capture_output=True, text=True, timeout=900)


def results(world: Path, name: str = "policy") -> tuple[float | None, list[dict[str, Any]]]:
    """The score, and the rows of the result file."""
    status = json.loads((world / f"out/{name}/status.json").read_text())["datasets"]["FOUR"]
    with (world / f"out/{name}/{name}_FOUR.tsv").open(newline="") as file:
        return status["metrics"].get("split=none|Overall"), list(csv.DictReader(file, dialect="excel-tab"))


@pytest.mark.timeout(1800)
def test_our_class_reads_the_answer_and_the_stock_one_does_not(fake: FakeServer, world: Path) -> None:
    done = vlmevalkit(world, fake.url, KEY, stock={"class": "GPT4V", "model": "policy", "retry": 1})
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    score, rows = results(world)
    assert (score, [row["prediction"] for row in rows]) == (1.0, ["B"] * 4)
    assert rows[0]["thinking"].startswith("<caption>A line.</caption><think>A is short")
    asked, stock = fake.requests[:4], fake.requests[4:]
    options = (
        "Options:\nA. short\nB. long\nC. round\nD. square\nPlease select the correct answer from the options above. \n"
    )
    asks = [f"Question: How is line {number}?\n{options}" for number in range(4)]
    assert sorted(text_of(body) for body in asked) == asks
    seen = sorted((*picture.size, picture.format) for body in asked for picture in pictures_of(body))
    assert seen == [(40 + n, 30, "PNG") for n in range(4)]
    score, rows = results(world, "stock")
    assert (score, rows[0]["prediction"]) == (0.0, "<answer>B</answer>")
    assert {(picture.height, picture.format) for body in stock for picture in pictures_of(body)} == {(100, "JPEG")}


@pytest.mark.timeout(1800)
def test_a_wrong_token_is_no_score_and_is_not_shown(fake: FakeServer, world: Path) -> None:
    done = vlmevalkit(world, fake.url, "a-wrong-token")
    assert done.returncode == 1, done.stdout[-3000:] + done.stderr[-3000:]
    assert "FOUR: no score, a request failed" in done.stderr
    assert "401" in done.stdout + done.stderr
    logs = "".join(path.read_text() for path in (world / "out").rglob("*.log"))
    assert "a-wrong-token" not in done.stdout + done.stderr + logs
    assert not (world / "out/policy/policy_FOUR.tsv").exists()


@pytest.mark.timeout(1800)
def test_the_policy_service_answers_it(world: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    save_model(model, list(task.corpus()), task.TAGS, 0, Size())
    with policy_process(tmp_path / "policy", model) as service:
        done = vlmevalkit(world, f"{service.url}/v1", DATA_TOKEN)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    score, rows = results(world)
    assert score is not None
    assert len(rows) == 4
    assert all(row["prediction"] for row in rows)
