"""Votes: blind until cast, cast once by each, kept whole, and what follows from them."""

import io
import json
import re
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from alembic.migration import MigrationContext
from fastapi import FastAPI
from fastapi.testclient import TestClient
from PIL import Image
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from test_rollouts import group, sample

from prism.config import RolloutLogConfig
from prism.data.blobs import BlobStore
from prism.jobs import Row
from prism.scoring.rows import reference_row
from prism.services.console.access.identity import new_token, of_cookie, sign_in
from prism.services.console.store.engine import Store
from prism.services.console.store.migrate import downgrade, upgrade
from prism.services.console.store.models import Vote
from prism.services.console.votes.figures import agreements, strengths
from prism.trainer.flow.rollout_log import RolloutLog

NASTY = "<script>alert('model')</script>"
OWN = {"Sec-Fetch-Site": "same-origin"}


def answer(stage: str, prompt: str, response: str, image: str, perception: float | None = 1.0, **more: Any) -> str:
    status = "ok" if perception is not None else "too_long"
    line = {
        "stage": stage,
        "prompt_id": prompt,
        "images": [image],
        "question": f"What is in {prompt}?",
        "gold": "7",
        "response": response,
        "policy_version": 3,
        "scores": [{"expert": "perception", "version": 4, "status": status, "value": perception}],
    }
    return json.dumps(line | more) + "\n"


@pytest.fixture
def picture(tmp_path: Path) -> str:
    png = io.BytesIO()
    Image.new("RGB", (28, 28), "red").save(png, "PNG")
    return BlobStore(str(tmp_path / "runs" / "secret-name" / "blobs")).put(png.getvalue())


@pytest.fixture
def run(client: TestClient, tmp_path: Path, picture: str) -> Path:
    folder = tmp_path / "runs" / "secret-name"
    (folder / "metrics.jsonl").write_text('{"stage": "align", "step": 1, "time": 1.0}\n')
    lines = [answer("sft", f"p{n}", f"sft {n} {NASTY}", picture, 0.5) for n in range(3)]
    lines += [answer("align", f"p{n}", f"other {n}", picture, 2.5) for n in range(3)]
    (folder / "samples.jsonl").write_text("".join(lines))
    client.app.state.console.index.look()  # pyright: ignore[reportFunctionMemberAccess, reportAttributeAccessIssue]
    return folder


def draw(client: TestClient, source: str = "answers") -> dict[str, Any]:
    return client.post("/api/v1/votes/draw", json={"runs": ["secret-name"], "source": source}).json()


def test_names_are_hidden_until_the_vote_and_a_vote_stands(client: TestClient, run: Path, picture: str) -> None:
    pair = draw(client)
    assert draw(client) == pair  # nobody fishes for another one
    page = client.get(f"/votes/{pair['id']}")
    blind = json.dumps(pair) + page.text
    assert not any(word in blind for word in ("secret-name", "align", "perception", "version", picture))
    assert NASTY not in page.text
    assert "&lt;script&gt;" in page.text
    assert client.get(f"/api/v1/votes/{pair['id']}/pictures/0").headers["content-type"] == "image/png"
    assert client.get(f"/api/v1/votes/{pair['id']}/pictures/1").status_code == 404
    assert client.get("/api/v1/votes").json() == []
    told = client.post(f"/api/v1/votes/{pair['id']}/choice", json={"choice": "left"}).json()
    assert {told["left"]["name"], told["right"]["name"]} == {"secret-name after sft", "secret-name after align"}
    assert told["left"]["text"] == pair["left"]
    assert client.post(f"/api/v1/votes/{pair['id']}/choice", json={"choice": "right"}).status_code == 409
    assert client.get("/api/v1/votes").json()[0]["choice"] == "left"
    assert "secret-name after align" in client.get(f"/votes/{pair['id']}").text
    [row] = client.get("/api/v1/audit").json()
    assert (row["who"], row["action"], row["detail"]) == ("admin", "vote cast", "left")


def test_sides_are_drawn_at_random_and_everybody_sees_every_pair_once(
    app: FastAPI, client: TestClient, run: Path
) -> None:
    first_sides: Counter[str] = Counter()
    for name in [f"voter {n}" for n in range(12)]:
        token = new_token(app.state.console.store, name, "vote", "test")
        voter = partial(client.post, headers={"Authorization": f"Bearer {token}"})
        seen = set()
        for _ in range(3):
            pair = voter("/api/v1/votes/draw", json={"runs": ["secret-name"]}).json()
            seen.add(pair["question"])
            first_sides[pair["left"].split()[0]] += 1
            assert voter(f"/api/v1/votes/{pair['id']}/choice", json={"choice": "tie"}).status_code == 200
        assert len(seen) == 3
        left = voter("/api/v1/votes/draw", json={"runs": ["secret-name"]})
        assert (left.status_code, "every pair" in left.text) == (404, True)
    assert min(first_sides["sft"], first_sides["other"]) > 5, first_sides  # 36 throws of a coin
    assert client.get("/api/v1/votes/figures").json()["votes"] == 36


