"""Weights into the running server: verified, swapped, probed; and again after a restart.

They are swapped while nothing is in flight, or, by a push in flight, under the answers that may go on over it.
"""

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel

from prism import logs
from prism.errors import PrismError, ServiceError, WeightsError
from prism.model.broadcast import check_backend
from prism.services.policy import metrics, tensors
from prism.services.policy.answers.kept import Answers
from prism.services.policy.answers.signs import Progress
from prism.services.policy.engine import Engine
from prism.services.policy.gate import Gate, Phase
from prism.services.policy.settings import PolicySettings
from prism.wire.weights import ADAPTER_CONFIG, Manifest, note_newest, read_newest, verify

logger = logging.getLogger("vllm.prism.policy")  # below vLLM's logger, whose handlers print to the server's log


class PushResult(BaseModel):
    """Answer of ``POST /weights``."""

    version: int
    attempt: int
    sync_total_seconds: float
    sync_paused_seconds: float
    probe_difference: float | None


@dataclass
class PushRefused(Exception):
    """A push that was not taken. ``status`` is the HTTP status, ``outcome`` its name in the metrics."""

    status: int
    outcome: str
    reason: str


class NotPaused(ServiceError):
    """The engine could not be stopped for a swap, and goes on with what it has."""


class ServedWeights:
    """Which weights are loaded, and the only way to change them. For one event loop; pushes take turns."""

    def __init__(self, settings: PolicySettings, engine: Engine, gate: Gate, progress: Progress) -> None:
        self.settings, self.engine, self.gate, self._progress = settings, engine, gate, progress
        self.answers = Answers()
        self.version, self.attempt = 0, 0  # of the weights in memory; 0, 0 is the base model
        self.loaded: Manifest | None = None
        self._turn = asyncio.Lock()
        self._keeps = False  # whether the push under way waits for no answer that may go on over it

    @property
    def awaited(self) -> int:
        """Requests in flight that a push has to wait for."""
        return self.gate.in_flight - (len(self.answers.kept) if self._keeps else 0)

    async def push(self, manifest: Manifest, *, in_flight: bool = False) -> PushResult:
        """Serve these weights from now on. Raises PushRefused; the old ones are served then, unless the gate is BROKEN.

        ``in_flight``: under the answers that may go on over it, unless they are an earlier attempt's, whose versions
        are other weights'. Pushing the loaded manifest again is no error and does nothing.
        """
        started = time.monotonic()
        try:
            async with self._turn:
                self._keeps = in_flight and manifest.attempt == self.attempt
                try:
                    result = await self._push(manifest, started)
                finally:
                    self._keeps = self._progress.swapping = False
        except PushRefused as refused:
            metrics.PUSHES.labels(refused.outcome).inc()
            logger.warning(
                "weights (attempt %d, version %d) refused: %s", manifest.attempt, manifest.version, refused.reason
            )
            raise
        return result

    async def restore(self) -> None:
        """Make the server fit to generate after its start: warm, and with the newest weights it was ever given."""
        async with self._turn:
            phase, reason = Phase.SERVING, ""
            try:
                await self.engine.warm_up(self.settings.start_deadline)
                reason = await self._load_noted()
                phase = Phase.UNLOADED if reason else Phase.SERVING
            except PrismError as error:
                phase, reason = Phase.BROKEN, f"the server did not become fit to serve: {error}"
            await self.gate.set(phase, reason)
            log = logger.info if phase is Phase.SERVING else logger.error
            log("policy (attempt %d, version %d) is %s %s", self.attempt, self.version, phase, reason)

    async def _load_noted(self) -> str:
        """Load the newest weights noted, if any. Returns why that cannot even begin, or "". Raises PrismError later on.

        Then the base model is intact, yet to serve it as if nothing had been learned would be worse than to wait.
        """
        try:
            manifest = self._noted()
            if manifest is not None and manifest.broadcast:
                return f"the newest weights (version {manifest.version}) were broadcast; their files have not come yet"
            folder = None if manifest is None else await self._verified(manifest)
        except WeightsError as error:
            return f"the newest weights cannot be loaded again: {error}"
        if manifest is not None and folder is not None:
            await self._swap(manifest, folder)
        return ""

    async def _push(self, manifest: Manifest, started: float) -> PushResult:
        if self._already_served(manifest):
            metrics.PUSHES.labels("repeated").inc()
            return self._result(0.0, 0.0, None)
        if self.gate.phase not in (Phase.SERVING, Phase.UNLOADED):
            raise PushRefused(503, "not_serving", f"the server takes no weights now: {self.gate.reason}")
        try:
            folder = await self._verified(manifest)
        except WeightsError as error:
            raise PushRefused(422, "unverified", str(error)) from None
        except ServiceError as error:
            raise PushRefused(503, "verify_deadline", str(error)) from None
        if folder is not None and self._follows(manifest):
            await asyncio.to_thread(note_newest, self.settings.state_dir, manifest)
            self.loaded = manifest
            metrics.PUSHES.labels("followed").inc()
            return self._result(time.monotonic() - started, 0.0, None)
        if manifest.broadcast is not None:
            try:
                await self.engine.join(manifest.broadcast, self.settings.reload_deadline)
            except ServiceError as error:
                raise PushRefused(503, "not_joined", str(error)) from None

        paused = time.monotonic()
        phase, reason = self.gate.phase, self.gate.reason
        await self.gate.set(Phase.SYNCING, "weights are being swapped")
        deadline = self.settings.drain_deadline
        if not await self.gate.drained(deadline, self._progress.mark, lambda: self.awaited):
            awaited = self.awaited
            await self.gate.set(phase, reason)
            raise PushRefused(
                503, "drain_deadline", f"{awaited} requests in flight made no progress for {deadline:g} s"
            )
        try:
            made = await self._pause() if self.gate.in_flight else None
            difference = await self._swap(manifest, folder, made)
            await asyncio.to_thread(note_newest, self.settings.state_dir, manifest)
        except NotPaused as error:
            await self.gate.set(phase, reason)
            raise PushRefused(503, "not_paused", str(error)) from None
        except BaseException as error:
            # What is in memory may be half of each. No request may see it: the supervisor restarts the server.
            told = f"weights ({manifest.attempt}, {manifest.version}) failed after their load had begun: {error}"
            await self.gate.set(Phase.BROKEN, told)
            self.answers.lose()
            if isinstance(error, WeightsError):
                raise PushRefused(422, "probe", f"{error}; the server restarts with the weights it had") from None
            if isinstance(error, PrismError | OSError):
                raise PushRefused(500, "failed", f"{told}; the server restarts with the weights it had") from None
            raise
        self.answers.release()
        await self.gate.set(Phase.SERVING)
        ended = time.monotonic()
        metrics.PUSHES.labels("taken").inc()
        metrics.SYNC_SECONDS.observe(ended - started)
        metrics.SYNC_PAUSED_SECONDS.observe(ended - paused)
        logger.info(
            "policy (attempt %d, version %d) took weights in %.3f s, %.3f s of it paused",
            self.attempt,
            self.version,
            ended - started,
            ended - paused,
        )
        return self._result(ended - started, ended - paused, difference)

    def _already_served(self, manifest: Manifest) -> bool:
        """Raises PushRefused for another model's weights, and for any that would lead back."""
        name = self.settings.served_name
        if manifest.model != name:
            raise PushRefused(422, "wrong_model", f"these are weights of {manifest.model!r}; this server is {name!r}")
        if self.loaded == manifest and self.gate.phase is Phase.SERVING:
            return True
        try:
            known = self.loaded or self._noted()
        except WeightsError:
            known = None  # an unreadable note is what this push replaces
        again = known is not None and known.broadcast is not None and manifest.order == known.order
        if known is not None and known != manifest and manifest.order <= known.order and not again:
            raise PushRefused(
                409,
                "outdated",
                f"(attempt, version) ({manifest.attempt}, {manifest.version}) does not come after "
                f"({known.attempt}, {known.version}), the newest this server was given; "
                "a run that starts over needs a higher attempt, or a new PRISM_STATE_DIR",
            )
        return False

    def _follows(self, manifest: Manifest) -> bool:
        """Whether these are the files of what was broadcast and is loaded."""
        was = self.loaded
        serving = self.gate.phase is Phase.SERVING
        return serving and was is not None and was.broadcast is not None and manifest.order == was.order

    def _noted(self) -> Manifest | None:
        """The newest weights this server was ever given. Raises WeightsError if the note cannot be read."""
        try:
            return read_newest(self.settings.state_dir)
        except (OSError, ValueError) as error:
            folder = self.settings.state_dir
            raise WeightsError(
                f"{folder}/newest.json cannot be read; push weights, or remove it to start from the base: {error}"
            ) from None

    async def _verified(self, manifest: Manifest) -> Path | None:
        """The manifest's folder; None if it names a broadcast, which must fit the model.

        Raises WeightsError, or ServiceError when the files take too long to read.
        """

        def check() -> Path | None:
            if manifest.broadcast is not None:
                check_backend(manifest.broadcast, self.settings.device)
                shapes = {tensor.name: tuple(tensor.shape) for tensor in manifest.broadcast.tensors}
                tensors.check_shapes(self.settings.model, shapes)
                return None
            folder = verify(self.settings.weights_root, manifest)
            tensors.check_folder(self.settings.model, folder, manifest)
            return folder

        try:
            return await asyncio.wait_for(asyncio.to_thread(check), self.settings.verify_deadline)
        except TimeoutError:
            deadline = self.settings.verify_deadline
            raise ServiceError(f"the files of {manifest.path!r} were not read within {deadline:g} s") from None
        except OSError as error:
            raise WeightsError(f"the files of {manifest.path!r} cannot be read: {error}") from None

    async def _pause(self) -> dict[str, dict[int, int]]:
        """Stop the engine, and let nothing of its answers out; returns their tokens so far, as ``Engine.pause`` does.
        Raises NotPaused if it would not stop, and goes on; ServiceError if it does neither."""
        self._progress.swapping = True
        self.answers.hold()
        try:
            return await self.engine.pause(self.settings.drain_deadline)
        except ServiceError as error:
            await self.engine.resume(self.settings.drain_deadline)
            self.answers.release()
            raise NotPaused(str(error)) from None

    async def _swap(
        self, manifest: Manifest, folder: Path | None, made: Mapping[str, Mapping[int, int]] | None = None
    ) -> float | None:
        """Load, flush, probe; returns the probe's difference. Raises WeightsError if it is too large, ServiceError.

        ``made``: tokens of what is in flight, in a paused engine, which goes on before the probe can be scored.
        """
        began = time.monotonic()
        if folder is None:
            await self.engine.receive(self.settings.reload_deadline)
        elif manifest.is_adapter:
            over_same = self._same_layers(manifest)
            await self.engine.merge(folder, self.settings.reload_deadline, over_same=over_same)
        else:
            await self.engine.reload(folder, self.settings.reload_deadline)
        loaded = time.monotonic()
        if made is None:
            await self.engine.flush(self.settings.reload_deadline)
            self.answers.salt = ""
        else:
            await self._resume(manifest, made)
        flushed, difference = time.monotonic(), None
        if manifest.probe is not None:
            difference = await self.engine.probe(manifest.probe, self.settings.probe_deadline, self.answers.salt)
            metrics.PROBE_DIFFERENCE.set(difference)
            if not difference <= manifest.probe.tolerance:  # so that a NaN does not pass
                raise WeightsError(
                    f"the probe's logprobs differ by {difference:.3g} on average, over {manifest.probe.tolerance:g}"
                )
        probed = time.monotonic()
        logger.info(
            "weights loaded in %.3f s, caches flushed in %.3f, probed in %.3f",
            loaded - began,
            flushed - loaded,
            probed - flushed,
        )
        self.loaded, self.version, self.attempt = manifest, manifest.version, manifest.attempt
        logs.about(policy_version=self.version, attempt=self.attempt)
        metrics.VERSION.set(self.version)
        metrics.ATTEMPT.set(self.attempt)
        return difference

    async def _resume(self, manifest: Manifest, made: Mapping[str, Mapping[int, int]]) -> None:
        """What is in flight goes on over the keys and values that it has, and nothing else finds those: blocks that are
        in use cannot be flushed, so requests from now on name another cache."""
        await self.engine.forget_images(self.settings.reload_deadline)
        self.answers.salt = f"{manifest.attempt}-{manifest.version}"
        for answer in self.answers.kept:
            answer.swapped(manifest.version, made.get(answer.id, {}))
        metrics.ANSWERS_KEPT.inc(len(self.answers.kept))
        await self.engine.resume(self.settings.reload_deadline)

    def _same_layers(self, manifest: Manifest) -> bool:
        """Whether all that differs from what is loaded is what the adapter changes."""
        was, config = self.loaded, ADAPTER_CONFIG
        return was is not None and was.base == manifest.base and was.files.get(config) == manifest.files.get(config)

    def _result(self, total: float, paused: float, difference: float | None) -> PushResult:
        return PushResult(
            version=self.version,
            attempt=self.attempt,
            sync_total_seconds=total,
            sync_paused_seconds=paused,
            probe_difference=difference,
        )
