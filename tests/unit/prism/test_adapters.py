"""Reward functions for other trainers: called as the trainers call them, over a grader that they start themselves."""

import json
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from prism.adapters.grading import Grading
from prism.adapters.trl import GraderReward, completion_text
from prism.adapters.verl import compute_score
from prism.clients.http import Refused, Unavailable
from prism.errors import ConfigError, NotJudgedError, ServiceError
from prism.services.experts.compatible import ClassifyRequest, PairsRequest

BOXED = [{"role": "assistant", "content": "It is \\boxed{7}."}]


@pytest.fixture(scope="module")
def own() -> Iterator[Grading]:
    """A grader started by an adapter. The environment leads the other adapters to it."""
    grading = Grading(kind="number")
    grading.grade([{"response": "7", "gold": "7"}])
    assert grading._link
    service = grading._link.service
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRISM_GRADER_URL", service.url)
        patch.setenv("PRISM_TOKEN", service._headers["Authorization"].removeprefix("Bearer "))
        yield grading
    assert grading._link._process
    process = psutil.Process(grading._link._process.pid)
    family = [process, *process.children(recursive=True)]
    grading.close()
    deadline = time.monotonic() + 10
    while any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in family):
        assert time.monotonic() < deadline, "a closed grader leaves processes behind"
        time.sleep(0.05)


def test_what_cannot_be_graded_has_a_status_and_no_number(own: Grading) -> None:
    items = [
        {"response": "\\boxed{7}", "gold": 7},
        {"response": "\\boxed{7}", "gold": np.array(["8", "7"]), "kind": None},
        {"response": "\\boxed{8}", "gold": "7"},
        {"response": "\\boxed{7}", "gold": "several"},
        {"response": "\\boxed{7}"},
        {"response": "\\boxed{7}", "gold": "7", "kind": "essay"},
        {"response": "x" * 100_000, "gold": "7"},
        {"response": "B", "gold": "7", "kind": "choice", "options": {"choices": np.array([6, 7]), "rel_tol": None}},
    ]
    assert own.values(items) == [1.0, 1.0, 0.0, None, None, None, None, 0.0]
    verdicts = own.grade(items)
    assert [verdict.status for verdict in verdicts[3:7]] == ["unparseable_gold", "error", "error", "error"]
    assert "gold" in (verdicts[4].detail or "")
    assert own.grade([]) == []


def test_rules_and_value_are_the_graders(own: Grading) -> None:
    item = {"response": "\\boxed{8}", "gold": "7", "tokens": 75}
    assert Grading(value="reward").values([item]) == [0.2]
    assert Grading(rules={"format": "required"}).grade([item])[0].status == "invalid_format"
    rules = {"format": "ignored", "overlong": {"limit": 100, "buffer": 50}}
    assert Grading(rules=rules, value="reward").values([item]) == [pytest.approx(-0.3)]
    with pytest.raises(ConfigError, match="over-long"):
        Grading(rules=rules)
    with pytest.raises(ConfigError, match="extract"):
        Grading(rules={"extract": ["magic"]})
    with pytest.raises(ConfigError, match="value"):
        Grading(value="score")  # pyright: ignore[reportArgumentType]


def test_many_threads_and_other_processes_share_a_grader(own: Grading) -> None:
    reward = pickle.loads(pickle.dumps(GraderReward()))  # noqa: S301  (as a trainer sends it to its workers)
    golds = [str(number) for number in range(40)]
    with ThreadPoolExecutor(8) as threads:
        given = list(threads.map(lambda gold: reward(["\\boxed{7}"], gold=[gold])[0], golds))
    assert given == [float(gold == "7") for gold in golds]


def test_a_grader_that_is_away_or_refuses_is_an_error(own: Grading) -> None:
    with pytest.raises(Refused, match="401"):
        Grading(token="another-token-0123456789").grade([{"response": "7", "gold": "7"}])
    with pytest.raises(Unavailable):
        Grading("http://127.0.0.1:9", patience_seconds=0.1).grade([{"response": "7", "gold": "7"}])


def test_a_grader_that_cannot_be_started_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PRISM_GRADER_URL", raising=False)
    monkeypatch.setenv("PRISM_DEADLINE_SECONDS", "0")
    before = threading.active_count()
    with pytest.raises(ServiceError, match=r"(?s)prism-align\[grader\].*PRISM_DEADLINE_SECONDS"):
        Grading().grade([{"response": "7", "gold": "7"}])
    deadline = time.monotonic() + 5
    while threading.active_count() > before:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_trl_gets_none_for_what_has_no_verdict(own: Grading) -> None:
    """As GRPOTrainer calls it: everything by keyword, a list of each column, messages or texts."""
    metrics, extras = dict[str, float](), dict[str, list[str]]()
    given = GraderReward(gold="answer", kind_column="type")(
        prompts=[[{"role": "user", "content": "2 + 5?"}]] * 4,
        completions=[BOXED, "\\boxed{7}", BOXED, []],
        completion_ids=[[1, 2]] * 4,
        answer=["7", "8", "several", "7"],
        type=["number", "auto", "number", None],
        trainer_state=None,
        log_extra=extras.__setitem__,
        log_metric=metrics.__setitem__,
    )
    assert given == [1.0, 0.0, None, 0.0]
    assert metrics == {"prism/not_judged": 0.25}
    assert extras == {"prism_status": ["ok", "ok", "unparseable_gold", "unparseable_answer"]}
    with pytest.raises(ConfigError, match="no column gold, only answer"):
        GraderReward()(completions=["7"], answer=["7"])


