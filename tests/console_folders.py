"""What a console shows beside runs, written as its makers write it: a curation, an evaluation, files of rows."""

import io
import json
from pathlib import Path
from typing import Any

from PIL import Image
from sqlalchemy import insert

from prism.curation.state.store import Store
from prism.curation.state.tables import Answer, Demo, Job, Problem, Purse, SendRow
from prism.data.blobs import BlobStore
from prism.evaluation.benchmarks.base import Question
from prism.evaluation.suite.run import write_questions
from prism.evaluation.suite.samples import Sample, Verdict
from prism.evaluation.suite.samples import Store as Samples

NASTY = "<script>alert('model')</script>"
TEXT = "<caption>- a seven</caption><think>it is 7</think><answer>7</answer>"


def png(colour: str = "red") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (28, 20), colour).save(out, "PNG")
    return out.getvalue()


def write_curation(folder: Path, rows: int = 3) -> None:
    """Of ``rows`` answers the first is verified, the second is rejected by its caption, the others by their answer."""
    image = BlobStore(str(folder / "blobs")).put(png())
    with Store(f"sqlite:///{folder / 'curation.db'}") as store, store.writing() as connection:
        facts = {"terms": {"name": "Terms 7", "accepted_by": "Ada"}}
        connection.execute(insert(Job).values(name="hard", folder="here", created=1.0, start=2, facts=facts))
        connection.execute(insert(Purse).values(job=1, name="teacher", cap=10**10, reserved=10**9, spent=15 * 10**8))
        for number in range(rows):
            content = [{"type": "image", "image": f"sha256:{image}"}, {"type": "text", "text": f"How many? {number}"}]
            row = {"id": f"r{number}", "messages": [{"role": "user", "content": content}], "gold": "7"}
            state, reason, fate = "rejected", "answer: it is 8, and not 7", None
            if number < 2:
                state, reason, fate = [("verified", None, "sft"), ("rejected", f"caption: {NASTY}", None)][number]
            key = f"{number:064d}"
            problem = {"job": 1, "position": number, "row": row, "route": "teacher", "fate": fate}
            connection.execute(insert(Problem).values(problem))
            demo = {"job": 1, "problem": number + 1, "attempt": 0, "key": key, "state": state, "reason": reason}
            connection.execute(insert(Demo).values(demo | {"checks": {"caption": {"by": "judge"}}}))
            answer = {"key": key, "text": NASTY if number == 1 else TEXT, "finish": "stop", "model": "m", "cost": 1}
            connection.execute(insert(Answer).values(answer | {"created": 1.0}))
            sent = {"id": key[-60:], "job": 1, "purse": "teacher", "key": key, "state": "settled", "reserved": 1}
            connection.execute(insert(SendRow).values(sent))
    (folder / "sft.jsonl").write_text(json.dumps(data_row("sft-1", "7", teacher=TEXT)) + "\n")


def write_evaluation(folder: Path, name: str = "charts", count: int = 3) -> None:
    """Samples alone: the first right, the second wrong, the others unparsed."""
    image = BlobStore(str(folder / "images")).put(png("blue"))
    questions, samples = [], []
    for number in range(count):
        question = f"q{number}"
        questions.append(Question(question, (f"How tall is bar {number}?",), "7", question))
        told: dict[str, Any] = {"status": "unparsed", "response": NASTY, "extracted": None, "right": None}
        if number < 2:
            told = {"status": "ok", "response": TEXT, "extracted": str(7 + number), "right": number == 0}
        fixed = {"benchmark": name, "question": question, "sample": 0, "view": "seen", "request": question}
        fixed |= {"gold": "7", "images": [image], "image_sizes": [(28, 20)], "model": "policy", "sampling": {}}
        fixed |= {"prompt_version": "1", "scorer_version": "1", "against": "x", "time": 1.0}
        samples.append(Sample.model_validate(fixed | told))
    (folder / name).mkdir(parents=True, exist_ok=True)
    write_questions(folder / name, questions)
    store = Samples(folder / name)
    store.add(*samples)
    judged = {"benchmark": name, "question": "q1", "sample": 0, "view": "seen", "asked": "x", "status": "ok"}
    judged |= {
        "verdict": "correct",
        "detail": "seven is 8 less 1",
        "judge": "a judge",
        "judge_version": "1",
        "time": 1.0,
    }
    store.add_verdicts(Verdict.model_validate(judged))


def write_result(folder: Path, name: str = "charts") -> None:
    score = {"headline": 0.5, "stderr": 0.1, "why": None}
    seen = {"scores": {"rule": score}, "statuses": {"ok": 2, "unparsed": 1}, "responses": 3}
    one = {"headline": "accuracy", "questions": 3, "of": 3, "views": {"seen": seen}}
    result = {"name": "SFT", "judge": None, "time": 1.0, "benchmarks": {name: one}}
    (folder / "result.json").write_text(json.dumps(result))


def data_row(name: str, gold: str, **more: Any) -> dict[str, Any]:
    return {"id": name, "messages": [{"role": "user", "content": f"What is {name}?"}], "gold": gold} | more


def write_rows(file: Path, count: int = 3) -> None:
    """Rows with a picture; a line that is no JSON, and a row whose picture is not there, stand after the first."""
    file.parent.mkdir(parents=True, exist_ok=True)
    (file.parent / "a.png").write_bytes(png("green"))

    def with_picture(number: int, image: str = "a.png") -> str:
        content = [{"type": "image", "image": image}, {"type": "text", "text": f"How many? {number} {NASTY}"}]
        row = {"id": f"row-{number}", "messages": [{"role": "user", "content": content}], "gold": "7"}
        return json.dumps(row | {"teacher": TEXT, "response": "seven"})

    lines = [with_picture(0), "{no json", with_picture(9, "../../secret.png")]
    file.write_text("\n".join(lines + [with_picture(number) for number in range(1, count)]) + "\n")
