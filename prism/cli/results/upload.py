"""``prism upload``: an exported model to a hub."""

from pathlib import Path
from typing import Annotated

import typer

from prism import logs


def upload(
    folder: Annotated[Path, typer.Argument(help="a model's folder, as `prism export` writes it")],
    repo: Annotated[str, typer.Argument(help="repository on the hub, such as me/my-model")],
    evaluations: Annotated[
        list[str] | None,
        typer.Option("--evaluation", metavar="[NAME=]DIR", help="figures for the card: results of `prism evaluate`"),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="a repository that is made is private")] = False,
    message: Annotated[str, typer.Option(help="of the commit")] = "Upload by prism",
    endpoint: Annotated[
        str | None, typer.Option(envvar="HF_ENDPOINT", help="another hub's address than huggingface.co")
    ] = None,
) -> None:
    """Upload an exported model to a hub, with its card and the figures of its evaluations.

    The token is HF_TOKEN's, or that of `hf auth login`.
    """
    from prism.evaluation.suite.results import read_result
    from prism.evaluation.suite.upload import upload as upload_folder

    results = []
    for text in evaluations or []:
        name, mark, place = text.rpartition("=")
        result = read_result(Path(place))
        results.append((name if mark else result["name"], result))
    address = upload_folder(folder, repo, results, private=private, message=message, endpoint=endpoint)
    logs.console().print(address, markup=False, soft_wrap=True)
