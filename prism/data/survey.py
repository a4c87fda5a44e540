"""``prism data check``: what files hold, which of their rows load, and what each of the others lacks."""

import json
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Literal

import numpy as np

from prism.config import DataConfig, LimitsConfig
from prism.data.checks import RowCheck, Size
from prism.data.importers import FORMATS
from prism.data.rows import DataRow, read_rows
from prism.errors import DataError

DUPLICATES_NAMED = 5

Lengths = Callable[[DataRow, Sequence[Size]], tuple[int, int]]
"""Tokens of a row's prompt, images included, and of its response."""


@dataclass
class Survey:
    """Of several files."""

    lines: list[str] = field(default_factory=list)
    """What was found, for people."""
    rows: int = 0
    refused: int = 0


@dataclass
class _Figures:
    """Of one file's rows, 8 bytes each."""

    numbers: array = field(default_factory=lambda: array("q"))
    prompts: array = field(default_factory=lambda: array("Q"))
    prompt_tokens: array = field(default_factory=lambda: array("q"))
    response_tokens: array = field(default_factory=lambda: array("q"))
    images: array = field(default_factory=lambda: array("q"))
    widths: array = field(default_factory=lambda: array("q"))
    heights: array = field(default_factory=lambda: array("q"))
    texts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("response", "teacher", "gold"), 0))


def survey(
    files: Sequence[tuple[Path, DataConfig]],
    *,
    images: Literal["decode", "exist"] = "decode",
    limits: LimitsConfig | None = None,
    lengths: Lengths | None = None,
    check: RowCheck | None = None,
    say: Callable[[str], None],
    refused: Callable[[str], None],
) -> Survey:
    """Read every file. ``refused`` is told each row that cannot be used, by file and line, ``say`` of progress.

    ``lengths`` counts tokens, ``check`` refuses what is too long.
    """
    result, all_figures = Survey(), list[tuple[Path, _Figures]]()
    for path, entry in files:
        figures, bad = _Figures(), list[int]()

        def tell(number: int, row: DataRow, sizes: Sequence[Size], figures: _Figures = figures) -> None:
            _add(figures, number, row, sizes, lengths)

        def tell_refused(problem: str, bad: list[int] = bad) -> None:
            bad.append(1)
            refused(problem)

        try:
            data = read_rows(
                path,
                "skip",
                images=images,
                say=say,
                limits=limits,
                check=check,
                entry=entry,
                every_turn=True,
                tell=tell,
                refused=tell_refused,
            )
        except DataError as error:
            result.refused += len(bad) or 1
            result.lines.append(
                f"{path}: nothing loads: {error}" if not bad else f"{path}: none of {len(bad)} rows loads"
            )
            continue
        result.rows += len(data.rows)
        result.refused += data.bad_rows
        form = FORMATS[data.format]
        turns = form.turns if entry.turns == "format" else entry.turns
        learnt = {"all": "each turn of the assistant", "last": "the assistant's last turn"}[turns]
        result.lines.append(f"{path}: {form.name} ({form.follows}), {data.container}")
        result.lines.append(
            f"  {len(data.rows):,} rows load, {data.bad_rows:,} are refused; {learnt} is learnt from, as a row each"
        )
        result.lines += _described(figures, lengths is not None)
        all_figures.append((path, figures))
    result.lines += _duplicates(all_figures)
    return result


def _add(figures: _Figures, number: int, row: DataRow, sizes: Sequence[Size], lengths: Lengths | None) -> None:
    figures.numbers.append(number)
    asked = json.dumps([message.model_dump() for message in row.messages], ensure_ascii=False)
    figures.prompts.append(int.from_bytes(blake2b(asked.encode(errors="surrogatepass"), digest_size=8).digest()))
    figures.images.append(len(row.image_paths))
    for width, height in sizes:
        figures.widths.append(width)
        figures.heights.append(height)
    for key in figures.texts:
        figures.texts[key] += getattr(row, key) is not None
    if lengths:
        prompt, response = lengths(row, sizes)
        figures.prompt_tokens.append(prompt)
        if row.response is not None:
            figures.response_tokens.append(response)


def _described(figures: _Figures, counted: bool) -> list[str]:
    lines = ["  " + ", ".join(f"{count:,} with {key}" for key, count in figures.texts.items() if count)]
    if total := sum(figures.images):
        lines.append(f"  {total:,} images, {max(figures.images)} in a row at most")
    if figures.widths:
        sides = np.array([figures.widths, figures.heights])
        pixels = sides.prod(0)
        small, large = sides[:, pixels.argmin()], sides[:, pixels.argmax()]
        middle = f"{np.median(sides[0]):.0f}x{np.median(sides[1]):.0f}"
        lines.append(f"  images of {small[0]}x{small[1]} to {large[0]}x{large[1]} pixels, {middle} in the middle")
    for name, tokens in (("prompts", figures.prompt_tokens), ("responses", figures.response_tokens)):
        if tokens:
            half, most = np.percentile(tokens, [50, 95])
            with_images = ", images included" if name == "prompts" and figures.widths else ""
            lines.append(
                f"  {name} of {half:,.0f} tokens (median), {most:,.0f} (95 %), {max(tokens):,} at most{with_images}"
            )
    if not counted:
        lines.append("  lengths in tokens: name a model, --model")
    return [line for line in lines if line.strip()]


def _duplicates(found: Sequence[tuple[Path, _Figures]]) -> list[str]:
    """Rows that ask what another asks, in any of the files."""
    if not found:
        return []
    prompts = np.concatenate([np.array(figures.prompts, np.uint64) for _, figures in found])
    order = np.argsort(prompts, kind="stable")
    again = np.flatnonzero(prompts[order[1:]] == prompts[order[:-1]])
    ends = np.cumsum([len(figures.prompts) for _, figures in found])

    def where(index: int) -> str:
        number = int(np.searchsorted(ends, index, side="right"))
        path, figures = found[number]
        return f"{path}:{figures.numbers[index - int(ends[number]) + len(figures.prompts)]}"

    pairs = [(int(order[i]), int(order[i + 1])) for i in again.tolist()]
    lines = [f"{len(pairs):,} rows ask what another row asks (same text, images of the same name)"] if pairs else []
    return lines + [f"  {where(second)} asks what {where(first)} asks" for first, second in pairs[:DUPLICATES_NAMED]]
