"""Who may do what: route by route, by token and by cookie."""

import re

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient

from prism.services.console.access import identity
from prism.services.console.access.guard import OPEN, POLICY, scope_of
from prism.services.console.access.identity import new_token
from prism.services.console.store.models import SCOPES

OPEN_ROUTES = {"/healthz", "/readyz", "/metrics", "/sign-in", "/static"}
OWN = {"Sec-Fetch-Site": "same-origin"}


def routes(app: FastAPI) -> list[tuple[str, str, str | None]]:
    return [
        (method, re.sub(r"\{[^}]*\}", "1", route.path), scope_of(route))
        for route in app.routes
        if isinstance(route, APIRoute)
        for method in route.methods
    ]


def test_every_route_names_a_scope_and_few_are_open(app: FastAPI) -> None:
    unnamed = [getattr(route, "path", route) for route in app.routes if scope_of(route) not in (*SCOPES, OPEN)]
    assert unnamed == []
    assert {getattr(route, "path", "") for route in app.routes if scope_of(route) == OPEN} <= OPEN_ROUTES
    changing = {(path, scope) for method, path, scope in routes(app) if method not in ("GET", "HEAD")}
    allowed_to_view = {path for path, scope in changing if scope == "view"}
    assert allowed_to_view <= {"/api/v1/jobs/plan", "/jobs/plan", "/sign-out"}  # which change nothing of anybody's


def test_a_body_is_not_read_of_who_may_not_ask(app: FastAPI, tokens: dict[str, str]) -> None:
    with TestClient(app) as client:
        assert client.post("/api/v1/chat", content=b"x" * 17 * 2**20).status_code == 401
        headers = {"Authorization": f"Bearer {tokens['view']}"}
        assert client.post("/api/v1/chat", content=b"x" * 17 * 2**20, headers=headers).status_code == 403


@pytest.mark.parametrize("scope", ["", *SCOPES])
def test_a_token_does_what_its_scope_allows_and_nothing_else(app: FastAPI, tokens: dict[str, str], scope: str) -> None:
    headers = {"Authorization": f"Bearer {tokens.get(scope, 'prism_unknown')}"}
    app.state.console.attempts._limit = 10**6  # here every route is tried without a token
    with TestClient(app, headers=headers, follow_redirects=False) as client:
        for method, path, needed in routes(app):
            if needed == OPEN or path.endswith("/stream") or path.endswith("/events"):
                continue
            answer = client.request(method, path)
            if not scope:
                assert answer.status_code == 401, path
            elif SCOPES.index(scope) < SCOPES.index(needed or "admin"):
                assert answer.status_code == 403, path
            else:
                assert answer.status_code not in (401, 403), path
                assert answer.status_code < 500, path


def test_a_browser_signs_in_once_by_its_code_and_its_requests_are_its_own(app: FastAPI, tokens: dict[str, str]) -> None:
    store = app.state.console.store
    code = identity.new_code(store, "first link")
    with TestClient(app, follow_redirects=False) as client:
        assert client.get("/jobs", headers={"Accept": "text/html"}).headers["location"] == "/sign-in?next=/jobs"
        assert client.post("/sign-in", data={"secret": code}).status_code == 403  # no browser's own request
        answer = client.post("/sign-in", data={"secret": code}, headers=OWN)
        cookie = answer.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=strict" in cookie
        assert client.get("/api/v1/whoami").json() == {"name": "first link", "scope": "admin"}
        assert client.post("/api/v1/jobs/1/cancel", headers=OWN).status_code == 404
        for foreign in (
            {"Sec-Fetch-Site": "cross-site"},
            {"Sec-Fetch-Site": "same-site"},
            {"Origin": "http://evil.example"},
            {"Sec-Fetch-Site": "same-origin", "Origin": "http://evil.example"},
            {},
        ):
            refused = client.post("/api/v1/jobs/1/cancel", headers=foreign)
            assert refused.status_code == 403, foreign
        client.post("/sign-out", headers=OWN)
        assert client.get("/api/v1/whoami").status_code == 401
    with TestClient(app) as other:
        assert other.post("/sign-in", data={"secret": code}, headers=OWN).status_code == 401  # it was used


def test_a_revoked_token_closes_its_sessions(app: FastAPI, client: TestClient, tokens: dict[str, str]) -> None:
    with TestClient(app) as browser:
        browser.post("/sign-in", data={"secret": tokens["view"]}, headers=OWN)
        assert browser.get("/api/v1/whoami").json()["name"] == "view"
        [number] = [token["id"] for token in client.get("/api/v1/tokens").json() if token["name"] == "view"]
        assert client.delete(f"/api/v1/tokens/{number}").status_code == 204
        assert browser.get("/api/v1/whoami").status_code == 401
    assert client.get("/api/v1/whoami", headers={"Authorization": f"Bearer {tokens['view']}"}).status_code == 401


def test_secrets_are_kept_as_hashes_alone_and_the_audit_log_names_who_did_what(
    app: FastAPI, client: TestClient, tokens: dict[str, str]
) -> None:
    made = client.post("/api/v1/tokens", json={"name": "ci", "scope": "operate"}).json()["token"]
    listed = client.get("/api/v1/tokens").text
    assert made not in listed
    engine = app.state.console.store.engine
    with engine.connect() as connection:
        dumped = "\n".join(connection.connection.driver_connection.iterdump())
    assert made not in dumped
    assert all(token not in dumped for token in tokens.values())
    [row] = client.get("/api/v1/audit").json()
    assert (row["who"], row["action"], row["target"], row["detail"]) == ("admin", "token made", "ci", "operate")


def test_guessing_is_slowed_down(app: FastAPI) -> None:
    with TestClient(app) as client:
        answers = [client.get("/api/v1/whoami", headers={"Authorization": "Bearer guess"}) for _ in range(11)]
        assert [answer.status_code for answer in answers] == [401] * 10 + [429]
        assert int(answers[-1].headers["retry-after"]) > 0
        assert client.post("/sign-in", data={"secret": "guess"}, headers=OWN).status_code == 429
        right = new_token(app.state.console.store, "right", "view", "test")
        assert client.get("/api/v1/whoami", headers={"Authorization": f"Bearer {right}"}).status_code == 200


def test_every_answer_says_what_a_page_may_do(client: TestClient) -> None:
    for path in ("/api/v1/jobs", "/healthz", "/nothing", "/sign-in"):
        headers = client.get(path).headers
        assert headers["content-security-policy"] == POLICY
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
