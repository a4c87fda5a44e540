"""Slices of benchmarks while a stage learns: of one version, by the rules, and never what a checkpoint is picked by."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.responses import JSONResponse
from pydantic import ValidationError

from prism.config import EvaluateConfig, RunConfig, load_config
from prism.data.blobs import BlobStore
from prism.errors import DataError, ServiceError
from prism.evaluation import slices
from prism.evaluation.slices import ask_slices, read_slices
from prism.evaluation.suite.samples import read_samples
from prism.evaluation.suite.show import select
from prism.wire.v1 import rollout_pb2 as pb
from tests.unit.prism.evaluation import benchmark_rows as rows
from tests.unit.prism.evaluation.fake_server import FakeServer, text_of

Make = Callable[..., RunConfig]


@pytest.fixture
def make(fake: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """A run whose policy is the fake server, with MathVista of ``count`` questions."""
    for name in ("POLICY", "PERCEPTION", "REASONING", "GRADER"):
        monkeypatch.setenv(f"PRISM_{name}_URL", fake.url.removesuffix("/v1"))
    monkeypatch.setenv("PRISM_REDIS_URL", "redis://nowhere")
    monkeypatch.setenv("PRISM_BLOBS", str(tmp_path / "blobs"))

    def made(count: int, *settings: str) -> RunConfig:
        some = [rows.mathvista(str(i), "14", "integer") for i in range(count)]
        file = rows.write_parquet(tmp_path / "testmini.parquet", some)
        own = ["evaluate.every=2", 'evaluate.validation="other.jsonl"', f'evaluate.benchmarks.mathvista.path="{file}"']
        config = load_config(
            Path("configs/demo.toml"),
            [f"runs_dir={tmp_path}", "push.deadline_seconds=0.3", "stages.align.checkpoint_every=2", *own, *settings],
        )
        config.run_dir.mkdir(exist_ok=True)
        return config

    return made


def test_a_slice_is_asked_greedily_at_the_version_or_a_newer_one(make: Make, fake: FakeServer) -> None:
    config = make(5, "evaluate.benchmarks.mathvista.questions=4")
    fake.version = 6
    fake.answer = lambda body: "13" if "What is 3" in text_of(body) else "14"
    figures = ask_slices(config, "rl", 10, 6, read_slices(config))["mathvista"]
    assert (figures["score"], figures["questions"], figures["of"], figures["other_versions"]) == (0.75, 4, 5, 0)
    assert figures["stderr"] > 0
    assert {(body["temperature"], body["top_p"], body["max_tokens"]) for body in fake.requests} == {(0, 1, 64)}
    assert {headers["x-prism-min-policy-version"] for headers in fake.headers} == {"6"}
    kept = list(select(config.run_dir / "validations" / "rl" / "000010", right=False))
    assert [one.question.id for one in kept if one.question] == ["3"]
    pictures = BlobStore(str(config.run_dir / "validations" / "rl" / "000010" / "images"))
    assert pictures.get(kept[0].sample.images[0])


def test_newer_weights_are_counted_and_stand_in_no_figure(make: Make, fake: FakeServer) -> None:
    config = make(4)
    fake.version_of = lambda body: 7 if "What is 2" in text_of(body) else 6
    fake.answer = lambda body: "13" if "What is 2" in text_of(body) else "14"
    figures = ask_slices(config, "rl", 10, 6, read_slices(config))["mathvista"]
    assert (figures["score"], figures["questions"], figures["other_versions"]) == (1.0, 3, 1)
    assert {one.policy_version for one in read_samples(config.run_dir / "validations/rl/000010/mathvista")} == {6, 7}


def test_what_failed_is_masked_and_withholds_the_score(make: Make, fake: FakeServer) -> None:
    config = make(4)
    fake.answer = lambda body: JSONResponse({"detail": "too long"}, 400) if "What is 2" in text_of(body) else "14"
    fake.version = 6
    figures = ask_slices(config, "rl", 10, 6, read_slices(config))["mathvista"]
    assert (figures["score"], figures["statuses"]["failed"], figures["other_versions"]) == (None, 1, 0)
    assert "25.0% of responses are masked" in figures["why"]


def test_a_step_that_is_measured_again_asks_again(make: Make, fake: FakeServer) -> None:
    config = make(2)
    fake.version = 6
    sets = read_slices(config)
    assert ask_slices(config, "rl", 10, 6, sets)["mathvista"]["score"] is None  # "B" is no integer
    fake.answer = lambda _: "14"
    assert ask_slices(config, "rl", 10, 6, sets)["mathvista"]["score"] == 1.0
    assert len(fake.requests) == 4


def test_a_server_that_is_away_gives_no_figures(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make(2)
    monkeypatch.setenv("PRISM_POLICY_URL", "http://127.0.0.1:9")
    with pytest.raises(ServiceError):
        ask_slices(config, "rl", 10, 6, read_slices(config))


@pytest.mark.parametrize(
    ("verdict", "ruling"),
    [
        (pb.Verdict(status=pb.STATUS_OK, accuracy=1.0, extracted="7"), ("ok", True)),
        (pb.Verdict(status=pb.STATUS_OK, accuracy=0.5), ("ok", False)),
        (pb.Verdict(status=pb.STATUS_OK), ("failed", None)),
        (pb.Verdict(status=pb.STATUS_UNPARSEABLE_ANSWER), ("unparsed", None)),
        (pb.Verdict(status=pb.STATUS_TIMEOUT), ("failed", None)),
    ],
)
async def test_the_graders_verdicts_become_rulings(verdict: pb.Verdict, ruling: tuple[str, bool | None]) -> None:
    asked: list[Any] = []

    class Grader:
        async def grade(self, *what: Any) -> list[pb.Verdict]:
            asked.append(what)
            return [verdict]

    item = slices.ToGrader("seven", ("7", "seven"), "number", {"rel_tol": 0.1})
    found = await slices._grade(Grader(), item)  # pyright: ignore
    assert (found.status, found.right) == ruling
    assert asked == [(["seven"], ["7", "seven"], "number", {"rel_tol": 0.1, "graded": False}, slices.RULES)]


def test_files_are_read_before_a_run_trains(make: Make, tmp_path: Path) -> None:
    config = make(1, 'evaluate.benchmarks.mmmu.path="nowhere.parquet"')
    with pytest.raises(DataError, match="nowhere"):
        read_slices(config)


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"benchmarks": {"mmmu": {"path": "x"}}}, "every: set it"),
        ({"every": 2, "validation": "y", "benchmarks": {"sums": {"path": "x"}}}, "no benchmark of that name"),
        (
            {"every": 2, "validation": "y", "keep_best": "mmmu"},
            "Input should be",
        ),
    ],
)
def test_no_checkpoint_is_picked_by_a_benchmark(values: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        EvaluateConfig.model_validate({"data": "x", "max_tokens": 8} | values)