def test_nobody_sees_or_votes_on_somebody_elses_open_pair(
    app: FastAPI, client: TestClient, run: Path, tokens: dict[str, str]
) -> None:
    pair = draw(client)
    with TestClient(app, headers={"Authorization": f"Bearer {tokens['vote']}"}) as other:
        assert other.get(f"/votes/{pair['id']}").status_code == 404
        assert other.get(f"/api/v1/votes/{pair['id']}/pictures/0").status_code == 404
        assert other.post(f"/api/v1/votes/{pair['id']}/choice", json={"choice": "tie"}).status_code == 404
        assert draw(other)["id"] != pair["id"]


def test_the_teacher_is_a_side_and_a_newer_answer_replaces_an_older_one(
    client: TestClient, run: Path, picture: str
) -> None:
    scores = [{"expert": "perception", "version": 4, "status": "ok", "value": 9.0}]
    one = {"teacher": "the teacher's", "teacher_scores": scores}
    lines = [answer("sft", "p0", "older", picture, **one), answer("sft", "p0", "newer", picture, **one), "{torn"]
    (run / "samples.jsonl").write_text("".join(lines))
    pair = draw(client)
    assert {pair["left"], pair["right"]} == {"newer", "the teacher's"}
    told = client.post(f"/api/v1/votes/{pair['id']}/choice", json={"choice": "bad"}).json()
    teacher = next(told[side] for side in ("left", "right") if told[side]["name"] == "teacher")
    assert (teacher["version"], teacher["scores"][0]["value"]) == (None, 9.0)
    assert client.post("/api/v1/votes/draw", json={"runs": ["secret-name"]}).status_code == 404
    assert client.post("/api/v1/votes/draw", json={"runs": ["nothing"]}).status_code == 404


def test_two_responses_of_one_rollout_are_voted_on_for_the_experts_alone(
    client: TestClient, run: Path, picture: str
) -> None:
    log = RolloutLog(run, "align", RolloutLogConfig(groups=9), lambda ids: "t", lambda _: None)
    one = group("g", picture, sample(1, 2, 2, text="one"), sample(0, 1, 3, text="two"))
    log.step(12, [one], version=5, attempt=1, advantages=[1.0, -1.0], views={})
    pair = draw(client, "rollouts")
    better = "left" if pair["left"] == "one" else "right"
    client.post(f"/api/v1/votes/{pair['id']}/choice", json={"choice": better})
    figures = client.get("/api/v1/votes/figures?run=secret-name").json()
    assert figures["strengths"] == []
    assert {(a["expert"], a["agrees"], a["pairs"]) for a in figures["agreements"]} == {
        ("perception", 1, 1),
        ("reasoning", 0, 1),
    }


def test_votes_are_cast_from_the_page_and_lead_to_the_next_pair(client: TestClient, run: Path) -> None:
    answered = client.post("/votes/draw", data={"run": ["secret-name"]})
    number = 0
    for _ in range(3):
        number = int(re.findall(r"/votes/(\d+)", str(answered.url))[0])
        answered = client.post(f"/votes/{number}", data={"choice": "right", "run": ["secret-name"]})
    assert "voted on every pair" in answered.text
    assert 'id="strengths"' in answered.text
    assert "perception" in answered.text
    assert client.post(f"/votes/{number}", data={"choice": "right"}).status_code == 409
    assert client.post(f"/votes/{number}", data={"choice": "best"}).status_code == 422


def test_votes_are_a_reference_that_calibrate_reads(client: TestClient, run: Path, tmp_path: Path) -> None:
    pair = draw(client)
    client.post(f"/api/v1/votes/{pair['id']}/choice", json={"choice": "right"})
    tied = draw(client)
    client.post(f"/api/v1/votes/{tied['id']}/choice", json={"choice": "tie"})
    file = tmp_path / "votes.jsonl"
    file.write_text(client.get("/api/v1/votes/reference").text)
    [line] = [json.loads(line) for line in file.read_text().splitlines()]
    assert (line["teacher"], line["policy"], line["who"]) == (pair["right"], pair["left"], "admin")
    assert line["images"][0].startswith("data:image/png;base64,")
    row = reference_row(Row(0, 1, file.read_bytes()), tmp_path)
    assert row.item.responses == [pair["right"], pair["left"]]
    for blob in run.glob("blobs/*/*"):
        blob.unlink()
    assert client.get("/api/v1/votes/reference").text == ""


