"""Weights from a learner to the servers that work with them: written, sealed, pushed, verified there.

(No torch, but for a learner's tensors.)
"""

import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from prism.clients.endpoints import Endpoints, replica_urls
from prism.config import PushConfig, RunConfig
from prism.errors import ConfigError, WeightsError
from prism.http.client import sync_client
from prism.trainer.weights.folder import WeightFolder
from prism.wire.response import experts_of
from prism.wire.weights import Manifest, Probe, keep_newest, newest_sealed, seal

if TYPE_CHECKING:
    from torch import Tensor

    from prism.trainer.weights.copies import HostCopies

AsSaved = Callable[[Iterable[tuple[str, "Tensor"]]], Iterable[tuple[str, "Tensor"]]]
DRAINS_SECONDS = 15  # within which an engine at work has made another token
KEEP_VERSIONS = 3  # a server that restarts in the middle of a push still finds the one before


@dataclass(frozen=True)
class PushTimes:
    total_seconds: float
    """From the first byte written or sent until every server answered."""
    paused_seconds: float
    """How long the server could not work because of it, as the server says; of several, the longest."""
    bytes_written: int
    """Of files that the version before does not have. After a broadcast, of those finished since the push before."""
    bytes_saved: int
    """Of files that are the same as in the version before, and were linked."""

    def figures(self, prefix: str = "") -> dict[str, float]:
        """As they stand in metrics.jsonl."""
        return {f"{prefix}sync_{name}": value for name, value in vars(self).items()}


