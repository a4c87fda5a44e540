"""The single-process loop at toy size: the platform's learners really learn in it, and its jobs run from end to end."""

import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.effect.__main__ import work_of
from bench.effect.gates import with_others_pictures
from bench.effect.jobs import Jobs, Work
from bench.effect.loop.game import Game, game_of, told_apart
from bench.effect.loop.measure import Measured
from bench.effect.loop.reinforce import pool
from bench.effect.loop.sampling import Sampler, score, shown_to, verdict
from bench.effect.loop.setting import Prompts, Setting
from bench.effect.nodes import Node
from bench.effect.results import read_results
from configs.effect.plan import FILE, SPLITS, load_plan
from configs.effect.prepare import prepare
from prism.files import read_jsonl
from prism.model.control import vision_tokens
from prism.model.inputs import Example, InputBuilder
from prism.model.packing import pack
from prism.trainer.learn.policy_model import load_policy, response_tokens
from prism.wire.v1 import rollout_pb2 as pb

PLAIN = 'align-plain = { stage = "align", teacher = "sampled", without = ["experts.mixture", "experts.grounding"] }'
CHAIN = ("sft", "teach-early", "align-plain", "rlvr")
FEW = {
    "questions = 8": "questions = 6",
    "pretrain_images = 24": "pretrain_images = 12",
    "sft_rows = 24": "sft_rows = 8",
}


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    """The plan's toy, with fewer texts, and experts that start without commands of their own."""
    root = tmp_path_factory.mktemp("effect")
    text = FILE.read_text().replace("[32, 100, 400]", "[4, 8, 12]").replace("[100]", "[8]")
    text = re.sub(r"^texts = 100$", "texts = 8", text, flags=re.M).replace("seeds = [0, 1, 2, 3, 4]", "seeds = [0]")
    text = text.replace("tuning_seeds = [8]", "tuning_seeds = [100]").replace("[steps]", f"[steps]\n{PLAIN}")
    for before, after in FEW.items():
        text = text.replace(before, after)
    (root / "plan.toml").write_text(text)
    plan = load_plan(root / "plan.toml")
    prepare(root, plan, "toy")
    return Setting(plan, "toy", root)


@pytest.fixture(scope="module")
def inputs(setting: Setting) -> InputBuilder:
    return InputBuilder(setting.root / "model")


@pytest.fixture
def sampler(setting: Setting, inputs: InputBuilder) -> Sampler:
    return Sampler(setting.root / "model", inputs, torch.float32, "cpu", 8)


def said(inputs: InputBuilder, model: Any, prompt: Example, text: str) -> pb.Sample:
    """As if the model had sampled the text."""
    example, never = inputs.with_text(prompt, text), vision_tokens(model.config)
    with torch.no_grad():
        logprobs = response_tokens(model, pack([example], inputs), 1.0, never).logprobs.tolist()
    return pb.Sample(text=text, token_ids=example.response_ids, logprobs=logprobs, finish_reason="stop")


Texts = Callable[[Prompts, int, int], str]
"""By prompts, place, and number among the samples."""
Script = Callable[[Sequence[Prompts], Texts], None]


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch, setting: Setting) -> Script:
    """What is sampled is what the script says."""

    def script(known: Sequence[Prompts], texts: Texts) -> None:
        model, made = load_policy(setting.root / "model", dtype=torch.float32), dict[tuple[int, str], pb.Sample]()

        def sample(self: Sampler, asked: Sequence[Example], n: int, **_: object) -> list[list[pb.Sample]]:
            of = {id(p.prompt(i)): (p, i) for p in known for i in range(len(p))}

            def one_of(prompt: Example, number: int) -> pb.Sample:
                key = id(prompt), texts(*of[id(prompt)], number)
                if key not in made:
                    made[key] = said(self._inputs, model, prompt, key[1])
                return made[key]

            return [[one_of(prompt, number) for number in range(n)] for prompt in asked]

        monkeypatch.setattr(Sampler, "sample", sample)

    return script


