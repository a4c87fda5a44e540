"""Data files as a stage names them: a path, or a table that says more."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from prism.config.strict import ConfigModel

FormatName = Literal["auto", "prism", "openai", "ms-swift", "sharegpt", "alpaca", "llava", "trl", "verl", "easyr1"]


class DataConfig(ConfigModel):
    """An entry of ``data`` that is more than a path."""

    path: str = Field(min_length=1)
    """A file of JSON Lines, a JSON array or Parquet, a folder of them, or a pattern such as ``train-*.parquet``, in the
    run's folder or relative to the working directory. LLaMA-Factory's ``dataset_info.json`` too, with ``dataset``."""
    weight: float = Field(default=1.0, gt=0)
    """How often an epoch sees each row. 1 by default, once; at 3 three times; at 0.5 every other row, and the others in
    the next epoch. To make a file of n rows a share s of all, beside N other rows, give it s N / ((1 - s) n)."""
    format: FormatName = "auto"
    """Which format the rows have. By default the one that the first rows look like; `prism data check` says which."""
    dataset: str = ""
    """Name of a data set in the ``dataset_info.json`` beside the file, whose columns and tags then hold. By default the
    description that names the file, if there is one."""
    columns: dict[str, str] = Field(default={})
    """Columns that have other names than the format's, such as ``{ prompt = "question", images = "picture" }``. None by
    default."""
    image_root: Path | None = None
    """Folder that images must lie in, links followed; one that is not found beside the file is looked for there. By
    default the file's own folder: rows of others are not trusted to name files elsewhere."""
    turns: Literal["format", "all", "last"] = "format"
    """Which of several turns of the assistant SFT learns from. By default as the format's own tool does: all of them,
    the last for rows of PRISM. (``weight`` and ``loss`` of a turn hold in any case.)"""


DataName = str | DataConfig
"""A path, or a table with more."""


DataNames = DataName | list[DataName]
"""One of them, or several, whose rows are mixed."""


def data_configs(names: DataNames) -> list[DataConfig]:
    """What a configuration says of its data, each entry as a table."""
    entries = names if isinstance(names, list) else [names]
    return [DataConfig(path=entry) if isinstance(entry, str) else entry for entry in entries]