class Publisher:
    """Pushes one model's weights to one server, or to each of its replicas: all addresses that its name stands for.
    Those that both experts share go to the servers of both.

    Publishers of several models may push at the same time, each from a thread.

    A server that is away or restarting is retried until the deadline, which begins anew while it finishes answers that
    it has begun. Every push raises WeightsError when a server refuses the weights or the deadline passes; so does
    ``settle``, for files that follow a broadcast.
    ``broadcasts_from``: the learner's device, if its tensors are to be broadcast.
    """

    def __init__(
        self,
        model: str,
        url: str | Sequence[str],
        admin_token: str,
        weights_root: Path,
        attempt: int,
        config: PushConfig,
        broadcasts_from: str | None = None,
    ) -> None:
        self._model, self._root, self._attempt = model, weights_root, attempt
        self._urls = [each.rstrip("/") for each in ((url,) if isinstance(url, str) else url)]
        self._deadline, self._most_bytes = config.deadline_seconds, config.keep_gib * 2**30
        self._device = broadcasts_from
        self._query = {"in_flight": "true"} if config.in_flight and model == "policy" else None
        self._http = sync_client(headers={"Authorization": f"Bearer {admin_token}"})
        self._writer = ThreadPoolExecutor(1, "weights-behind")
        self._behind: Future[PushTimes] | None = None
        self._copies: HostCopies | None = None  # of what was broadcast, for the files behind

    def push(
        self,
        version: int,
        tensors: Iterable[tuple[str, "Tensor"]],
        config: str,
        probe: Probe | None = None,
        as_saved: AsSaved | None = None,
    ) -> PushTimes:
        """A learner's weights, as WeightFolder takes them, with the model's ``config.json``.

        ``as_saved`` makes them so, where they are given as an expert's learner has them: so an expert takes a
        broadcast, by its ``config``.
        """
        if self._device is None:
            saved = as_saved(tensors) if as_saved else tensors
            return self._push_files(version, lambda folder: folder.add_tensors(saved, config), probe)
        return self._push_memory(version, list(tensors), config, probe, as_saved, self._device)

    def push_folder(self, version: int, source: Path) -> PushTimes:
        """The weights of a finished model folder."""
        return self._push_files(version, lambda folder: folder.add_folder(source), None)

    def push_adapter(
        self,
        version: int,
        base: Path,
        tensors: dict[str, "Tensor"],
        config: dict[str, Any],
        probe: Probe | None = None,
    ) -> PushTimes:
        """An adapter over the model in the folder ``base``, by the names and with the ``config`` of PEFT's files.

        It goes by files whatever the transport: they are megabytes, and the base is linked.
        """
        return self._push_files(version, lambda folder: folder.add_adapter(base, tensors, config), probe)

    def settle(self) -> PushTimes | None:
        """Wait for the files that follow the last broadcast, if there was one; what became of them."""
        behind, self._behind = self._behind, None
        return None if behind is None else behind.result()

    def _push_files(self, version: int, fill: Callable[[WeightFolder], None], probe: Probe | None) -> PushTimes:
        started = time.perf_counter()
        path = self._path(version)
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
        replicas = self._replicas()

        def post(url: str) -> dict[str, Any]:
            return self._retried(url, version, partial(self._post, url, manifest))

        with ThreadPoolExecutor(len(replicas)) as threads:
            answers = list(threads.map(post, replicas))
        keep_newest(self._root / self._model, KEEP_VERSIONS, self._most_bytes)
        return PushTimes(
            total_seconds=time.perf_counter() - started,
            paused_seconds=max(answer["sync_paused_seconds"] for answer in answers),
            bytes_written=folder.bytes_written,
            bytes_saved=folder.bytes_saved,
        )

    def _push_memory(
        self,
        version: int,
        tensors: list[tuple[str, "Tensor"]],
        config: str,
        probe: Probe | None,
        as_saved: AsSaved | None,
        device: str,
    ) -> PushTimes:
        """Broadcast, to one replica after another; and have the same written behind, for servers that restart.

        Should the files of the push before not be written yet, they are waited for, so that a server that restarts
        finds those of the version before.
        """
        from prism.trainer.weights.copies import HostCopies

        settled = self.settle()
        started = time.perf_counter()
        self._copies = copies = self._copies or HostCopies()
        copies.begin(tensors)
        manifest = Manifest(
            model=self._model, version=version, attempt=self._attempt, path=self._path(version), files={}, probe=probe
        )
        send = partial(self._broadcast, tensors=tensors, config=config if as_saved else None, device=device)
        try:
            answers = [self._retried(url, version, partial(send, url, manifest)) for url in self._replicas()]
        finally:
            copied = copies.finish()  # before the learner goes on

        def write(folder: WeightFolder) -> None:
            folder.add_tensors(as_saved(copied) if as_saved else copied, config)

        self._behind = self._writer.submit(self._push_files, version, write, None)
        return PushTimes(
            total_seconds=time.perf_counter() - started,
            paused_seconds=max(answer["sync_paused_seconds"] for answer in answers),
            bytes_written=settled.bytes_written if settled else 0,
            bytes_saved=settled.bytes_saved if settled else 0,
        )

    def _replicas(self) -> list[str]:
        return [replica for url in self._urls for replica in replica_urls(url)]

    def _path(self, version: int) -> str:
        return f"{self._model}/{self._attempt:04d}-{version:06d}"

    def _retried(self, url: str, version: int, ask: Callable[["Deadline"], httpx.Response]) -> dict[str, Any]:
        """The server's answer to what ``ask`` asks, within the deadline, once it is a good one."""
        deadline = Deadline(self._deadline)
        while True:
            try:
                response = ask(deadline)
                if response.is_success:
                    return response.json()
                problem = f"{response.status_code} {response.text[:500]}"
                final = response.is_client_error
            except (httpx.TransportError, WeightsError) as error:
                problem, final = f"{type(error).__name__}: {error}", False
            if final or deadline.passed:
                raise WeightsError(
                    f"{url} did not take version {version} of the {self._model} weights"
                    f"{'' if final else f' within {self._deadline:.0f} s'}: {problem}"
                )
            time.sleep(0.5)

    def _post(self, url: str, manifest: Manifest, deadline: "Deadline") -> httpx.Response:
        body = manifest.model_dump(mode="json")
        while True:
            try:
                timeout = httpx.Timeout(deadline.left, connect=5)
                return self._http.post(f"{url}/weights", json=body, params=self._query, timeout=timeout)
            except httpx.ReadTimeout:  # the server goes on with what was posted, and answers it again
                if not self._drains(url):
                    raise
                deadline.begin()

    def _drains(self, url: str) -> bool:
        """Whether the server, before it swaps weights, finishes answers that it has begun, and makes progress."""
        before, end = None, time.monotonic() + DRAINS_SECONDS
        while time.monotonic() < end:
            try:
                now = self._http.get(f"{url}/readyz", timeout=5).json()
            except (httpx.TransportError, ValueError):
                return False
            if now.get("phase") != "syncing" or not now.get("in_flight"):
                return False
            work = now["in_flight"], now["progress"]
            if before is not None and work != before:
                return True
            before = work
            time.sleep(0.2)
        return False

    def _broadcast(
        self,
        url: str,
        manifest: Manifest,
        deadline: "Deadline",
        *,
        tensors: list[tuple[str, "Tensor"]],
        config: str | None,
        device: str,
    ) -> httpx.Response:
        """Raises WeightsError where the broadcast fails before the server has said how it went."""
        from prism.model.broadcast import Sender

        address = httpx.URL(url)
        with (
            ThreadPoolExecutor(1) as thread,
            Sender((address.host, address.port or 80), device, deadline.left) as sender,
        ):
            offered = manifest.model_copy(update={"broadcast": sender.offer(tensors, config)})
            answer = thread.submit(self._post, url, offered, deadline)
            sender.send(tensors, answer.done, lambda: self._drains(url))
            return answer.result()


class Deadline:
    """``seconds`` from now on, or from when it was last begun anew."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.begin()

    def begin(self) -> None:
        self._end = time.monotonic() + self._seconds

    @property
    def left(self) -> float:
        """Seconds, 1 at least: what is asked at all is given a moment."""
        return max(1.0, self._end - time.monotonic())

    @property
    def passed(self) -> bool:
        return time.monotonic() > self._end


def open_publisher(config: RunConfig, endpoints: Endpoints, model: str, attempt: int) -> Publisher:
    """For the policy or a network that scores, of a run. Raises ConfigError without the admin token."""
    token = endpoints.admin_token
    if token is None:
        raise ConfigError("PRISM_ADMIN_TOKEN is not set: without it no weights can be pushed")
    return Publisher(
        model,
        [endpoints.admin_url(name) for name in experts_of(model) or ("policy",)],
        token.get_secret_value(),
        config.run_dir / "weights",
        attempt,
        config.push,
        config.device if config.push.transport == "broadcast" else None,
    )
