"""`prism upload` against a local stand-in of the hub's API: create the repository, ask how, commit."""

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from prism.errors import ConfigError, ServiceError
from prism.evaluation.suite.upload import card_with, upload


class Hub:
    """As huggingface.co answers for small files, which are committed as they are."""

    def __init__(self) -> None:
        self.created: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}
        self.tokens: set[str | None] = set()
        self.refuses = False
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                hub.tokens.add(self.headers.get("authorization"))
                if hub.refuses:
                    self.answer(403, {"error": "no write permission"})
                elif self.path == "/api/repos/create":
                    hub.created.append(json.loads(body))
                    self.answer(200, {"url": f"{hub.url}/me/model"})
                elif self.path == "/api/validate-yaml":  # the card's
                    self.answer(200, {"errors": [], "warnings": []})
                elif self.path.endswith("/preupload/main"):
                    asked = json.loads(body)["files"]
                    how = {"uploadMode": "regular", "shouldIgnore": False}
                    self.answer(200, {"files": [{"path": file["path"]} | how for file in asked]})
                elif self.path.endswith("/commit/main"):
                    for line in map(json.loads, body.splitlines()):
                        if line["key"] == "file":
                            hub.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                    address = f"{hub.url}/me/model/commit/abc"
                    self.answer(200, {"commitUrl": address, "commitOid": "abc", "hookOutput": ""})
                else:
                    self.answer(404, {})

            def do_GET(self) -> None:
                self.answer(404 if not hub.refuses else 403, {})

            def answer(self, status: int, body: dict[str, Any]) -> None:
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("HF_TOKEN", "hf_a_token")
    made = Hub()
    thread = threading.Thread(target=made.server.serve_forever, daemon=True)
    thread.start()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / ".cache").mkdir(parents=True)
    (folder / ".cache" / "secret").write_text("not for others")
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "README.md").write_text("# A model\n")
    return folder


def result(headline: float | None, why: str | None) -> dict[str, Any]:
    score = {"headline": headline, "stderr": headline and 0.02, "why": why}
    figures = {"title": "MathVista", "questions": 10, "of": 10, "views": {"seen": {"scores": {"rule": score}}}}
    return {"name": "RLVR", "judge": None, "benchmarks": {"mathvista": figures}}


def test_a_model_its_card_and_its_figures_are_one_commit(hub: Hub, model: Path) -> None:
    address = upload(model, "me/model", [("RLVR", result(0.75, None))], private=True, message="first", endpoint=hub.url)
    assert address == f"{hub.url}/me/model/commit/abc"
    assert (hub.created[0]["name"], hub.created[0]["visibility"]) == ("model", "private")
    assert hub.files.keys() == {"config.json", "model.safetensors", "README.md"}
    assert hub.files["model.safetensors"] == b"weights"
    card = hub.files["README.md"].decode()
    assert card.startswith("# A model\n")
    assert "| RLVR | 75.0 ± 2.0 |" in card
    assert hub.tokens == {"Bearer hf_a_token"}


def test_a_score_that_is_withheld_is_none_on_the_card_either() -> None:
    card = card_with("# A model\n", [("RLVR", result(None, "9.0% of responses are masked"))])
    assert "| RLVR | – |" in card
    assert "9.0% of responses are masked" in card
    assert card_with("# A model\n", []) == "# A model\n"


def test_a_hub_that_refuses_or_is_away_is_an_error(hub: Hub, model: Path, tmp_path: Path) -> None:
    hub.refuses = True
    with pytest.raises(ServiceError, match=r"me/model was not uploaded"):
        upload(model, "me/model", [], private=False, message="first", endpoint=hub.url)
    with pytest.raises(ServiceError, match=r"me/model was not uploaded"):
        upload(model, "me/model", [], private=False, message="first", endpoint="http://127.0.0.1:9")
    assert hub.files == {}
    with pytest.raises(ConfigError, match=r"is no exported model \(no config.json\)"):
        upload(tmp_path, "me/model", [], private=False, message="first", endpoint=hub.url)
