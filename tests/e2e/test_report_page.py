"""The report's page in a real browser without a network: it loads nothing, complains of nothing, cuts nothing off."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from prism.report.write import write_comparison, write_report

CHROMIUM = Path("/usr/bin/chromium")
ARGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
WIDTHS = (1280, 400)
CHARTS = (
    "loss", "reward", "caption", "perception", "reasoning", "gap", "pairs", "correlation", "router", "tokens",
    "staleness", "mismatch", "push", "idle", "time",
)  # fmt: skip
PAST_THE_EDGE = """() => [...document.querySelectorAll('body *')]
    .filter(e => !e.closest('svg') && e.getBoundingClientRect().right > document.documentElement.clientWidth + 1)
    .map(e => e.tagName + '.' + e.className)"""


def builders() -> Any:
    """The unit tests' module, which knows how to write a run's folder."""
    path = Path(__file__).parents[1] / "unit" / "prism" / "test_report.py"
    spec = importlib.util.spec_from_file_location("report_builders", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if not CHROMIUM.is_file():
        pytest.fail(f"{CHROMIUM} is missing: install Chromium (Debian: apt-get install chromium), or run scripts/setup")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        pytest.fail("the playwright package is missing: pip install playwright, or run scripts/setup")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGS)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("report")
    make = builders()
    hostile = "<caption>- " + "x" * 400 + "\n- <script>document.title = 'owned'</script></caption>"
    full = make.build_run(root / "full")
    unbroken = make.sample(full, make.random.Random(1), "rlvr", 0) | {"response": hostile, "question": "W" * 200}
    make.append(full / "samples.jsonl", unbroken)
    write_report(full)
    write_report(make.build_run(root / "sft", ("sft",)))
    write_comparison(make.build_comparison(root / "compare"))
    return {
        "full": full / "report.html", "sft": root / "sft" / "report.html",
        "comparison": root / "compare" / "comparison.html",
    }  # fmt: skip


def visit(browser: Any, page: Path, width: int, scheme: str) -> tuple[Any, list[str]]:
    """The page opened offline, and everything it complained about or asked the network for."""
    context = browser.new_context(offline=True, viewport={"width": width, "height": 900}, color_scheme=scheme)
    tab = context.new_page()
    complaints: list[str] = []
    tab.on("console", lambda message: complaints.append(f"console: {message.text}"))
    tab.on("pageerror", lambda error: complaints.append(f"error: {error}"))
    tab.on("request", lambda request: complaints.append(f"request: {request.url}") if _external(request.url) else None)
    tab.goto(page.as_uri())
    return tab, complaints


def _external(url: str) -> bool:
    return not url.startswith(("file:", "data:"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["full", "sft", "comparison"])
def test_page_is_quiet_and_fits(browser: Any, pages: dict[str, Path], name: str, width: int, scheme: str) -> None:
    tab, complaints = visit(browser, pages[name], width, scheme)
    assert complaints == []
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.evaluate(PAST_THE_EDGE) == []
    tab.context.close()


def test_rollouts_and_charts_are_visible(browser: Any, pages: dict[str, Path]) -> None:
    tab, _ = visit(browser, pages["full"], 1280, "light")
    rollouts = tab.locator("article.rollout")
    assert rollouts.count() == 12
    for i in range(12):
        assert rollouts.nth(i).is_visible()
        assert rollouts.nth(i).locator(".answer").count() == 4
        assert rollouts.nth(i).locator("img").evaluate("image => image.naturalWidth") > 0
    for key in CHARTS:
        drawn = tab.locator(f"#chart-{key} svg").bounding_box()
        assert drawn is not None
        assert drawn["width"] > 250
        assert drawn["height"] > 120
        assert tab.locator(f"#chart-{key} svg path").count() > 3
    assert tab.title() == "demo · PRISM"  # and not what a response's script would have made of it
    tab.context.close()


def test_ink_follows_the_colour_scheme(browser: Any, pages: dict[str, Path]) -> None:
    seen: list[tuple[str, str]] = []
    for scheme in ("light", "dark"):
        tab, _ = visit(browser, pages["full"], 1280, scheme)
        background = tab.evaluate("getComputedStyle(document.body).backgroundColor")
        label = tab.locator("#chart-gap svg text").first.evaluate("text => getComputedStyle(text).fill")
        seen.append((background, label))
        tab.context.close()
    (light, light_label), (dark, dark_label) = seen
    assert light != dark
    assert light_label != dark_label
