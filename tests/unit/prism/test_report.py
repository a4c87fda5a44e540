"""The report of a run, made from a run's folder that the tests write."""

import io
import json
import math
import random
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw
from rich.console import Console

from prism.data.blobs import BlobStore
from prism.errors import DataError
from prism.report.charts import running_mean
from prism.report.model import load_report
from prism.report.records import Step, surviving
from prism.report.rollouts import response
from prism.report.table import print_comparison, print_table
from prism.report.write import write_comparison, write_report

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
STEPS = {"sft": 300, "align": 80, "rlvr": 40}
WARMUP = 40
VERSIONS = {"sft": 0, "align": 40, "rlvr": 80}
BOUND = 1e-3
HELD_OUT = {"sft": (0.4512, 0.9805, 0.4633), "align": (0.7793, 0.9961, 0.8402), "rlvr": (0.9023, 1.0, 0.8315)}


def build_run(folder: Path, stages: tuple[str, ...] = ("sft", "align", "rlvr"), prompts: int = 12) -> Path:
    """A run that finished these stages, as the trainer would leave it."""
    folder.mkdir(parents=True)
    rng = random.Random(7)
    planned = {name: {"kind": name, "steps": steps} for name, steps in STEPS.items()}
    planned["align"] |= {"steps": STEPS["align"] - WARMUP, "warmup_steps": WARMUP}
    config = {"name": "demo", "seed": 3, "stages": planned, "push": {"probe_tolerance": BOUND}}
    (folder / "config.json").write_text(json.dumps(config))
    for number, name in enumerate(stages):
        append(folder / "metrics.jsonl", *(step_line(rng, name, n + 1) for n in range(STEPS[name])))
        append(folder / "evaluations.jsonl", evaluation(name, number))
        append(folder / "samples.jsonl", *(sample(folder, rng, name, i) for i in range(prompts)))
        result = {"kind": name, "version": 40 * number, "steps": STEPS[name], "seconds": 300.0 - 90 * number}
        (folder / "stages" / name).mkdir(parents=True)
        (folder / "stages" / name / "stage.json").write_text(json.dumps(result))
    if "align" in stages:
        append(folder / "disentanglement.jsonl", disentanglement())
    return folder


def disentanglement() -> dict[str, Any]:
    noticed = {"rows": 128, "change": -2.5, "std": 3.52, "stderr": 0.22, "accuracy": 0.75}
    blind = {"rows": 128, "change": 0.0, "std": 0.0, "stderr": 0.0, "accuracy": 0.5}
    return {
        "stage": "align", "expert_version": 80, "share": 1.0, "caption": {"perception": noticed, "reasoning": blind},
        "steps": {"perception": blind, "reasoning": noticed | {"rows": 0, "change": None, "std": None}},
    }  # fmt: skip


def append(path: Path, *rows: dict[str, Any]) -> None:
    with path.open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def evaluation(name: str, number: int) -> dict[str, Any]:
    accuracy, form, f1 = HELD_OUT[name]
    by_level = {str(n): {"questions": 171, "accuracy": accuracy - 0.05 * n + 0.1, "caption_f1": f1} for n in (1, 2, 3)}
    return {
        "stage": name, "kind": name, "policy_version": 40 * number, "questions": 512, "judged": 512,
        "accuracy": accuracy, "accuracy_stderr": math.sqrt(accuracy * (1 - accuracy) / 512), "format_rate": form,
        "caption_f1": f1, "response_tokens": 41.5, "by_level": by_level, "seconds": 9.5,
        "unasked": 0, "unasked_rows": [], "skipped_rows": 0, "skipped_reasons": [],
    }  # fmt: skip


