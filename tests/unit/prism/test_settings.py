"""Settings from the environment: named when they are wrong, and never with a secret in the message."""

import json
from pathlib import Path

import pytest

from prism.clients.endpoints import load_endpoints
from prism.errors import ConfigError
from prism.services.experts.settings import ExpertSettings
from prism.settings import AdminSettings, load_settings
from prism.stack.secret_files import USED_BY, write_secrets

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
    for name in (
        "PORT",
        "ADMIN_PORT",
        "HOST",
        "TOKEN",
        "ADMIN_TOKEN",
        "SECRETS_DIR",
        "LOG_LEVEL",
        *(key.upper() for key in ENDPOINTS),
    ):
        monkeypatch.delenv(f"PRISM_{name}", raising=False)
    return monkeypatch


def given(monkeypatch: pytest.MonkeyPatch, values: dict[str, str]) -> None:
    for name, value in values.items():
        monkeypatch.setenv(name, value)


def test_settings_come_from_prefixed_variables(environment: pytest.MonkeyPatch) -> None:
    given(environment, GOOD)
    settings = load_settings(AdminSettings)
    assert (settings.host, settings.port, settings.token.get_secret_value()) == ("127.0.0.1", 8000, DATA)
    assert DATA not in repr(settings)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "PRISM_PORT: is not set"),
        (GOOD | {"PRISM_PORT": "0"}, "PRISM_PORT: Input should be greater than or equal to 1"),
        (GOOD | {"PRISM_PORT": "web"}, "(given: 'web')"),
        (GOOD | {"PRISM_TOKEN": "short"}, "PRISM_TOKEN: needs 16 characters or more"),
        (GOOD | {"PRISM_TOKEN": ADMIN}, "must differ"),
        (GOOD | {"PRISM_ADMIN_PORT": "8000"}, "PRISM_PORT and PRISM_ADMIN_PORT must differ"),
    ],
)
def test_a_wrong_variable_is_named(environment: pytest.MonkeyPatch, values: dict[str, str], message: str) -> None:
    given(environment, values)
    with pytest.raises(ConfigError) as refused:
        load_settings(AdminSettings)
    assert message in str(refused.value)
    assert not any(secret in str(refused.value) for secret in (DATA, ADMIN, "short"))


def test_no_token_has_a_default(environment: pytest.MonkeyPatch) -> None:
    given(environment, {"PRISM_PORT": "8000"})
    with pytest.raises(ConfigError) as refused:
        load_settings(AdminSettings)
    assert "PRISM_TOKEN: is not set" in str(refused.value)
    assert "PRISM_ADMIN_TOKEN: is not set" in str(refused.value)


def test_a_secret_may_be_a_file_and_the_variable_comes_first(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write_secrets(tmp_path, tmp_path / "shares", "redis:6379", "postgres:5432")
    given(environment, {"PRISM_PORT": "8000", "PRISM_SECRETS_DIR": str(tmp_path), "PRISM_ADMIN_TOKEN": ADMIN})
    settings = load_settings(AdminSettings)
    assert settings.token.get_secret_value() == (tmp_path / "prism_token").read_text()
    assert settings.admin_token.get_secret_value() == ADMIN


def test_secrets_are_made_up_once_unless_they_are_given(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder, shares = tmp_path / "all", tmp_path / "shares"
    environment.delenv("PRISM_REDIS_PASSWORD", raising=False)
    given(environment, {"PRISM_TOKEN": DATA})
    made_up = ["PRISM_ADMIN_TOKEN", "PRISM_REDIS_PASSWORD", "PRISM_DATABASE_PASSWORD"]
    assert write_secrets(folder, shares, "redis:6379", "postgres:5432") == made_up
    first = {file.name: file.read_text() for file in folder.iterdir()}
    assert write_secrets(folder, shares, "redis:6379", "postgres:5432") == []
    assert {file.name: file.read_text() for file in folder.iterdir()} == first
    assert first["prism_token"] == DATA
    assert len({first["prism_admin_token"], first["prism_redis_password"]}) == 2
    for service, names in USED_BY.items():
        kept = {file.name: file.read_text() for file in (shares / service).iterdir()}
        urls = {
            "prism_redis_url": f"redis://:{first['prism_redis_password']}@redis:6379/0",
            "prism_database_url": f"postgresql://prism:{first['prism_database_password']}@postgres:5432/console",
        }
        assert kept == {name: (first | urls)[name] for name in names}
    assert (shares / "postgres" / "password").read_text() == first["prism_database_password"]
    assert (shares / "redis" / "password.conf").read_text() == f"requirepass {first['prism_redis_password']}\n"
    assert {file.stat().st_mode & 0o777 for file in tmp_path.rglob("prism_*")} == {0o400}


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
    assert endpoints.expert_url("reasoning") == endpoints.admin_url("reasoning") == "http://reasoning"
    assert "secret" not in repr(endpoints)


def test_endpoints_that_nobody_names_are_listed(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given(environment, {"PRISM_REDIS_URL": "redis://x"})
    with pytest.raises(ConfigError) as refused:
        load_endpoints(tmp_path / "stack.json")
    assert "PRISM_POLICY_URL: is not set" in str(refused.value)
    assert "PRISM_REDIS_URL" not in str(refused.value)


def test_weights_go_to_the_admin_port(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "stack.json"
    file.write_text(json.dumps(ENDPOINTS | {"policy_url": "http://policy:8000"}))
    given(environment, {"PRISM_ADMIN_PORT": "8001"})
    endpoints = load_endpoints(file)
    assert (endpoints.admin_url("policy"), endpoints.policy_url) == ("http://policy:8001", "http://policy:8000")
