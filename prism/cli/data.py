"""``prism data``: what files of rows hold, and the same in PRISM's own form. (Everything heavy is imported inside.)"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

if TYPE_CHECKING:
    from prism.config import DataConfig

data = typer.Typer(no_args_is_help=True, help="Check files of public data, or convert them to PRISM's own rows.")

Files = Annotated[
    list[str],
    typer.Argument(metavar="FILE...", help="files, folders, patterns in quotes, or a dataset_info.json with --dataset"),
]
FormatOption = Annotated[
    str, typer.Option("--format", help="auto, prism, openai, ms-swift, sharegpt, alpaca, llava, trl, verl, easyr1")
]
Dataset = Annotated[str, typer.Option("--dataset", help="a data set of the dataset_info.json beside the files")]
Columns = Annotated[
    list[str] | None, typer.Option("--column", metavar="KEY=COLUMN", help="a column by another name; repeatable")
]
ImageRoot = Annotated[
    Path | None, typer.Option("--image-root", help="folder that images must lie in; without it, each file's own")
]
Turns = Annotated[
    Literal["format", "all", "last"], typer.Option("--turns", help="which assistant's turns are learnt from")
]


@data.command()
def check(
    files: Files,
    model: Annotated[str | None, typer.Option("--model", help="counts tokens with this model's processor")] = None,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", min=1, help="refuse longer rows; with --model")
    ] = None,
    images: Annotated[
        Literal["decode", "exist"], typer.Option("--images", help="open them, or look for them")
    ] = "decode",
    format: FormatOption = "auto",
    dataset: Dataset = "",
    column: Columns = None,
    image_root: ImageRoot = None,
    turns: Turns = "format",
) -> None:
    """Say what each file is, how many rows load, and what every other row lacks, by file and line.

    Lengths in tokens (with --model, by default no longer than it has positions for), sizes of images, rows that ask
    the same. Ends with status 1 if a row is refused.

    \b
    prism data check mllm_demo.json --model Qwen/Qwen3-VL-4B-Instruct
    prism data check 'data/train-*.parquet'
    """
    from prism.config import LimitsConfig
    from prism.data.survey import survey
    from prism.errors import DataError

    console = Console(highlight=False)
    lengths = refuse = None
    if model:
        from prism.model.inputs import InputBuilder
        from prism.trainer.flow.lengths import count_tokens, max_positions, refuse_overlong

        inputs = InputBuilder(model)
        lengths, refuse = count_tokens(inputs), refuse_overlong(inputs, max_tokens or max_positions(model), "response")

    def tell(problem: str) -> None:
        console.print(f"refused {problem}", soft_wrap=True, markup=False)

    def say(text: str) -> None:
        Console(stderr=True, highlight=False).print(text, markup=False)

    found = survey(
        _files(files, format, dataset, column, image_root, turns),
        images=images,
        limits=LimitsConfig(),
        lengths=lengths,
        check=refuse,
        say=say,
        refused=tell,
    )
    for line in found.lines:
        console.print(line, soft_wrap=True, markup=False)
    if found.refused:
        raise DataError(f"{found.refused:,} rows are refused, {found.rows:,} load")


@data.command()
def convert(
    files: Files,
    out: Annotated[Path, typer.Option("--out", help="a new file, .jsonl or .parquet")],
    format: FormatOption = "auto",
    dataset: Dataset = "",
    column: Columns = None,
    image_root: ImageRoot = None,
    turns: Turns = "format",
    on_bad_row: Annotated[
        Literal["skip", "fail"], typer.Option(help="name a row that is refused, or end there")
    ] = "fail",
) -> None:
    """Write rows of any format as PRISM's own, with ids: JSON Lines, or Parquet in small row groups.

    Images go beside JSON Lines, and into Parquet. Each of an assistant's turns that is learnt from is a row.

    \b
    prism data convert llava.json --image-root coco --out demos.jsonl
    """
    from prism.data.convert import convert as write
    from prism.data.rows import Mixture, read_rows

    console = Console(highlight=False)

    def tell(problem: str) -> None:
        console.print(f"refused {problem}", soft_wrap=True, markup=False)

    entries = _files(files, format, dataset, column, image_root, turns)
    rows = [read_rows(path, on_bad_row, entry=entry, every_turn=True, refused=tell) for path, entry in entries]
    console.print(f"{write(Mixture(rows), out):,} rows: {out}", soft_wrap=True, markup=False)


def _files(
    names: list[str],
    format: str,
    dataset: str,
    columns: list[str] | None,
    image_root: Path | None,
    turns: Literal["format", "all", "last"],
) -> "list[tuple[Path, DataConfig]]":
    """Raises ConfigError for a format that is none, DataError for a name that stands for no file."""
    from pydantic import ValidationError

    from prism.config import DataConfig
    from prism.data.mixture import data_files
    from prism.errors import ConfigError
    from prism.settings import describe

    named: dict[str, str] = {}
    for one in columns or []:
        key, separator, column = one.partition("=")
        if not separator:
            raise ConfigError(f"--column {one}: write it as KEY=COLUMN")
        named[key] = column
    try:
        entries = [
            DataConfig.model_validate(
                {
                    "path": name,
                    "format": format,
                    "dataset": dataset,
                    "columns": named,
                    "image_root": image_root,
                    "turns": turns,
                }
            )
            for name in names
        ]
    except ValidationError as error:
        raise ConfigError("\n".join(describe(error))) from None
    return data_files(list(entries), Path)