def test_what_is_sampled_has_the_learners_own_logprobs(
    setting: Setting, inputs: InputBuilder, sampler: Sampler
) -> None:
    """Prompts of unlike length and pictures of unlike size in one batch, padded on the left."""
    prompts = [Prompts(setting.data(f"test-{split}.jsonl"), inputs).prompt(3) for split in ("inside", "grid4")]
    assert len({len(prompt.input_ids) for prompt in prompts}) == 2
    model = load_policy(setting.root / "model", dtype=torch.float32).eval()
    for n, temperature in ((3, 1.0), (1, 0.0)):
        groups = sampler.sample(prompts, n, max_tokens=12, temperature=temperature, seed=1)
        assert [len(group) for group in groups] == [n, n]
        for prompt, group in zip(prompts, groups, strict=True):
            examples = [inputs.with_ids(prompt, sample.token_ids) for sample in group]
            with torch.no_grad():
                found = response_tokens(model, pack(examples, inputs), 1.0, sampler.never).logprobs.tolist()
            assert [p for sample in group for p in sample.logprobs] == pytest.approx(found, abs=1e-4)
            assert not {token for sample in group for token in sample.token_ids} & inputs.vision_token_ids
            assert len({tuple(sample.token_ids) for sample in group}) == n
    again = sampler.sample(prompts, 3, max_tokens=12, temperature=1.0, seed=1)
    assert again != sampler.sample(prompts, 3, max_tokens=12, temperature=1.0, seed=2)
    assert again == sampler.sample(prompts, 3, max_tokens=12, temperature=1.0, seed=1)


def test_verdicts_are_the_graders() -> None:
    answer = "<caption>- A: red 1</caption><think>1</think><answer>{}</answer>"
    assert verdict(answer.format("13"), "13", "number").reward == 1.0
    wrong = verdict(answer.format("12"), "13", "number")
    assert (wrong.accuracy, wrong.status) == (0.0, pb.STATUS_OK)
    assert verdict("13", "13", "number").status == pb.STATUS_INVALID_FORMAT


def new_game(setting: Setting, tmp_path: Path) -> Game:
    return game_of(setting, Node(("sft", "align-plain"), 0, 8), setting.root / "model", tmp_path)


def test_in_the_game_experts_and_policy_learn_and_the_sampler_follows(
    setting: Setting, tmp_path: Path, scripted: Script
) -> None:
    game = new_game(setting, tmp_path)
    # A prompt's first response is the teacher's own, the second is that of another prompt.
    scripted([game.prompts], lambda p, place, number: p.row((place + number) % len(p)).teacher or "")
    before = {name: weight.clone() for name, weight in game.policy.model.state_dict().items()}
    warm = game.play()
    assert warm["warmup"]
    assert "policy_loss" not in warm
    assert [expert.version for expert in game.experts] == [1, 1]
    assert game.policy.version == 0
    figures = game.play()
    assert (figures["policy_version"], figures["masked_samples"]) == (1, 0)
    assert figures["logprob_mismatch"] < 1e-4
    assert figures["perception_updated"] == figures["reasoning_updated"] == 1
    after = game.policy.model.state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    held = dict(game.sampler.model.named_parameters())
    assert all(torch.equal(held[name], weight) for name, weight in game.policy.model.named_parameters())
    assert [expert.version for expert in game.experts] == [2, 2]


