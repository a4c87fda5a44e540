"""The study as jobs: what is shared, what is left, what is refused, and that nothing is done twice."""

import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from bench.effect import jobs as jobs_module
from bench.effect.jobs import Jobs, Work, run_workers
from bench.effect.nodes import (
    Node,
    missing_keys,
    needs,
    node_of,
    of_arms,
    of_gates,
    of_tuning,
    stage_table,
    with_needs,
)
from configs.effect.plan import Plan, load_plan
from prism.config import AlignConfig, RlvrConfig, SftConfig
from prism.config.published import merged
from prism.errors import ConfigError

PLAN = load_plan()
SFT = Node(("sft",), 0)
ALIGNED = Node(("sft", "align"), 0, 100)


@pytest.fixture
def jobs(tmp_path: Path) -> Jobs:
    return Jobs(tmp_path / "root", tmp_path / "results", PLAN, "gpu", "data")


class Done:
    """Work that only notes what it is asked for."""

    def __init__(self, jobs: Jobs) -> None:
        self.jobs, self.trained, self.measured = jobs, list[str](), list[str]()
        self.work = Work(self.train, self.measure)

    def train(self, node: Node, folder: Path) -> dict[str, Any]:
        assert all(self.jobs.model(one) for one in needs(PLAN, node)), "what it starts from is there"
        (folder / "config.json").write_text("{}")
        self.trained.append(node.name)
        return {"steps": 1}

    def measure(self, node: Node, folder: Path, figures: dict[str, Any]) -> None:
        assert figures["steps"] == 1
        self.jobs.results.mkdir(exist_ok=True)
        self.jobs.result(node).write_bytes(b"")
        self.measured.append(node.name)


def test_arms_share_what_they_begin_with() -> None:
    wanted = of_arms(PLAN, ["rlvr", "teacher-early", "prism", "teacher-prism"], [0, 1], [32, 100])
    nodes = with_needs(PLAN, wanted)
    names = [node.name for node in nodes]
    assert len(set(names)) == len(names) == 1 + 2 * (1 + 1 + 2 * (2 + 2 + 3))
    assert names.count("base") == 1
    for node in nodes:
        assert all(names.index(one.name) < names.index(node.name) for one in needs(PLAN, node))
    assert "s0-n100-sft+teach-half+align-half+rlvr" in names
    assert "s1-sft+rlvr-long" in names  # N is nothing to an arm that sees no teacher


def test_rlvr_needs_the_sft_policy_of_its_seed_even_without_sft() -> None:
    (node,) = of_arms(PLAN, ["no-sft"], [2], [100])
    assert needs(PLAN, node) == [Node(("align",), 2, 100), Node(("sft",), 2), Node((), 0)]


def test_main_arms_make_as_many_updates_of_the_policy() -> None:
    """Those of alignment or teacher-SFT, and of RLVR; an early stop makes no more."""
    for size in PLAN.sizes:
        counts = {}
        for name, arm in PLAN.arms.items():
            if arm.kind != "steps":
                steps = [step for step in arm.steps if step != "sft"]
                nodes = [node_of(PLAN, steps[: end + 1], 0, 100) for end in range(len(steps))]
                counts[name] = sum(stage_table(PLAN, size, node)["steps"] for node in nodes)
        assert len(set(counts.values())) == 1, counts


@pytest.mark.parametrize(("step", "steps"), [("align-20", 20), ("align", 80), ("align-160", 160), ("teach-40", 40)])
def test_steps_are_the_plans_times_the_steps_own(step: str, steps: int) -> None:
    assert stage_table(PLAN, "gpu", Node(("sft", step), 0, 100))["steps"] == steps


def test_ablations_change_what_they_say_and_nothing_else() -> None:
    def experts(step: str) -> dict[str, Any]:
        return stage_table(PLAN, "gpu", Node(("sft", step), 0, 100))["experts"]

    full = experts("align")
    assert full.keys() - experts("align-dense").keys() == {"mixture"}
    assert full.keys() - experts("align-ungrounded").keys() == {"grounding"}
    assert experts("align-ungrounded")["mismatch"] == 0
    assert experts("align-dense") == {name: value for name, value in full.items() if name != "mixture"}


def test_trials_are_merged_over_the_step_and_run_on_tuning_seeds_alone() -> None:
    nodes = of_tuning(PLAN)
    assert {node.seed for node in nodes} == set(PLAN.tuning_seeds)
    assert len({node.name for node in nodes}) == len(nodes) == 12
    rates = [stage_table(PLAN, "gpu", node)["policy"]["optimizer"]["lr"] for node in nodes if node.steps[-1] == "align"]
    assert rates == [2e-5, 4e-5, 1e-4, 4e-5]
    assert {node.seed for node in of_gates(PLAN)} == set(PLAN.tuning_seeds)


def test_arms_whose_keys_are_not_there_are_refused_by_name() -> None:
    lacking = Plan.model_validate(merged(PLAN.model_dump(), {"steps": {"align-dense": {"needs": ["no_such_key"]}}}))
    with pytest.raises(ConfigError, match="arm dense cannot run: it needs no_such_key"):
        of_arms(lacking, ["dense"], [0], [100])
    assert missing_keys(lacking, "prism") == []
    assert [name for name in PLAN.arms if missing_keys(PLAN, name)] == []
    with pytest.raises(ConfigError, match="no arm 'nobody'"):
        of_arms(PLAN, ["nobody"], [0], [100])


