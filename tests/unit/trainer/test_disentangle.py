"""Lies in one section alone, and what is measured with them."""

import json
import re
import statistics
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from prism.clients.http import Refused
from prism.config import DisentangleConfig, RunConfig, load_config
from prism.errors import ServiceError
from prism.evaluation import disentangle as module
from prism.evaluation.corrupt import Lies
from prism.evaluation.disentangle import disentangle, disentangled_stages, print_disentanglement, summary
from prism.wire.response import Expert, parse_response
from prism.wire.v1 import rollout_pb2 as pb

NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
RESPONSE = "<caption>- a seven\n- b one of 12 zerosum</caption><think>7+1=8\nmax=8</think><answer>8</answer>"


def numbers(text: str) -> list[str]:
    return re.findall(rf"\d+|\b(?:{'|'.join(NAMES)})\b", text)


def test_a_corrupted_section_has_other_numbers_and_all_else_is_untouched() -> None:
    original = parse_response(RESPONSE)
    lies = Lies([NAMES])
    for seed in range(50):
        caption, steps = (lies.corrupt(RESPONSE, section, seed) for section in ("caption", "steps"))
        assert caption is not None
        assert steps is not None
        changed = parse_response(caption)
        assert changed.valid
        assert (changed.think, changed.answer) == (original.think, original.answer)
        before, after = numbers(original.caption), numbers(changed.caption)
        assert len(before) == len(after) == 3
        assert all(a != b for a, b in zip(before, after, strict=True))
        assert re.fullmatch(r"- a (\w+)\n- b (\w+) of [1-9]\d zerosum", changed.caption)
        changed = parse_response(steps)
        assert (changed.caption, changed.answer) == (original.caption, original.answer)
        assert re.fullmatch(r"\d\+\d=\d\nmax=\d", changed.think)
        assert all(a != b for a, b in zip(numbers(original.think), numbers(changed.think), strict=True))
    assert lies.corrupt(RESPONSE, "caption", 3) == lies.corrupt(RESPONSE, "caption", 3)


@pytest.mark.parametrize(("share", "count"), [(0.01, 1), (0.5, 2), (1.0, 4)])
def test_a_share_of_the_numbers_can_be_changed(share: float, count: int) -> None:
    changed = parse_response(Lies(share=share).corrupt(RESPONSE, "steps", 0) or "").think
    assert sum(a != b for a, b in zip(numbers(changed), ["7", "1", "8", "8"], strict=True)) == count


def test_what_holds_no_number_or_no_format_is_not_corrupted() -> None:
    assert Lies().corrupt(RESPONSE.replace("12", "some"), "caption", 0) is None, "words are no numbers unless named"
    assert Lies([NAMES]).corrupt("seven", "caption", 0) is None


def test_the_summary_is_of_what_was_scored() -> None:
    changes = [-1.0, 0.0, 2.0, None]
    std = statistics.stdev([-1, 0, 2])
    assert summary(changes) == {
        "rows": 3,
        "change": pytest.approx(1 / 3),
        "std": pytest.approx(std),
        "stderr": pytest.approx(std / 3**0.5),
        "accuracy": 0.5,
    }
    assert summary([-1.0])["stderr"] is None
    assert summary([None]) == {"rows": 0, "change": None, "std": None, "stderr": None, "accuracy": None}


class FakeExpert:
    """A client of an expert that gives a section the sum of its numbers, and refuses long captions."""

    version = 60

    def __init__(self, *_: Any) -> None:
        pass

    async def score(self, expert: Expert, messages: Any, responses: list[str], min_version: int) -> list[pb.Score]:
        made: list[pb.Score] = []
        for text in responses:
            section = parse_response(text).section(expert)
            value = sum(NAMES.index(n) if n in NAMES else int(n) for n in numbers(section))
            made.append(pb.Score(expert=expert, expert_version=self.version, status=pb.STATUS_OK, value=value))
        if len(messages[0].parts[1].text) % 4 == 3:  # some prompts are not scored at all
            made[0] = pb.Score(expert=expert, expert_version=self.version, status=pb.STATUS_ERROR)
        return made


@pytest.fixture
def config(demo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    monkeypatch.setattr(module, "ExpertClient", FakeExpert)
    for name in ("REDIS", "POLICY", "PERCEPTION", "REASONING", "GRADER"):
        monkeypatch.setenv(f"PRISM_{name}_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("PRISM_TOKEN", "t" * 16)
    monkeypatch.setenv("PRISM_BLOBS", str(tmp_path / "blobs"))
    data = demo_folder / "data" / "teacher.jsonl"
    made = load_config(Path("configs/demo.toml"), [f"runs_dir={tmp_path}", f'evaluate.data="{data}"'])
    made.run_dir.mkdir()
    return made


def test_an_expert_changes_its_mind_about_its_own_section_alone(config: RunConfig) -> None:
    settings = DisentangleConfig(rows=8, words=[NAMES])
    made = disentangle(config, "align", settings, 60)
    assert made["rows"] == 8
    for section, own, other in (("caption", "perception", "reasoning"), ("steps", "reasoning", "perception")):
        assert made[section][own]["change"] != 0
        assert made[section][own]["std"] > 0
        blind = made[section][other]
        assert (blind["change"], blind["std"], blind["accuracy"]) == (0.0, 0.0, 0.5)
        assert 0 < blind["rows"] < 8, "what could not be scored is no data"
    assert disentangled_stages(config.run_dir) == {"align"}
    line = json.loads((config.run_dir / "disentanglement.jsonl").read_text())
    assert line["caption"] == made["caption"]
    console = Console(record=True, width=200)
    print_disentanglement(console, made)
    said = console.export_text()
    assert "lies in the caption alone change the score by: perception " in said
    assert "reasoning +0.00 ± 0.00 (50% told apart)" in said


@pytest.mark.parametrize("status", [413, 401])
def test_a_row_that_an_expert_refuses_is_named_and_a_wrong_token_ends_it(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    score, asked = FakeExpert.score, list[str]()

    async def refuse_the_first(expert: FakeExpert, *arguments: Any) -> list[pb.Score]:
        asked.append("")
        if len(asked) == 1:
            raise Refused(f"{status} no", status)
        return await score(expert, *arguments)

    monkeypatch.setattr(FakeExpert, "score", refuse_the_first)
    settings = DisentangleConfig(rows=4, words=[NAMES])
    if status == 401:
        with pytest.raises(ServiceError, match="401 no"):
            disentangle(config, "align", settings, 60)
        return
    made = disentangle(config, "align", settings, 60)
    assert (made["rows"], made["unasked"], made["unasked_rows"][0]["reason"]) == (3, 1, "413 no")
    console = Console(record=True, width=200)
    print_disentanglement(console, made)
    assert f"1 held-out rows could not be asked: {made['unasked_rows'][0]['row']}: 413 no" in console.export_text()


def test_scores_of_other_weights_are_refused(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeExpert, "version", 61)
    with pytest.raises(ServiceError, match="perception expert answered with version 61, not 60"):
        disentangle(config, "align", DisentangleConfig(rows=2), 60)
    assert disentangled_stages(config.run_dir) == set()
