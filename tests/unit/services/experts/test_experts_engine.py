"""Shared-prefix scoring against the plain model, and the engine that batches for it."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from prism.errors import ServiceError, WeightsError
from prism.model.expert import ExpertModel, load_expert, save_expert, upcycle
from prism.model.inputs import Example, InputBuilder
from prism.model.packing import pack
from prism.services.experts.engine import Overloaded, ScoredGroups, ScoringEngine, ScoringGroup, Version
from prism.services.experts.scoring import Branches, PrefixScorer
from prism.wire.v1 import rollout_pb2 as pb
from prism.wire.weights import seal

TEXTS = ("- a one", "- a seven\n- a two", "<think>1 + 2 = 3</think>" * 4, "x")


@pytest.fixture(scope="module")
def inputs(tiny_model: Path) -> InputBuilder:
    return InputBuilder(tiny_model)


@pytest.fixture(scope="module", params=["dense", "mixture"])
def plain(request: pytest.FixtureRequest, tiny_model: Path) -> ExpertModel:
    """The model as transformers runs it."""
    return (load_expert if request.param == "dense" else upcycle)(tiny_model, seed=1).eval()


def twin(model: ExpertModel) -> ExpertModel:
    """The same weights for the engine, which sets another attention."""
    return deepcopy(model)


def picture(seed: int, size: tuple[int, int] = (64, 48)) -> Image.Image:
    pixels = torch.randint(0, 255, (size[1], size[0], 3), generator=torch.Generator().manual_seed(seed))
    return Image.fromarray(pixels.to(torch.uint8).numpy())


def prompt(inputs: InputBuilder, question: str, *images: Image.Image) -> Example:
    parts = [pb.Part(image_sha256="given") for _ in images]
    return inputs.prompt([pb.Message(role="user", parts=[*parts, pb.Part(text=question)])], images)


@pytest.fixture(scope="module")
def groups(inputs: InputBuilder) -> list[ScoringGroup]:
    """Three prompts: with one image, with none, with two images of which one is the first prompt's."""
    one, other = picture(1), picture(2, (96, 32))
    asked = [
        ("a", prompt(inputs, "What is in the first row?", one), ("one",)),
        ("b", prompt(inputs, "What is 1 + 2?"), ()),
        ("c", prompt(inputs, "Which is larger?", other, one), ("other", "one")),
    ]
    return [
        ScoringGroup(example, key, images, [[*inputs.text_ids(text), inputs.end_token_id] for text in TEXTS[: 4 - i]])
        for i, (key, example, images) in enumerate(asked)
    ]


def expected(model: ExpertModel, inputs: InputBuilder, groups: list[ScoringGroup]) -> list[list[float]]:
    """One sequence at a time: no padding, no sharing."""
    with torch.inference_mode():
        return [
            [model(pack([inputs.with_ids(group.prompt, ids)], inputs)).item() for ids in group.responses]
            for group in groups
        ]


def branches(group: ScoringGroup) -> Branches:
    return Branches(group.prompt, group.key, group.image_keys, [tuple(ids) for ids in group.responses])


def close(given: list[list[float]], wanted: list[list[float]]) -> bool:
    flat = zip([s for row in given for s in row], [s for row in wanted for s in row], strict=True)
    return all(abs(a - b) < 1e-5 for a, b in flat)


@pytest.fixture
def engine(inputs: InputBuilder, tiny_model: Path) -> Iterator[Callable[..., ScoringEngine]]:
    started: list[ScoringEngine] = []

    def start(model: ExpertModel, **options: Any) -> ScoringEngine:
        limits = {"device": "cpu", "max_batch_tokens": 4096, "max_queue": 8} | options
        started.append(ScoringEngine("perception", twin(model), inputs, **limits))
        return started[-1]

    yield start
    for each in started:
        each.close()


# ------------------------------------------------------------------------------------------------- the forward passes


def test_branches_of_a_shared_prompt_score_as_whole_sequences_do(
    plain: ExpertModel, inputs: InputBuilder, groups: list[ScoringGroup]
) -> None:
    scorer = PrefixScorer("perception", twin(plain), inputs.image_token_id, cache_tokens=0)
    scores = scorer.score([branches(group) for group in groups])
    assert close(scores, expected(plain, inputs, groups))
    assert len({score for row in scores for score in row}) == 9  # the texts and prompts are told apart


