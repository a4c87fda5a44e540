"""From raw results to tables: what is refused, what is counted, and that one command makes all of it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench.effect.gates import FILE, Gate, Looks, check, require_passed
from bench.effect.report import report
from bench.effect.results import SUFFIX, About, Answered, load_all, read_results, write_results
from bench.effect.study import Study
from configs.effect.plan import FILE as PLAN_FILE
from configs.effect.plan import SPLITS, Plan, load_plan, without
from prism.config.published import merged
from prism.errors import ConfigError, DataError
from prism.files import write_json

PLAN = load_plan()
QUESTIONS, SAMPLES = 40, 16


def answers(rate: float, seed: int, figures: dict[str, float] | None = None) -> list[Answered]:
    """Every split with about that share right at temperature 1."""
    rng, given = np.random.default_rng(seed), {"f1": 0.9, "tokens": 90.0, "entropy": 0.5, "kl": 1.0} | (figures or {})
    return [
        Answered(
            split=split,
            id=f"{split}-{number}",
            family=1,
            greedy=int(rng.random() < rate),
            right=int(rng.binomial(SAMPLES, rate)),
            seen=8,
            seen_right=6,
            formed=SAMPLES,
            **given,
        )
        for split in SPLITS
        for number in range(QUESTIONS)
    ]


def about(path: str, texts: int | None, seed: int, **changes: object) -> About:
    made = About(PLAN.sha256, "data", "gpu", path, texts, seed, SAMPLES, {"zero_variance_at_start": 0.25})
    return replace(made, **changes)


Put = Callable[..., Path]


@pytest.fixture
def put(tmp_path: Path) -> Put:
    def write(path: str, texts: int | None, seed: int, rate: float, **changes: object) -> Path:
        file = tmp_path / "results" / f"s{seed}-{texts}-{path}{SUFFIX}"
        file.parent.mkdir(exist_ok=True)
        write_results(file, about(path, texts, seed, **changes), answers(rate, seed))
        return file

    return write


def test_results_are_read_as_they_were_written_and_small(tmp_path: Path) -> None:
    file, made = tmp_path / f"one{SUFFIX}", answers(0.5, 0)
    write_results(file, about("sft", None, 0), made)
    first = file.read_bytes()
    write_results(file, about("sft", None, 0), made)
    assert file.read_bytes() == first
    found = read_results(file)
    assert found.about == about("sft", None, 0)
    assert found.answers == made
    assert len(first) / len(made) < 20  # bytes a question


@pytest.mark.parametrize("content", [b"", b"not packed"])
def test_a_file_of_something_else_is_named(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / f"one{SUFFIX}"
    file.write_bytes(content)
    with pytest.raises(DataError, match="holds no results"):
        read_results(file)


def test_results_of_another_plan_are_refused(put: Put, tmp_path: Path) -> None:
    folder = put("sft", None, 0, 0.5).parent
    put("sft", None, 1, 0.5, plan="0" * 64)
    with pytest.raises(DataError, match="are of another plan"):
        report(PLAN, folder, tmp_path, "gpu")


def test_a_plan_of_one_other_byte_is_another(tmp_path: Path) -> None:
    file = tmp_path / "plan.toml"
    file.write_text(PLAN_FILE.read_text() + "\n")
    assert load_plan(file).sha256 != PLAN.sha256


def test_results_of_other_data_are_refused_and_of_other_sizes_left_out(put: Put) -> None:
    folder = put("sft", None, 0, 0.5).parent
    put("sft", None, 1, 0.5, size="toy")
    assert [result.about.size for result in load_all(folder, PLAN, "gpu")] == ["gpu"]
    put("sft", None, 2, 0.5, data="other")
    with pytest.raises(DataError, match="2 different data sets"):
        load_all(folder, PLAN, "gpu")


def test_contrasts_pair_seeds_and_questions(put: Put) -> None:
    """PRISM has three seeds, teacher-SFT two: two are compared. Equal results differ by nothing at all."""
    folder = put("sft+align+rlvr", 100, 2, 0.6).parent
    for seed in (0, 1):
        put("sft+align+rlvr", 100, seed, 0.6)
        put("sft+teach-early+rlvr", 100, seed, 0.6)
        put("sft+rlvr-long", None, seed, 0.4)
    study, (primary, alone, after) = Study(PLAN, load_all(folder, PLAN, "gpu")), PLAN.statistics.contrasts
    same = study.differences(primary, 100)
    assert same is not None
    assert (same.mean, same.low, same.high, same.p, same.seeds) == (0, 0, 0, 1, 2)
    better = study.differences(alone, 100)
    assert better is not None
    assert better.mean == pytest.approx(0.2, abs=0.06)
    assert better.low > 0.1
    assert study.differences(after, 100) is None


def test_tuning_seeds_are_in_no_table(put: Put) -> None:
    folder = put("sft+align+rlvr", 100, PLAN.tuning_seeds[0], 0.6).parent
    assert Study(PLAN, load_all(folder, PLAN, "gpu")).arms("main") == []


def test_one_command_makes_tables_and_pictures(put: Put, tmp_path: Path) -> None:
    folder = put("base", None, 0, 0.8).parent
    for seed in (0, 1, 2):
        put("sft", None, seed, 0.4)
        put("sft+rlvr-long", None, seed, 0.5)
        for texts in PLAN.texts:
            put("sft+align+rlvr", texts, seed, 0.7)
            put("sft+teach-early+rlvr", texts, seed, 0.6)
    text = report(PLAN, folder, tmp_path / "out", "gpu").read_text()
    for name in ("outside-inside", "texts", "pass-at-k", "forgetting"):
        assert (tmp_path / "out" / f"{name}.svg").stat().st_size > 5_000
        assert f"{name}.svg" in text
    contrasts = [line for line in text.splitlines() if line.startswith("| primary") or line.startswith("| PRISM a")]
    assert contrasts[0].split("|")[2].strip().startswith("+")
    assert contrasts[1].split("|")[4].strip() == contrasts[0].split("|")[4].strip()  # both as small as can be
    assert contrasts[2].count("–") == 6
    assert "1 of 3 contrasts have no results" in text
    row = next(line for line in text.splitlines() if line.startswith("| PRISM + RLVR | 100 | 3 |"))
    assert 65 < float(row.split("|")[4].split("±")[0]) < 75
    others = text[text.index("**What else was measured**") :]
    assert "| after SFT | – | 3 | 90.0 ± 0.0 | 75.0 ± 0.0 |" in others
    assert "toy" not in text


def test_a_toys_report_says_that_it_shows_nothing(put: Put, tmp_path: Path) -> None:
    folder = put("sft", None, 0, 0.5, size="toy").parent
    assert "nothing of what it is to find" in report(PLAN, folder, tmp_path, "toy").read_text()


# --------------------------------------------------------------------------------------------------------------- gates


def gates_of(tmp_path: Path, rates: dict[str, float], looks: Looks) -> dict[str, bool]:
    found = []
    for name, rate in rates.items():
        file = tmp_path / f"{name}{SUFFIX}"
        write_results(file, about(name, None, 100), answers(rate, 0))
        found.append(read_results(file))
    base, sft, *taught = found
    gates = check(PLAN.gates, base, sft, list(zip(PLAN.texts, taught, strict=True)), looks)
    return {gate.name: gate.passed for gate in gates}


RATES = {"base": 0.85, "sft": 0.6, "32": 0.65, "100": 0.75, "400": 0.85}
LOOKS = Looks(
    {"perception": 0.5, "reasoning": 0.54, "whole": 0.51},
    {"perception": 0.9, "reasoning": 0.86},
    {"perception": 0.5, "reasoning": 0.6},
)


def test_gates_hold_where_all_do(tmp_path: Path) -> None:
    assert all(gates_of(tmp_path, RATES, LOOKS).values())


@pytest.mark.parametrize(
    ("rates", "looks", "failed"),
    [
        ({"base": 0.75}, {}, "accuracy after pretraining"),
        ({"sft": 0.8}, {}, "points that SFT costs"),
        ({"400": 0.75}, {}, "from 100 to 400"),
        ({}, {"blind": {"perception": 0.6}}, "without the picture, perception"),
        ({}, {"right": {"perception": 0.8, "reasoning": 0.9}}, "by the perception expert"),
        ({}, {"right": {"perception": 0.9, "reasoning": None}}, "by the reasoning expert"),
        ({}, {"wrong": {"perception": 0.9, "reasoning": 0.5}}, "with another picture"),
    ],
)
def test_a_gate_that_does_not_hold_is_named(
    tmp_path: Path, rates: dict[str, float], looks: dict[str, dict[str, float]], failed: str
) -> None:
    found = gates_of(tmp_path, RATES | rates, replace(LOOKS, **looks))
    assert [name for name, passed in found.items() if not passed]
    assert all(failed in name for name, passed in found.items() if not passed)


def test_no_arm_runs_before_the_gates(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="gates come before any arm"):
        require_passed(PLAN, tmp_path, "data")
    gate = {"name": "blind", "value": 0.5, "bound": 0.55, "at_least": False}
    write_json(tmp_path / FILE, {"plan": PLAN.sha256, "data": "data", "gates": [gate]})
    require_passed(PLAN, tmp_path, "data")
    with pytest.raises(ConfigError, match="another plan or other data"):
        require_passed(PLAN, tmp_path, "other")
    write_json(tmp_path / FILE, {"plan": PLAN.sha256, "data": "data", "gates": [gate | {"value": 0.56}]})
    with pytest.raises(ConfigError, match="do not hold: blind"):
        require_passed(PLAN, tmp_path, "data")
    assert not Gate("never measured", None, 0.0, True).passed


# ---------------------------------------------------------------------------------------------------------------- plan


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"tuning_seeds": [0]}, "are seeds of the study"),
        ({"arms": {"x": {"label": "x", "kind": "main", "steps": ["nothing"]}}}, "no step nothing"),
        ({"arms": {"x": {"label": "x", "kind": "main", "steps": ["align"]}}}, "learn from the teacher"),
        ({"statistics": {"splits": ["elsewhere"]}}, "no split"),
        ({"statistics": {"contrasts": [{"name": "x", "arm": "nobody", "against": "rlvr"}]}}, "no arm nobody"),
    ],
)
def test_a_plan_that_does_not_fit_together_is_refused(changes: dict[str, object], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        Plan.model_validate(merged(PLAN.model_dump(), changes))


def test_keys_are_taken_away_or_named() -> None:
    assert without({"a": {"b": 1, "c": 2}}, ["a.b"]) == {"a": {"c": 2}}
    with pytest.raises(ConfigError, match="no d to take away"):
        without({"a": {"b": 1}}, ["a.d"])
