"""A service as a process: which routes answer on which port."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import httpx
import pytest

from prism.stack.ports import free_port

DATA, ADMIN = "data-token-0123456789", "admin-token-0123456789"
SERVICE = """
from prism.http.app import create_app, serve
from prism.settings import AdminSettings, load_settings
settings = load_settings(AdminSettings)
app = create_app("test", settings, not_ready=lambda: None)
app.post("/weights")(lambda: "taken")
serve(app, settings)
"""
NEVER_READY = """
import asyncio, contextlib
from prism.errors import ServiceError
from prism.http.app import create_app, end, serve
from prism.settings import ServiceSettings, load_settings
@contextlib.asynccontextmanager
async def lifespan(app):
    asyncio.get_running_loop().call_later(0.2, end, app, ServiceError("the model cannot be loaded"))
    yield
settings = load_settings(ServiceSettings)
serve(create_app("test", settings, not_ready=lambda: None, lifespan=lifespan), settings)
"""


@pytest.fixture(scope="module")
def ports() -> Iterator[tuple[int, int]]:
    data, admin = free_port(), free_port()
    environment = {"PRISM_PORT": data, "PRISM_ADMIN_PORT": admin, "PRISM_TOKEN": DATA, "PRISM_ADMIN_TOKEN": ADMIN}
    process = subprocess.Popen(
        [sys.executable, "-c", SERVICE], env=os.environ | {name: str(value) for name, value in environment.items()}
    )
    try:
        until = time.monotonic() + 30
        health = [sys.executable, "-m", "prism.http.healthcheck"]
        while subprocess.run(health, env=os.environ | {"PRISM_PORT": str(data)}, capture_output=True).returncode:
            assert process.poll() is None
            assert time.monotonic() < until, "the service is not ready"
            time.sleep(0.1)
        yield data, admin
    finally:
        process.terminate()
        assert process.wait(15) is not None


def push(port: int) -> int:
    url, headers = f"http://127.0.0.1:{port}/weights", {"Authorization": f"Bearer {ADMIN}"}
    return httpx.post(url, headers=headers).status_code


def test_weights_are_taken_on_the_admin_port_alone(ports: tuple[int, int]) -> None:
    assert (push(ports[0]), push(ports[1])) == (403, 200)


def test_the_health_check_fails_for_what_is_not_there(ports: tuple[int, int]) -> None:
    for path, status in (("/readyz", 0), ("/nothing", 1)):
        command = [sys.executable, "-m", "prism.http.healthcheck", path]
        checked = subprocess.run(command, env=os.environ | {"PRISM_PORT": str(ports[0])}, capture_output=True)
        assert checked.returncode == status


def test_a_service_that_can_never_be_ready_ends_and_says_why() -> None:
    environment = os.environ | {"PRISM_PORT": str(free_port()), "PRISM_TOKEN": DATA}
    command = [sys.executable, "-c", NEVER_READY]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode
    assert "ServiceError: the model cannot be loaded" in done.stderr
