"""What an expert is shown of prompt and response: the same in learning and in scoring, whatever a run takes away."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from expert_app import ask, item, png, serving, uri

from prism.config import ExpertLearnerConfig
from prism.data.blobs import BlobStore
from prism.data.images import decode_image
from prism.model.expert import load_expert
from prism.model.inputs import InputBuilder
from prism.services.experts.settings import ExpertSettings
from prism.trainer.learn.expert_learner import ExpertLearner
from prism.wire.messages import image_sha256s, to_json
from prism.wire.response import EXPERTS, Expert, JudgedSection
from prism.wire.v1 import rollout_pb2 as pb

OWN = "<caption>- a zero</caption>\n<think>0 + 0 = 0</think> <answer>0</answer>"
MOST = "<caption>- a one\n- b two</caption><think>1+2=3</think><answer>3</answer>"


@pytest.mark.parametrize("pictures", [True, False], ids=["pictures", "text-only"])
@pytest.mark.parametrize("section", ["own", "whole"])
@pytest.mark.parametrize("expert", EXPERTS)
async def test_the_learners_scores_are_the_services(
    settings: Callable[..., ExpertSettings],
    tiny_model: Path,
    teacher_prompts: list[pb.Prompt],
    blobs: BlobStore,
    expert: Expert,
    section: JudgedSection,
    pictures: bool,
) -> None:
    prompt, inputs = teacher_prompts[0], InputBuilder(tiny_model)
    (sha256,) = image_sha256s(prompt.messages)
    example = inputs.prompt(prompt.messages, [decode_image(blobs.get(sha256))])
    config = ExpertLearnerConfig.model_validate(
        {"optimizer": {"lr": 1e-3}, "dropout": 0.0, "section": section, "pictures": pictures}
    )
    learner = ExpertLearner(expert, load_expert(tiny_model, seed=0), config, 1)
    group = pb.RolloutGroup(request=pb.RolloutRequest(prompt=prompt), samples=[pb.Sample(text=OWN)])
    learnt = learner.update([group], [example], inputs)

    messages = [message.model_dump(mode="json") for message in to_json(prompt.messages)]
    asked = {"messages": messages, "responses": [prompt.teacher, OWN]}
    made = settings(expert=expert, expert_section=section, expert_pictures=pictures, seed=0)
    async with serving(made) as client:
        scored = (await ask(client, asked))["items"][0]["scores"]
        info = (await client.get("/v1/model")).json()
    assert [score["score"] for score in scored] == pytest.approx(
        [learnt[f"{expert}_teacher_score"], learnt[f"{expert}_student_score"]], abs=1e-5
    )
    assert {score["section"] for score in scored} == {"all" if section == "whole" else expert}
    assert (info["pictures"], info["section"]) == (pictures, section)


@pytest.mark.parametrize("pictures", [True, False], ids=["pictures", "text-only"])
async def test_an_expert_without_pictures_is_never_shown_one(
    settings: Callable[..., ExpertSettings], pictures: bool
) -> None:
    sent = [uri(png()), uri(png(96, 64)), "sha256:" + "0" * 64]
    async with serving(settings(expert_pictures=pictures)) as client:
        answer = await ask(client, *(item(MOST, image=image) for image in sent))
    (one,), (other,), (missing,) = (each["scores"] for each in answer["items"])
    assert missing["status"] == ("error" if pictures else "ok"), "a picture that is not shown is not looked for"
    assert (one["score"] == other["score"]) is not pictures
    assert pictures or one["score"] == missing["score"]


async def test_both_experts_are_shown_the_same_whole_response(settings: Callable[..., ExpertSettings]) -> None:
    """Format still counts, white space between sections tells nothing, and a lie in either section is seen."""
    loose = MOST.replace("><", ">\n<")
    texts = [MOST, loose, MOST.replace("one", "two"), MOST.replace("1+2", "2+1"), "no sections"]
    found: dict[str, list[Any]] = {}
    for expert in EXPERTS:
        async with serving(settings(expert=expert, expert_section="whole")) as client:
            found[expert] = (await ask(client, item(*texts)))["items"][0]["scores"]
    scores = [[score["score"] for score in found[expert]] for expert in EXPERTS]
    assert scores[0] == scores[1]
    plain, spaced, caption, steps, broken = scores[0]
    assert plain == spaced
    assert len({plain, caption, steps}) == 3
    assert (broken, found["perception"][-1]["status"]) == (None, "invalid_format")


async def test_a_calibration_is_of_one_way_of_judging(settings: Callable[..., ExpertSettings]) -> None:
    def current(info: dict[str, Any]) -> bool:
        return bool(info["calibration"] and info["calibration"]["current"])

    prompts = [{"teacher": [1.0], "policy": [0.0]}, {"teacher": [2.0], "policy": [0.5]}]
    request = {"reference": {"name": "it", "sha256": "0" * 64}, "version": 0, "attempt": 0, "prompts": prompts}
    async with serving(settings()) as client:
        assert (await client.put("/v1/calibration", json=request)).status_code == 200
    for values, kept in (({}, True), ({"expert_pictures": False}, False), ({"expert_section": "whole"}, False)):
        async with serving(settings(**values)) as client:
            assert current((await client.get("/v1/model")).json()) is kept, values
