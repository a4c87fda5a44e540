"""The tensors of a checkpoint, written and read by all ranks together, however many wrote them."""

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from prism.trainer.learn import ranks

# A run without torchrun is one process, as it should be.
warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")

TENSORS = "tensors"


def write_tensors(folder: Path, tensors: dict[str, Any]) -> None:
    """Nested dictionaries of tensors and numbers, from all ranks together: a tensor's shards, or the same of each."""
    group = ranks.behind()
    save(tensors, storage_writer=FileSystemWriter(folder / TENSORS), process_group=group, no_dist=group is None)


def read_tensors(folder: Path, tensors: dict[str, Any]) -> None:
    """Read into the very tensors given, by all ranks together, however many wrote them; numbers are replaced.

    A rank that was not there when they were written keeps its ``rng``.
    """
    reader = FileSystemReader(folder / TENSORS)
    found = reader.read_metadata().state_dict_metadata
    wanted = {
        name: value
        for name, value in tensors.items()
        if name != "rng" or all(f"rng.{rank}.{device}" in found for rank in value for device in value[rank])
    }
    group = ranks.behind()
    load(wanted, storage_reader=reader, process_group=group, no_dist=group is None)
    tensors |= wanted


def random_state(device: str) -> dict[str, dict[str, Tensor]]:
    """This rank's random generators, of the CPU and of its card."""
    own = {"cpu": torch.get_rng_state()}
    if device == "cuda":
        own["cuda"] = torch.cuda.get_rng_state()
    return {str(ranks.rank()): own}


def set_random_state(state: dict[str, dict[str, Tensor]]) -> None:
    for own in state.values():
        torch.set_rng_state(own["cpu"])
        if "cuda" in own:
            torch.cuda.set_rng_state(own["cuda"])
