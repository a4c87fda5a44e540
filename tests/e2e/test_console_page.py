"""The console in a real browser over a real run: every page shows its data, complains of nothing, asks nobody else."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import axe_playwright_python
import pytest
from console_services import KEYS, services_up, stand_ins, write_configurations
from killed_run import Run
from test_report_page import ARGS, CHROMIUM

pytestmark = pytest.mark.timeout(2400)  # the first test makes the run
AXE = (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text()
# A chart stays as wide as its window was until it is drawn again: seldom long enough to be seen by chance.
NOT_DRAWN_AGAIN = """() => document.querySelectorAll(".uplot").forEach((chart) => { chart.style.width = "1000px"; })"""
PAST_THE_EDGE = """() => document.documentElement.scrollWidth > document.documentElement.clientWidth"""


@pytest.fixture(scope="module")
def configs(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of configurations, and the teacher and judge that one of them names."""
    folder = tmp_path_factory.mktemp("console") / "configs"
    with stand_ins(run) as ports:
        write_configurations(folder, run, ports)
        yield folder


@pytest.fixture(scope="module")
def services(run: Run) -> Iterator[None]:
    with services_up(run):
        yield


@pytest.fixture(scope="module")
def console(run: Run, configs: Path) -> Iterator[tuple[str, str]]:
    """`prism console` over the run's folder: its address, and the link that it printed."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "prism", "console", str(run.runs_dir), f"--port={port}", f"--configs={configs}"]
    environment = os.environ | {"COLUMNS": "200"} | KEYS
    process = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout
    link = next(found[0] for line in process.stdout if (found := re.search(r"http://\S+#\S+", line)))
    deadline = time.monotonic() + 60
    while socket.socket().connect_ex(("127.0.0.1", port)):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    yield f"http://127.0.0.1:{port}", link
    process.send_signal(signal.SIGINT)
    assert process.wait(90) in (0, 130)


@pytest.fixture(scope="module")
def tab(console: tuple[str, str]) -> Iterator[Any]:
    """Signed in by the printed link. What pages complain of, or ask others for, fails whoever looks at ``told``."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGS)
        opened: Any = browser.new_context(base_url=console[0], viewport={"width": 1280, "height": 900}).new_page()
        opened.set_default_timeout(120_000)  # where others compute, the first look at a run takes long
        opened.told = []
        opened.on("console", lambda message: opened.told.append(f"console: {message.text}"))
        opened.on("pageerror", lambda error: opened.told.append(f"error: {error}"))
        opened.on("request", lambda r: None if r.url.startswith(console[0]) else opened.told.append(f"asks: {r.url}"))
        opened.goto(console[1])
        opened.get_by_role("heading", name="Runs").wait_for()
        yield opened
        assert opened.told == []
        browser.close()


def test_the_table_of_runs_shows_the_run(tab: Any, run: Run) -> None:
    tab.goto("/runs")
    row = tab.locator("tr", has=tab.get_by_role("link", name=run.folder.name, exact=True))
    assert row.get_by_text("finished").is_visible()
    assert re.search(r"\d+\.\d %", row.inner_text())  # held-out accuracy
    tab.keyboard.press("/")
    tab.keyboard.type("no such run\n")
    tab.get_by_text("No run fits.").wait_for()


def test_a_run_shows_its_curves_stages_and_costs(tab: Any, run: Run) -> None:
    tab.goto(f"/runs/{run.folder.name}")
    for stage in ("sft", "align", "rlvr"):
        tab.get_by_role("heading", name=stage, exact=True).scroll_into_view_if_needed()
        tab.locator(f'[data-stage="{stage}"] .plot:not([hidden]) canvas').first.wait_for()
    tab.get_by_placeholder("filter, such as entropy").last.fill("mismatch")
    tab.locator('[data-stage="rlvr"] [data-figure="logprob_mismatch"] canvas').wait_for()
    tab.get_by_label("Tags, by commas").fill("kept")
    tab.get_by_role("button", name="Save").click()
    tab.locator(".tag", has_text="kept").wait_for()


