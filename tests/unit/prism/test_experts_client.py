"""The public client: whatever form a prompt and its images have, they arrive; answers are typed; mistakes are named."""

import base64
import io
import json
import re
import socket
import textwrap
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import HTTPException
from PIL import Image

from prism.clients import experts as experts_client
from prism.clients.experts import Experts, image_uri, item, parse_item
from prism.clients.http import Refused, Unavailable
from prism.data.images import decode_image
from prism.errors import ConfigError, DataError
from prism.wire.experts import CalibrationRequest, PromptScores, Reference

DATA, ADMIN = "data-token-0123456789", "admin-token-0123456789"
TEXT = "the response"


def connect(fake: Any, **more: Any) -> Experts:
    values: dict[str, Any] = {
        "perception_url": "http://fake/perception",
        "reasoning_url": "http://fake/reasoning",
        "token": DATA,
        "admin_token": ADMIN,
        "patience_seconds": 2,
        "transport": httpx.ASGITransport(fake.app),
    }
    return Experts(**values | more)


@pytest.fixture
async def experts(fake: Any) -> AsyncIterator[Experts]:
    async with connect(fake) as client:
        yield client


def reference(version: int) -> CalibrationRequest:
    name = Reference(name="rows.jsonl", sha256="0" * 64)
    return CalibrationRequest(
        reference=name, version=version, attempt=1, prompts=[PromptScores(teacher=[1], policy=[0])] * 2
    )


async def test_scores_are_typed_and_by_whom_is_said(experts: Experts, fake: Any) -> None:
    answer = await experts.score([item("?", [TEXT, "bad"]), item("!", ["x"])], expert="reasoning", section="all")
    assert (answer.expert, answer.version, answer.attempt) == ("reasoning", 3, 1)
    assert [[score.score for score in one.scores] for one in answer.items] == [[-12.0, None], [-1.0]]
    assert answer.items[0].scores[1].status == "invalid_format"
    assert fake.requests[-1].section == "all"


async def test_both_experts_are_mixed_in_one_call(experts: Experts, fake: Any) -> None:
    answer = await experts.mixture([item("?", [TEXT])], alpha=0.75)
    [score] = answer.items[0].scores
    assert (score.perception.score, score.reasoning.score, score.score) == (12.0, -12.0, 6.0)
    async with connect(fake, perception_url=None) as only_reasoning:
        assert (await only_reasoning.mixture([item("?", [TEXT])])).items[0].scores[0].score == 0.0


async def test_two_responses_are_compared(experts: Experts) -> None:
    answer = await experts.compare(item("?", ["ab", "c"]), expert="perception")
    assert (answer.probability, answer.first.score, answer.second.score) == (0.75, 2.0, 1.0)
    with pytest.raises(DataError, match="two responses are compared, this item has 3"):
        await experts.compare(item("?", ["a", "b", "c"]), expert="perception")


async def test_a_calibration_is_put_with_the_admin_token_and_told_of_by_the_model(experts: Experts, fake: Any) -> None:
    state = await experts.calibrate("perception", reference(3))
    assert (state.teacher, state.policy, state.accuracy) == (2, 2, 0.875)
    assert (await experts.model("perception")).calibration == state
    assert (await experts.model("reasoning")).calibration is None
    with pytest.raises(Refused, match="409 version 3 is in use"):  # waiting would not help
        await experts.calibrate("perception", reference(2))
    async with connect(fake, admin_token=None) as without:
        with pytest.raises(ConfigError, match="set PRISM_ADMIN_TOKEN"):
            await without.calibrate("perception", reference(3))


async def test_an_overloaded_expert_is_asked_again_and_one_that_refuses_is_not(experts: Experts, fake: Any) -> None:
    answers = iter([HTTPException(429, headers={"Retry-After": "0"}), HTTPException(503)])

    def busy(_: object) -> None:
        if error := next(answers, None):
            raise error

    fake.before = busy
    assert (await experts.score([item("?", ["a"])], expert="perception")).version == 3

    def refuse(_: object) -> None:
        raise HTTPException(422, "no such image")

    fake.before = refuse
    with pytest.raises(Refused, match="422 no such image"):
        await experts.score([item("?", ["a"])], expert="perception")

    def away(_: object) -> None:
        raise HTTPException(503, "loading")

    fake.before = away
    async with connect(fake, patience_seconds=0.2) as hasty:
        with pytest.raises(Unavailable, match="503 loading"):
            await hasty.score([item("?", ["a"])], expert="perception")


