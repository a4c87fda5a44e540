"""Pages of curations, evaluations and data: what is there, found by what it is like, with its pictures, as text."""

import html
import re
import shutil
from pathlib import Path

import pytest
from console_folders import NASTY, png, write_curation, write_evaluation, write_result, write_rows
from fastapi.testclient import TestClient

from prism.config import load_config, save_resolved
from prism.services.console.runs.found import Finder
from prism.stack.folder_lock import lock_run

CONFIGS = Path(__file__).parents[4] / "configs"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, a curation and an evaluation, of which each test has a copy."""
    runs = tmp_path_factory.mktemp("made")
    write_curation(runs / "hard", rows=25)
    write_evaluation(runs / "evaluations" / "sft", count=25)
    config = load_config(CONFIGS / "demo.toml").model_copy(update={"runs_dir": runs})
    save_resolved(config)
    (runs / "demo" / "metrics.jsonl").write_text('{"stage": "sft", "step": 1}\n')
    write_rows(runs / "demo" / "data" / "prompts.jsonl", count=23)
    return runs


@pytest.fixture
def runs(made: Path, client: TestClient, tmp_path: Path) -> Path:
    runs = tmp_path / "runs"
    shutil.copytree(made, runs, dirs_exist_ok=True)
    client.app.state.console.index.look()  # pyright: ignore[reportFunctionMemberAccess, reportAttributeAccessIssue]
    return runs


def pictures(page: str) -> list[str]:
    return [html.unescape(found) for found in re.findall(r'src="(/(?:data-)?pictures/[^"]+)"', page)]


def shown(page: str) -> int:
    return page.count("<article")


def link(page: str, text: str) -> str:
    """Where it leads."""
    return html.unescape(re.findall(rf'<a [^>]*href="([^"]+)"[^>]*>{text}', page)[-1])


def test_a_curation_with_its_money_rows_and_rejects(client: TestClient, runs: Path) -> None:
    listed = client.get("/curations").text
    assert '<a href="/curations/hard">' in listed
    assert "1.50 $" in listed
    page = client.get("/curations/hard").text
    for text in (
        "1.5000 $",
        "10.0000 $",
        "25.0 %",
        "settled 25",
        "verified 1",
        "rejected 24",
        "caption 1",
        "answer 23",
    ):
        assert text in page, text
    assert shown(page) == 20
    second = client.get(link(page, "Next rows")).text
    assert (shown(second), "Next rows" in second) == (5, False)
    rejected = client.get(link(page, "caption 1")).text
    assert shown(rejected) == 1
    assert NASTY not in rejected
    assert html.escape(NASTY, quote=False) in rejected.replace("&#39;", "'")
    [picture] = pictures(rejected)
    answer = client.get(picture)
    assert (answer.status_code, answer.headers["content-type"], answer.content) == (200, "image/png", png())
    one = client.get(link(rejected, "<b>r1</b>")).text
    assert shown(one) == 1
    assert "by&#34;: &#34;judge" in one
    assert shown(client.get("/curations/hard?state=verified").text) == 1
    assert "No row fits" in client.get("/curations/hard?state=queued").text
    for path in ("/curations/none", "/curations/demo", "/curations/hard?row=99", "/curations/hard?job=easy"):
        assert client.get(path).status_code == 404, path
    assert client.get("/pictures/" + "0" * 64 + "?run=../runs/hard").status_code == 404
    assert client.get("/pictures/" + "0" * 64 + "?run=hard&store=.console").status_code == 422


def test_a_curation_is_running_while_its_lock_is_held(client: TestClient, runs: Path) -> None:
    assert 'class="state stopped"' in client.get("/curations").text
    with lock_run(runs / "hard", "curation"):
        assert 'class="state running"' in client.get("/curations").text
    (runs / "hard" / "card.json").write_text("{}")
    assert 'class="state finished"' in client.get("/curations").text


def test_a_broken_database_hides_no_other(client: TestClient, runs: Path) -> None:
    (runs / "broken").mkdir()
    (runs / "broken" / "curation.db").write_text("no database, and long enough for that to be seen")
    listed = client.get("/curations").text
    assert "cannot be read" in listed
    assert "1.50 $" in listed
    assert client.get("/curations/broken").status_code == 503


def test_an_evaluation_with_figures_and_samples(client: TestClient, runs: Path) -> None:
    assert "no figures" in client.get("/evaluations").text
    write_result(runs / "evaluations" / "sft")
    assert "50.0 ± 10.0" in client.get("/evaluations").text
    page = client.get("/evaluations/evaluations/sft").text
    assert "2 ok, 1 unparsed" in page
    assert (shown(page), "1–20 of 25" in page) == (20, True)
    assert shown(client.get(link(page, "Next")).text) == 5
    wrong = client.get("/evaluations/evaluations/sft?verdict=wrong").text
    assert shown(wrong) == 1
    for text in ("How tall is bar 1?", "judge: correct", "seven is 8 less 1", "read of it <b>8</b>"):
        assert text in wrong, text
    [picture] = pictures(wrong)
    assert client.get(picture).content == png("blue")
    assert shown(client.get("/evaluations/evaluations/sft?status=unparsed&q=bar+17").text) == 1
    one = client.get(link(wrong, "<b>q1</b>")).text
    assert shown(one) == 1
    unparsed = client.get("/evaluations/evaluations/sft?question=q2").text
    assert shown(unparsed) == 1
    assert NASTY not in unparsed
    assert "No sample fits" in client.get("/evaluations/evaluations/sft?blank=true").text
    for path in ("evaluations/evaluations", "evaluations/hard", "evaluations/evaluations/sft?benchmark=x"):
        assert client.get(f"/{path}").status_code == 404, path
    (runs / "evaluations" / "sft" / "result.json").write_text('{"benchmarks": {"charts": 7}, "time": []}')
    assert "There are no figures" in client.get("/evaluations/evaluations/sft").text
    (runs / "evaluations" / "sft" / "charts" / "samples.jsonl").write_text('{"benchmark": 1}\n')
    assert client.get("/evaluations/evaluations/sft").status_code == 422


def test_what_a_stage_measured_while_it_learnt_is_an_evaluation_too(runs: Path) -> None:
    write_evaluation(runs / "demo" / "validations" / "rlvr" / "10")
    (runs / ".console").mkdir(exist_ok=True)
    write_evaluation(runs / ".console" / "hidden")
    found = Finder(runs).finds()
    assert set(found.evaluations) == {"demo/validations/rlvr/10", "evaluations/sft"}
    assert found.curations == ["hard"]


def test_rows_of_a_runs_files(client: TestClient, runs: Path) -> None:
    files = client.get("/data/demo").text
    assert "demo/data/prompts.jsonl" in files
    page = client.get("/data/demo?file=demo/data/prompts.jsonl").text
    assert shown(page) == 20
    assert NASTY not in page
    assert "28×20" in page
    assert "demo/data/prompts.jsonl:2: " in page
    assert "demo/data/prompts.jsonl:3: " in page
    assert client.get(pictures(page)[0]).content == png("green")
    last = client.get(link(page, "Next rows")).text
    assert re.findall(r"<b>line (\d+)</b> (\S+?)</a>", last) == [(str(n), f"row-{n - 3}") for n in range(21, 26)]
    assert client.get(pictures(last)[-1]).content == png("green")
    bad = client.get("/data/demo?file=demo/data/prompts.jsonl&bad=true").text
    assert re.findall(r"<b>line (\d+)</b>", bad) == ["2", "3"]
    one = client.get(link(last, "<b>line 25</b>")).text
    assert (shown(one), "row-22" in one) == (1, True)
    assert shown(client.get("/data/demo?file=demo/data/prompts.jsonl&q=MANY%3F+17").text) == 1
    assert "sft-1" in client.get("/data/hard?file=hard/sft.jsonl").text


def test_no_other_file_is_shown(client: TestClient, runs: Path) -> None:
    (runs.parent / "secret.jsonl").write_text('{"id": "a", "gold": "secret"}\n')
    (runs / "demo" / "data" / "link.jsonl").symlink_to(runs.parent / "secret.jsonl")
    (runs / ".console" / "x.jsonl").write_text("{}\n")
    assert "link.jsonl" not in client.get("/data/demo").text
    for file in ("demo/config.json", "demo/metrics.jsonl", "../secret.jsonl", ".console/x.jsonl", "\0"):
        assert client.get("/data/demo", params={"file": file}).status_code == 404, file
        asked = {"file": file, "at": 0, "image": 0}
        assert client.get("/data-pictures/demo", params=asked).status_code == 404, file


def test_a_picture_that_is_none_or_lies_elsewhere_is_not_sent(client: TestClient, runs: Path) -> None:
    file = runs / "demo" / "data" / "prompts.jsonl"
    (runs / "secret.png").write_bytes(png())
    places = [0]
    for line in file.read_bytes().splitlines(keepends=True):
        places.append(places[-1] + len(line))
    ask = {"file": "demo/data/prompts.jsonl", "image": 0}
    assert client.get("/data-pictures/demo", params=ask | {"at": places[0]}).status_code == 200
    for at, image in ((places[1], 0), (places[2], 0), (places[0], 1), (places[0] + 5, 0), (2**61, 0)):
        answer = client.get("/data-pictures/demo", params=ask | {"at": at, "image": image})
        assert answer.status_code == 404, (at, image)
    (file.parent / "a.png").write_text("<html><script>alert(1)</script>")
    assert client.get("/data-pictures/demo", params=ask | {"at": 0}).status_code == 404


def test_a_file_that_holds_no_rows_says_so(client: TestClient, runs: Path) -> None:
    for name, text in (("one.json", b"{\n}"), ("wide.jsonl", b"\xff\xfe{"), ("x.parquet", b"PAR1"), ("e.jsonl", b"")):
        (runs / "demo" / "data" / name).write_bytes(text)
        answer = client.get("/data/demo", params={"file": f"demo/data/{name}"})
        assert answer.status_code == 200, name
        assert 'role="alert"' in answer.text or "No row fits" in answer.text, name
