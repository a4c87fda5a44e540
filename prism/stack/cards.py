"""The GPUs of this machine: how large each is, who computes where. (No torch: it would take a part of one.)"""

import os
import subprocess

from prism.config import StackConfig
from prism.errors import ConfigError

VISIBLE = "CUDA_VISIBLE_DEVICES"


def named(cards: str) -> list[str]:
    """``0,1`` as CUDA names them: numbers count the cards that this process sees, which may be some of the machine's.

    Raises ConfigError for one that it does not see.
    """
    numbers = cards.split(",")
    if not (seen := [name.strip() for name in os.environ.get(VISIBLE, "").split(",") if name.strip()]):
        return numbers
    if beyond := [number for number in numbers if int(number) >= len(seen)]:
        raise ConfigError(f"stack.devices: there is no card {beyond[0]}, {VISIBLE} shows {len(seen)}, counted from 0")
    return [seen[int(number)] for number in numbers]


def visible(cards: str) -> dict[str, str]:
    """The variable by which a process sees these cards alone."""
    return {VISIBLE: ",".join(named(cards))}


def policy_cards(config: StackConfig, share: float | None) -> dict[str, str]:
    """Variables of the policy server: its cards, tensor parallelism over several, and its ``share`` of each."""
    if config.device == "cpu":
        return {}
    given = config.policy_options.get("vllm_flags", "")
    count = len(config.devices.policy.split(",")) if config.devices else 1
    flags = [given] if given else []
    flags += [f"--gpu-memory-utilization={share}"] if share and "gpu-memory-utilization" not in given else []
    flags += [f"--tensor-parallel-size={count}"] if count > 1 and "tensor-parallel" not in given else []
    cards = visible(config.devices.policy) if config.devices else {}
    return cards | ({"PRISM_VLLM_FLAGS": " ".join(flags)} if flags else {})


def expert_cards(config: StackConfig, number: int) -> dict[str, str]:
    """Variables of the first or second expert."""
    if config.device == "cpu" or not config.devices:
        return {}
    cards = config.devices.experts.split(",")
    return visible(cards[number % len(cards)])


def card_bytes() -> dict[str, int]:
    """Memory of each card, by its number and by its UUID; empty where there is none, or nothing that says so."""
    try:
        command = ["nvidia-smi", "--query-gpu=index,uuid,memory.total", "--format=csv,noheader,nounits"]
        listed = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    sizes: dict[str, int] = {}
    for line in listed.splitlines():
        index, uuid, mebibytes = (part.strip() for part in line.split(","))
        if mebibytes.isdigit():
            sizes |= dict.fromkeys((index, uuid), int(mebibytes) * 2**20)
    return sizes
