"""An exported model to a hub: its files and its card, with the figures of evaluations, in one commit."""

from collections.abc import Sequence
from pathlib import Path

from prism.errors import ConfigError, ServiceError
from prism.evaluation.suite.results import Result
from prism.evaluation.suite.table import as_markdown, paper_table

CARD = "README.md"


def upload(
    folder: Path,
    repo: str,
    results: Sequence[tuple[str, Result]],
    *,
    private: bool,
    message: str,
    endpoint: str | None = None,
) -> str:
    """Make the repository if need be, commit the folder's files, and return the commit's address.

    The token is HF_TOKEN's, or that of `hf auth login`. Raises ConfigError for a folder that is no exported model,
    ServiceError where the hub refuses or is away: then nothing of it was committed.
    """
    missing = [name for name in ("config.json", CARD) if not (folder / name).is_file()]
    if missing or not any(folder.glob("*.safetensors")):
        raise ConfigError(f"{folder} is no exported model (no {missing[0] if missing else 'weights'}): `prism export`")
    try:
        from huggingface_hub import CommitOperationAdd, HfApi
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError:
        raise ConfigError("prism upload needs huggingface_hub: pip install huggingface_hub") from None
    import httpx

    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and not _is_hidden(file, folder)]
    operations = [
        CommitOperationAdd(
            str(file.relative_to(folder)),
            card_with(file.read_text(), results).encode() if file == folder / CARD else str(file),
        )
        for file in files
    ]
    api = HfApi(endpoint=endpoint)
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        commit = api.create_commit(repo, operations, commit_message=message)
    except (HfHubHTTPError, httpx.HTTPError, OSError, ValueError) as error:
        raise ServiceError(f"{repo} was not uploaded: {str(error).strip()[:500]}") from None
    return commit.commit_url


def card_with(card: str, results: Sequence[tuple[str, Result]]) -> str:
    """The card with a table of benchmarks, whose scores that were withheld are none there either."""
    if not results:
        return card
    return f"{card.rstrip()}\n\n## Benchmarks\n\n{as_markdown(paper_table(results))}"


def _is_hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(folder).parts)