def test_trl_counts_tokens_for_the_over_long_penalty(own: Grading) -> None:
    rules = {"format": "ignored", "overlong": {"limit": 4, "buffer": 2}}
    reward = GraderReward(rules=rules, value="reward")
    assert reward(["\\boxed{7}"] * 2, completion_ids=[[1], [1, 2, 3]], gold=[7, 7]) == [1.0, 0.5]


@pytest.mark.parametrize(
    ("completion", "text"),
    [
        ("a", "a"),
        (BOXED, "It is \\boxed{7}."),
        ([], ""),
        ([{"role": "assistant", "content": None, "tool_calls": []}], ""),
        ([{"role": "assistant", "content": "first"}, {"role": "tool", "content": "t"}, *BOXED], "It is \\boxed{7}."),
        ([{"role": "assistant", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}], "ab"),
    ],
)
def test_a_completion_is_a_text_or_messages(completion: Any, text: str) -> None:
    assert completion_text(completion) == text


def test_verl_gets_a_score_or_an_error(own: Grading) -> None:
    """As its naive reward manager calls it."""

    def ask(solution: str, truth: Any, extra: dict[str, Any] | None = None, **configured: Any) -> dict[str, Any]:
        return compute_score(
            data_source="gsm8k", solution_str=solution, ground_truth=truth, extra_info=extra, **configured
        )

    assert ask("\\boxed{7}", "7") == {"score": 1.0, "acc": 1.0, "status": "ok"}
    assert ask("\\boxed{8}", np.array(["7", "9"]), {"num_turns": 1}) == {"score": 0.0, "acc": 0.0, "status": "ok"}
    assert ask("\\boxed{8}", 7, value="reward")["score"] == 0.2
    choice = {"prism": {"kind": "choice", "options": {"choices": ["6", "7"]}}}
    assert ask("\\boxed{B}", "7", choice)["score"] == 1.0
    assert ask("7", "7", rules={"format": "ignored", "extract": ["whole"]}, reward_router_address="a:1")["score"] == 1.0
    with pytest.raises(NotJudgedError, match=r"gsm8k.*'several'.*unparseable_gold"):
        ask("\\boxed{7}", "several", kind="number")


def test_trls_trainer_learns_from_it(own: Grading, tiny_model: Path, tmp_path: Path) -> None:
    """A step of the real GRPOTrainer: one prompt can be judged, the other's gold answer cannot."""
    pytest.importorskip("trl")
    from datasets import Dataset
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.grpo_trainer import GRPOTrainer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    rows = [{"prompt": "2 + 5?", "answer": "7"}, {"prompt": "3 + 5?", "answer": "several"}]
    trainer = GRPOTrainer(
        model=LlamaForCausalLM(config),
        processing_class=tokenizer,
        reward_funcs=GraderReward(gold="answer", kind="number"),
        train_dataset=Dataset.from_list(rows),
        args=GRPOConfig(
            output_dir=str(tmp_path),
            per_device_train_batch_size=4,
            num_generations=2,
            max_completion_length=4,
            max_steps=1,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            bf16=False,
            seed=0,
        ),
    )
    trainer.train()
    logged = next(entry for entry in trainer.state.log_history if "reward" in entry)
    assert logged["prism/not_judged"] == 0.5
    assert logged["rewards/prism_grader/mean"] == 0.0, "what was not judged is in no mean"


def test_adapters_import_neither_torch_nor_their_trainers() -> None:
    code = "import sys; sys.modules.update(dict.fromkeys(['torch', 'trl', 'verl', 'math_verify', 'pebble'])); "
    code += "import prism.adapters.trl, prism.adapters.verl"
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ, timeout=60)


def blocks(language: str) -> list[str]:
    page = (Path(__file__).parents[3] / "docs/other-trainers.md").read_text()
    return [block.partition("```")[0] for block in page.split(f"```{language}\n")[1:]]


def test_the_pages_python_runs(own: Grading) -> None:
    assert len(blocks("python")) == 2
    for block in blocks("python"):
        exec(block, {})  # noqa: S102  (its assertions are the test)


def test_the_pages_requests_are_answered_as_it_says(own: Grading) -> None:
    assert own._link
    client, requests = own._link.service, blocks("json")
    asked = 0
    for block, answer in pairwise([*requests, ""]):
        place, _, body = block.partition("\n")
        if place.startswith("POST /score"):
            assert PairsRequest.model_validate_json(body).request().items
        elif place.startswith("POST /classify"):
            assert ClassifyRequest.model_validate_json(body).request().items
        elif place.startswith("POST "):
            asked += 1
            given = own._link.run(client.post(place.removeprefix("POST "), json.loads(body))).json()
            expected = json.loads(answer)
            assert {key: given[key] for key in expected} == expected
    assert (asked, len(requests)) == (2, 6)
