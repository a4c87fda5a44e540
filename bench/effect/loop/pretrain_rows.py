"""The rows that pretraining learns, read by as many processes as there are cores, as a few large tensors."""

import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prism.data.rows import read_rows
from prism.model.inputs import InputBuilder
from prism.model.shared_prefix import prompt_positions
from prism.trainer.flow.demonstrations import prompt_of
from prism.trainer.learn.policy_model import load_policy

CHUNK = 500  # rows that a process reads at a time
NO_TOKEN = -100  # of cross_entropy's ignore_index


@dataclass(frozen=True)
class Rows:
    """N rows whose pictures have one size, padded on the right to L tokens; prompts and responses."""

    ids: Tensor
    """[N, L]"""
    targets: Tensor
    """[N, L] the token after each place, where it belongs to the response, else NO_TOKEN."""
    positions: Tensor
    """[3, N, L]"""
    pixels: Tensor
    """[images, patches, patch size]"""
    picture: Tensor
    """[N] place of each row's image in ``pixels``."""
    grid: Tensor
    """[1, 3] of every image, in patches."""

    def to(self, device: Any) -> "Rows":
        return Rows(*(getattr(self, field.name).to(device) for field in fields(self)))


@dataclass(frozen=True)
class _Read:
    """A row as it comes from a process: no tensors, which would come through shared memory."""

    image: str
    ids: list[int]
    prompt: int
    grid: tuple[int, ...]
    positions: np.ndarray
    """[3, prompt], of the prompt."""


def load_rows(file: Path, model: Path, dtype: torch.dtype) -> list[Rows]:
    """All rows of a file, by the size of their pictures; pixels in ``dtype``."""
    count = len(read_rows(file, "fail", ("response",), images="exist").rows)
    chunks = [range(begin, min(begin + CHUNK, count)) for begin in range(0, count, CHUNK)]
    processes = min(len(chunks), len(os.sched_getaffinity(0)))
    found: list[_Read] = []
    pixels: dict[str, Tensor] = {}
    with ProcessPoolExecutor(processes, get_context("spawn"), _Reader.open, (file, model, dtype)) as pool:
        for read, of_images in pool.map(_Reader.read_here, chunks):
            found += read
            pixels |= {name: torch.from_numpy(values).view(dtype) for name, values in of_images.items()}
    grids = sorted({row.grid for row in found})
    return [_rows([row for row in found if row.grid == grid], grid, pixels) for grid in grids]


class _Reader:
    """What a process reads with; opening a large file takes as long as reading thousands of its rows."""

    here: "_Reader"

    def __init__(self, file: Path, model: Path, dtype: torch.dtype) -> None:
        self._data = read_rows(file, "fail", ("response",), images="exist")
        self._inputs, self._dtype = InputBuilder(model), dtype
        self._backbone = load_policy(model, dtype=torch.float32).model  # whose rule of positions it is

    @staticmethod
    def open(file: Path, model: Path, dtype: torch.dtype) -> None:
        torch.set_num_threads(1)
        _Reader.here = _Reader(file, model, dtype)

    @staticmethod
    def read_here(places: range) -> tuple[list[_Read], dict[str, np.ndarray]]:
        return _Reader.here.read(places)

    def read(self, places: range) -> tuple[list[_Read], dict[str, np.ndarray]]:
        """The rows in these places, and the pixels of their images, byte by byte: numpy has no bfloat16."""
        read: list[_Read] = []
        pixels: dict[str, np.ndarray] = {}
        for place in places:
            row = self._data.rows[place]
            example = self._inputs.with_text(prompt_of(row, self._data, self._inputs), row.response or "")
            assert example.pixel_values is not None
            assert example.image_grid_thw is not None
            ids = torch.tensor([example.input_ids[: example.prompt_length]])
            is_image = ids == self._inputs.image_token_id
            positions = prompt_positions(self._backbone, ids, is_image, example.image_grid_thw)
            (image,) = row.image_paths
            if image not in pixels:
                pixels[image] = example.pixel_values.to(self._dtype).view(torch.uint8).numpy()
            grid = tuple(example.image_grid_thw[0].tolist())
            read.append(_Read(image, example.input_ids, example.prompt_length, grid, positions[:, 0].numpy()))
        return read, pixels


def _rows(read: Sequence[_Read], grid: tuple[int, ...], pixels: dict[str, Tensor]) -> Rows:
    images = {name: place for place, name in enumerate(dict.fromkeys(row.image for row in read))}
    length = max(len(row.ids) for row in read)
    ids = torch.zeros(len(read), length, dtype=torch.long)
    targets = torch.full((len(read), length), NO_TOKEN)
    positions = torch.zeros(3, len(read), length, dtype=torch.long)
    for place, row in enumerate(read):
        whole, after = len(row.ids), int(row.positions.max()) + 1
        ids[place, :whole] = torch.tensor(row.ids)
        targets[place, row.prompt - 1 : whole - 1] = ids[place, row.prompt : whole]
        positions[:, place, : row.prompt] = torch.from_numpy(row.positions)
        positions[:, place, row.prompt : whole] = torch.arange(after, after + whole - row.prompt)
    return Rows(
        ids,
        targets,
        positions,
        torch.stack([pixels[name] for name in images]),
        torch.tensor([images[row.image] for row in read]),
        torch.tensor([grid]),
    )
