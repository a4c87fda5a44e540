"""What a raw score means by a reference, and for how long."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from expert_app import GOOD, OTHER, ask, manifest, score, serving

from prism.services.experts.calibration import FILE, Calibration, leads, sigmoid
from prism.services.experts.settings import ExpertSettings
from prism.wire.experts import CalibrationRequest, Reference

REFERENCE = Reference(name="teacher.jsonl", sha256="a" * 64)


def made(*prompts: tuple[Sequence[float], Sequence[float]]) -> Calibration:
    """Of teacher's and policy's scores, prompt by prompt."""
    scores: list[Any] = [{"teacher": list(teacher), "policy": list(policy)} for teacher, policy in prompts]
    return Calibration(CalibrationRequest(reference=REFERENCE, version=0, attempt=0, prompts=scores))


def judged(calibration: Calibration) -> tuple[float, float]:
    state = calibration.state(current=True)
    return state.accuracy, state.log_loss


def test_a_percentile_is_the_share_of_leads_below_with_ties_counted_half() -> None:
    # The teacher's leads are 1, 2, 2, 3; the policy's, over the mean of the teacher's, -1 and -3, -1 (around 2), -3.
    calibration = made(([1], [0]), ([7, 7], [4, 6]), ([-2], [-5]))
    assert [calibration.percentile(lead).teacher for lead in (0.9, 1, 2, 2.5, 3, 9)] == [0, 12.5, 50, 75, 87.5, 100]
    assert [calibration.percentile(lead).policy for lead in (-4, -3, -2, -1, 0)] == [0, 25, 50, 75, 100]


def prompts_apart(rng: np.random.Generator, count: int, between: float) -> list[tuple[list[float], list[float]]]:
    """A teacher's and a policy's score to each prompt, 2 apart on average, each with noise; what both have in common
    differs ``between`` prompts."""
    common = rng.normal(0, between, count)
    teacher, policy = rng.normal(1, 1, count) + common, rng.normal(-1, 1, count) + common
    return [([t], [p]) for t, p in zip(teacher.tolist(), policy.tolist(), strict=True)]


@pytest.mark.parametrize("between", [0, 8, 100])
def test_what_the_scores_of_a_prompt_have_in_common_is_no_matter(between: float) -> None:
    calibration = made(*prompts_apart(np.random.default_rng(0), 3000, between))
    # Leads are ±2 with variance 2: the true log-odds are (mean difference) / variance * lead.
    for lead in (-3, -1, 0, 0.5, 2, 4):
        assert calibration.probability(lead) == pytest.approx(sigmoid(4 / 2 * lead), abs=0.02)
    accuracy, log_loss = judged(calibration)
    assert accuracy == pytest.approx(0.921, abs=0.015)  # Φ(2 / √2)
    assert log_loss == pytest.approx(0.2, abs=0.03)


def test_accuracy_is_of_prompts_that_the_fit_has_not_seen() -> None:
    """Noise teaches a fit of few prompts something about them, and nothing about others."""
    rng = np.random.default_rng(3)
    found = [judged(made(*[([t], [p]) for t, p in rng.normal(0, 1, (4, 2)).tolist()])) for _ in range(60)]
    accuracies, losses = zip(*found, strict=True)
    assert np.mean(accuracies) < 0.5 + 0.02
    assert np.mean(losses) > math.log(2)


def test_both_sides_of_every_prompt_weigh_the_same() -> None:
    one_each = prompts_apart(np.random.default_rng(1), 400, 3)
    rollouts = [(teacher, policy * 16) for teacher, policy in one_each]
    for lead in (-1, 0, 2):
        assert made(*rollouts).probability(lead) == pytest.approx(made(*one_each).probability(lead), abs=0.02)
    assert judged(made(*rollouts)) == pytest.approx(judged(made(*one_each)), abs=0.02)
    # One prompt with a thousand rollouts that fool the expert does not outvote the others.
    fooled = [*one_each, ([0.0], [5.0] * 1000)]
    assert judged(made(*fooled))[0] == pytest.approx(judged(made(*one_each))[0], abs=0.01)


@pytest.mark.parametrize("scale", [1e-6, 1, 1e5])
def test_a_teacher_who_always_leads_stays_short_of_certainty_whatever_the_scale(scale: float) -> None:
    def always(scale: float) -> Calibration:
        return made(*[([2 * scale, 3 * scale], [-2 * scale, -3 * scale])] * 20)

    assert 0.9 < always(scale).probability(5 * scale) < 1
    assert always(scale).probability(5 * scale) == pytest.approx(always(1).probability(5))
    assert judged(always(scale))[0] == 1


def test_scores_that_are_all_the_same_say_nothing() -> None:
    calibration = made(([1.5] * 5, [1.5] * 3), ([7], [7]))
    assert calibration.probability(0) == calibration.probability(3) == 0.5
    assert calibration.percentile(0).teacher == 50
    assert judged(calibration) == (0.5, pytest.approx(math.log(2)))


def test_a_lead_is_over_the_other_responses_to_the_prompt() -> None:
    assert leads([4.0, 1.0, 1.0]) == [3.0, -1.5, -1.5]
    assert leads([4.0, 1.0]) == [3.0, -3.0]
    assert (leads([4.0]), leads([])) == (None, None)


@pytest.mark.parametrize("value", [-3e38, -1e6, 1e6, 3e38])
def test_no_score_is_too_extreme(value: float) -> None:
    assert made(([1], [-1]), ([2], [0])).probability(value) == (1 if value > 0 else 0)
    assert sigmoid(value) == (1 if value > 0 else 0)
    assert sigmoid(0.3) == pytest.approx(1 / (1 + math.exp(-0.3)))


def reference_scores(version: int = 0, attempt: int = 0, **more: Any) -> dict[str, Any]:
    prompts = [{"teacher": [0.01 * i], "policy": [0.02 * i - 0.5, 0.01 * i - 0.5]} for i in range(60)]
    return {"reference": REFERENCE.model_dump(), "version": version, "attempt": attempt, "prompts": prompts} | more


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
        before = await score(client, GOOD, "x", OTHER)
        state = await calibrate(client)
        assert state == (await model(client))["calibration"]
        assert state.items() >= {"prompts": 60, "teacher": 60, "policy": 120, "section": "own", "current": True}.items()
        assert state["reference"]["name"] == "teacher.jsonl"
        good, bad, other = await score(client, GOOD, "x", OTHER)
        expected = made(*[(prompt["teacher"], prompt["policy"]) for prompt in reference_scores()["prompts"]])
        assert [good["score"], other["score"]] == [before[0]["score"], before[2]["score"]]
        lead = good["score"] - other["score"]
        assert good["probability"] == pytest.approx(expected.probability(lead))
        assert good["percentile"] == expected.percentile(lead).model_dump()
        assert other["probability"] == pytest.approx(1 - good["probability"])
        assert (bad["percentile"], bad["probability"]) == (None, None)
        (alone,) = await score(client, GOOD)
        assert (alone["percentile"], alone["probability"]) == (None, None), "there is nothing to set it beside"
        compared = (await client.post("/v1/compare", json={"prompt": "Sum?", "first": GOOD, "second": OTHER})).json()
        assert compared["first"]["probability"] == good["probability"]
    async with serving(settings()) as client:
        assert (await score(client, GOOD, "x", OTHER)) == [good, bad, other]
        assert (await model(client))["calibration"] == state


async def test_it_holds_for_the_section_and_the_weights_it_was_made_for_alone(
    client: httpx.AsyncClient, pushed: Path
) -> None:
    async def meaning(**more: Any) -> bool:
        one, _ = await score(client, GOOD, OTHER, **more)
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
        {"prompts": []},
        {"prompts": [{"teacher": [1.0], "policy": [0.0]}]},
        {"prompts": [{"teacher": [1.0], "policy": []}] * 2},
        {"prompts": [{"teacher": [1.0], "policy": [1e300]}] * 2},
        {"prompts": [{"teacher": ["nan"], "policy": [1.0]}] * 2},
        {"teacher": [1.0, 2.0], "policy": [0.0, 1.0]},
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
        assert (await score(client, GOOD, OTHER))[0]["probability"] is None
        assert (await model(client))["calibration"] is None
    assert "cannot be used" in caplog.text


async def test_another_model_in_the_same_place_is_not_calibrated(
    settings: Callable[..., ExpertSettings], pushed: Path
) -> None:
    async with serving(settings()) as client:
        await calibrate(client)
    async with serving(settings(model=pushed / "perception" / "1")) as client:
        assert (await ask(client))["version"] == 0
        assert (await score(client, GOOD, OTHER))[0]["probability"] is None
