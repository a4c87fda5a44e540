"""A curation over stand-ins."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from curation_world import World
from fake_services import TOKEN, FakeServices, served


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    services = FakeServices()
    with served(services) as url:
        for name in ("POLICY_URL", "GRADER_URL"):
            monkeypatch.setenv(f"PRISM_{name}", url)
        for name in ("PERCEPTION", "REASONING"):
            monkeypatch.setenv(f"PRISM_{name}_URL", f"{url}/{name.lower()}")
        monkeypatch.setenv("PRISM_TOKEN", TOKEN)
        monkeypatch.setenv("PRISM_TEACHER_KEY", "sk-teacher")
        monkeypatch.setenv("PRISM_CURATION_JUDGE_KEY", "sk-judge")
        yield World(tmp_path, services, url)
