"""How long rows take to be indexed, and how much memory: ``python -m bench.rows [--rows N] [--array-gb G] FOLDER``.

Demonstrations with an image each, as ms-swift writes them, images only looked for; and a JSON array read as a stream.
"""

import json
import time
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image

from prism.data.rows import read_rows

IMAGES = 10_000  # that rows share
THINKING = "Each side of the triangle is compared with the others, and the sum of its angles is checked. "


def resident(name: str) -> int:
    """Bytes, by a line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def row(number: int, size: int) -> str:
    thinking = THINKING * (size // len(THINKING))
    answer = f"<caption>- a triangle</caption><think>{thinking}</think><answer>{number}</answer>"
    asked = {"role": "user", "content": f"<image>Find x in problem {number}."}
    image = f"images/{number % IMAGES // 100:02}/{number % IMAGES}.png"
    return json.dumps({"messages": [asked, {"role": "assistant", "content": answer}], "images": [image]})


def main(
    folder: Annotated[Path, typer.Argument(help="where the files are written; they stay")],
    rows: Annotated[int, typer.Option(min=1)] = 1_260_000,
    size: Annotated[int, typer.Option("--bytes", help="of a response, about")] = 4_000,
    array_gb: Annotated[float, typer.Option("--array-gb", min=0, help="of the JSON array; 0: none")] = 1.0,
) -> None:
    """Write the files and read them."""
    for number in range(IMAGES):
        image = folder / f"images/{number // 100:02}/{number}.png"
        image.parent.mkdir(parents=True, exist_ok=True)
        if not image.exists():
            Image.new("1", (8, 8)).save(image)
    lines = folder / f"rows-{rows}-{size}.jsonl"
    if not lines.exists():
        with lines.open("w") as file:
            file.writelines(f"{row(number, size)}\n" for number in range(rows))
    measure(lines)
    if array_gb:
        array = folder / f"array-{array_gb}.json"
        if not array.exists():
            count = int(array_gb * 1e9 / len(row(0, size)))
            with array.open("w") as file:
                file.write("[" + row(0, size))
                file.writelines(f",\n{row(number, size)}" for number in range(1, count))
                file.write("]")
        measure(array)


def measure(file: Path) -> None:
    Path("/proc/self/clear_refs").write_text("5")
    before, began, cpu = resident("VmRSS"), time.monotonic(), time.process_time()
    found = read_rows(file, "fail", ("response",), images="exist", every_turn=True)
    seconds, busy = time.monotonic() - began, time.process_time() - cpu
    peak = (resident("VmHWM") - before) / 2**20
    count, size = len(found.rows), file.stat().st_size / 1e9
    took = f"{seconds:.1f} s ({busy:.1f} s of CPU, {busy / count * 1e6:.0f} µs a row)"
    print(f"{file.name}: {count:,} rows, {size:.2f} GB, {took}, {peak:.0f} MiB at most; the last: {found.rows[-1].id}")


if __name__ == "__main__":
    typer.run(main)
