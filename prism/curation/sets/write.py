"""The files: each set as rows that train as they are, what was rejected with its reason, what was near a benchmark."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import Row, select

from prism.curation.mine import wilson
from prism.curation.rows import BLOB
from prism.curation.state.job import OpenJob
from prism.curation.state.tables import Answer, Demo, Problem, Sample
from prism.curation.window import in_chunks
from prism.files import make_folder, partial_of, seal
from prism.wire.response import parse_response

CHUNK = 256


def write_sets(job: OpenJob, folder: Path, warmup: int) -> dict[str, int]:
    """Rows of each file. Each is written whole or not at all; images are named in the folder's blob store."""
    make_folder(folder)
    rows: dict[str, Iterable[dict[str, Any]]] = {
        "sft": _demos(job, "sft", "response"),
        "align": _demos(job, "align", "teacher"),
        "validation": _validation(job),
        "rl": _prompts(job, "rl"),
        "rl-validation": _prompts(job, "rl-validation"),
        "warmup": _pairs(job, warmup),
        "rejected": _rejected(job),
        "contamination": _left_out(job),
    }
    return {name: _write(folder / f"{name}.jsonl", found) for name, found in rows.items()}


def trained_row(row: dict[str, Any]) -> dict[str, Any]:
    """The row with its images as files, relative to the job's folder."""

    def part(one: dict[str, str]) -> dict[str, str]:
        if one["type"] != "image":
            return one
        sha256 = one["image"].removeprefix(BLOB)
        return {"type": "image", "image": f"blobs/{sha256[:2]}/{sha256}"}

    messages = [{**message, "content": [part(one) for one in message["content"]]} for message in row["messages"]]
    return row | {"messages": messages}


def demos_of(job: OpenJob, *conditions: Any) -> Iterator[Row[Any]]:
    """Demonstrations with problem and answer, in order."""

    def read(last: int) -> list[Row[Any]]:
        with job.store.reading() as connection:
            wanted = (
                select(Demo.id, Demo.attempt, Demo.state, Demo.reason, Demo.checks, Problem.id.label("problem"))
                .add_columns(Problem.row, Problem.fate, Answer.text)
                .join(Problem, Problem.id == Demo.problem)
                .outerjoin(Answer, Answer.key == Demo.key)
                .where(Demo.job == job.id, Demo.id > last, *conditions)
            )
            return list(connection.execute(wanted.order_by(Demo.id).limit(CHUNK)).all())

    return in_chunks(read, lambda row: row.id)


def _demos(job: OpenJob, fate: str, key: str) -> Iterator[dict[str, Any]]:
    for demo in demos_of(job, Demo.best, Problem.fate == fate):
        yield trained_row(demo.row) | {key: demo.text}


def _validation(job: OpenJob) -> Iterator[dict[str, Any]]:
    """As held-out questions are: with the teacher's text to hold captions against."""
    for demo in demos_of(job, Demo.best, Problem.fate.in_(["sft-validation", "align-validation"])):
        yield trained_row(demo.row) | {"teacher": demo.text}


def _prompts(job: OpenJob, fate: str) -> Iterator[dict[str, Any]]:
    def read(last: int) -> list[Row[Any]]:
        with job.store.reading() as connection:
            versions = Problem.policy_version, Problem.grader_version
            wanted = select(Problem.id, Problem.row, Problem.right, Problem.judged, *versions).where(
                Problem.job == job.id, Problem.fate == fate, Problem.id > last
            )
            return list(connection.execute(wanted.order_by(Problem.id).limit(CHUNK)).all())

    for problem in in_chunks(read, lambda row: row.id):
        mined = {
            "right": problem.right,
            "judged": problem.judged,
            "pass_rate": problem.right / problem.judged,
            "pass_interval": wilson(problem.right, problem.judged),
            "policy_version": problem.policy_version,
            "grader_version": problem.grader_version,
        }
        yield trained_row(problem.row) | {"meta": problem.row.get("meta", {}) | {"mined": mined}}


def _pairs(job: OpenJob, most: int) -> Iterator[dict[str, Any]]:
    """The teacher's response beside one of the policy's own to the same problem, that has its three sections."""
    count = 0
    for demo in demos_of(job, Demo.best, Problem.fate.in_(["sft", "align"])):
        with job.store.reading() as connection:
            wanted = select(Sample.text).where(Sample.problem == demo.problem, Sample.finish == "stop")
            samples = [
                text for text in connection.scalars(wanted.order_by(Sample.number)) if parse_response(text).valid
            ]
        row = trained_row(demo.row)
        for number, text in enumerate(dict.fromkeys(samples)):
            if count == most:
                return
            count += 1
            yield row | {"id": f"{row['id']}/{number}", "teacher": demo.text, "response": text}


def _rejected(job: OpenJob) -> Iterator[dict[str, Any]]:
    for demo in demos_of(job, Demo.state.in_(["rejected", "refused", "failed"])):
        told = {"state": demo.state, "reason": demo.reason, "checks": demo.checks or {}, "attempt": demo.attempt}
        yield trained_row(demo.row) | told | ({"response": demo.text} if demo.text else {})


def _left_out(job: OpenJob) -> Iterator[dict[str, Any]]:
    def read(last: int) -> list[Row[Any]]:
        with job.store.reading() as connection:
            wanted = select(Problem.id, Problem.row, Problem.fate, Problem.twin).where(
                Problem.job == job.id, Problem.fate.in_(["benchmark", "duplicate"]), Problem.id > last
            )
            return list(connection.execute(wanted.order_by(Problem.id).limit(CHUNK)).all())

    for problem in in_chunks(read, lambda row: row.id):
        yield {"id": problem.row["id"], "left_out": problem.fate, "near": problem.twin}


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    partial, count = partial_of(path), 0
    with partial.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    seal(partial, path)
    return count
