"""The whole platform: three stages over live services, through a killed trainer and a killed policy server."""

import json
import re
from itertools import accumulate
from typing import Any

import pytest
from killed_run import ALIGN_STEPS, RLVR_STEPS, SMALLER, WARMUP_STEPS, Run
from safetensors.torch import load_file

from prism.model.expert import load_expert
from prism.wire.weights import Manifest, verify

pytestmark = pytest.mark.timeout(2400)  # the first test makes the run


def final(run: Run, stage: str) -> list[dict[str, Any]]:
    """The lines that count: of a step that was made again after a resume, the later one."""
    return list({line["step"]: line for line in run.steps(stage)}.values())


def test_a_killed_trainer_ends_the_run_with_what_to_do_and_leaves_no_process(run: Run) -> None:
    assert run.first_status == 1
    assert "stage align ended with status -9; the same command goes on from its last checkpoint" in run.first_output
    assert "Traceback" not in run.first_output
    assert run.left_behind == []


def test_the_second_start_resumes_and_finishes(run: Run) -> None:
    assert run.second_status == 0, run.second_output
    resumed = re.search(r"resumed after step (\d+) at version (\d+)", run.second_output)
    assert resumed, run.second_output
    step, version = int(resumed[1]), int(resumed[2])
    assert step <= run.step_at_kill < step + 2 + 1, "a checkpoint stands every two steps"
    assert version == step - WARMUP_STEPS
    assert "steps of 64" not in run.second_output, "SFT was finished and is not trained again"


def test_every_step_was_made_and_versions_count_its_updates(run: Run) -> None:
    align = final(run, "align")
    assert [line["step"] for line in align] == list(range(1, WARMUP_STEPS + ALIGN_STEPS + 1))
    assert [line["policy_version"] for line in align if not line["warmup"]] == list(range(1, ALIGN_STEPS + 1))
    assert [line["perception_version"] for line in align] == [line["step"] for line in align]
    rlvr = final(run, "rlvr")
    assert [line["step"] for line in rlvr] == list(range(1, RLVR_STEPS + 1))
    updates = accumulate(line["policy_grad_norm"] is not None for line in rlvr)
    assert [line["policy_version"] for line in rlvr] == [ALIGN_STEPS + count for count in updates]
    assert newest_version(run) > ALIGN_STEPS + 1, "no step of RLVR taught anything"


def newest_version(run: Run) -> int:
    """The policy's at the end: a step that teaches nothing makes none."""
    return final(run, "rlvr")[-1]["policy_version"]


@pytest.mark.parametrize("stage", ["align", "rlvr"])
def test_no_group_is_trained_twice_and_none_is_lost(run: Run, stage: str) -> None:
    positions = [position for line in final(run, stage) for position in line["positions"]]
    assert sorted(positions) == list(range(len(positions))), "each prompt of the sequence exactly once, in one lineage"
    assert all(line["lost_groups"] == 0 for line in final(run, stage))


def test_staleness_keeps_its_bound(run: Run) -> None:
    assert {line["staleness_max"] for line in final(run, "align")} == {0}
    rlvr = {line["staleness_max"] for line in final(run, "rlvr")}
    assert max(rlvr) == 1, "with staleness 1 the workers run ahead of the learner"


def test_sampler_and_learner_agree_on_every_batch(run: Run) -> None:
    compared = [
        line["logprob_mismatch"]
        for stage in ("align", "rlvr")
        for line in final(run, stage)
        if line.get("logprob_mismatch") is not None
    ]
    assert len(compared) >= ALIGN_STEPS, "lock-step batches can all be compared"
    assert max(compared) < 1e-3


def test_experts_that_score_are_the_ones_that_were_pushed(run: Run) -> None:
    scored = [line for line in final(run, "align") if not line["warmup"]]
    for expert in ("perception", "reasoning"):
        assert [line[f"served_{expert}_version"] for line in scored] == [line["step"] - 1 for line in scored]
    assert any(line["served_perception_gap"] is not None for line in scored)


def test_experts_are_mixtures_of_their_own_size_wherever_they_live(run: Run) -> None:
    starts = run.folder / "experts" / "align"
    for expert in ("perception", "reasoning"):
        start = starts / expert
        result = run.folder / "stages" / "align" / "experts" / expert
        newest = Manifest.model_validate_json((run.folder / "services" / expert / "newest.json").read_bytes())
        assert newest.version == WARMUP_STEPS + ALIGN_STEPS
        served = verify(run.folder / "weights", newest)
        for folder in (starts / "mixture", start, result, served):
            held = load_expert(folder, strict=True)
            assert (held.mixture, held.config.text_config.hidden_size) == ((4, 2), SMALLER.hidden), folder
        pushed, trained, before = (load_file(f / "model.safetensors") for f in (served, result, start))
        assert all((pushed[name] == trained[name]).all() for name in trained)
        router = "model.language_model.layers.0.mlp.gate.weight"
        assert (trained[router] != before[router]).any()
    for line in final(run, "align"):
        assert sum(line["perception_router_load"]) == pytest.approx(1)


