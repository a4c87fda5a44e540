"""What it costs to index rows: ``python -m bench.rows index [--rows N]``, and ``python -m bench.rows array [--gb G]``.

``index``: demonstrations of several thousand letters with an image each, as ms-swift writes them, images only looked
for. ``array``: the same as one JSON array, which is read as a stream. Files are written into a temporary folder, or
into ``--folder``, where they stay.
"""

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from resource import RUSAGE_CHILDREN, RUSAGE_SELF, getrusage
from typing import IO, Annotated

import typer
from PIL import Image

from prism.data.index import LazyRows
from prism.data.rows import read_rows

app = typer.Typer(add_completion=False, no_args_is_help=True)
IMAGES = 10_000  # that rows share
THINKING = "Each side of the triangle is compared with the others, and the sum of its angles is checked. "

Folder = Annotated[Path | None, typer.Option(help="where the files are written; they stay")]
Size = Annotated[int, typer.Option("--bytes", help="of a response, about")]


@app.command()
def index(rows: Annotated[int, typer.Option(min=1)] = 1_260_000, size: Size = 4_000, folder: Folder = None) -> None:
    """Index a file of JSON Lines. Needs 4.4 kB of disk a row."""

    def write(lines: IO[str]) -> None:
        lines.writelines(f"{row(number, size)}\n" for number in range(rows))

    measure_file(folder, f"rows-{rows}-{size}.jsonl", write)


@app.command()
def array(gb: Annotated[float, typer.Option(min=0.001)] = 1.0, size: Size = 4_000, folder: Folder = None) -> None:
    """Read a JSON array."""

    def write(whole: IO[str]) -> None:
        whole.write("[" + row(0, size))
        whole.writelines(f",\n{row(number, size)}" for number in range(1, int(gb * 1e9 / len(row(0, size))) + 1))
        whole.write("]")

    measure_file(folder, f"array-{gb}-{size}.json", write)


def measure_file(folder: Path | None, name: str, write: Callable[[IO[str]], None]) -> None:
    """Its images are written too. In a ``folder`` that holds the file already it is taken as it is."""
    with placed(folder) as place:
        write_images(place)
        file = place / name
        if not file.exists():
            with file.open("w") as opened:
                write(opened)
        measure(file)


@contextmanager
def placed(folder: Path | None) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="prism-rows-") as temporary:
        yield folder or Path(temporary)


def write_images(folder: Path) -> None:
    for number in range(IMAGES):
        image = folder / f"images/{number // 100:02}/{number}.png"
        image.parent.mkdir(parents=True, exist_ok=True)
        if not image.exists():
            Image.new("1", (8, 8)).save(image)


def row(number: int, size: int) -> str:
    thinking = THINKING * (size // len(THINKING))
    answer = f"<caption>- a triangle</caption><think>{thinking}</think><answer>{number}</answer>"
    asked = {"role": "user", "content": f"<image>Find x in problem {number}."}
    image = f"images/{number % IMAGES // 100:02}/{number % IMAGES}.png"
    return json.dumps({"messages": [asked, {"role": "assistant", "content": answer}], "images": [image]})


def measure(file: Path) -> None:
    """Read it and print what that took; memory is this process's, above what it had, and its helper's in all."""
    os.sync()  # what was written is not written out at the cost of what is measured
    Path("/proc/self/clear_refs").write_text("5")
    before, began, cpu = resident("VmRSS"), time.monotonic(), cpu_seconds()
    found = read_rows(file, "fail", ("response",), images="exist", every_turn=True)
    wall, cpu = time.monotonic() - began, cpu_seconds() - cpu
    count = len(found.rows)
    held, peak = resident("VmRSS") - before, resident("VmHWM") - before
    print(f"{file.name}: {count:,} rows of {file.stat().st_size / 1e9:.2f} GB; the last: {found.rows[-1].id}")
    print(f"  {wall:.1f} s, {cpu:.1f} s of CPU: {cpu / count * 1e6:.1f} µs a row")
    assert isinstance(found.rows, LazyRows)
    print(f"  {found.rows.nbytes / count:.1f} bytes a row are kept; {held / 2**20:.0f} MiB more than before")
    helper = getrusage(RUSAGE_CHILDREN).ru_maxrss / 2**10
    print(f"  {peak / 2**20:.0f} MiB more at most" + (f", {helper:.0f} MiB in the second process" if helper else ""))


def cpu_seconds() -> float:
    """Of this process and of those that it began and that have ended."""
    return sum(used.ru_utime + used.ru_stime for used in map(getrusage, (RUSAGE_SELF, RUSAGE_CHILDREN)))


def resident(name: str) -> int:
    """Bytes, by a line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


if __name__ == "__main__":
    app()
