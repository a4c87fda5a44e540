"""Whether the experts look: planted ones that do and that do not, pairs that do not differ, and who cannot be asked."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from prism.clients.rollout import RolloutServices
from prism.config import AlignConfig, RunConfig, load_config
from prism.data.blobs import BlobStore
from prism.data.images import decode_image
from prism.errors import DataError, ServiceError
from prism.evaluation import looks as module
from prism.evaluation.looks import VIEWS, Looked, LookedPair, expert_figures, is_close, measure_looks, read_looked
from prism.trainer.stages.looks import Looks
from prism.wire.messages import image_sha256s
from prism.wire.response import EXPERTS, Expert, parse_response
from prism.wire.v1 import rollout_pb2 as pb

COUNT = 8
VERSION, EXPERT_VERSION = 3, 7


class Planted:
    """Experts and a policy. ``looking`` experts prefer the teacher's text beside its own picture alone."""

    def __init__(self) -> None:
        self.looking: set[str] = set(EXPERTS)
        self.versions: dict[str, int] = {"policy": VERSION} | dict.fromkeys(EXPERTS, EXPERT_VERSION)
        self.answers: dict[str, str] = {}
        """The policy's by the prompt's id; else a caption of its own before the teacher's reasoning."""
        self.failing: set[str] = set()
        """Prompts at which the policy's server fails."""
        self.sections: dict[tuple[tuple[str, ...], Expert], str] = {}
        """What the teacher says of which pictures."""

    async def rollout(self, _: RolloutServices, request: pb.RolloutRequest, worker: str) -> pb.RolloutGroup:
        prompt = request.prompt
        assert (request.sampling.n, request.min_policy_version, list(request.experts)) == (1, VERSION, [])
        if prompt.id in self.failing:
            raise DataError("no picture")
        reasoning = parse_response(prompt.teacher).section("reasoning")
        text = self.answers.get(prompt.id, f"<caption>- a nothing</caption>{reasoning}")
        sample = pb.Sample(text=text, finish_reason="stop", token_ids=[1])
        return pb.RolloutGroup(request=request, policy_version=self.versions["policy"], samples=[sample])

    def client(self, *_: Any) -> Any:
        async def score(expert: Expert, messages: Any, texts: list[str], min_version: int) -> list[pb.Score]:
            assert min_version == EXPERT_VERSION
            teacher, own = (parse_response(text).section(expert) for text in texts)
            right = self.sections.get((tuple(image_sha256s(messages)), expert)) == teacher
            leads = teacher != own and (right or expert not in self.looking)
            version = self.versions[expert]
            return [
                pb.Score(expert=expert, expert_version=version, status=pb.STATUS_OK, value=value)
                for value in (float(leads), 0.0)
            ]

        return SimpleNamespace(score=score)


