"""What a raw score means by a reference, and for how long."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from expert_app import GOOD, OTHER, ask, manifest, score, serving

from prism.services.experts.calibration import FILE, Calibration, sigmoid
from prism.services.experts.settings import ExpertSettings
from prism.wire.experts import CalibrationRequest, Reference

REFERENCE = Reference(name="teacher.jsonl", sha256="a" * 64)


def made(teacher: list[float], policy: list[float]) -> Calibration:
    return Calibration(CalibrationRequest(reference=REFERENCE, version=0, attempt=0, teacher=teacher, policy=policy))


def test_a_percentile_is_the_share_below_with_ties_counted_half() -> None:
    calibration = made([1, 2, 2, 3], [0, 0.5])
    assert [calibration.percentile(score).teacher for score in (0.9, 1, 2, 2.5, 3, 9)] == [0, 12.5, 50, 75, 87.5, 100]
    assert [calibration.percentile(score).policy for score in (-1, 0, 0.2, 0.5, 1)] == [0, 25, 50, 75, 100]


def test_a_probability_is_what_the_share_of_teachers_at_that_score_says() -> None:
    rng = np.random.default_rng(0)
    # Two normals with one spread: the true log-odds are (mean difference) / variance * (score - middle).
    teacher, policy = rng.normal(2, 1.5, 4000), rng.normal(-1, 1.5, 4000)
    calibration = made(teacher.tolist(), policy.tolist())
    for at in (-3, -1, 0.5, 2, 4):
        assert calibration.probability(at) == pytest.approx(sigmoid(3 / 1.5**2 * (at - 0.5)), abs=0.02)
    assert calibration.state(current=True).accuracy == pytest.approx(0.841, abs=0.02)  # of a gap of two spreads


def test_how_many_rollouts_there_are_to_a_demonstration_says_nothing_about_a_response() -> None:
    rng = np.random.default_rng(1)
    teacher, policy = rng.normal(1, 1, 500).tolist(), rng.normal(-1, 1, 8000).tolist()
    assert made(teacher, policy).probability(0) == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("scale", [1e-6, 1, 1e5])
def test_a_reference_without_overlap_stays_short_of_certainty_whatever_the_scale(scale: float) -> None:
    calibration = made([2 * scale, 3 * scale] * 20, [-2 * scale, -3 * scale] * 20)
    assert 0.9 < calibration.probability(2 * scale) < 1
    assert calibration.probability(2 * scale) == pytest.approx(made([2, 3] * 20, [-2, -3] * 20).probability(2))
    assert calibration.state(current=True).accuracy == 1


def test_scores_that_are_all_the_same_say_nothing() -> None:
    calibration = made([1.5] * 5, [1.5] * 3)
    assert calibration.probability(1.5) == pytest.approx(0.5)
    assert calibration.percentile(1.5).teacher == 50
    assert calibration.state(current=True).accuracy == 0.5


@pytest.mark.parametrize("value", [-3e38, -1e6, 1e6, 3e38])
def test_no_score_is_too_extreme(value: float) -> None:
    assert made([1, 2], [-1, 0]).probability(value) == (1 if value > 0 else 0)
    assert sigmoid(value) == (1 if value > 0 else 0)
    assert sigmoid(0.3) == pytest.approx(1 / (1 + math.exp(-0.3)))


def reference_scores(version: int = 0, attempt: int = 0, **more: Any) -> dict[str, Any]:
    scores = {"teacher": [0.01 * i for i in range(60)], "policy": [0.01 * i - 0.5 for i in range(60)]}
    return {"reference": REFERENCE.model_dump(), "version": version, "attempt": attempt} | scores | more


async def model(client: httpx.AsyncClient) -> dict[str, Any]:
    answer = await client.get("/v1/model")
    assert answer.status_code == 200, answer.text
    return answer.json()


async def calibrate(client: httpx.AsyncClient, **more: Any) -> dict[str, Any]:
    answer = await client.put("/v1/calibration", json=reference_scores(**more))
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_a_calibration_gives_scores_a_meaning_and_survives_a_restart(
    settings: Callable[..., ExpertSettings],
) -> None:
    async with serving(settings()) as client:
        assert (await model(client))["calibration"] is None
        before = await score(client, GOOD, "x")
        state = await calibrate(client)
        assert state == (await model(client))["calibration"]
        assert state.items() >= {"teacher": 60, "policy": 60, "section": "own", "current": True}.items()
        assert state["reference"]["name"] == "teacher.jsonl"
        good, bad = await score(client, GOOD, "x")
        expected = made(reference_scores()["teacher"], reference_scores()["policy"])
        assert good["score"] == before[0]["score"]
        assert good["probability"] == expected.probability(good["score"])
        assert good["percentile"] == expected.percentile(good["score"]).model_dump()
        assert (bad["percentile"], bad["probability"]) == (None, None)
        compared = (await client.post("/v1/compare", json={"prompt": "Sum?", "first": GOOD, "second": OTHER})).json()
        assert compared["first"]["probability"] == good["probability"]
    async with serving(settings()) as client:
        assert (await score(client, GOOD, "x")) == [good, bad]
        assert (await model(client))["calibration"] == state


async def test_it_holds_for_the_section_and_the_weights_it_was_made_for_alone(
    client: httpx.AsyncClient, pushed: Path
) -> None:
    async def meaning(**more: Any) -> bool:
        (one,) = await score(client, GOOD, **more)
        assert (one["probability"] is None) is (one["percentile"] is None)
        return one["probability"] is not None

    await calibrate(client, section="all")
    assert (await meaning(), await meaning(section="all")) == (False, True)
    await calibrate(client)
    assert (await meaning(), await meaning(section="all")) == (True, False)
    assert (await client.post("/weights", json=manifest(pushed, 1))).status_code == 200
    assert not await meaning()
    assert (await model(client))["calibration"]["current"] is False
    await calibrate(client, version=1, attempt=1)
    assert await meaning()
    assert (await client.post("/weights", json=manifest(pushed, 1, attempt=2))).status_code == 200
    assert not await meaning()


async def test_scores_of_other_weights_calibrate_nothing(client: httpx.AsyncClient) -> None:
    for version, attempt in ((1, 0), (0, 1)):
        refused = await client.put("/v1/calibration", json=reference_scores(version, attempt))
        assert refused.status_code == 409
        assert "score the reference again" in refused.json()["detail"]
    assert (await model(client))["calibration"] is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"teacher": [1.0]},
        {"policy": []},
        {"teacher": [1.0, 1e300]},
        {"policy": [1.0, "nan"]},
        {"reference": {"name": "", "sha256": "a" * 64}},
        {"reference": {"name": "x", "sha256": "A" * 64}},
        {"bogus": 1},
    ],
)
async def test_a_reference_that_cannot_be_is_422(client: httpx.AsyncClient, wrong: dict[str, Any]) -> None:
    assert (await client.put("/v1/calibration", json=reference_scores(**wrong))).status_code == 422


async def test_a_reference_may_have_any_name(client: httpx.AsyncClient) -> None:
    content = json.dumps(reference_scores(reference={"name": "\ud800", "sha256": "a" * 64}))
    answer = await client.put("/v1/calibration", content=content, headers={"Content-Type": "application/json"})
    assert answer.json()["reference"]["name"] == "�"


@pytest.mark.parametrize("content", ["", "{}", "[" * 3])
async def test_a_damaged_file_means_no_calibration(
    settings: Callable[..., ExpertSettings], content: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(settings()) as client:
        await calibrate(client)
    (settings().state_dir / FILE).write_text(content)
    async with serving(settings()) as client:
        assert (await score(client))[0]["probability"] is None
        assert (await model(client))["calibration"] is None
    assert "cannot be used" in caplog.text


async def test_another_model_in_the_same_place_is_not_calibrated(
    settings: Callable[..., ExpertSettings], pushed: Path
) -> None:
    async with serving(settings()) as client:
        await calibrate(client)
    async with serving(settings(model=pushed / "perception" / "1")) as client:
        assert (await ask(client))["version"] == 0
        assert (await score(client))[0]["probability"] is None
