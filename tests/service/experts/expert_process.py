"""``prism serve perception`` and ``reasoning`` as processes on ports of their own."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from prism.stack.ports import free_port

DATA, ADMIN = "data-token-0123456789", "admin-token-0123456789"


def environment(port: int, folder: Path, model: Path, **more: Any) -> dict[str, str]:
    values = {
        "port": port,
        "token": DATA,
        "admin_token": ADMIN,
        "model": model,
        "weights_root": folder / "weights",
        "state_dir": folder / "state",
        "threads": 1,
    }
    return os.environ | {f"PRISM_{name.upper()}": str(value) for name, value in (values | more).items()}


@contextmanager
def expert(
    folder: Path, model: Path, *, name: str = "perception", port: int | None = None, **more: Any
) -> Iterator[tuple[subprocess.Popen[bytes], httpx.Client]]:
    """The expert, ready, and a client with its admin token. ``more`` are settings of it."""
    port = port or free_port()
    command = [sys.executable, "-m", "prism", "serve", name]
    process = subprocess.Popen(command, env=environment(port, folder, model, **more))
    try:
        with httpx.Client(
            base_url=f"http://127.0.0.1:{port}", headers={"Authorization": f"Bearer {ADMIN}"}, timeout=60
        ) as client:
            until(lambda: is_ready(process, client), 120)
            yield process, client
    finally:
        process.kill()
        process.wait()


def until(condition: Callable[[], bool], seconds: float) -> None:
    """Raises TimeoutError if the condition does not come true."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds} s")
        time.sleep(0.05)


def is_ready(process: subprocess.Popen[bytes], client: httpx.Client) -> bool:
    assert process.poll() is None, "the service has ended"
    try:
        return client.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False