@pytest.mark.parametrize("stage", ["align", "rlvr"])
def test_a_rollout_is_opened_with_its_picture_and_tokens(tab: Any, run: Run, stage: str) -> None:
    tab.goto(f"/rollouts/{run.folder.name}?stage={stage}")
    tab.locator("article.sample a").first.click()
    picture = tab.locator(".prompt img.picture").first
    picture.wait_for()
    assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)") > 0
    tab.locator("button.zoom").first.click()
    assert tab.locator("dialog img").bounding_box()["width"] > picture.bounding_box()["width"]
    tab.get_by_role("button", name="Close").click()
    sample = tab.locator("#response-1")
    assert "advantage" in sample.inner_text()
    sample.locator("summary").last.click()
    assert sample.locator(".tokens span").count() > 3
    tab.locator("select.paint").select_option("entropy")
    assert "learner's" in sample.locator(".tokens span").first.get_attribute("title")
    assert re.search(r"step=\d+", tab.url)  # a link that can be given to somebody


def picture_is_there(tab: Any) -> bool:
    picture = tab.locator("img.picture").first
    picture.scroll_into_view_if_needed()
    return picture.evaluate("image => image.decode().then(() => image.naturalWidth)") > 0


def test_rows_of_the_runs_data_are_opened_with_their_pictures(tab: Any, run: Run) -> None:
    tab.goto(f"/runs/{run.folder.name}")
    tab.get_by_role("link", name="Data", exact=True).click()
    tab.get_by_role("link", name=f"{run.folder.name}/data/prompts.jsonl").click()
    assert tab.locator("article.sample").count() == 20
    assert picture_is_there(tab)
    assert "Gold" in tab.locator("article.sample").first.inner_text()
    tab.get_by_role("link", name="Next rows").click()
    assert "line 21" in tab.locator("article.sample").first.inner_text()


def queued(tab: Any, command: str, **fields: str) -> None:
    """Fill the command's form in, queue it, and wait until it is done."""
    tab.goto(f"/jobs/new/{command}")
    for name, value in fields.items():
        tab.locator(f'[id="{name}"]').fill(value)
    tab.get_by_role("button", name="Queue").click()
    ended = tab.locator(".state.done, .state.failed").first
    ended.wait_for(timeout=600_000)
    assert ended.inner_text() == "done", tab.locator("#log").inner_text()


def test_a_running_policy_answers_with_a_picture_and_is_judged(tab: Any, run: Run, services: None) -> None:
    row = json.loads((run.folder / "data" / "prompts.jsonl").read_text().splitlines()[0])
    picture, question = row["messages"][0]["content"]
    tab.goto("/playground")
    assert tab.get_by_label("Run").input_value() == run.folder.name
    tab.get_by_label("Picture", exact=True).set_input_files(run.folder / "data" / picture["image"])
    tab.locator("#preview").wait_for()
    tab.get_by_label("Question").fill(question["text"])
    tab.get_by_role("button", name="Ask", exact=True).click()
    tab.locator("#judge").wait_for()
    said = tab.locator("#turns article").last.inner_text()
    assert "<answer>" in said
    assert "version " in tab.locator("#turns").inner_text()
    tab.get_by_label("the whole text, whatever its format").check()
    tab.get_by_role("button", name="Score this").click()
    for expert in ("perception", "reasoning"):
        tab.locator("#said .tag", has_text=re.compile(rf"{expert} -?\d+\.\d+, version \d+")).wait_for()
    tab.get_by_label("Gold").fill(re.search("<answer>(.*)</answer>", said)[1])  # pyright: ignore[reportOptionalSubscript]
    tab.get_by_role("button", name="Grade this").click()
    tab.locator("#said .tag", has_text="right").wait_for()
    readable(tab)
    tab.get_by_label("Gold").fill("no such answer")
    tab.get_by_role("button", name="Grade this").click()
    tab.locator("#said .tag", has_text="wrong").wait_for()


