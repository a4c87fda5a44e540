"""The console's OpenAPI document, turned against a running console: whatever is sent, no answer is a 5xx."""

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import schemathesis
import uvicorn
from hypothesis import HealthCheck, settings
from schemathesis.specs.openapi.checks import allow_header_conformance, positive_data_acceptance, unsupported_method

from prism.services.console.access.identity import new_token
from prism.services.console.app import create_app
from prism.services.console.settings import ConsoleSettings
from prism.services.console.store.migrate import upgrade
from prism.settings import load_settings

ROOT = Path(__file__).parents[3]
document = schemathesis.openapi.from_path(ROOT / "proto/openapi/console.json")


@pytest.fixture(scope="module")
def console(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Its address, and an admin's token."""
    runs = tmp_path_factory.mktemp("runs")
    given = load_settings(ConsoleSettings, runs=runs, configs=ROOT / "configs", state_dir=runs / ".console")
    app = create_app(given)
    app.state.console.attempts._limit = 10**9  # unknown tokens are among what is tried
    upgrade(app.state.console.store)
    token = new_token(app.state.console.store, "fuzz", "admin", "test")
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    deadline = time.monotonic() + 60
    while not server.started:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    listening: socket.socket = server.servers[0].sockets[0]
    yield f"http://127.0.0.1:{listening.getsockname()[1]}", token
    server.should_exit = True
    thread.join()


@document.parametrize()
@settings(
    max_examples=4,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.function_scoped_fixture],
)
def test_no_request_is_answered_with_a_5xx_or_otherwise_than_documented(
    case: schemathesis.Case, console: tuple[str, str]
) -> None:
    url, token = console
    case.call_and_validate(
        base_url=url,
        headers={"Authorization": f"Bearer {token}"},
        # A command's own parameters are checked against its own schema, which is not the document's. For a method that
        # there is not, Starlette names those of one route of the path alone.
        excluded_checks=[positive_data_acceptance, unsupported_method, allow_header_conformance],
    )