async def test_an_address_that_is_missing_or_another_experts_is_named(fake: Any) -> None:
    async with connect(fake, reasoning_url=None) as one:
        with pytest.raises(ConfigError, match="reasoning expert's address is not known: set PRISM_REASONING_URL"):
            await one.score([item("?", ["a"])], expert="reasoning")
    async with connect(fake, perception_url="http://fake/reasoning") as crossed:
        for call in (
            crossed.score([item("?", ["a"])], expert="perception"),
            crossed.compare(item("?", ["a", "b"]), expert="perception"),
            crossed.model("perception"),
        ):
            with pytest.raises(Refused, match="is the reasoning expert, not the perception expert"):
                await call


async def test_a_run_is_found_by_its_stack_file_and_variables_go_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake: Any, fake_url: str
) -> None:
    for name in ("TOKEN", "ADMIN_TOKEN", "PERCEPTION_URL", "REASONING_URL"):
        monkeypatch.delenv(f"PRISM_{name}", raising=False)
    with pytest.raises(ConfigError, match=r"PRISM_TOKEN: is not set, and .*stack.json does not tell"):
        Experts.of_run(tmp_path)
    noted = {"perception_url": "http://nowhere", "reasoning_url": f"{fake_url}/reasoning", "token": DATA}
    (tmp_path / "stack.json").write_text(json.dumps(noted | {"admin_token": ADMIN}))
    monkeypatch.setenv("PRISM_PERCEPTION_URL", f"{fake_url}/perception")
    async with Experts.of_run(tmp_path) as experts:
        assert (await experts.model("perception")).base == (await experts.model("reasoning")).base == "the-model"
        await experts.calibrate("reasoning", reference(3))
    assert fake.calibrations.keys() == {"reasoning"}


@pytest.mark.parametrize("where", ["docstring", "readme"])
def test_the_example_works(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fake: Any,
    fake_url: str,
    where: str,
) -> None:
    if where == "docstring":
        example = textwrap.dedent((experts_client.__doc__ or "").partition("::\n")[2])
    else:
        example = Path("README.md").read_text().partition("```python\n")[2].partition("```")[0]
    monkeypatch.chdir(tmp_path)
    for name in ("PERCEPTION", "REASONING"):
        monkeypatch.setenv(f"PRISM_{name}_URL", f"{fake_url}/{name.lower()}")
    monkeypatch.setenv("PRISM_TOKEN", DATA)
    Path("grid.png").write_bytes(picture())
    exec(example, {})  # noqa: S102
    assert "status='ok' score=0.0" in capsys.readouterr().out
    assert fake.requests[0].items[0].images == [image_uri("grid.png")]


def picture(kind: str = "PNG", **more: Any) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 2), "red").save(buffer, kind, **more)
    return buffer.getvalue()


def test_an_image_is_a_path_bytes_a_picture_or_what_travels_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture())
    uri = "data:image/png;base64," + base64.b64encode(picture()).decode()
    assert image_uri("a.png", tmp_path) == image_uri(tmp_path / "a.png") == image_uri(picture()) == uri
    for travels in (uri, "sha256:ab", "https://example.org/a.png"):
        assert image_uri(travels, tmp_path) == travels


