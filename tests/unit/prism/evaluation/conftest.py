"""A policy and a judge, served for real, that answer as a test says."""

from collections.abc import Iterator

import pytest

from tests.unit.prism.evaluation.fake_server import KEY, FakeServer, serve


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    monkeypatch.setenv("PRISM_TOKEN", KEY)
    server = FakeServer()
    end = serve(server)
    yield server
    end()


@pytest.fixture
def fake_judge(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    monkeypatch.setenv("PRISM_JUDGE_TOKEN", KEY)
    server = FakeServer()
    end = serve(server)
    yield server
    end()