def vote(left: str, right: str, choice: str, prompt: int, scores: tuple[float | None, float | None] = (1, 1)) -> Vote:
    sides = []
    for name, value in ((left, scores[0]), (right, scores[1])):
        score = {"expert": "perception", "version": 1, "status": "ok" if value is not None else "error", "value": value}
        sides.append({"name": name, "version": 1, "text": f"{name} {prompt}", "judge": "run", "scores": [score]})
    pair = " ".join(sorted((left, right))) + str(prompt)
    return Vote(left=sides[0], right=sides[1], choice=choice, prompt=str(prompt), pair=pair)


def test_strengths_are_bradley_terrys() -> None:
    """Of two contestants it is the log-odds, here of 3 to 1 with ties as half, drawn in by the prior a little."""
    votes = [vote("a", "b", "left", n) for n in range(24)] + [vote("b", "a", "left", 24 + n) for n in range(4)]
    votes += [vote("a", "b", choice, 30 + n) for n, choice in enumerate(["tie", "bad"] * 4)]
    a, b = strengths(votes)
    assert (a.name, a.wins, a.losses, a.ties, a.bad, b.wins) == ("a", 24, 4, 4, 4, 4)
    assert a.strength - b.strength == pytest.approx(1.2528, abs=0.03)  # log(28 / 8)
    assert a.low < a.strength < a.high
    assert a.low > 0 > b.high
    assert a.strength == pytest.approx(-b.strength)


def test_who_never_lost_is_not_certain_and_what_nothing_links_is_not_compared() -> None:
    votes = [vote("a", "b", "left", n) for n in range(3)] + [vote("c", "d", "right", n) for n in range(3)]
    found = {one.name: one for one in strengths(votes)}
    assert found["a"].group == found["b"].group != found["c"].group
    assert 0 < found["a"].strength < 10
    assert found["a"].low < 0 < found["a"].high  # three votes show little
    assert strengths([]) == []
    assert strengths([vote("a", "a", "left", 1)]) == []


def test_an_expert_agrees_where_it_orders_a_pair_as_most_people_did() -> None:
    votes = [vote("a", "b", "left", n, (2, 1)) for n in range(8)]
    votes += [vote("b", "a", "right", 0, (1, 2)), vote("a", "b", "right", 0, (2, 1))]  # two for a, one against
    votes += [vote("a", "b", "right", 20, (2, 1))]  # it differs
    votes += [
        vote("a", "b", "tie", 21, (2, 1)),
        vote("a", "b", "left", 22, (1, 1)),
        vote("a", "b", "left", 23, (None, 1)),
    ]
    other = vote("a", "b", "left", 24, (2, 1))
    other.right["scores"][0]["version"] = 2
    [one] = agreements([*votes, other])
    assert (one.agrees, one.pairs, one.undecided, one.level, one.unscored) == (8, 9, 1, 1, 2)
    assert one.share == pytest.approx(8 / 9)
    assert one.low
    assert one.high
    assert one.low < 8 / 9 < one.high < 1
    [alone] = agreements([vote("a", "b", "tie", 1)])
    assert (alone.share, alone.low, alone.pairs) == (None, None, 0)


def test_the_migration_keeps_tokens_and_open_sessions(store: Store) -> None:
    token = new_token(store, "mine", "operate", "test")
    opened = sign_in(store, token, 1)
    assert opened
    voter = sign_in(store, new_token(store, "voter", "vote", "test"), 1)
    assert voter
    downgrade(store, "0001")
    with store.engine.connect() as connection:
        assert MigrationContext.configure(connection).get_current_revision() == "0001"
        scopes = connection.execute(text("SELECT name, scope FROM tokens ORDER BY id")).all()
    assert [tuple(row) for row in scopes] == [("mine", "operate"), ("voter", "view")]
    with pytest.raises(IntegrityError):
        new_token(store, "too early", "vote", "test")
    upgrade(store)
    with pytest.raises(IntegrityError), store.engine.begin() as connection:
        connection.execute(text("UPDATE tokens SET scope = 'root'"))
    found = of_cookie(store, opened[0])
    assert found
    assert found.scope == "operate"
    assert new_token(store, "another", "vote", "test")