def test_the_policy_learns_from_scores_given_before_the_experts_update(
    setting: Setting,
    tmp_path: Path,
    scripted: Script,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    game = new_game(setting, tmp_path)
    scripted([game.prompts], lambda p, place, number: p.row((place + number) % len(p)).teacher or "")
    order: list[str] = []
    for expert in game.experts:
        for owner, name in ((expert, "update"), (expert.model, "judge")):
            own = getattr(owner, name)

            def noted(*given: Any, _own: Any = own, _name: str = f"{expert.network} {name}", **named: Any) -> Any:
                order.append(_name)
                return _own(*given, **named)

            monkeypatch.setattr(owner, name, noted)
    game.step = game.stage.warmup_steps
    game.play()
    first = {name: order.index(name) for name in dict.fromkeys(order)}
    for expert in ("perception", "reasoning"):
        assert first[f"{expert} judge"] < first["perception update"]


def test_experts_are_asked_with_the_right_and_with_another_picture(
    setting: Setting, tmp_path: Path, inputs: InputBuilder
) -> None:
    game = new_game(setting, tmp_path)
    prompts = [game.prompts.prompt(place) for place in range(4)]
    others = with_others_pictures(prompts)
    for place, (own, other) in enumerate(zip(prompts, others, strict=True)):
        assert own.input_ids == other.input_ids
        assert other.pixel_values is prompts[place - 1].pixel_values
    texts = [game.prompts.row(place).teacher or "" for place in range(4)]
    expert = game.experts[0]
    right, wrong = (score(expert, "perception", texts, beside, inputs) for beside in (prompts, others))
    assert all(one != other for one, other in zip(right, wrong, strict=True))
    assert score(expert, "perception", ["no sections", texts[1]], prompts[:2], inputs) == [
        None,
        pytest.approx(right[1]),
    ]

    def group(place: int, text: str) -> pb.RolloutGroup:
        teacher = pb.Prompt(teacher=texts[place])
        return pb.RolloutGroup(request=pb.RolloutRequest(prompt=teacher), samples=[pb.Sample(text=text)])

    groups = [group(0, texts[1]), group(1, texts[1]), group(2, "no sections")]  # one pair, one tie, one malformed
    switched = score(expert, "perception", [texts[1]], prompts[:1], inputs)[0]
    assert right[0] is not None
    assert switched is not None
    assert told_apart(game, groups, prompts[:3])["perception"] == float(right[0] > switched)
    assert told_apart(game, groups[1:], prompts[1:3])["perception"] is None


def test_experts_are_shown_what_their_switches_leave(setting: Setting, tmp_path: Path, inputs: InputBuilder) -> None:
    game = new_game(setting, tmp_path)
    expert, prompt = game.experts[0], game.prompts.prompt(0)
    text = game.prompts.row(0).teacher or ""
    own = shown_to(expert, "perception", text, prompt, inputs)
    assert own is not None
    assert own.pixel_values is prompt.pixel_values
    assert inputs.tokenizer.decode(own.response_ids[:-1]) == text[: text.index("<think>")]
    expert.config = expert.config.model_copy(update={"pictures": False, "section": "whole"})
    whole = shown_to(expert, "perception", text, prompt, inputs)
    assert whole is not None
    assert whole.pixel_values is None
    assert inputs.tokenizer.decode(whole.response_ids[:-1]) == text


def test_rlvrs_prompts_are_those_that_are_passed_now_and_then(
    setting: Setting, inputs: InputBuilder, scripted: Script
) -> None:
    """Of 8 responses to a prompt, as many as its place says are right: 2 to 6 of 8 lie within 0.2 and 0.8."""
    prompts = Prompts(setting.data("candidates.jsonl"), inputs)

    def answered(of: Prompts, place: int, number: int) -> str:
        return f"<caption>x</caption><think>x</think><answer>{of.row(place).gold if number < place else 999}</answer>"

    scripted([prompts], answered)
    assert pool(setting, setting.root / "model", 77, prompts) == [2, 3, 4, 5, 6]
    scripted([prompts], lambda *_: "nothing")
    assert pool(setting, setting.root / "model", 77, prompts) == [2, 3, 4, 5, 6]  # chosen once for all arms


def test_what_is_measured_of_known_responses(setting: Setting, inputs: InputBuilder, scripted: Script) -> None:
    """The truth first, then an answer that is wrong under a right caption, then a right one without any."""
    measured = Measured(setting, setting.root / "model", setting.root / "model", 0)
    prompts = Prompts(setting.data("test-inside.jsonl"), measured.inputs)

    def answered(of: Prompts, place: int, number: int) -> str:
        truth = of.row(place).teacher or ""
        wrong = re.sub(r"<answer>.*</answer>", "<answer>999</answer>", truth)
        blind = f"<caption>x</caption><think>x</think><answer>{of.row(place).gold}</answer>"
        return [truth, wrong, blind, "nothing"][number]

    scripted([prompts], answered)
    for found in measured.split("inside", prompts):
        assert (found.greedy, found.f1) == (1, 1.0)
        assert (found.right, found.seen, found.seen_right, found.formed) == (2, 2, 1, 3)
        assert found.kl == pytest.approx(0, abs=1e-4)
        assert 0 < found.entropy < 7


def test_a_chain_of_all_stages_runs_and_leaves_results(setting: Setting, tmp_path: Path) -> None:
    """Trained for real; of five measurements, which are alike, the last is."""
    jobs = Jobs(setting.root, tmp_path, setting.plan, "toy", "data")
    last, real, trained = Node(CHAIN, 0, 8), work_of(setting, jobs), dict[str, Any]()

    def measure(node: Node, folder: Path, figures: dict[str, Any]) -> None:
        trained[node.name] = figures
        if node == last:
            real.measure(node, folder, figures)
        else:
            jobs.result(node).touch()

    assert jobs.work([last], Work(real.train, measure), time.time() + 200) == 5
    found = read_results(jobs.result(last))
    assert found.about.path == last.path
    assert {answer.split for answer in found.answers} == set(SPLITS)
    assert len(found.answers) == 5 * setting.size.questions
    assert (found.about.figures["steps"], found.about.figures["zero_variance_at_start"]) == (2, 1.0)
    taught = trained[Node(CHAIN[:2], 0, 8).name]
    assert taught["stopped_at"] <= taught["steps"] == 2
    assert taught["held_out_loss"] > 0
    lines = read_jsonl(setting.work(Node(CHAIN[:3], 0, 8)) / "metrics.jsonl")
    assert [line["warmup"] for line in lines] == [True, False, False]
