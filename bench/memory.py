"""What learners, experts and policy server take of a GPU beside what ``prism run --dry-run`` says they will, at several
sizes, one line a part as it comes. Learners first, each size in a process of its own that updates as many as fit the
card, with a full pass; then an expert's service of every size, all at once, with prompts to remember and a push; then
the policy server of one size after another, those of several cards at once. On one H100 five to six minutes, most of it
vLLM's start:

    python -m bench.memory
    python -m bench.memory --parts learners --sizes qwen3-vl-2b

What a process holds is what the driver says once its work is done: torch gives nothing back before. (Where the driver
names no processes, it is what their end gives back to the card, which should be free of others' work.) It fails if an
estimate is further from that than ``--within``, or a part did not run.
"""

import argparse
import asyncio
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import torch
from rich.table import Table

from bench.experts.workload import make_groups
from bench.learner.workload import make_learner, make_samples
from bench.shared import DidNotStart, Server, at_most, card_memory, card_used, command_line, console, prism_service
from prism.config import PolicyLearnerConfig, PushConfig, RunConfig, load_config
from prism.data.blobs import BlobStore
from prism.errors import PrismError
from prism.model.expert import load_expert, save_expert
from prism.model.inputs import InputBuilder
from prism.stack.cards import VISIBLE, card_bytes, named
from prism.trainer.flow.examples import GroupExamples
from prism.trainer.run.estimate import ModelSize, expert_size, learners_memory, policy_size
from prism.trainer.run.placement import ALLOCATOR, PROCESS, expert_bytes, policy_bytes
from prism.trainer.weights.publish import Publisher

PARTS = ("learners", "experts", "policy")
GROUPS = 1  # of 16 responses, of a learner's update
GROUPS_SCORED = 24  # by an expert, before a push and after it
PASS = 6_000  # tokens of a full pass, which holds them
MOST_LEARNERS, MOST_OF_A_CARD = 3, 0.9
PATIENCE = 300.0  # seconds, for a model that is made or learns
GIB = 2**30

Found = tuple[str, float, int, str]
"""Size, estimate and what is held, in bytes, and of what; nothing is held where it did not run."""


def main() -> None:
    parser = command_line("bench.memory", __doc__)
    parser.add_argument("--sizes", default="larger,half-billion,qwen3-vl-2b")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--within", type=float, default=0.15)
    parser.add_argument("--folder", type=Path, help="where models lie meanwhile; default: a temporary one")
    parser.add_argument("--learners", help=argparse.SUPPRESS)  # in this process, those of the model in a folder
    options = parser.parse_args()
    if options.learners:
        measure_learners(Path(options.learners))
        return
    began = time.monotonic()
    sizes, parts = options.sizes.split(","), options.parts.split(",")
    table = Table("part", "size", "estimated, GiB", "held, GiB", "apart", "")
    apart: list[float] = []

    def say(part: str, found: Found) -> None:
        size, estimate, held, note = found
        off = estimate / held - 1 if held else None
        apart.append(float("inf") if off is None else abs(off))
        said = f"{off:+.0%}" if off is not None else "did not run"
        table.add_row(part, size, f"{estimate / GIB:.2f}", f"{held / GIB:.2f}", said, note)
        line = f"{part:>9} {size:>12}: estimated {estimate / GIB:6.2f} GiB, held {held / GIB:6.2f} ({said}) {note}"
        console.print(f"{line} [dim]{time.monotonic() - began:.0f} s[/]", soft_wrap=True)

    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folders = {size: Path(name) / size for size in sizes}
        with ThreadPoolExecutor(len(folders)) as threads:
            list(threads.map(make_start, folders, folders.values()))
        for part, measure in (("learners", learners), ("experts", experts), ("policy", policies)):
            if part in parts:
                try:
                    for found in measure(folders):
                        say(part, found)
                except (PrismError, httpx.HTTPError, subprocess.SubprocessError) as error:
                    say(part, ("", 0.0, 0, f"{type(error).__name__}: {error}"))
    far = sum(each > options.within for each in apart)
    console.print(table)
    console.print(f"{len(apart)} estimates, {far} of them further off than {options.within:.0%}")
    sys.exit(bool(far))


