"""The tensors of a checkpoint, written and read by all ranks together, however many wrote them.

A file a rank, in safetensors' format, whose header says where each shard belongs, as torch's own reader of such files
wants it: a checkpoint holds tensors and JSON, nothing that is executed when it is read.
"""

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint._hf_utils import CUSTOM_METADATA_KEY, SAVED_OFFSETS_KEY
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from prism.errors import WeightsError
from prism.trainer.learn import ranks

# A run without torchrun is one process, as it should be.
warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")

TENSORS = "tensors"
# What reading files raises that are not what ``write_tensors`` wrote, or not of this model.
READ_ERRORS = (CheckpointException, SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError)


class _Writer(HuggingFaceStorageWriter):
    """Writes a rank's tensors from where they lie: torch's own puts the whole file together in memory first."""

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        tensors: dict[str, Tensor] = {}
        offsets: dict[str, Any] = {}
        places: set[int] = set()
        results: list[WriteResult] = []
        for item in plan.items:
            name, data, shard = item.index.fqn, planner.resolve_data(item), item.tensor_data
            assert isinstance(data, Tensor), name
            assert shard is not None
            assert name not in tensors, name
            if shard.size.numel() and not data.numel():  # more ranks than rows: nothing of it is here
                continue
            # As models on one frozen base do. A piece of host memory has a place of its own in it.
            shared = data.data_ptr() in places
            tensors[name] = data.clone(memory_format=torch.contiguous_format) if shared else data.contiguous()
            places.add(data.data_ptr())
            offsets[name] = {SAVED_OFFSETS_KEY: list(shard.chunk.offsets)}
            results.append(WriteResult(item.index, data.nbytes, None))
        if tensors:
            name = f"rank-{plan.storage_data['shard_index'] - 1:05d}.safetensors"
            save_file(tensors, f"{self.path}/{name}", {CUSTOM_METADATA_KEY: json.dumps(offsets)})
        done: Future[list[WriteResult]] = Future()
        done.set_result(results)
        return done


def write_tensors(folder: Path, tensors: dict[str, Any]) -> None:
    """Nested dictionaries of tensors and integers, from all ranks together: a tensor's shards, or the same of each."""
    group = ranks.behind()
    writer = _Writer(str(folder / TENSORS), save_distributed=True)
    save(_as_tensors(tensors), storage_writer=writer, process_group=group, no_dist=group is None)


def read_tensors(folder: Path, tensors: dict[str, Any]) -> None:
    """Read into the very tensors given, by all ranks together, however many wrote them; integers are replaced.

    A rank that was not there when they were written keeps its ``rng``. Raises WeightsError for files that are not what
    ``write_tensors`` wrote of such tensors. None of them is ever executed: a checkpoint may come from anyone.
    """
    try:
        _read(folder, tensors)
    except READ_ERRORS as error:
        raise WeightsError(
            f"checkpoint {folder} cannot be read: {reason(error)[:500]}. Delete the folder to use the one before it"
        ) from None


def _read(folder: Path, tensors: dict[str, Any]) -> None:
    reader = HuggingFaceStorageReader(str(folder / TENSORS))
    found = _metadata(folder, reader).state_dict_metadata
    wanted = _as_tensors(
        {
            name: value
            for name, value in tensors.items()
            if name != "rng" or all(f"rng.{rank}.{device}" in found for rank in value for device in value[rank])
        }
    )
    group = ranks.behind()
    load(wanted, storage_reader=reader, process_group=group, no_dist=group is None)
    _replace_integers(tensors, wanted)


def _metadata(folder: Path, reader: HuggingFaceStorageReader) -> Metadata:
    """Raises WeightsError for what earlier releases wrote."""
    if list((folder / TENSORS).glob("*.distcp")) or (folder / TENSORS / ".metadata").exists():
        raise WeightsError(
            f"checkpoint {folder} was written by an earlier release of PRISM, in torch's pickle format, which executes "
            "what it holds: finish the stage with that release, or delete the folder of the stage's checkpoints to "
            "begin the stage again"
        )
    return reader.read_metadata()


def _as_tensors(value: Any) -> Any:
    """The same with integers as tensors: all that such a file holds."""
    if isinstance(value, dict):
        return {name: _as_tensors(one) for name, one in value.items()}
    return torch.tensor(value) if isinstance(value, int) else value


def _replace_integers(values: dict[str, Any], read: dict[str, Any]) -> None:
    for name in values.keys() & read.keys():
        if isinstance(values[name], dict):
            _replace_integers(values[name], read[name])
        elif isinstance(values[name], int):
            values[name] = int(read[name])


def reason(error: BaseException) -> str:
    """In one line: torch adds where in its code each rank failed."""
    if isinstance(error, CheckpointException):
        return "; ".join(f"rank {rank}: {failure}" for rank, (failure, _) in error.failures.items())
    return str(error)


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