def test_one_question_to_two_policies_is_voted_on(tab: Any, run: Run, services: None) -> None:
    """The same run on both sides, since one is up: two samples of its policy."""
    row = json.loads((run.folder / "data" / "prompts.jsonl").read_text().splitlines()[1])
    picture, question = row["messages"][0]["content"]
    tab.goto("/playground")
    tab.get_by_label("Picture", exact=True).set_input_files(run.folder / "data" / picture["image"])
    tab.locator("#preview").wait_for()
    tab.get_by_label("Question").fill(question["text"])
    tab.get_by_label("Temperature").fill("2")
    tab.get_by_role("button", name="Ask both").click()
    tab.get_by_role("heading", name="Which is better?").wait_for()
    assert run.folder.name not in tab.locator(".sides").inner_text()
    assert picture_is_there(tab)
    tab.keyboard.press("t")
    tab.get_by_text("they are alike").wait_for()
    assert tab.locator(".sides").inner_text().count(f"{run.folder.name}, version") == 2


def test_an_evaluation_is_made_and_its_samples_are_opened(tab: Any, run: Run, services: None) -> None:
    queued(tab, "evaluate", config="held-out.toml", out="evaluations/rlvr", run=run.folder.name)
    tab.goto("/evaluations")
    tab.get_by_role("link", name="evaluations/rlvr").click()
    assert re.search(r"\d+\.\d ± \d+\.\d", tab.locator("table").inner_text())
    assert "24: " in tab.locator("table").inner_text()
    assert tab.locator("article.sample").count() == 20
    assert picture_is_there(tab)
    tab.get_by_label("The rule says").select_option("wrong")
    tab.get_by_role("button", name="Show").click()
    sample = tab.locator("article.sample").first
    assert "<answer>" in sample.inner_text()
    sample.locator("a").first.click()
    assert re.search(r"question=", tab.url)
    assert tab.locator("article.sample").count() == 1


def test_a_curation_is_made_and_shows_its_rejects_with_their_reasons(tab: Any, run: Run, services: None) -> None:
    queued(tab, "curate", config="hard.toml", name="hard", run=run.folder.name, accept_terms="Ada Lovelace")
    tab.goto("/curations")
    tab.get_by_role("link", name="hard", exact=True).click()
    assert "of the cap" in tab.locator("main").inner_text().lower()
    tab.get_by_label("State").select_option("rejected")
    tab.get_by_role("button", name="Show").click()
    assert tab.locator("article.sample .problem").count() == tab.locator("article.sample").count() > 0
    assert picture_is_there(tab)
    tab.locator("article.sample a").first.click()
    assert re.search(r"row=\d+$", tab.url)
    tab.get_by_role("link", name="rejected.jsonl").click()
    assert tab.locator("article.sample").count() > 0
    assert picture_is_there(tab)


def test_pairs_are_voted_on_blind_by_keys(tab: Any, run: Run) -> None:
    name = run.folder.name
    tab.goto("/votes")
    tab.get_by_label("Runs").select_option(name)
    tab.get_by_role("button", name="Vote", exact=True).click()
    for key in ("1", "2", "t", "b", "1"):
        tab.get_by_role("heading", name="Which is better?").wait_for()
        assert f"{name} after" not in tab.locator(".sides").inner_text()
        picture = tab.locator(".prompt img.picture").first
        assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)") > 0
        before = tab.url
        tab.keyboard.press(key)
        tab.wait_for_url(lambda url, before=before: url != before)
        assert f"{name} after" in tab.locator("#before").inner_text()
    tab.goto(f"/votes?run={name}")
    assert f"{name} after" in tab.locator("#strengths").inner_text()
    assert tab.locator("#agreements tbody tr").count() == 2