@pytest.fixture
def config(demo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    for name in ("REDIS", "POLICY", "PERCEPTION", "REASONING", "GRADER"):
        monkeypatch.setenv(f"PRISM_{name}_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("PRISM_TOKEN", "t" * 16)
    monkeypatch.setenv("PRISM_BLOBS", str(tmp_path / "blobs"))
    data = demo_folder / "data" / "teacher.jsonl"
    return load_config(Path("configs/demo.toml"), [f"runs_dir={tmp_path}", f'evaluate.data="{data}"'])


@pytest.fixture
def looked(config: RunConfig) -> list[Looked]:
    return read_looked(config, COUNT)


@pytest.fixture
def planted(looked: list[Looked], monkeypatch: pytest.MonkeyPatch) -> Planted:
    made = Planted()
    made.sections = {
        (tuple(image_sha256s(one.views["right"])), expert): parse_response(one.prompt.teacher).section(expert)
        for one in looked
        for expert in EXPERTS
    }
    monkeypatch.setattr(RolloutServices, "rollout", lambda *arguments: made.rollout(*arguments))
    monkeypatch.setattr(module, "ExpertClient", made.client)
    return made


def stage_of(config: RunConfig) -> AlignConfig:
    stage = config.stages["align"]
    assert isinstance(stage, AlignConfig)
    return stage


def measured(config: RunConfig, looked: list[Looked]) -> dict[str, Any]:
    return measure_looks(config, stage_of(config), looked, VERSION, EXPERT_VERSION)


def test_each_prompt_is_asked_with_its_picture_with_anothers_and_with_a_grey_one(
    config: RunConfig, looked: list[Looked], tmp_path: Path
) -> None:
    blobs = BlobStore(str(tmp_path / "blobs"))
    assert len(looked) == COUNT
    own = {one.prompt.id: image_sha256s(one.prompt.messages) for one in looked}
    for one in looked:
        right, shuffled, blank = (image_sha256s(one.views[view]) for view in VIEWS)
        assert right == own[one.prompt.id]
        assert shuffled in own.values()
        assert shuffled != right
        grey, picture = (decode_image(blobs.get(sha256)) for sha256 in (*blank, *right))
        assert grey.size == picture.size
        assert grey.getcolors() == [(grey.width * grey.height, (128, 128, 128))]
        for view in VIEWS:
            texts = [[part.text for part in message.parts] for message in one.views[view]]
            assert texts == [[part.text for part in message.parts] for message in one.prompt.messages]


def test_an_expert_that_looks_is_told_from_one_that_does_not(
    config: RunConfig, looked: list[Looked], planted: Planted
) -> None:
    """The policy errs in its caption alone: reasoning sections are ties, which nobody can tell apart."""
    made = measured(config, looked)
    assert {name: made[f"looks_{name}"] for name in ("asked", "unasked", "malformed")} == {
        "asked": COUNT,
        "unasked": 0,
        "malformed": 0,
    }
    assert (made["looks_policy_version"], made["looks_expert_version"]) == (VERSION, EXPERT_VERSION)
    perception = {name.removeprefix("perception_looks_"): value for name, value in made.items() if "perception" in name}
    assert [perception[name] for name in ("pairs", "tie_share", *VIEWS, "close")] == [COUNT, 0.0, 1.0, 0.5, 0.5, 0]
    assert [made[f"reasoning_looks_{name}"] for name in ("pairs", "tie_share", *VIEWS, "close")] == [
        0, 1.0, None, None, None, None,
    ]  # fmt: skip
    planted.looking.clear()
    made = measured(config, looked)
    assert [made[f"perception_looks_{name}"] for name in (*VIEWS, "close")] == [1.0, 1.0, 1.0, 1]


def test_what_was_not_sampled_or_not_scored_is_in_no_share(
    config: RunConfig, looked: list[Looked], planted: Planted
) -> None:
    failing, broken, same, *_ = (one.prompt for one in looked)
    planted.failing = {failing.id}
    planted.answers = {broken.id: "no sections", same.id: same.teacher}
    made = measured(config, looked)
    assert (made["looks_unasked"], made["looks_malformed"]) == (1, 1)
    assert made["perception_looks_pairs"] == COUNT - 3
    assert made["perception_looks_tie_share"] == pytest.approx(1 / (COUNT - 2))
    unscored = LookedPair({expert: {"right": 1.0, "shuffled": None, "blank": 0.0} for expert in EXPERTS})
    assert expert_figures("perception", [unscored])["right"] is None


@pytest.mark.parametrize("who", ["policy", "reasoning"])
def test_other_versions_give_no_figure(config: RunConfig, looked: list[Looked], planted: Planted, who: str) -> None:
    planted.versions[who] += 1
    with pytest.raises(ServiceError, match=rf"the {who}.* answered with version \d, not \d"):
        measured(config, looked)


def figures_of(right: float, shuffled: float, pairs: int = 60) -> dict[str, Any]:
    def gaps(share: float) -> list[float]:
        return [1.0 if number < share * pairs else -1.0 for number in range(pairs)]

    by_view = zip(gaps(right), gaps(shuffled), strict=True)
    made = [LookedPair({expert: {"right": r, "shuffled": s, "blank": s} for expert in EXPERTS}) for r, s in by_view]
    return expert_figures("perception", made)


@pytest.mark.parametrize(
    ("right", "shuffled", "close"),
    [(0.99, 0.935, 1), (0.85, 0.6, 0), (0.85, 0.7, 1), (0.55, 0.55, 0), (1.0, 1.0, 1), (0.2, 0.2, 0)],
)
def test_close_means_that_most_of_a_lead_needs_no_picture(right: float, shuffled: float, close: int) -> None:
    assert figures_of(right, shuffled)["close"] == close
    assert not is_close({"right": None, "right_stderr": None, "shuffled": None})


def test_a_share_has_a_standard_error_that_is_never_none_at_all() -> None:
    made = figures_of(0.5, 1.0)
    assert made["right_stderr"] == pytest.approx(math.sqrt(0.25 / 60))
    assert made["shuffled_stderr"] == pytest.approx(math.sqrt(61 * 1 / 62**2 / 60))
    equal = LookedPair({expert: dict.fromkeys(VIEWS, 0.0) for expert in EXPERTS})
    assert expert_figures("perception", [equal])["right"] == 0.5, "texts that differ, and one score: a coin"


def test_data_without_a_teacher_or_pictures_is_refused(config: RunConfig, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    evaluate = config.evaluate.model_copy(update={"data": str(file)})
    for teacher, problem in (
        (None, "holds no usable row"),
        ("no sections", "not in the response format"),
        ("<caption>a</caption><think>b</think><answer>1</answer>", "no two prompts with pictures that differ"),
    ):
        row = {"messages": [{"role": "user", "content": "?"}], "teacher": teacher, "gold": "1"}
        file.write_text("".join(json.dumps(row | {"id": name}) + "\n" for name in "ab"))
        with pytest.raises(DataError, match=problem):
            read_looked(config.model_copy(update={"evaluate": evaluate}), 8)


@pytest.fixture
def looks(config: RunConfig) -> Callable[..., Looks]:
    def make(**values: Any) -> Looks:
        settings = config.evaluate.looks.model_copy(update=values)
        evaluate = config.evaluate.model_copy(update={"looks": settings})
        said: list[str] = []
        changed = config.model_copy(update={"evaluate": evaluate})
        context: Any = SimpleNamespace(config=changed, say=lambda text, **_: said.append(text), said=said)
        return Looks(context, stage_of(config))

    return make


def test_it_is_measured_at_the_games_ends_and_every_so_often(looks: Callable[..., Looks], config: RunConfig) -> None:
    stage = stage_of(config)
    start, end = stage.warmup_steps, stage.warmup_steps + stage.steps

    def due(**values: Any) -> list[int]:
        return [step for step in range(1, end + 1) if looks(**values).is_due(step)]

    assert due() == [start, end]
    assert due(every=15) == [start, start + 15, start + 30, end]
    assert due(pairs=0) == []


def test_a_measurement_is_said_and_a_failure_ends_nothing(
    looks: Callable[..., Looks], config: RunConfig, planted: Planted
) -> None:
    planted.looking.clear()
    one, step = looks(pairs=COUNT), stage_of(config).warmup_steps
    made = one.measure(step, VERSION, EXPERT_VERSION)
    assert made["perception_looks_close"] == 1
    said: list[str] = one._context.said  # pyright: ignore[reportAttributeAccessIssue]
    assert said[0].startswith(
        f"after step {step} the perception expert tells 100% ± 11 of {COUNT} held-out pairs apart, 100% with another "
        "prompt's picture, 100% with a blank one: it hardly looks"
    )
    assert said[1].startswith(f"after step {step} no held-out pair differs for the reasoning expert")
    said.clear()
    planted.versions["policy"] += 1
    assert one.measure(step, VERSION, EXPERT_VERSION) == {}
    assert f"was not measured after step {step}: the policy answered with version" in said[0]
    assert one.measure(step - 1, VERSION, EXPERT_VERSION) == {}
