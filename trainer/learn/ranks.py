"""Ranks: the processes of a learner that ``torchrun`` started, and a model sharded over them. Without it, one process.

Every rank calls a learner with the same arguments and works on a part of them; services, files and console are the
first's. Whatever is decided is decided from what all ranks have in common, so that none waits for a collective that
another never enters.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from rich.console import Console
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from prism import logs

T = TypeVar("T")

TIMEOUT = timedelta(minutes=10)  # a rank that is this late for another is lost
PATIENCE = timedelta(days=30)  # the first rank waits for rollouts, the others for it

_patient: Any = None  # the group in which the others wait for the first
_behind: Any = None  # that of what goes on behind the loop, in a thread


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_first() -> bool:
    """Whether this rank is the one that talks to services, writes files and prints."""
    return rank() == 0


def console() -> Console:
    """Of the first rank; the others are silent."""
    return logs.console() if is_first() else Console(quiet=True)


@contextmanager
def started(device: str) -> Iterator[None]:
    """The process group of ``torchrun``'s ranks, each on the card of its own if ``device`` is "cuda".

    Nothing without ``torchrun``. A rank that fails does not wait for the others: ``torchrun`` ends them.
    """
    global _patient, _behind
    if not dist.is_torchelastic_launched():
        yield
        return
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # Objects and checkpoints travel between CPUs whatever the learners compute on.
    dist.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo", timeout=TIMEOUT)
    _patient = dist.new_group(backend="gloo", timeout=PATIENCE)
    _behind = dist.new_group(backend="gloo", timeout=TIMEOUT)
    yield
    _patient = _behind = None
    dist.destroy_process_group()


def behind() -> dist.ProcessGroup | None:
    """All ranks, for a thread beside the loop: its collectives must not meet the loop's. None without ``torchrun``."""
    return _behind


def seed(value: int) -> None:
    """Ranks draw different dropout; the first draws what a single process does."""
    torch.manual_seed(value + rank())


def from_first(make: Callable[[], T]) -> T:
    """What ``make`` returns on the first rank, which alone calls it, however long that takes."""
    if world() == 1:
        return make()
    box = [make() if is_first() else None]
    dist.broadcast_object_list(box, 0, group=_patient)
    return box[0]  # pyright: ignore[reportReturnType]


def gathered(value: T) -> list[T]:
    """Every rank's value, in their order, on every rank. Tensors must be of the CPU."""
    if world() == 1:
        return [value]
    values: list[Any] = [None] * world()
    dist.all_gather_object(values, value)
    return values


def shard_model(
    load: Callable[[torch.dtype], Any], device: str, dtype: torch.dtype, held: torch.dtype = torch.float32
) -> Any:
    """Load a model with ``load(dtype of its weights)`` on the CPU and move it to where it computes. Over ranks it is
    sharded by FSDP2: by decoder layer, and the rest at once.

    Sharded, it computes in ``dtype``; weights are ``held``, sums of gradients and what the optimizer steps are float32.
    The vision tower is of the rest: a rank without an image takes part in all that it communicates, with a gradient of
    0.
    """
    if not dist.is_initialized():
        return load(dtype).to(device)
    model = load(held)
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    mesh = init_device_mesh(device, (world(),))
    for part in [*model.model.language_model.layers, model]:
        fully_shard(part, mesh=mesh, mp_policy=policy)
        part.set_gradient_divide_factor(1.0)  # losses are divided by counts of the whole batch: gradients add up
        part.set_force_sum_reduction_for_comms(True)  # as gloo can
    model.expects_images = False

    def run(forward: Callable[[], Any]) -> Any:
        if model.expects_images and torch.is_grad_enabled():
            own = getattr(model, "active", "")  # of adapters, the one that learns now
            # Parameters are whole here: a rank without an image reduces zeros.
            for name, parameter in model.model.visual.named_parameters():
                other = ".lora_" in name and f".{own}." not in name
                if parameter.requires_grad and parameter.grad is None and not other:
                    parameter.grad = torch.zeros_like(parameter)
        return forward()

    model.run_sharded = run
    register_fsdp_forward_method(model, "run_sharded")
    return model


def root_of(model: Any) -> Any:
    """The model that is sharded as a whole: of adapters over one base, whoever's model that base is."""
    return getattr(model, "shares", (model,))[0]


def is_sharded(model: Any) -> bool:
    return isinstance(root_of(model), FSDPModule)


def run_sharded(model: Any, forward: Callable[[], T]) -> T:
    """Return ``forward()``, which computes with all of ``model``. All ranks must call it where the model is sharded."""
    run = getattr(model, "run_sharded", None)
    return run(forward) if run else forward()


def expect_images(model: Any, images: bool) -> None:
    """Before the passes of an update: whether any rank has an image. Only then does the vision tower learn."""
    if is_sharded(model):
        root_of(model).expects_images = images


def full_weights(model: Any) -> dict[str, Tensor]:
    """The model's tensors by name, in the precision it computes in: whole and on the CPU on the first rank, none on the
    others. All ranks must call it; gathering is over when it returns.

    A card holds one whole tensor at a time, the first rank's host memory all of them. Without shards these are the
    model's own tensors, not copies.
    """
    if not is_sharded(model):
        return model.state_dict()
    return gather_tensors(model, model.state_dict(keep_vars=True))


def gather_tensors(model: Any, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same of some of the model's tensors, given by name."""
    if not is_sharded(model):
        return {name: tensor.detach() for name, tensor in tensors.items()}
    root_of(model).reshard()  # after a pass without gradient the outermost weights still lie whole
    dtype = computes_in(model)
    whole: dict[int, Tensor] = {}  # tied weights are one tensor
    named: dict[str, Tensor] = {}
    for name, parameter in tensors.items():
        if id(parameter) not in whole:
            tensor = parameter.detach()
            tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            whole[id(parameter)] = tensor.to("cpu", dtype) if is_first() else tensor.new_empty(0)
        named[name] = whole[id(parameter)]
    return named if is_first() else {}


def in_precision(model: Any, config: str) -> str:
    """A model's ``config.json`` as it belongs to its ``full_weights``, whose precision is not that of the shards."""
    held, whole = (str(dtype).removeprefix("torch.") for dtype in (model.dtype, computes_in(model)))
    return config.replace(f'"{held}"', f'"{whole}"')


def computes_in(model: Any) -> torch.dtype:
    """The precision of forward and backward passes."""
    if is_sharded(model):
        return root_of(model)._get_fsdp_state()._mp_policy.param_dtype or torch.float32
    return model.dtype


def own(items: Sequence[T]) -> list[T]:
    """This rank's share of what is as good in any hands."""
    return list(items[rank() :: world()])


def pad_passes(batches: Sequence[T], passes: int) -> list[T | None]:
    """Add a None for each pass that other ranks make and this one has no batch for: it must take part all the same."""
    return [*batches, *[None] * (passes - len(batches))]