def test_what_the_experts_notice_was_measured_with_their_last_weights(run: Run) -> None:
    (line,) = [json.loads(one) for one in (run.folder / "disentanglement.jsonl").read_text().splitlines()]
    assert (line["stage"], line["expert_version"]) == ("align", WARMUP_STEPS + ALIGN_STEPS)
    assert line["rows"] == 40
    for section, other in (("caption", "reasoning"), ("steps", "perception")):
        assert (line[section][other]["change"], line[section][other]["std"]) == (0.0, 0.0)
    assert line["caption"]["perception"]["std"] > 0


def test_whether_the_experts_look_was_measured_at_both_ends_of_the_game(run: Run) -> None:
    lines = {line["step"]: line for line in final(run, "align")}
    last = WARMUP_STEPS + ALIGN_STEPS
    assert [step for step, line in lines.items() if "looks_asked" in line] == [WARMUP_STEPS, last]
    for step, version in ((WARMUP_STEPS, 0), (last, ALIGN_STEPS)):
        line = lines[step]
        assert (line["looks_policy_version"], line["looks_expert_version"]) == (version, step)
        assert (line["looks_asked"], line["looks_unasked"]) == (40, 0)
        assert line["perception_looks_pairs"] > 0
        assert all(0 <= line[f"perception_looks_{view}"] <= 1 for view in ("right", "shuffled", "blank"))
    report = json.loads((run.folder / "report.json").read_text())
    assert [one["step"] for one in report["stages"][1]["looks"]] == [WARMUP_STEPS, last]
    assert "held-out pairs apart" in run.second_output


def test_the_policy_server_came_back_with_the_newest_weights(run: Run) -> None:
    assert "it died, killed by signal 9" in (run.folder / "logs" / "policy.log").read_text()
    assert run.server_killed_at < RLVR_STEPS
    newest = Manifest.model_validate_json((run.folder / "services" / "policy" / "newest.json").read_bytes())
    assert newest.version == newest_version(run)
    pushed = load_file(verify(run.folder / "weights", newest) / "model.safetensors")
    result = load_file(run.folder / "stages" / "rlvr" / "model.safetensors")
    assert pushed.keys() == result.keys()
    assert all((pushed[name] == result[name]).all() for name in result)


def test_every_stage_is_measured_by_its_own_version(run: Run) -> None:
    lines = [json.loads(line) for line in (run.folder / "evaluations.jsonl").read_text().splitlines()]
    assert [(line["stage"], line["policy_version"]) for line in lines] == [
        ("sft", 0),
        ("align", ALIGN_STEPS),
        ("rlvr", newest_version(run)),
    ]
    assert all(line["questions"] == line["judged"] == 32 for line in lines)


def test_the_report_is_there(run: Run) -> None:
    page = (run.folder / "report.html").read_text()
    assert page.count("<img") >= 12
    report = json.loads((run.folder / "report.json").read_text())
    assert [stage["name"] for stage in report["stages"]] == ["sft", "align", "rlvr"]


def test_the_report_says_who_waited_for_whom(run: Run) -> None:
    report = json.loads((run.folder / "report.json").read_text())
    assert [waits["stage"] for waits in report["waits"]] == ["align", "rlvr"]
    for waits in report["waits"]:
        busy = {part["name"]: part["busy"] for part in waits["parts"]}
        assert set(busy) == {"learner", "policy server", "experts, grader", "rollout workers"}
        assert all(0 < share <= 1 for share in busy.values())
        assert busy["rollout workers"] >= max(busy["policy server"], busy["experts, grader"])
    assert "Who waits for whom" in (run.folder / "report.html").read_text()


def log_lines(text: str) -> list[dict[str, Any]]:
    """Raises ValueError if any line is no JSON."""
    return [json.loads(line) for line in text.splitlines()]


def test_every_line_of_the_trainer_can_be_json_and_says_what_it_is_about(run: Run) -> None:
    lines = log_lines(run.second_output)
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines)
    trained = [line for line in lines if line["message"] == "group trained on" and line["stage"] == "rlvr"]
    for line in trained:
        assert {"run", "stage", "attempt", "step", "position", "prompt_id", "policy_version"} <= line.keys()
    steps = [line for line in lines if "figures" in line and line["stage"] == "rlvr"]
    assert len(steps) == RLVR_STEPS
    # Whose answers are all right or all wrong teaches nothing.
    assert 0 < len(trained) <= sum(step["groups"] - step["undecided_groups"] for step in run.steps("rlvr"))
    assert [line["figures"]["policy_version"] for line in steps] == [line["policy_version"] for line in steps]
    assert {line["run"] for line in lines if "run" in line} == {"e2e"}


@pytest.mark.parametrize("service", ["policy", "perception", "reasoning", "grader", "rollouts-1"])
def test_every_line_of_a_service_can_be_json_and_names_the_run(run: Run, service: str) -> None:
    name = f"{service}.log"
    lines = log_lines((run.folder / "logs" / name).read_bytes()[run.logs_before[name] :].decode())
    assert lines
    assert {line["run"] for line in lines if line["logger"].startswith("prism")} <= {"e2e"}
    if service == "policy":  # of the server itself, not of its supervisor
        served = [line for line in lines if line["logger"] == "vllm.prism.policy" and "took weights" in line["message"]]
        assert {line["policy_version"] for line in served} >= {ALIGN_STEPS + 1, newest_version(run)}
    if service == "rollouts-1":
        made = [line for line in lines if line["message"] == "group finished" and line["stage"] == "rlvr"]
        assert all({"run", "position", "prompt_id", "policy_version"} <= line.keys() for line in made)
        assert made
