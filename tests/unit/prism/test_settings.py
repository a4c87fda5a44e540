"""Settings from the environment: named when they are wrong, and never with a secret in the message."""

import json
from pathlib import Path

import pytest

from prism.endpoints import load_endpoints
from prism.errors import ConfigError
from prism.settings import ServiceSettings, load_settings
from services.experts.settings import ExpertSettings

DATA, ADMIN = "data-token-0123456789", "admin-token-0123456789"
GOOD = {"PRISM_PORT": "8000", "PRISM_TOKEN": DATA, "PRISM_ADMIN_TOKEN": ADMIN}
ENDPOINTS = {
    "redis_url": "redis://:secret@127.0.0.1:1/0",
    "blobs": "/blobs",
    "policy_url": "http://policy",
    "perception_url": "http://perception",
    "reasoning_url": "http://reasoning",
    "grader_url": "http://grader",
    "token": DATA,
}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Only what a test sets."""
    for name in ("PORT", "HOST", "TOKEN", "ADMIN_TOKEN", "LOG_LEVEL", *(key.upper() for key in ENDPOINTS)):
        monkeypatch.delenv(f"PRISM_{name}", raising=False)
    return monkeypatch


def given(monkeypatch: pytest.MonkeyPatch, values: dict[str, str]) -> None:
    for name, value in values.items():
        monkeypatch.setenv(name, value)


def test_settings_come_from_prefixed_variables(environment: pytest.MonkeyPatch) -> None:
    given(environment, GOOD)
    settings = load_settings(ServiceSettings)
    assert (settings.host, settings.port, settings.token.get_secret_value()) == ("127.0.0.1", 8000, DATA)
    assert DATA not in repr(settings)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "PRISM_PORT: is not set"),
        (GOOD | {"PRISM_PORT": "0"}, "PRISM_PORT: Input should be greater than or equal to 1"),
        (GOOD | {"PRISM_PORT": "web"}, "(given: 'web')"),
        (GOOD | {"PRISM_TOKEN": "short"}, "need 16 characters or more"),
        (GOOD | {"PRISM_TOKEN": ADMIN}, "must differ"),
    ],
)
def test_a_wrong_variable_is_named(environment: pytest.MonkeyPatch, values: dict[str, str], message: str) -> None:
    given(environment, values)
    with pytest.raises(ConfigError) as refused:
        load_settings(ServiceSettings)
    assert message in str(refused.value)
    assert not any(secret in str(refused.value) for secret in (DATA, ADMIN, "short"))


def test_no_token_has_a_default(environment: pytest.MonkeyPatch) -> None:
    given(environment, {"PRISM_PORT": "8000"})
    with pytest.raises(ConfigError) as refused:
        load_settings(ServiceSettings)
    assert "PRISM_TOKEN: is not set" in str(refused.value)
    assert "PRISM_ADMIN_TOKEN: is not set" in str(refused.value)


def test_a_service_says_all_it_lacks_at_once(environment: pytest.MonkeyPatch) -> None:
    given(environment, GOOD)
    with pytest.raises(ConfigError) as refused:
        load_settings(ExpertSettings, expert="perception")
    missing = {line.split(":")[0] for line in str(refused.value).splitlines()}
    assert missing == {"PRISM_MODEL", "PRISM_WEIGHTS_ROOT", "PRISM_STATE_DIR"}


def test_endpoints_come_from_the_environment_before_the_stack_file(
    environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "stack.json"
    file.write_text(json.dumps(ENDPOINTS))
    given(environment, {"PRISM_POLICY_URL": "http://elsewhere"})
    endpoints = load_endpoints(file)
    assert endpoints.policy_url == "http://elsewhere"
    assert endpoints.grader_url == "http://grader"
    assert endpoints.admin_token is None
    assert endpoints.expert_url("reasoning") == "http://reasoning"
    assert "secret" not in repr(endpoints)


def test_endpoints_that_nobody_names_are_listed(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given(environment, {"PRISM_REDIS_URL": "redis://x"})
    with pytest.raises(ConfigError) as refused:
        load_endpoints(tmp_path / "stack.json")
    assert "PRISM_POLICY_URL: is not set" in str(refused.value)
    assert "PRISM_REDIS_URL" not in str(refused.value)
