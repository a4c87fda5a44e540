"""``prism serve policy``: the vLLM server under its supervisor, in the foreground."""

import asyncio
import importlib.util
import sys
from pathlib import Path

from prism import logs
from prism.errors import ConfigError, PrismError, ServiceError
from prism.services.policy.launcher import server_argv, server_environment, write_logging
from prism.services.policy.settings import PolicySettings
from prism.services.policy.supervisor import Supervisor
from prism.settings import load_settings


def main() -> None:
    """Runs until SIGTERM or SIGINT. Raises PrismError for what the user must put right."""
    settings = load_settings(PolicySettings)
    logs.configure(settings.log_level, settings.log_format)
    logs.about(run=settings.run)
    if importlib.util.find_spec("vllm") is None:
        raise ServiceError("vLLM is not installed: run `make setup`, or pip install 'prism-align[policy-gpu]'")
    for folder in (settings.weights_root, settings.state_dir):
        _make(folder)
    if settings.log_format == "json":
        write_logging(settings)
    asyncio.run(Supervisor(settings, server_argv(settings), server_environment(settings)).run())


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be used as a folder: {error.strerror}") from None


if __name__ == "__main__":
    try:
        main()
    except PrismError as error:
        logs.fail(error)
        sys.exit(1)