def test_a_run_is_started_from_the_form_watched_cancelled_and_resumed(tab: Any) -> None:
    tab.goto("/jobs/new/run?config=demo.toml")
    tab.locator('[id="name"]').fill("from-the-form")
    tab.locator('[id="key.seed"]').fill("eleven")
    tab.get_by_role("button", name="Check").click()
    tab.get_by_text("Nothing was started").wait_for()
    tab.told.clear()  # of the 422, which the browser notes
    tab.locator('[id="key.seed"]').fill("11")
    assert tab.locator("#changed-keys").inner_text() == "1 key changed"
    tab.get_by_role("button", name="Check").click()
    tab.get_by_text("This can start.").wait_for()
    tab.get_by_role("button", name="Start", exact=True).click()
    tab.get_by_role("heading", name="run from-the-form").wait_for()
    tab.locator("#log", has_text="attempt 1").wait_for(timeout=60_000)  # as it comes
    tab.locator(".state.running").wait_for(timeout=60_000)
    tab.get_by_role("button", name="Cancel").click()
    tab.locator(".state.cancelled").wait_for(timeout=120_000)
    tab.get_by_role("button", name="Resume").click()
    tab.locator("#log", has_text="attempt 2").wait_for(timeout=60_000)
    tab.get_by_role("button", name="Cancel").click()
    tab.locator(".state.cancelled").wait_for(timeout=120_000)
    tab.goto("/jobs")
    tab.get_by_role("link", name="run from-the-form").wait_for()


def test_tokens_and_the_audit_log(tab: Any) -> None:
    tab.goto("/access")
    tab.get_by_label("Name").fill("a reader")
    tab.get_by_role("button", name="Make a token").click()
    assert tab.locator("#token").inner_text().startswith("prism_")
    tab.goto("/audit")
    text = tab.locator("table").inner_text()
    done = ("signed in", "policy asked", "vote cast", "job queued", "job cancelled", "job retried", "token made")
    assert all(what in text for what in done)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_can_be_read_by_everybody(tab: Any, run: Run, services: None, scheme: str) -> None:
    tab.emulate_media(color_scheme=scheme)
    name = run.folder.name
    pages = ["/runs", f"/runs/{name}", f"/rollouts/{name}", f"/compare?run={name}", "/jobs", "/jobs/1", "/jobs/new"]
    pages += ["/jobs/new/run?config=demo.toml", "/jobs/new/grade", "/jobs/new/curate", "/access", "/audit"]
    pages += ["/curations", "/curations/hard", "/evaluations", "/evaluations/evaluations/rlvr", "/data/hard"]
    pages += [f"/data/{name}", f"/data/{name}?file={name}/data/prompts.jsonl"]
    pages += ["/votes", "/votes/1", next_pair(tab, name), "/playground"]
    for page in pages:
        tab.goto(page)
        readable(tab)


def next_pair(tab: Any, run: str) -> str:
    """Where a pair waits for a vote."""
    tab.goto("/votes")
    tab.get_by_label("Runs").select_option(run)
    tab.get_by_role("button", name="Vote", exact=True).click()
    tab.get_by_role("heading", name="Which is better?").wait_for()
    return tab.url


def readable(tab: Any) -> None:
    """Contrast, names and order, by axe; on a phone nothing lies past the edge, and one sees where else to go."""
    page = tab.url
    tab.set_viewport_size({"width": 1280, "height": 900})
    tab.evaluate(AXE)
    found = tab.evaluate("axe.run()")["violations"]
    serious = [
        (each["id"], node["html"][:200], node["failureSummary"][:300])
        for each in found
        if each["impact"] in ("serious", "critical")
        for node in each["nodes"][:2]
    ]
    assert serious == [], page
    if "/runs/" in page:
        tab.locator("canvas").first.wait_for()
    tab.set_viewport_size({"width": 390, "height": 800})
    tab.evaluate(NOT_DRAWN_AGAIN)
    assert not tab.evaluate(PAST_THE_EDGE), page
    assert tab.locator("header nav").bounding_box()["width"] > 300, page
    tab.set_viewport_size({"width": 1280, "height": 900})
