"""One run in containers, shared by all tests of this folder; its containers, network and volumes go with it."""

from collections.abc import Iterator

import pytest
from composed_run import Composed, hurt, start, stop_and_go_on


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Composed]:
    made = start(tmp_path_factory.mktemp("compose"))
    try:
        hurt(made)
        stop_and_go_on(made)
        yield made
    finally:
        made.compose("down", "--volumes", "--timeout=5", check=False)
