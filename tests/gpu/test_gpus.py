"""What only GPUs can show, two of them: learners over NCCL, and weights broadcast over it. ``make test-gpu``."""

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from prism.stack.cards import visible
from tests.unit.trainer.ranks_work import EXPERTS, POLICIES

pytestmark = pytest.mark.timeout(300)


def work(folder: Path, out: Path, ranks: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Figures and weights of what this many ranks, each with a GPU, learn."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1"]
    command += [f"--nproc-per-node={ranks}", "-m", "tests.unit.trainer.ranks_work", str(folder), str(out)]
    done = subprocess.run(command, env=os.environ | {"DEVICE": "cuda"}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-20_000:]
    return json.loads((out / "figures.json").read_text()), torch.load(out / "weights.pt", weights_only=True)


@pytest.mark.timeout(560)  # most of it compiles
def test_two_gpus_learn_what_one_does(demo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """All that differs is said, not the first alone."""
    folders = [tmp_path_factory.mktemp(name) for name in ("alone", "together")]
    with ThreadPoolExecutor(2) as threads:
        (alone, mine), (together, other) = threads.map(partial(work, demo_folder), folders, (1, 2))
    wrong: list[str] = []
    for case in [*POLICIES, *EXPERTS]:
        for one, two in zip(alone[case]["figures"], together[case]["figures"], strict=True):
            for name in one:
                if name.endswith(("loss", "grad_norm")):
                    said = f"{case}: {name} {one[name]:.6f} on one GPU, {two[name]:.6f} on two"
                    print(said)
                    wrong += [said] if two[name] != pytest.approx(one[name], rel=3e-2, abs=1e-3) else []
        weights = [torch.cat([tensor.float().flatten() for tensor in each[case].values()]) for each in (mine, other)]
        apart = float((weights[1] - weights[0]).norm() / weights[0].norm())
        wrong += [f"{case}: weights are {apart:.2%} apart"] if apart > 1e-2 else []
    for kind in ("rlvr", "align"):
        first, second = together[kind]["everywhere"]
        wrong += [f"{kind}: {first}, {alone[kind]['everywhere']}"] if [first] != alone[kind]["everywhere"] else []
        wrong += [f"{kind}: the second rank has {second}"] if any(second.values()) else []
    assert not wrong, "\n".join(wrong)


# Two processes of a broadcast; what goes wrong with the receiver is in its arguments.
SENDER = """
import sys, time, torch
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from prism.model import broadcast
from prism.model.broadcast import Sender
from prism.errors import ServiceError, WeightsError
count, sent, deadline, way = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), sys.argv[4]
if way == "nccl":
    def refuse(tensors):
        raise ServiceError("not to be shared")
    broadcast.spans_of = refuse
server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
tensors = [(f"t{i}", torch.full((2**27,), float(i), dtype=torch.bfloat16, device="cuda")) for i in range(count)]
torch.cuda.synchronize()
with Sender(("127.0.0.1", server.server_port), "cuda", deadline) as sender:
    print(sender.offer(tensors).model_dump_json(), flush=True)
    started = time.monotonic()
    try:
        sender.send(tensors[:sent], lambda: False, lambda: False)
        torch.cuda.synchronize()
        print(f"sent in {time.monotonic() - started:.3f} by {'memory' if sender._in_memory else 'nccl'}", flush=True)
        sys.stdin.readline()  # until the receiver has it
    except WeightsError as error:
        print(f"failed after {time.monotonic() - started:.3f}: {error}", flush=True)
"""
RECEIVER = """
import os, sys, time, torch
from prism.model.broadcast import JOINED, Receiver, TCPStore
from prism.errors import WeightsError
from prism.wire.weights import Broadcast
offer, fate, deadline = Broadcast.model_validate_json(sys.stdin.readline()), sys.argv[1], float(sys.argv[2])
torch.zeros(1, device="cuda")
started = time.monotonic()
try:
    if fate == "dies before the group forms":
        TCPStore(offer.host, offer.port, is_master=False).set(JOINED, "1")
        time.sleep(1)
        os._exit(1)
    receiver = Receiver(offer, torch.device("cuda"), 0, 1, deadline)
    print(f"joined in {time.monotonic() - started:.3f}", flush=True)
    started = time.monotonic()
    for place, (name, tensor) in enumerate(receiver.tensors()):
        assert name == f"t{place}" and bool((tensor == place).all())
        if fate == "dies in the middle" and place == 2:
            os._exit(1)
        if fate == "is slow" and place == 2:
            print("has begun", flush=True)
            time.sleep(3)
    print(f"received in {time.monotonic() - started:.3f}", flush=True)
except WeightsError as error:
    print(f"failed after {time.monotonic() - started:.3f}: {error}", flush=True)
"""


class Side:
    def __init__(self, program: str, gpu: int, *arguments: object) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, *map(str, arguments)],
            env=os.environ | visible(str(gpu)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def say(self, line: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(line)
        self.process.stdin.flush()

    def line(self) -> str:
        assert self.process.stdout
        line = self.process.stdout.readline()
        print(line, end="")
        return line


def meet(fate: str, deadline: float, count: int, sent: int, way: str = "nccl", card: int = 1) -> tuple[Side, Side]:
    sender = Side(SENDER, 0, count, sent, deadline, way)
    receiver = Side(RECEIVER, card, fate, deadline)
    receiver.say(sender.line())
    return sender, receiver


@pytest.mark.parametrize(("way", "card"), [("nccl", 1), ("memory", 1), ("memory", 0)])
def test_two_gigabytes_arrive(way: str, card: int) -> None:
    """Into another card, or within one."""
    sender, receiver = meet("lives", 60, 8, 8, way, card)
    assert receiver.line().startswith("joined")
    sent, received = sender.line(), receiver.line()
    assert sent.startswith("sent")
    assert sent.endswith(f"by {way}\n")
    assert received.startswith("received")
    sender.say("\n")
    assert (sender.process.wait(30), receiver.process.wait(30)) == (0, 0)


@pytest.mark.parametrize("way", ["nccl", "memory"])
@pytest.mark.parametrize("fate", ["dies before the group forms", "dies in the middle"])
def test_a_learner_outlives_a_server_that_is_lost(fate: str, way: str) -> None:
    started = time.monotonic()
    sender, _ = meet(fate, 15, 64, 64, way)
    assert sender.line().startswith("failed")
    assert sender.process.wait(30) == 0
    assert time.monotonic() - started < 60


def test_a_server_hears_that_the_learner_is_lost() -> None:
    sender, receiver = meet("lives", 10, 8, 3)
    assert receiver.line().startswith("joined")
    assert sender.line().startswith("sent")
    sender.process.kill()
    assert receiver.line().startswith("failed")
    assert receiver.process.wait(60) == 0


def test_a_server_that_reads_memory_hears_that_the_learner_is_lost() -> None:
    """What it has read may be anyone's by then."""
    sender, receiver = meet("is slow", 10, 8, 8, "memory")
    assert receiver.line().startswith("joined")
    assert receiver.line().startswith("has begun")
    sender.process.kill()
    assert receiver.line().startswith("failed")
    assert receiver.process.wait(60) == 0