def test_a_row_names_no_file_outside_of_its_folder(tmp_path: Path) -> None:
    rows, inside = tmp_path / "rows", tmp_path / "rows" / "images"
    inside.mkdir(parents=True)
    (tmp_path / "key").write_bytes(b"a secret")
    (inside / "a.png").write_bytes(picture())
    (rows / "link.png").symlink_to(tmp_path / "key")
    row: dict[str, Any] = {"prompt": "?", "responses": ["x"]}
    chat = [{"role": "user", "content": [{"type": "image", "image": "../key"}, {"type": "text", "text": "?"}]}]
    for name in ("../key", "images/../../key", "link.png", str(tmp_path / "key"), "/etc/hostname"):
        outside = f"image {name!r}: lies outside of {rows}"
        with pytest.raises(DataError, match=re.escape(outside)):
            parse_item({**row, "images": [name]}, rows)
        with pytest.raises(DataError, match=re.escape(outside)):
            item("?", ["x"], images=[name], folder=rows)
    with pytest.raises(DataError, match="lies outside"):
        parse_item({"messages": chat, "responses": ["x"]}, rows)
    for good in ("images/a.png", str(inside / "a.png"), "images/../images/a.png"):
        assert parse_item({**row, "images": [good]}, rows).images == [image_uri(picture())]
    assert parse_item({**row, "images": ["../key"]}, rows, tmp_path).images[0].endswith("YSBzZWNyZXQ=")
    assert image_uri(rows / "link.png").endswith("YSBzZWNyZXQ="), "a Path is the caller's own choice"


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "PA", "I;16"])
def test_a_picture_of_any_mode_arrives(mode: str) -> None:
    sent = image_uri(Image.new(mode, (4, 2)))
    assert decode_image(base64.b64decode(sent.partition(",")[2])).size == (4, 2)


def test_a_picture_that_says_it_is_rotated_still_says_so() -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    image = Image.open(io.BytesIO(picture("JPEG", exif=turned)))
    sent = Image.open(io.BytesIO(base64.b64decode(image_uri(image).partition(",")[2])))
    assert sent.getexif()[0x0112] == 6


def test_images_go_before_a_plain_prompt_and_stay_in_their_message(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture())
    uri = image_uri(picture())
    assert item("?", ["x"], images=["a.png"], folder=tmp_path).images == [uri]
    content = [{"type": "image", "image": "a.png"}, {"type": "text", "text": "?"}]
    chat = item([{"role": "user", "content": content}], ["x"], folder=tmp_path)
    assert chat.chat()[0].model_dump()["content"][0] == {"type": "image", "image": uri}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: item("?", "text"), "responses is a list of texts"),
        (lambda: item("?", []), "responses: List should have at least 1 item"),
        (lambda: item("?", ["x"], images=["nowhere.png"]), "image 'nowhere.png': No such file"),
        (lambda: item("?", ["x"], images=["."]), "image '.': Is a directory"),
        (lambda: item("?", ["x"], images=["a\0b"]), "null byte"),
        (lambda: item("?", ["x"], images=[Image.new("F", (2, 2))]), "pixels of 32 bits have no agreed range"),
        (lambda: item([{"role": "assistant", "content": "a"}], ["x"]), "the last message must be the user's"),
        (lambda: parse_item({"responses": ["x"]}), "give either messages or prompt"),
        (lambda: parse_item({"prompt": "?", "responses": ["x"], "colour": 1}), "colour: is not a known key"),
    ],
)
def test_what_is_no_item_is_said(make: Callable[[], object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        make()


class Recording(httpx.ASGITransport):
    """Notes where admin routes are asked for; the replica ``away`` refuses."""

    def __init__(self, app: Any, away: str = "") -> None:
        super().__init__(app)
        self.asked, self.away = list[str](), away

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if request.method == "PUT":
            self.asked.append(f"{request.url.host}:{request.url.port}")
            if request.url.host == self.away:
                return httpx.Response(409, json={"detail": "other weights are in use"})
        return await super().handle_async_request(request)


@pytest.mark.parametrize("away", ["", "10.0.0.1", "10.0.0.2"])
async def test_a_calibration_reaches_every_replica_on_its_admin_port(
    fake: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, away: str
) -> None:
    """The name of a service stands for all its replicas, and the data port may refuse admin routes."""
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (f"10.0.0.{n}", 8001)) for n in (1, 2)]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    settings = {"TOKEN": DATA, "ADMIN_TOKEN": ADMIN, "ADMIN_PORT": "8001"}
    settings["PERCEPTION_URL"] = "http://fake:8000/perception"
    for name, value in settings.items():
        monkeypatch.setenv(f"PRISM_{name}", value)
    transport = Recording(fake.app, away)
    async with Experts.of_run(tmp_path, patience_seconds=2) as client, httpx.AsyncClient(transport=transport) as http:
        await client._http.aclose()
        client._http = http
        if away:
            with pytest.raises(Refused, match="other weights"):
                await client.calibrate("perception", reference(3))
        else:
            assert (await client.calibrate("perception", reference(3))).version == 3
    assert sorted(transport.asked) == ["10.0.0.1:8001", "10.0.0.2:8001"]