def test_what_is_remembered_changes_no_score(
    plain: ExpertModel, inputs: InputBuilder, groups: list[ScoringGroup]
) -> None:
    scorer = PrefixScorer("perception", twin(plain), inputs.image_token_id, cache_tokens=4096)
    first, _, third = (branches(group) for group in groups)
    seen = scorer.score([first])
    towers = count_calls(scorer.model.model, "get_image_features")
    passes = count_calls(scorer.model.model, "language_model")
    assert scorer.score([first]) == seen  # bit for bit
    assert (towers.calls, passes.calls) == (0, 0)
    more = Branches(first.prompt, first.key, first.image_keys, [(5, 6, 7)])
    assert close(
        scorer.score([more]), expected(plain, inputs, [ScoringGroup(first.prompt, "a", ("one",), [[5, 6, 7]])])
    )
    assert (towers.calls, passes.calls) == (0, 1)  # only the branch
    assert close(scorer.score([third]), expected(plain, inputs, groups[2:]))
    assert towers.images == 1  # of two, one was seen in another prompt


class count_calls:
    """Wraps a method of a module and counts: calls, and images for the vision tower."""

    def __init__(self, owner: Any, name: str) -> None:
        self.calls = self.images = 0
        inner = getattr(owner, name)
        call = inner.forward if isinstance(inner, torch.nn.Module) else inner

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            self.images += len(args[1]) if len(args) > 1 else 0
            return call(*args, **kwargs)

        if isinstance(inner, torch.nn.Module):
            inner.forward = counted
        else:
            setattr(owner, name, counted)


# ---------------------------------------------------------------------------------------------------------- the engine


def test_a_request_is_scored_in_order_however_it_is_batched(
    plain: ExpertModel, inputs: InputBuilder, groups: list[ScoringGroup], engine: Callable[..., ScoringEngine]
) -> None:
    wanted = expected(plain, inputs, groups)
    for tokens in (1, 64, 100_000):
        scored = engine(plain, max_batch_tokens=tokens).submit(groups).result(60)
        assert close(scored.scores, wanted)
        assert scored.version == Version(0, 0)


def test_the_same_text_gets_the_same_score_bit_for_bit(
    plain: ExpertModel, groups: list[ScoringGroup], engine: Callable[..., ScoringEngine]
) -> None:
    running = engine(plain, max_batch_tokens=64)
    group = groups[0]
    twice = ScoringGroup(group.prompt, group.key, group.image_keys, [*group.responses, *reversed(group.responses)])
    scored = running.submit([twice, group]).result(60).scores
    assert scored[0] == [*scored[1], *reversed(scored[1])]
    assert running.submit([group]).result(60).scores == scored[1:]  # and in another request


def test_requests_that_wait_share_a_batch(
    plain: ExpertModel, groups: list[ScoringGroup], engine: Callable[..., ScoringEngine]
) -> None:
    running = engine(plain)
    batches: list[int] = []
    score, hold = running._scorer.score, threading.Event()

    def held(batch: Any) -> Any:
        batches.append(sum(len(entry.responses) for entry in batch))
        hold.wait(30)
        return score(batch)

    running._scorer.score = held
    futures = [running.submit([group]) for group in groups for _ in range(2)]
    while not batches:
        pass
    hold.set()
    for future, group in zip(futures, [g for g in groups for _ in range(2)], strict=True):
        assert len(future.result(60).scores[0]) == len(group.responses)
    assert len(batches) < len(futures)


def test_a_request_delays_another_by_one_batch_however_large_it_is(
    plain: ExpertModel, groups: list[ScoringGroup], engine: Callable[..., ScoringEngine]
) -> None:
    running = engine(plain, max_batch_tokens=1)  # so that each response is a batch
    scored, score = list[str](), running._scorer.score  # keys of prompts, batch by batch
    begun, hold = threading.Event(), threading.Event()

    def held(batch: Any) -> Any:
        scored.append(batch[0].key)
        begun.set()
        assert hold.wait(30)
        return score(batch)

    running._scorer.score = held
    large = [replace(groups[1], key=key, responses=[[token] for token in range(5, 15)]) for key in ("large", "larger")]
    futures = [running.submit([group]) for group in large]
    assert begun.wait(30)
    futures += [running.submit([replace(groups[1], key=key)]) for key in ("small", "other")]
    hold.set()
    for future in futures:
        future.result(60)
    turns = ["larger", "small", "other", "large"]
    assert scored == ["large", *turns * 3, *turns[::3] * 6, "larger"]
    assert [len(future.result().scores[0]) for future in futures] == [10, 10, 3, 3]


def test_one_request_that_fails_spares_those_beside_it(
    plain: ExpertModel, inputs: InputBuilder, groups: list[ScoringGroup], engine: Callable[..., ScoringEngine]
) -> None:
    running = engine(plain)
    gate, score = threading.Event(), running._scorer.score

    def gated(batch: Any) -> Any:
        gate.wait(30)
        return score(batch)

    running._scorer.score = gated
    broken = ScoringGroup(groups[1].prompt, "broken", (), [[10**9]])  # no such token
    futures: list[Future[ScoredGroups]] = [running.submit([group]) for group in (groups[0], broken, groups[2])]
    gate.set()
    with pytest.raises(ServiceError, match="scoring failed"):
        futures[1].result(60)
    assert close(futures[0].result(60).scores, expected(plain, inputs, groups[:1]))
    assert close(futures[2].result(60).scores, expected(plain, inputs, groups[2:]))
    assert running.alive