def step_line(rng: random.Random, name: str, step: int) -> dict[str, Any]:
    line: dict[str, Any] = {"stage": name, "step": step, "time": 1.78e9 + step}
    if name == "sft":
        return line | {"loss": 4 * math.exp(-step / 60) + 0.2 * rng.random(), "update_seconds": 0.2, "skipped": 0}
    warm = name == "align" and step <= WARMUP
    gap = 4 * step / WARMUP if warm else 4 * math.exp(-(step - WARMUP) / 15) + 0.2 * rng.random()
    line |= {
        "attempt": 1, "wait_seconds": 0.7 + 0.2 * rng.random(), "step_seconds": 1.8, "caption_f1": 0.5 + step / 200,
        "format_rate": 0.99, "response_tokens": 40 + 3 * rng.random(), "staleness_mean": 0.0, "staleness_max": 0,
    }  # fmt: skip
    if name == "align":
        line |= {"warmup": warm, "perception_gap": gap, "reasoning_gap": None if step == 50 else gap / 2}
        line |= {f"{expert}_pair_accuracy": 0.5 + gap / 9 for expert in ("perception", "reasoning")}
        line |= {f"{expert}_tie_share": None if warm else 0.4 for expert in ("perception", "reasoning")}
        line |= {f"{expert}_length_correlation_both": rng.uniform(-0.2, 0.2) for expert in ("perception", "reasoning")}
        line |= {
            f"perception_router_load_{end}": rng.uniform(low, low + 0.2) for end, low in (("max", 0.3), ("min", 0))
        }
        line |= {"perception_router_load": [0.25] * 4, "reasoning_router_load_max": None}
        for expert in () if warm else ("perception", "reasoning"):
            scores = {"teacher_score": 1.5 + gap / 2, "score": 1.5 - gap / 2, "gap": gap}
            line |= {f"served_{expert}_{key}": value for key, value in scores.items()}
    else:
        line |= {"reward": 0.75 + step / 300 + 0.05 * rng.random(), "accuracy": 0.7 + step / 300}
    if not warm:
        line |= {"logprob_mismatch": 10 ** rng.uniform(-6.6, -6), "sync_total_seconds": 0.3 + 0.1 * rng.random()}
        line |= {"sync_paused_seconds": 0.05 + 0.01 * rng.random(), "policy_update_seconds": 0.6, "masked_samples": 0}
    return line


def sample(folder: Path, rng: random.Random, name: str, number: int) -> dict[str, Any]:
    digits = [(number * 7 + 3 * i) % 10 for i in range(4 if number % 2 else 9)]
    text = dict(enumerate(digits))
    for cell in rng.sample(sorted(text), {"sft": 3, "align": 1, "rlvr": number % 2}[name]):
        text[cell] = (text[cell] + 1) % 10
    answer, gold = text[0] + text[1], digits[0] + digits[1]
    scores = [] if name == "sft" else [("perception", -0.4), ("reasoning", 0.3)]
    return {
        "stage": name, "prompt_id": f"test-{number:04d}", "images": [picture(folder, digits)],
        "question": "Sum of the top row?", "gold": str(gold), "teacher": written(dict(enumerate(digits))),
        "response": "<caption>- a one\n" if (name, number) == ("sft", 4) else written(text),
        "policy_version": VERSIONS[name],
        "scores": [{"expert": e, "version": 80, "status": "ok", "value": v, "detail": ""} for e, v in scores],
        "teacher_scores": [{"expert": e, "version": 80, "status": "ok", "value": v + 2} for e, v in scores],
        "verdict": {"status": "ok", "accuracy": float(answer == gold), "format": 1.0, "extracted": str(answer),
                    "reward": 0.2 + 0.8 * (answer == gold), "detail": ""},
    }  # fmt: skip


def written(digits: dict[int, int]) -> str:
    facts = "\n".join(f"- {'abcdefghi'[cell]} {NAMES[digit]}" for cell, digit in digits.items())
    total = digits[0] + digits[1]
    return f"<caption>{facts}</caption><think>{digits[0]}+{digits[1]}={total}</think><answer>{total}</answer>"