def test_every_arm_is_a_configuration_that_the_platform_takes() -> None:
    """Of each size: keys that do not exist, or do not go together, are found before anything is trained."""
    for size in PLAN.sizes:
        for node in with_needs(PLAN, [*of_arms(PLAN, list(PLAN.arms), [0], [100]), *of_tuning(PLAN)]):
            kind = PLAN.steps[node.steps[-1]].stage if node.steps else "sft"
            table = stage_table(PLAN, size, node)
            if kind in ("sft", "teach"):
                SftConfig.model_validate(table | {"kind": "sft", "data": ["x"]})
                continue
            table |= {"kind": kind, "rollouts": table["rollouts"] | {"data": "x"}}
            (AlignConfig if kind == "align" else RlvrConfig).model_validate(table)


def test_each_job_is_done_once_in_order(jobs: Jobs) -> None:
    done = Done(jobs)
    assert jobs.work([ALIGNED], done.work, time.time() + 60) == 3
    assert done.trained == done.measured == ["base", "s0-sft", "s0-n100-sft+align"]
    assert jobs.work([ALIGNED], done.work, time.time() + 60) == 0
    assert jobs.left([ALIGNED]) == []


def test_nothing_begins_when_the_time_is_over(jobs: Jobs) -> None:
    assert jobs.work([ALIGNED], Done(jobs).work, time.time()) == 0


def test_a_model_whose_measurement_was_cut_short_is_not_trained_again(jobs: Jobs) -> None:
    done = Done(jobs)

    def cut(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        jobs.do(Node((), 0), Work(done.train, cut))
    assert jobs.left([SFT]) == [Node((), 0), SFT]
    jobs.work([SFT], done.work, time.time() + 60)
    assert done.trained == ["base", "s0-sft"]


def test_a_training_that_was_cut_short_leaves_no_model(jobs: Jobs) -> None:
    def cut(node: Node, folder: Path) -> dict[str, Any]:
        (folder / "config.json").write_text("{}")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        jobs.do(Node((), 0), Work(cut, Done(jobs).measure))
    assert jobs.model(Node((), 0)) is None
    assert not jobs.folder(Node((), 0)).exists()


def test_models_that_are_gone_are_made_again_only_where_something_starts_from_them(jobs: Jobs) -> None:
    """As on a machine that is lent anew: results are there, models are not."""
    done = Done(jobs)
    jobs.work([ALIGNED], done.work, time.time() + 60)
    jobs.root = jobs.root.parent / "another"
    assert jobs.left([ALIGNED]) == []
    assert jobs.left([Node(("sft", "align", "rlvr"), 0, 100)]) == [
        Node((), 0),
        SFT,
        ALIGNED,
        Node(("sft", "align", "rlvr"), 0, 100),
    ]
    jobs.work([Node(("sft", "align", "rlvr"), 0, 100)], done.work, time.time() + 60)
    assert done.measured.count("s0-sft") == 1
    assert done.trained.count("s0-sft") == 2


def test_what_is_to_be_measured_needs_the_policy_before_sft(jobs: Jobs) -> None:
    """As where the trained model was carried to another machine, and nothing else."""
    done = Done(jobs)
    jobs.work([SFT], done.work, time.time() + 60)
    jobs.result(SFT).unlink()
    shutil.rmtree(jobs.folder(Node((), 0)))
    assert jobs.left([SFT]) == [Node((), 0), SFT]
    jobs.work([SFT], done.work, time.time() + 60)
    assert done.trained == ["base", "s0-sft", "base"]


def test_a_model_of_other_settings_or_data_is_refused(jobs: Jobs) -> None:
    """What is changed elsewhere in the plan, such as the statistics or a later step, leaves it as it is."""
    jobs.work([SFT], Done(jobs).work, time.time() + 60)

    def changed(**changes: Any) -> Jobs:
        plan = Plan.model_validate(merged(PLAN.model_dump(), changes))
        return Jobs(jobs.root, jobs.results, plan, "gpu", "data")

    assert changed(statistics={"resamples": 10}, stages={"rlvr": {"steps": 3}}).model(SFT) is not None
    for other in (
        changed(stages={"sft": {"steps": 3}}),
        changed(stages={"pretrain": {"steps": 3}}),
        changed(sizes={"gpu": {"stages": {"sft": {"batch": 3}}}}),
        Jobs(jobs.root, jobs.results, PLAN, "gpu", "other"),
    ):
        with pytest.raises(ConfigError, match="other settings of the plan, or from other data"):
            other.model(SFT)


def test_a_job_that_another_has_is_left_to_it(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other ends without having done it, so it is done here after all."""
    done, waits = Done(jobs), list[float]()
    with jobs.locked(Node((), 0)) as ours:
        assert ours
        with jobs.locked(Node((), 0)) as second:
            assert not second
        monkeypatch.setattr(jobs_module.time, "sleep", waits.append)
        monkeypatch.setattr(jobs_module.time, "time", iter([0.0, 1.0, 2.0]).__next__)
        assert jobs.work([SFT], done.work, 1.5) == 0
        monkeypatch.undo()
    assert len(waits) == 2
    assert done.trained == []
    assert jobs.work([SFT], done.work, time.time() + 60) == 2


def test_workers_that_fail_are_told_of(capfd: pytest.CaptureFixture[str]) -> None:
    assert run_workers(["--size=none", "work", "--minutes=1"], 1, 10) != 0
