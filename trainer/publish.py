"""Weights from a learner to the servers that work with them: written, sealed, pushed, verified there.

(No torch, but for a learner's tensors.)
"""

import socket
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from prism.config import PushConfig, RunConfig
from prism.endpoints import Endpoints
from prism.errors import ConfigError, WeightsError
from prism.weights import Manifest, Probe, keep_newest, newest_sealed, seal
from trainer.weight_folder import WeightFolder

if TYPE_CHECKING:
    from torch import Tensor

KEEP_VERSIONS = 3  # a server that restarts in the middle of a push still finds the one before


@dataclass(frozen=True)
class PushResult:
    total_seconds: float
    """From the first byte written until every server answered."""
    paused_seconds: float
    """How long the server could not work because of it, as the server says; of several, the longest."""
    bytes_written: int
    """Of files that the version before does not have."""
    bytes_saved: int
    """Of files that are the same as in the version before, and were linked."""

    def figures(self, prefix: str = "") -> dict[str, float]:
        """As they stand in metrics.jsonl."""
        return {
            f"{prefix}sync_total_seconds": self.total_seconds,
            f"{prefix}sync_paused_seconds": self.paused_seconds,
            f"{prefix}sync_bytes_written": self.bytes_written,
            f"{prefix}sync_bytes_saved": self.bytes_saved,
        }


class Publisher:
    """Pushes one model's weights to one server, or to each of its replicas: all addresses that its name stands for.

    A server that is away, restarting or draining is retried until the deadline. Every push raises WeightsError when a
    server refuses the weights or the deadline passes.
    """

    def __init__(
        self, model: str, url: str, admin_token: str, weights_root: Path, attempt: int, config: PushConfig
    ) -> None:
        self._model, self._url, self._root, self._attempt = model, url.rstrip("/"), weights_root, attempt
        self._deadline = config.deadline_seconds
        self._http = httpx.Client(headers={"Authorization": f"Bearer {admin_token}"})

    def push(
        self, version: int, tensors: Iterable[tuple[str, "Tensor"]], config: str, probe: Probe | None = None
    ) -> PushResult:
        """A learner's weights, as WeightFolder takes them, with the model's ``config.json``."""
        return self._push(version, lambda folder: folder.add_tensors(tensors, config), probe)

    def push_folder(self, version: int, source: Path) -> PushResult:
        """The weights of a finished model folder."""
        return self._push(version, lambda folder: folder.add_folder(source), None)

    def _push(self, version: int, fill: Callable[[WeightFolder], None], probe: Probe | None) -> PushResult:
        started = time.perf_counter()
        path = f"{self._model}/{self._attempt:04d}-{version:06d}"
        folder = WeightFolder(self._root, path, newest_sealed(self._root / self._model))
        fill(folder)
        manifest = seal(
            self._root,
            path,
            model=self._model,
            version=version,
            attempt=self._attempt,
            probe=probe,
            files=folder.files,
        )
        replicas = replica_urls(self._url)
        with ThreadPoolExecutor(len(replicas)) as threads:
            answers = list(threads.map(lambda url: self._post(url, manifest), replicas))
        keep_newest(self._root / self._model, KEEP_VERSIONS)
        return PushResult(
            total_seconds=time.perf_counter() - started,
            paused_seconds=max(answer["sync_paused_seconds"] for answer in answers),
            bytes_written=folder.bytes_written,
            bytes_saved=folder.bytes_saved,
        )

    def _post(self, url: str, manifest: Manifest) -> dict[str, Any]:
        body = manifest.model_dump(mode="json")
        give_up = time.monotonic() + self._deadline
        while True:
            try:
                left = max(1.0, give_up - time.monotonic())
                response = self._http.post(f"{url}/weights", json=body, timeout=httpx.Timeout(left, connect=5))
                if response.is_success:
                    return response.json()
                problem = f"{response.status_code} {response.text[:500]}"
                final = response.is_client_error
            except httpx.TransportError as error:
                problem, final = f"{type(error).__name__}: {error}", False
            if final or time.monotonic() > give_up:
                raise WeightsError(
                    f"{url} did not take version {manifest.version} of the {self._model} weights"
                    f"{'' if final else f' within {self._deadline:.0f} s'}: {problem}"
                )
            time.sleep(0.5)


def replica_urls(url: str) -> list[str]:
    """``url`` by each address of its host; as it is where the host is one address, or none yet."""
    parts = httpx.URL(url)
    try:
        found = socket.getaddrinfo(parts.host, parts.port, type=socket.SOCK_STREAM)
    except socket.gaierror:
        return [url]  # its server is away, which is waited for
    addresses = sorted({str(address[0]) for family, _, _, _, address in found if family == socket.AF_INET})
    return [str(parts.copy_with(host=address)) for address in addresses] if len(addresses) > 1 else [url]


def open_publisher(config: RunConfig, endpoints: Endpoints, model: str, attempt: int) -> Publisher:
    """For the policy or an expert of a run. Raises ConfigError without the admin token."""
    token = endpoints.admin_token
    if token is None:
        raise ConfigError("PRISM_ADMIN_TOKEN is not set: without it no weights can be pushed")
    url = endpoints.admin_url(model)
    return Publisher(model, url, token.get_secret_value(), config.run_dir / "weights", attempt, config.push)