def picture(folder: Path, digits: list[int]) -> str:
    image = Image.new("L", (32 * (columns := math.isqrt(len(digits))), 32 * columns))
    for cell, digit in enumerate(digits):
        at = (32 * (cell % columns) + 8, 32 * (cell // columns) + 4)
        ImageDraw.Draw(image).text(at, str(digit), 255, font_size=22)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return BlobStore(str(folder / "blobs")).put(buffer.getvalue())


def build_comparison(root: Path, seeds: int = 3) -> Path:
    """Three arms: the last is best at accuracy by more than seeds differ, captions are alike."""
    root.mkdir(parents=True)
    arms: list[dict[str, Any]] = []
    means = {"SFT → RLVR": 0.69, "SFT → teacher SFT → RLVR": 0.88, "SFT → PRISM → RLVR": 0.93}
    for number, (name, mean) in enumerate(means.items()):
        results = [
            {"seed": s, "accuracy": mean + 0.01 * s, "accuracy_sampled": mean - 0.1 + 0.01 * s if number else None,
             "caption_f1": 0.84 + 0.01 * s + 0.001 * number, "format_rate": 1.0, "policy_steps": 80,
             "teacher_texts": 400 * number, "seconds": 300.0 + 40 * s, "run_dir": f"{number}-{s}"}
            for s in range(seeds)
        ]  # fmt: skip
        arms.append({"name": name, "description": "At equal policy steps.", "seeds": results})
    (root / "comparison.json").write_text(json.dumps({"arms": arms, "split": "test", "questions": 512}))
    return root


def step(number: int, attempt: int | None = None, **figures: float | None) -> Step:
    return Step.read({"stage": "align", "step": number, "attempt": attempt} | figures)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return build_run(tmp_path / "demo")


def test_numbers_in_the_report_are_those_of_the_run(run: Path) -> None:
    write_report(run)
    report = json.loads((run / "report.json").read_text())
    assert [stage["name"] for stage in report["stages"]] == ["sft", "align", "rlvr"]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for number, stage in enumerate(report["stages"]):
        assert stage["evaluation"] == evaluation(stage["name"], number)
        recorded = [line for line in lines if line["stage"] == stage["name"]]
        curve = report["curves"][stage["name"]]
        assert curve["steps"] == [line["step"] for line in recorded]
        for figure, values in curve["figures"].items():
            assert values == [line.get(figure) for line in recorded]
        assert "perception_router_load" not in curve["figures"], "a list is no curve"
    assert report["totals"]["paused_seconds"] == math.fsum(line.get("sync_paused_seconds", 0) for line in lines)
    assert report["totals"]["logprob_mismatch_max"] == max(line.get("logprob_mismatch", 0) for line in lines)
    assert report["problems"] == []
    assert [stage["disentanglement"] is None for stage in report["stages"]] == [True, False, True]
    assert report["stages"][1]["disentanglement"]["caption"] == disentanglement()["caption"]
    assert report["headline"] == "Held-out accuracy rose from 45.1\u00a0% to 90.2\u00a0%"
    assert report["rollouts"] == [f"test-{number:04d}" for number in range(12)]
    first = (run / "report.html").read_bytes(), (run / "report.json").read_bytes()
    write_report(run)  # the same files give the same report
    assert first == ((run / "report.html").read_bytes(), (run / "report.json").read_bytes())
    assert len(first[0]) < 3_000_000


def test_words_follow_the_numbers_down_as_well_as_up(run: Path) -> None:
    # The last line of a stage counts.
    append(run / "evaluations.jsonl", evaluation("rlvr", 2) | {"accuracy": 0.3, "caption_f1": 0.2})
    report = load_report(run)
    assert report.headline == "Held-out accuracy fell from 45.1\u00a0% to 30.0\u00a0%"
    assert "lowered caption F1 from 84.0\u00a0% to 20.0\u00a0%" in report.sentences[2]
    append(run / "evaluations.jsonl", evaluation("rlvr", 2) | {"accuracy": 0.46, "accuracy_stderr": 0.022})
    assert "within the noise" in load_report(run).headline


def test_a_later_attempt_supersedes_steps_from_its_first_on() -> None:
    lines = [step(n, 1, x=1) for n in (1, 2, 3, 4, 5)] + [step(n, 2, x=2) for n in (3, 4)]
    assert [(s.step, s.figures["x"]) for s in surviving(lines)] == [(1, 1), (2, 1), (3, 2), (4, 2)]
    assert [(s.step, s.figures["x"]) for s in surviving([*lines, step(4, 2, x=9)])][-1] == (4, 9)
    # SFT writes no attempt: its steps count back.
    lines = [step(n, x=1) for n in (1, 2, 3, 4)] + [step(2, x=2)]
    assert [(s.step, s.figures["x"]) for s in surviving(lines)] == [(1, 1), (2, 2)]


def test_superseded_steps_count_nowhere(run: Path) -> None:
    before = load_report(run)
    append(run / "metrics.jsonl", *(step_line(random.Random(7), "rlvr", n) | {"attempt": 2} for n in (31, 32)))
    report = load_report(run)
    assert report.curves["rlvr"].steps == list(range(1, 33))
    assert (report.stages[2].superseded_steps, report.stages[2].attempts) == (10, [1, 2])
    assert report.totals.policy_pushes == before.totals.policy_pushes - 8
    assert any("rlvr was resumed: 10" in warning for warning in report.warnings)


def test_held_out_rows_that_are_left_out_are_named(run: Path) -> None:
    assert not any("held-out row" in warning for warning in load_report(run).warnings)
    left = {"unasked": 1, "unasked_rows": [{"row": "q7", "reason": "413 too long"}]}
    left |= {"skipped_rows": 9, "skipped_reasons": [f"data:{n}: gold is missing" for n in range(9)]}
    append(run / "evaluations.jsonl", evaluation("rlvr", 2) | left)
    warnings = load_report(run).warnings
    assert "1 held-out row could not be asked after rlvr: q7: 413 too long." in warnings
    first = "; ".join(f"data:{n}: gold is missing" for n in range(3))
    assert f"9 held-out rows cannot be used after rlvr: {first}; and others." in warnings


def test_no_data_is_a_gap_and_never_a_zero(run: Path) -> None:
    report = load_report(run)
    assert report.curves["align"].figures["reasoning_gap"][49] is None
    assert report.curves["align"].figures["logprob_mismatch"][:WARMUP] == [None] * WARMUP
    assert running_mean([1.0, None, 3.0, 5.0], 1) == [1.0, None, 4.0, 4.0]
    assert step(1, loss=math.nan).figures == {"loss": None}
    append(run / "evaluations.jsonl", evaluation("rlvr", 2) | {"accuracy": None, "judged": 0})
    assert "512 of 512 held-out responses after rlvr got no verdict." in load_report(run).warnings


def test_whatever_a_model_wrote_is_escaped(run: Path) -> None:
    hostile = "<caption>- <script>alert(1)</script></caption><think><img src=x></think><answer>'\"><b>7</answer>"
    changed = sample(run, random.Random(1), "rlvr", 3) | {"response": hostile, "question": "<script>q</script>"}
    broken = sample(run, random.Random(1), "rlvr", 4) | {"response": "</div><script>alert(2)</script>"}
    verdict = {"status": "<i>failed", "accuracy": None, "detail": "<script>d</script>"}
    append(run / "samples.jsonl", changed, broken | {"verdict": verdict})
    write_report(run)
    page = (run / "report.html").read_text()
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "&lt;/div&gt;&lt;script&gt;alert(2)" in page
    for markup in ("<script", "<img src=x", '"><b>', "<i>failed"):
        assert markup not in page


def test_a_run_that_has_only_finished_sft_gets_a_report(tmp_path: Path) -> None:
    run = build_run(tmp_path / "demo", ("sft",))
    report = write_report(run)
    assert report.headline.startswith("45.1\u00a0% of held-out questions answered correctly")
    assert [stage.finished for stage in report.stages] == [True, False, False]
    assert "Stage align has not started." in report.warnings
    assert re.findall('id="chart-([a-z]+)"', (run / "report.html").read_text()) == ["loss"]


def test_missing_and_broken_inputs_are_said_and_not_fatal(run: Path) -> None:
    (run / "config.json").unlink()
    samples = (run / "samples.jsonl").read_bytes()
    (run / "samples.jsonl").write_bytes(b'{"stage": "sft"}\n\xff\xfe\n[1]\n{"sta')
    (run / "stages" / "sft" / "stage.json").write_text("{")
    (run / "stages" / "rlvr.partial").mkdir()  # as a kill leaves it
    (run / "stages" / "rlvr.partial" / "stage.json").write_text('{"version": 1, "steps": 1}')
    report = write_report(run)
    assert [stage.name for stage in report.stages] == ["sft", "align", "rlvr"]
    assert report.problems[0] == "config.json is missing"
    assert "samples.jsonl: 4 lines could not be read" in report.problems[1]
    assert "line 1: prompt_id: Field required" in report.problems[1]
    assert report.problems[2].startswith("stages/sft/stage.json could not be read")
    assert report.stages[0].evaluation is not None
    assert "No rollouts" in (run / "report.html").read_text()
    (run / "samples.jsonl").write_bytes(samples)
    blobs = sorted((run / "blobs").glob("*/*"))
    blobs[0].unlink()
    blobs[1].write_bytes(b"no image")
    write_report(run)
    said = set(re.findall("picture [a-z]+", (run / "report.html").read_text()))
    assert {"picture missing", "picture unreadable"} <= said


@pytest.mark.parametrize("name", ["nowhere", "."])
def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"is not a folder|is no run"):
        write_report(tmp_path / name)


def looked(right: float, shuffled: float, close: int) -> dict[str, Any]:
    shares = {"right": right, "shuffled": shuffled, "blank": shuffled}
    figures = {"pairs": 60, "tie_share": 0.25, **shares, **{f"{name}_stderr": 0.04 for name in shares}, "close": close}
    return {f"perception_looks_{name}": value for name, value in figures.items()}


def test_whether_experts_look_is_in_the_report_and_warned_of(run: Path) -> None:
    assert "Do the experts of align look?" not in (write_report(run), (run / "report.html").read_text())[1]
    rng, versions = random.Random(1), {"looks_policy_version": 0, "looks_expert_version": 40}
    for number, right, shuffled, close in ((WARMUP, 0.9, 0.55, 0), (WARMUP + 20, 0.99, 0.935, 1), (80, 0.97, 0.9, 1)):
        append(run / "metrics.jsonl", step_line(rng, "align", number) | looked(right, shuffled, close) | versions)
    none = {"reasoning_looks_pairs": 0} | {f"reasoning_looks_{name}": None for name in ("right", "shuffled", "close")}
    append(run / "metrics.jsonl", step_line(rng, "align", 80) | looked(0.97, 0.9, 1) | none)
    report = write_report(run)
    stage = json.loads((run / "report.json").read_text())["stages"][1]
    assert [(one["step"], one["expert_version"]) for one in stage["looks"]] == [(40, 40), (60, 40), (80, None)]
    assert stage["looks"][0]["experts"]["perception"] == {
        "pairs": 60,
        "tie_share": 0.25,
        "right": {"share": 0.9, "stderr": 0.04},
        "shuffled": {"share": 0.55, "stderr": 0.04},
        "blank": {"share": 0.55, "stderr": 0.04},
        "close": False,
    }
    said = (
        "After step 80 of align the perception expert told 97\u00a0% of 60 held-out pairs apart, 90\u00a0% with another"
    )
    assert sum(said in sentence for sentence in report.sentences) == 1
    assert not any("the reasoning expert told" in sentence for sentence in report.sentences)
    (warning,) = (one for one in report.warnings if "hardly looked" in one)
    assert warning.startswith("The perception expert of align hardly looked at the picture after steps 60 and 80: ")
    page = (run / "report.html").read_text()
    assert "Do the experts of align look?" in page
    assert page.count("hardly looks") == 2


def test_captions_are_held_against_the_teachers() -> None:
    teacher = written({0: 1, 1: 2, 2: 2})
    marks = [(b.text, b.mark) for b in response(written({0: 1, 1: 3, 2: 2}), teacher).bullets]
    assert marks == [("a one", "right"), ("b three", "wrong"), ("c two", "right"), ("b two", "missed")]
    assert {b.mark for b in response("nonsense", teacher).bullets} == {"missed"}


def test_the_table_shows_what_the_report_says(run: Path) -> None:
    console = Console(record=True, width=160, file=io.StringIO())
    print_table(load_report(run), console)
    assert re.search("77.9\u00a0% ± 1.8.*Held-out accuracy rose", console.export_text(), re.DOTALL)


def test_what_experts_notice_is_on_the_page_and_at_the_terminal(run: Path) -> None:
    console = Console(record=True, width=160, file=io.StringIO())
    report = write_report(run)
    print_table(report, console)
    page, table = (run / "report.html").read_text(), console.export_text()
    for shown in ("-2.50 ± 0.22", "+0.00 ± 0.00", "told apart 75\u00a0%", "n = 128", "no data"):
        assert shown in page
        assert shown in table
    assert "by construction" in page
    assert 'id="chart-router"' in page
    assert 'id="chart-ties"' in page
    said = "The perception expert notices corrupted captions (change of score -2.50 ± 0.22, told apart 75\u00a0%)."
    assert said in report.sentences
    blind = disentanglement()["caption"]["reasoning"]
    append(run / "disentanglement.jsonl", disentanglement() | {"caption": {"perception": blind}})
    assert "perception expert does not notice corrupted captions" in load_report(run).sentences[-1]
    (run / "disentanglement.jsonl").unlink()
    report = write_report(run)
    assert report.problems == [], "most runs do not measure it"
    assert "by construction" not in (run / "report.html").read_text()


def test_a_comparison_says_who_wins_and_whether_beyond_the_spread(tmp_path: Path) -> None:
    comparison = write_comparison(build_comparison(tmp_path / "compare"))
    assert comparison.headline == "SFT → PRISM → RLVR wins on greedy accuracy, by more than seeds differ"
    best = comparison.arms[2].metrics["accuracy"]
    assert (best.mean, best.low, best.high, best.std) == pytest.approx((0.94, 0.93, 0.95, 0.01))
    assert "not beyond the spread" in next(s for s in comparison.conclusion if s.startswith("Caption F1"))
    assert "SFT → RLVR has no figure." in next(s for s in comparison.conclusion if s.startswith("Sampled"))
    assert "SFT → PRISM → RLVR" in (tmp_path / "compare" / "comparison.html").read_text()
    console = Console(record=True, width=200, file=io.StringIO())
    print_comparison(comparison, console)
    assert "93.0 … 95.0, 1.0" in console.export_text()


def test_a_comparison_of_one_seed_claims_no_difference(tmp_path: Path) -> None:
    comparison = write_comparison(build_comparison(tmp_path / "compare", seeds=1))
    assert comparison.headline.endswith("how much seeds differ is not known")
    assert any("no known spread" in sentence for sentence in comparison.conclusion)
    assert comparison.arms[0].metrics["accuracy"].std is None


@pytest.mark.parametrize("content", [None, "{", "{}", '{"arms": [], "split": "test", "questions": 1}'])
def test_a_comparison_that_cannot_be_used_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "comparison.json").write_text(content)
    with pytest.raises(DataError, match=r"comparison\.json"):
        write_comparison(tmp_path)


def test_signs_of_collapse_stand_beside_their_stage_and_in_the_notes(run: Path) -> None:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if line["stage"] == "rlvr":
            line["flat_steps"] = max(0, line["step"] - 38)
            if line["step"] in (7, 20, 21, 22):
                line["alerts"] = {"entropy_below": 0.01, **({"grad_norm_above": 10} if line["step"] == 7 else {})}
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    report = write_report(run)
    expected = [
        "entropy was below 0.01 in step 7",
        "the policy's gradient norm was above 10 in step 7",
        "entropy was below 0.01 in steps 20 to 22",
    ]
    assert [f"In stage rlvr {words}." for words in expected] == [w for w in report.warnings if "In stage rlvr" in w]
    assert "In 2 steps of stage rlvr the policy learnt nothing." in report.warnings
    page = (run / "report.html").read_text()
    cell = page[page.index('<span class="name">rlvr</span>') :].split("</td>")[0]
    assert [words.replace("'", "&#39;") in cell for words in expected] == [True] * 3
    assert "alert" not in page[page.index('<span class="name">align</span>') :].split("</td>")[0]