def make_start(size: str, folder: Path) -> None:
    """In a process of its own, which frees the card."""
    code = "import sys; from pathlib import Path; from bench.learner.workload import make_model"
    code += "; make_model(Path(sys.argv[1]), sys.argv[2], 'cuda')"
    subprocess.run([sys.executable, "-c", code, str(folder / "model"), size], check=True, timeout=PATIENCE)


def learners(folders: Mapping[str, Path]) -> Iterable[Found]:
    for size, folder in folders.items():
        command = [sys.executable, "-m", "bench.memory", "--learners", str(folder)]
        try:
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=PATIENCE)
            estimate, held, *note = done.stdout.strip().splitlines()[-1].split(" ", 2)
            yield size, float(estimate), int(held), " ".join(note)
        except subprocess.SubprocessError as error:
            yield size, 0.0, 0, f"{type(error).__name__}, see above"


def gpu_config() -> RunConfig:
    return load_config(Path("configs/demo.toml"), ["device=cuda", "dtype=bfloat16"])


def measure_learners(folder: Path) -> None:
    """Prints bytes estimated, bytes held, and of what."""
    config = gpu_config()
    given = {"optimizer": {"lr": 1e-6}, "micro_batch_tokens": PASS}
    learner_config = PolicyLearnerConfig.model_validate(given)
    size = policy_size(folder / "model", [])
    inputs = InputBuilder(folder / "model")
    examples = GroupExamples(inputs, BlobStore(str(folder / "blobs")))
    samples: list[Any] = make_samples(inputs, GROUPS, 1000, 200)
    first = {sample.group: sample.example for sample in reversed(samples)}.values()
    tokens = sum(example.prompt_length for example in first) + sum(len(s.logprobs) for s in samples)
    patches = sum(len(example.pixel_values) for example in first if example.pixel_values is not None)

    def estimated(count: int) -> float:
        memory = learners_memory(config, [(size, min(tokens, PASS))] * count, patches_per_token=patches / tokens)
        return PROCESS + ALLOCATOR * memory.total

    _, whole = torch.cuda.mem_get_info()
    counts = [count for count in range(1, MOST_LEARNERS + 1) if estimated(count) < MOST_OF_A_CARD * whole]
    count = max(counts, default=1)
    learners = [make_learner(folder / "model", "bfloat16", "cuda", learner_config, 1) for _ in range(count)]
    for learner in learners:
        learner.update(samples, examples)
    torch.cuda.synchronize()
    held, note = card_memory([psutil.Process()]), ""
    if not held:  # the driver names no processes here
        free, whole = torch.cuda.mem_get_info()
        held, note = whole - free, ", of the whole card"
    parameters = f"{size.parameters / 1e9:.3g}B, {tokens} tokens, {patches} patches"
    reserved = torch.cuda.max_memory_reserved() / GIB
    print(estimated(count), held, f"{count} of {parameters}; torch held {reserved:.2f} GiB{note}")


def experts(folders: Mapping[str, Path]) -> Iterable[Found]:
    """Of each size a dense expert's service, which has scored prompts beyond what it remembers, and taken a push."""
    tokens = {size: secrets.token_urlsafe(24) for size in folders}
    with ThreadPoolExecutor(len(folders)) as threads:  # to the end: a process ends with the thread that started it
        started = {size: threads.submit(start, "perception", folders[size], tokens[size]) for size in folders}
        for size, each in started.items():
            folder = folders[size]
            estimate = PROCESS + ALLOCATOR * expert_bytes(expert_size(folder / "model", None, []))
            try:
                service, server = each.result()
            except DidNotStart as error:
                console.print(str(error), markup=False)
                yield size, estimate, 0, "see above"
                continue
            with ending(service, server, 0) as held:
                inputs = InputBuilder(folder / "model")
                asyncio.run(score(server, make_groups(inputs, GROUPS_SCORED, 0)))
                save_expert(load_expert(folder / "model", dtype=torch.bfloat16), folder / "expert", inputs)
                publisher = Publisher(
                    "perception", server.url, tokens[size], folder / "weights", 1, PushConfig(deadline_seconds=300)
                )
                publisher.push_folder(1, folder / "expert")
                asyncio.run(score(server, make_groups(inputs, GROUPS_SCORED, 1)))
            yield size, estimate, sum(held), f"{2 * GROUPS_SCORED} groups of 16 scored and a push"


