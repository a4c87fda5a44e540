"""lmms-eval, as it is published, over our policy service and our task overrides: `make harness`.

Apart from the other tests because its pins fight with those of this checkout. It runs in the environment of
PRISM_LMMS_EVAL, its command line; this test runs in the checkout's own.
"""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from configs.demo import task
from configs.demo.model import Size, save_model
from prism.config import BenchmarkConfig
from prism.evaluation.benchmarks import BENCHMARKS
from prism.evaluation.benchmarks.base import Question
from prism.evaluation.suite.questions import QuestionSet
from tests.service.policy.policy_process import DATA_TOKEN, policy_process
from tests.unit.prism.evaluation import benchmark_rows as rows
from tests.unit.prism.evaluation.fake_server import KEY, FakeServer, serve, text_of

COMMAND = Path(os.environ.get("PRISM_LMMS_EVAL", ".venv-harness/bin/lmms-eval")).absolute()
OVERRIDES = Path("harness/lmms-eval").absolute()
SITE = Path(__file__).parent / "site"
FOUR = [rows.mmmu_pro(f"test_History_{i}", "B") for i in range(4)]
SECTIONS = "<caption>A line.</caption><think>A is short, so it is not A but I\nsay B.</think><answer>B</answer>"


def write(path: Path) -> Path:
    """The rows with the features that tell `datasets` which columns are pictures, as the hub's files have them."""
    table = pyarrow.Table.from_pylist(FOUR)
    features = {
        name: {"_type": "Image"} if name.startswith("image_") else {"dtype": "string", "_type": "Value"}
        for name in table.column_names
    }
    blank = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    fields = [field.with_type(blank) if field.name.startswith("image_") else field for field in table.schema]
    info = {"huggingface": json.dumps({"info": {"features": features}})}
    parquet.write_table(table.cast(pyarrow.schema(fields, metadata=info)), path)
    return path


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """Stock MMMU-Pro and our override of it, both over four local rows."""
    folder, file = tmp_path / "tasks", write(tmp_path / "test-00000-of-00001.parquet")
    folder.mkdir()
    for name, included in (
        ("stock_four", "mmmu_pro/mmmu_pro_standard.yaml"),
        ("prism_four", str(OVERRIDES / "prism_mmmu_pro_standard.yaml")),
    ):
        lines = [f"include: {included}", f"task: {name}", "dataset_path: parquet", "dataset_name: null"]
        lines += [f"dataset_kwargs: {{data_files: {{test: {file}}}}}", "generation_kwargs: {max_new_tokens: 24}"]
        (folder / f"{name}.yaml").write_text("\n".join(lines) + "\n")
    return folder


def lmms_eval(name: str, tasks: Path, url: str, key: str) -> subprocess.CompletedProcess[str]:
    """In the folder of its own tasks, where what an override includes is found; the key is in the environment alone."""
    (stock,) = COMMAND.parent.parent.glob("lib/python*/site-packages/lmms_eval/tasks")
    unset = ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "all_proxy", "ALL_PROXY")
    own = {"OPENAI_API_KEY": key, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tasks.parent / "hub"), "PYTHONPATH": str(SITE)}
    environment = {variable: value for variable, value in os.environ.items() if variable not in unset} | own
    how = f"model=policy,base_url={url},num_concurrent=4,timeout=120,max_retries=2"
    command = [str(COMMAND), "--model", "openai", "--model_args", how, "--tasks", name, "--batch_size", "1"]
    command += ["--include_path", str(tasks), "--output_path", str(tasks.parent / name), "--log_samples"]
    command += ["--verbosity", "DEBUG"]  # or it ends with status 0 whatever happened
    return subprocess.run(command, cwd=stock, env=environment, capture_output=True, text=True, timeout=900)


def results(name: str, tasks: Path) -> tuple[float, list[dict[str, Any]]]:
    (figures,) = (tasks.parent / name).rglob("*_results.json")
    (samples,) = (tasks.parent / name).rglob(f"*_samples_{name}.jsonl")
    own = json.loads(figures.read_text())["results"][name]
    score = next(value for key, value in own.items() if key.startswith("mmmu_acc,"))
    return score, [json.loads(line) for line in samples.read_text().splitlines()]


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    server = FakeServer()
    server.answer = lambda _: SECTIONS
    end = serve(server)
    yield server
    end()


@pytest.mark.timeout(1800)
def test_our_override_reads_the_answer(fake: FakeServer, tasks: Path) -> None:
    done = lmms_eval("prism_four", tasks, fake.url, KEY)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    score, samples = results("prism_four", tasks)
    assert (score, len(samples)) == (1.0, 4)
    assert KEY not in done.stdout + done.stderr
    asked = [text_of(body) for body in fake.requests]
    kinds = {tuple(part["type"] for part in body["messages"][0]["content"]) for body in fake.requests}
    assert kinds == {("image_url", "text")}
    path = rows.write_parquet(tasks.parent / "ours.parquet", FOUR)
    questions = QuestionSet("mmmu-pro", "mmmu-pro", BenchmarkConfig(path=str(path)))
    ours = map(words, questions.questions)
    assert sorted(asked) == sorted(ours)  # the same words; ours has the picture where the text names it


