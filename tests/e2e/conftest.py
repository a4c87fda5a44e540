"""One real run, shared by all tests of this folder."""

from collections.abc import Iterator

import psutil
import pytest
from killed_run import Run, make_killed_run


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return make_killed_run(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="session", autouse=True)
def _nothing_left_behind() -> Iterator[None]:
    yield
    left = [
        child.cmdline()
        for child in psutil.Process().children(recursive=True)
        if child.status() != psutil.STATUS_ZOMBIE
        and {"prism", "vllm.entrypoints.openai.api_server"} & {*child.cmdline()}
    ]
    assert not left, f"processes left behind: {left}"
