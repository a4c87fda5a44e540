"""``--download``: a benchmark's files from the hub, where there is a network and a person has asked for it."""

from pathlib import Path

from prism.config import EvaluationConfig
from prism.errors import ConfigError, ServiceError
from prism.evaluation.benchmarks import BENCHMARKS


def download(config: EvaluationConfig) -> list[str]:
    """What was fetched, a line for each benchmark whose folder is not there.

    Raises ConfigError for a path that is no folder to fill, ServiceError where the hub does not answer.
    """
    told: list[str] = []
    for name, own in config.benchmarks.items():
        benchmark = BENCHMARKS[config.kind_of(name)]
        repo = own.repo or benchmark.repo
        if not repo:
            continue
        if not isinstance(own.path, str) or any(sign in own.path for sign in "*?["):
            raise ConfigError(f"benchmarks.{name}.path: --download fills a folder; name one, without a pattern")
        folder = Path(own.path)
        if folder.exists():
            continue
        try:
            from huggingface_hub import snapshot_download
            from huggingface_hub.errors import HfHubHTTPError
        except ImportError:
            raise ConfigError("--download needs huggingface_hub: pip install huggingface_hub") from None
        try:
            patterns = None if own.repo else list(benchmark.files)
            snapshot_download(repo, repo_type="dataset", local_dir=folder, allow_patterns=patterns)
        except (HfHubHTTPError, OSError, ValueError) as error:
            raise ServiceError(f"{repo} could not be downloaded: {str(error)[:300]}") from None
        told.append(f"{name}: {repo} is in {folder}")
    return told