def test_more_requests_than_the_queue_admits_are_refused(
    plain: ExpertModel, groups: list[ScoringGroup], engine: Callable[..., ScoringEngine]
) -> None:
    running = engine(plain, max_queue=2)
    gate, score = threading.Event(), running._scorer.score
    running._scorer.score = lambda batch: (gate.wait(30), score(batch))[1]
    waiting = [running.submit(groups) for _ in range(2)]
    with pytest.raises(Overloaded, match="2 requests"):
        running.submit(groups)
    gate.set()
    assert [len(future.result(60).scores) for future in waiting] == [3, 3]
    assert len(running.submit(groups).result(60).scores) == 3


def test_a_request_without_responses_is_answered_at_once(
    plain: ExpertModel, groups: list[ScoringGroup], engine: Callable[..., ScoringEngine]
) -> None:
    empty = ScoringGroup(groups[0].prompt, "a", ("one",), [])
    assert engine(plain).submit([empty]).result(5).scores == [[]]


def test_new_weights_forget_what_old_ones_said(
    plain: ExpertModel,
    inputs: InputBuilder,
    groups: list[ScoringGroup],
    engine: Callable[..., ScoringEngine],
    tmp_path: Path,
) -> None:
    running = engine(plain)
    before = running.submit(groups).result(60)
    newer = twin(plain)
    with torch.no_grad():
        for parameter in newer.parameters():
            parameter.mul_(1.05)
    save_expert(newer, tmp_path / "perception/1", inputs)
    running.swap(tmp_path, seal(tmp_path, "perception/1", model="perception", version=1, attempt=1))
    after = running.submit(groups).result(60)
    assert after.version == Version(1, 1)
    assert after.scores != before.scores
    assert close(after.scores, expected(newer, inputs, groups))


def test_new_weights_wait_for_all_that_was_asked_before_them(
    plain: ExpertModel,
    inputs: InputBuilder,
    groups: list[ScoringGroup],
    engine: Callable[..., ScoringEngine],
    tmp_path: Path,
) -> None:
    """Of a request that has many batches as well."""
    running = engine(plain, max_batch_tokens=1)
    save_expert(twin(plain), tmp_path / "perception/1", inputs)
    manifest = seal(tmp_path, "perception/1", model="perception", version=1, attempt=1)
    score, begun, hold = running._scorer.score, threading.Event(), threading.Event()

    def held(batch: Any) -> Any:
        begun.set()
        assert hold.wait(30)
        return score(batch)

    running._scorer.score = held
    asked = running.submit(groups)
    assert begun.wait(30)
    with ThreadPoolExecutor(1) as other:
        swapped = other.submit(running.swap, tmp_path, manifest)
        while running._requests.empty():
            time.sleep(0.01)
        hold.set()
        assert swapped.result(60) < 1
    assert asked.done()
    assert asked.result().version == Version(0, 0)
    assert running.submit(groups).result(60).version == Version(1, 1)


def test_an_expert_of_another_size_is_taken_and_one_for_other_inputs_refused(
    plain: ExpertModel,
    inputs: InputBuilder,
    groups: list[ScoringGroup],
    tiny_model: Path,
    other_size: Path,
    engine: Callable[..., ScoringEngine],
    tmp_path: Path,
) -> None:
    """A service may start from the policy, whatever its run's experts start from."""
    running = engine(plain)

    def push(model: ExpertModel, version: int) -> None:
        save_expert(model, tmp_path / f"perception/{version}", inputs)
        running.swap(tmp_path, seal(tmp_path, f"perception/{version}", model="perception", version=version, attempt=1))

    for version, model in enumerate((upcycle(tiny_model, experts=2, top_k=1), load_expert(other_size, seed=5)), 1):
        push(model, version)
        assert close(running.submit(groups).result(60).scores, expected(model.eval(), inputs, groups))
    fewer, others = load_expert(tiny_model), load_expert(tiny_model)
    rows = max(inputs.tokenizer.get_vocab().values())  # one too few
    fewer.resize_token_embeddings(rows)  # pyright: ignore
    others.config.image_token_id = 1
    for version, (model, why) in enumerate(((fewer, rf"\({rows} tokens, "), (others, "which is 1\\)")), 3):
        with pytest.raises(WeightsError, match=f"holds an expert for other inputs .*{why}.* push to where it belongs"):
            push(model, version)
    assert running.version == Version(2, 1)