def words(question: Question) -> str:
    """What is asked, with the name of each picture that the text names in its place."""
    named = (f"<{part.column.replace('_', ' ')}>" if part.column[-1:].isdigit() else "" for part in question.pictures)
    return "".join(part if isinstance(part, str) else next(named) for part in question.parts)


@pytest.mark.timeout(1800)
def test_our_prompts_beside_the_stock_ones() -> None:
    """Where they differ ours are those of the benchmark's own files or scorer."""
    bare = rows.mathvision("1", "C", list("ABCDE"))
    asked: dict[str, tuple[str, list[dict[str, Any]]]] = {
        "mmmu/mmmu_val.yaml": (
            "mmmu",
            [rows.mmmu("validation_Art_1", "B", ["3", "4"]), rows.mmmu("validation_Art_2", "9", [])],
        ),
        "mmmu_pro/mmmu_pro_standard.yaml": ("mmmu-pro", FOUR),
        "mmmu_pro/mmmu_pro_vision.yaml": ("mmmu-pro", [rows.mmmu_pro("test_History_1", "B", vision=True)]),
        "hallusion_bench/hallusion_bench_image.yaml": ("hallusionbench", [rows.hallusion("VD", 0, 1, 0, "1")]),
        "mathverse/mathverse_testmini.yaml": ("mathverse", [rows.mathverse(1, 1, "Text Lite", "B")]),
        "mathvista/mathvista_testmini_format.yaml": ("mathvista", [rows.mathvista("1", "14", "integer")]),
        "mathvision/mathvision_testmini.yaml": ("mathvision", [bare]),
    }
    ours = {
        name: [words(BENCHMARKS[kind].question(rows.as_read(row))) for row in some]
        for name, (kind, some) in asked.items()
    }
    texts = {name: [without_pictures(row) for row in some] for name, (_, some) in asked.items()}
    done = subprocess.run(
        [COMMAND.with_name("python"), Path(__file__).with_name("stock_prompts.py")],
        input=json.dumps(texts),
        env=os.environ | {"OPENAI_API_KEY": KEY, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(SITE)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    stock: dict[str, list[str]] = json.loads(done.stdout.splitlines()[-1])
    same = ("mmmu/mmmu_val.yaml", "mmmu_pro/mmmu_pro_standard.yaml", "hallusion_bench/hallusion_bench_image.yaml")
    assert {name: stock[name] for name in same} == {name: ours[name] for name in same}
    ((vision,), (own,)) = stock["mmmu_pro/mmmu_pro_vision.yaml"], ours["mmmu_pro/mmmu_pro_vision.yaml"]
    assert own.startswith(vision)
    assert "The last line of your response" in own
    assert "The last line of your response" not in vision
    (verse,) = asked["mathverse/mathverse_testmini.yaml"][1]
    assert stock["mathverse/mathverse_testmini.yaml"] == [verse["query_wo"]]
    assert ours["mathverse/mathverse_testmini.yaml"] == [verse["query_cot"]]
    (vista,) = asked["mathvista/mathvista_testmini_format.yaml"][1]
    hint = "Answer the question using a single integer number."
    assert stock["mathvista/mathvista_testmini_format.yaml"] == [f"{vista['question']}\n{hint}"]
    assert ours["mathvista/mathvista_testmini_format.yaml"] == [vista["query"]]
    boxed = 'Please solve the problem step by step and put your answer in one "\\boxed{}".'
    ((theirs,), (own,)) = stock["mathvision/mathvision_testmini.yaml"], ours["mathvision/mathvision_testmini.yaml"]
    assert theirs.startswith(f"{boxed}{bare['question']}\nChoices: A. A")
    assert own.startswith(f"{boxed} If it is a multiple choice question, only one letter")


def without_pictures(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if not (isinstance(value, dict) and "bytes" in value)}


@pytest.mark.timeout(1800)
def test_a_wrong_key_is_no_score(fake: FakeServer, tasks: Path) -> None:
    done = lmms_eval("prism_four", tasks, fake.url, "a-wrong-key")
    assert done.returncode == 1, done.stdout[-3000:]
    assert "no score, a request failed" in done.stderr
    assert not list((tasks.parent / "prism_four").rglob("*_results.json"))


@pytest.mark.timeout(1800)
def test_the_policy_service_answers_it(tasks: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    save_model(model, list(task.corpus()), task.TAGS, 0, Size())
    with policy_process(tmp_path / "policy", model) as service:
        done = lmms_eval("prism_four", tasks, f"{service.url}/v1", DATA_TOKEN)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    _, samples = results("prism_four", tasks)
    assert len(samples) == 4
    assert all(sample["filtered_resps"][0] for sample in samples)