def policies(folders: Mapping[str, Path]) -> Iterable[Found]:
    """Of each size a vLLM server, given no more of its card than the estimate says that it needs."""
    cards = torch.cuda.device_count()
    sizes = sorted(folders, key=lambda size: -(folders[size] / "model" / "model.safetensors").stat().st_size)
    lanes = [sizes[card::cards] for card in range(cards)]  # one after another: each looks at what is free as it starts
    with ThreadPoolExecutor(cards) as threads:
        done = [threads.submit(lane, card, [(size, folders[size]) for size in of]) for card, of in enumerate(lanes)]
        for each in done:
            yield from each.result()


def lane(card: int, sizes: Sequence[tuple[str, Path]]) -> list[Found]:
    found: list[Found] = []
    (own,) = named(str(card))
    for size, folder in sizes:
        whole = card_bytes()[own]
        share = share_of(policy_size(folder / "model", []), whole)
        flags = f"--gpu-memory-utilization={share} --enforce-eager"
        estimate = PROCESS + share * whole
        try:
            service, server = start("policy", folder, secrets.token_urlsafe(24), card, PRISM_VLLM_FLAGS=flags)
        except DidNotStart as error:
            console.print(
                f"the policy server of {size} did not start with {share:.0%} of its card\n{error}", markup=False
            )
            found.append((size, estimate, 0, "see above"))
            continue
        with ending(service, server, card) as held:
            asyncio.run(sample(server))
        found.append((size, estimate, sum(held), f"given {share:.0%} of its card, which was enough"))
    return found


@contextmanager
def ending(service: Any, server: Server, card: int) -> Iterator[list[int]]:
    """Fills in, once the service has ended, what it held of its card."""
    held: list[int] = []
    (own,) = named(str(card))
    try:
        yield held
        by_process, before = card_memory(server.processes()), card_used(own)
    finally:
        service.__exit__(None, None, None)
    held.append(by_process or before - card_used(own))


def share_of(size: ModelSize, whole: int) -> float:
    config = load_config(Path("configs/demo.toml"), ["stack.max_model_len=2048"])
    return max(0.05, round(policy_bytes(config, size) / whole + 0.005, 2))


def start(name: str, folder: Path, admin: str, card: int = 0, **more: str) -> tuple[Any, Server]:
    """A service and what ends it. Raises DidNotStart."""
    settings: dict[str, object] = {
        "PRISM_MODEL": folder / "model",
        "PRISM_WEIGHTS_ROOT": folder / "weights",
        "PRISM_STATE_DIR": folder / "state" / name,
        "PRISM_ADMIN_TOKEN": admin,
        "PRISM_DEVICE": "cuda",
        "PRISM_MAX_MODEL_LEN": 2048,
        VISIBLE: ",".join(named(str(card))),
    }
    service = prism_service(name, settings | more)
    return service, service.__enter__()


async def score(server: Server, groups: Sequence[Any]) -> None:
    async with server.client() as http:

        async def one(item: Mapping[str, Any]) -> None:
            (await http.post("/v1/score", json={"items": [item], "section": "all"})).raise_for_status()

        await at_most(16, (one(group.item) for group in groups))


async def sample(server: Server) -> None:
    body = {"model": "policy", "prompt": "one two three", "n": 16, "max_tokens": 512, "ignore_eos": True}
    async with server.client() as http:
        for answer in await at_most(8, (http.post("/v1/completions", json=body) for _ in range(8))):
            answer.raise_for_status()


if __name__ == "__main__":
    try:
        main()
    except (PrismError, DidNotStart) as error:
        sys.exit(str(error))
