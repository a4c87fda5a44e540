"""``prism score`` and ``prism calibrate`` over both experts as processes: interrupted, gone on with, calibrated."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from prism.clients.experts import Experts, item
from prism.data.rows import DataFile
from prism.stack.ports import free_port
from prism.wire.response import EXPERTS

DATA, ADMIN = "data-token-0123456789", "admin-token-0123456789"
ROWS = 30


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Path]:
    """A run's folder whose stack.json tells of two experts that are ready."""
    folder = tmp_path_factory.mktemp("run")
    ports = [free_port() for _ in EXPERTS]
    urls = {name: f"http://127.0.0.1:{port}" for name, port in zip(EXPERTS, ports, strict=True)}
    noted = {f"{name}_url": url for name, url in urls.items()} | {"token": DATA, "admin_token": ADMIN}
    (folder / "stack.json").write_text(json.dumps(noted))
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for name, peer, port in zip(EXPERTS, reversed(EXPERTS), ports, strict=True):
            values = {
                "port": port,
                "token": DATA,
                "admin_token": ADMIN,
                "model": tiny_model,
                "weights_root": folder / "weights",
                "state_dir": folder / "state" / name,
                "peer_url": urls[peer],
                "threads": 1,
            }
            environment = os.environ | {f"PRISM_{key.upper()}": str(value) for key, value in values.items()}
            processes.append(subprocess.Popen([sys.executable, "-m", "prism", "serve", name], env=environment))
        deadline = time.monotonic() + 120
        while not all(is_ready(url) for url in urls.values()):
            assert all(process.poll() is None for process in processes), "an expert has ended"
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield folder
    finally:
        for process in processes:
            process.kill()
            process.wait()


def is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz").is_success
    except httpx.TransportError:
        return False


def prism(*arguments: str | Path) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PRISM_")}
    return subprocess.Popen(
        [sys.executable, "-m", "prism", *map(str, arguments)],
        env=environment | {"COLUMNS": "160"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit status, and all that was said."""
    out, err = process.communicate(timeout=60)
    return process.returncode, out + err


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def worse(teacher: str) -> str:
    """The same format with other content."""
    return teacher.translate(str.maketrans("0123456789", "7777777777"))


def test_a_file_is_scored_through_an_interrupt_and_a_calibration(
    run_dir: Path, teacher_rows: DataFile, tmp_path: Path
) -> None:
    file, out, whole = tmp_path / "rows.jsonl", tmp_path / "out.jsonl", tmp_path / "whole.jsonl"
    first = teacher_rows.rows[0]
    text, picture = first.teacher or "", teacher_rows.image(first.image_paths[0])
    with file.open("w") as rows:
        for number in range(ROWS):
            row = teacher_rows.rows[number % len(teacher_rows.rows)]
            teacher = row.teacher or ""
            image = str((teacher_rows.path.parent / row.image_paths[0]).resolve())
            value = {"id": f"{row.id}-{number}", "prompt": row.messages[-1].parts[-1].model_dump()["text"]}
            value |= {"images": [image], "teacher": teacher, "responses": [worse(teacher), f"no tags {number}"]}
            rows.write(json.dumps(value) + "\n")
    images = ("--image-root", teacher_rows.path.parent)  # which is not where the rows lie
    command = ("score", file, "--run", run_dir, *images)

    # Interrupted, its last line torn on top, and gone on with: as if nothing had happened.
    process = prism(*command, "--out", out, "--batch", "1", "--concurrency", "2")
    while not (out.is_file() and out.stat().st_size):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    status, said = finish(process)
    assert (status, f"interrupted: what is scored is in {out}" in said) == (130, True), said
    assert 0 < len(read(out)) < ROWS
    with out.open("ab") as torn:
        torn.write(out.read_bytes()[:50])
    for target in (out, whole):
        status, said = finish(prism(*command, "--out", target))
        assert status == 0, said
    again = read(out)
    assert [line["index"] for line in again] == list(range(ROWS))
    for ours, theirs in zip(again, read(whole), strict=True):
        (good, bad), (expected, _) = ours["responses"], theirs["responses"]
        assert bad["status"] == "invalid_format"
        assert good["score"] == pytest.approx(expected["score"], abs=1e-4)
        experts = good["experts"]
        assert good["score"] == pytest.approx(sum(experts[name]["score"] for name in EXPERTS) / 2)
        assert experts["perception"]["probability"] is None

    status, said = finish(prism("calibrate", file, "--run", run_dir, *images))
    assert status == 0, said
    assert said.count(f"percentiles are among {ROWS} responses of the teacher and {ROWS} of the policy to {ROWS}") == 2
    assert said.count(f"left out: {ROWS} of the policy (invalid_format)") == 2
    status, said = finish(prism(*command, "--out", out))
    assert (status, "not calibrated), now it is" in said.replace("\n", " ")) == (1, True), said

    calibrated = tmp_path / "calibrated.jsonl"
    status, said = finish(prism(*command, "--out", calibrated, "--expert", "reasoning"))
    assert status == 0, said
    for line in read(calibrated):
        score = line["responses"][0]["experts"]["reasoning"]
        assert (score["probability"], score["percentile"]) == (None, None)  # its row has no other that could be scored

    async def from_python() -> None:
        async with Experts.of_run(run_dir) as experts:
            pair = item("Sum?", [text, worse(text)], images=[picture])
            compared = await experts.compare(pair, expert="perception")
            scored = await experts.mixture([pair])
            first, second = scored.items[0].scores
            assert compared.first.score == pytest.approx(first.perception.score, abs=1e-4)
            assert compared.second.score == pytest.approx(second.perception.score, abs=1e-4)
            assert first.perception.probability is not None
            assert first.perception.percentile is not None
            calibration = (await experts.model("perception")).calibration
            assert calibration is not None
            assert (calibration.reference.name, calibration.current) == ("rows.jsonl", True)

    asyncio.run(from_python())
