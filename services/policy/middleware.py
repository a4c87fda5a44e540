"""What makes stock vLLM PRISM's policy service: one ASGI class, given to vLLM's ``--middleware``.

It guards every route with tokens, names the policy version in every answer, takes weights at ``POST /weights``, and
keeps them apart from generation: a response has one policy version from its first token to its last, unless its client
takes several and the push is one in flight (``answers.py``).
"""

import asyncio
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import uvicorn
from pydantic import ValidationError
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from prism import logs, telemetry
from prism.errors import ServiceError
from prism.http.app import BodyLimit, traced
from prism.http.auth import OPEN_PATHS, refusal
from prism.http.waiting import accepts_events
from prism.model.control import control_tokens
from prism.services.policy import metrics
from prism.services.policy.answers.chat import CHAT_PATHS, BadChat, as_learner_sees, replayed
from prism.services.policy.answers.kept import salted
from prism.services.policy.answers.signs import Progress, WithComments
from prism.services.policy.engine import Engine
from prism.services.policy.gate import Gate, NotServing, Phase
from prism.services.policy.push import PushRefused, ServedWeights
from prism.services.policy.refusals import Translate, status_of
from prism.services.policy.settings import PolicySettings
from prism.settings import describe, load_settings
from prism.wire.versions import MIN_VERSION_HEADER, VERSION_HEADER
from prism.wire.weights import Manifest

logger = logging.getLogger("vllm.prism.policy")

ATTEMPT_HEADER = "x-prism-policy-attempt"

# Every route that is neither here nor in OPEN_PATHS needs the admin token, those of later vLLM releases included.
DATA_PATHS = frozenset(
    {"/v1/chat/completions", "/v1/completions", "/v1/models", "/tokenize", "/detokenize", "/version", "/health"}
)
# POST routes that generate nothing. All others pass the gate, known or not.
UNGATED_PATHS = frozenset(
    {
        "/tokenize",
        "/detokenize",
        *("/collective_rpc", "/reset_prefix_cache", "/reset_mm_cache", "/reset_encoder_cache"),
        *("/pause", "/resume", "/sleep", "/wake_up", "/abort_requests", "/start_profile", "/stop_profile"),
    }
)
HEALTH_SECONDS = 5.0
RETRY_SECONDS = "5"


class SecondServer(uvicorn.Server):
    """On the admin port, in vLLM's own event loop, to which signals are left."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class PolicyMiddleware:
    """Configured from the environment (PolicySettings). Raises ConfigError at the server's start if it is not right."""

    def __init__(self, app: ASGIApp, settings: PolicySettings | None = None) -> None:
        self.app = app
        self.settings = settings or load_settings(PolicySettings)
        self.gate = Gate()
        self.engine = Engine(app, self.settings.served_name)
        self._progress = Progress()
        self.weights = ServedWeights(self.settings, self.engine, self.gate, self._progress)
        telemetry.start("prism-policy")
        logs.about(run=self.settings.run)
        self._control = control_tokens(self.settings.model)
        self._limited = BodyLimit(traced(self._route), self.settings.body_limit, "PRISM_BODY_LIMIT")
        self._tasks: set[asyncio.Task[None]] = set()
        self._started = False
        metrics.VERSION.set(0)
        metrics.ATTEMPT.set(0)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await traced(self.app)(scope, receive, self._start_after(scope, send))
        elif scope["type"] == "http":
            self._start(scope)
            await self._http(scope, receive, self._with_version(send))
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})  # none of the routes we serve is one

    def _start_after(self, scope: Scope, send: Send) -> Send:
        async def sending(message: Message) -> None:
            await send(message)
            if message["type"] == "lifespan.startup.complete":
                self._start(scope)

        return sending

    def _start(self, scope: Scope) -> None:
        """Warm up and load the newest weights, once, while the server already answers ``/healthz``."""
        if self._started:
            return
        self._started = True
        self.engine.root = scope.get("app")
        self._run(self._prepare())
        if self.settings.admin_port is not None:
            config = uvicorn.Config(
                self,
                host=self.settings.host,
                port=self.settings.admin_port,
                lifespan="off",
                access_log=False,
                log_config=None,
            )
            self._run(SecondServer(config).serve())

    async def _prepare(self) -> None:
        device = _device(self.engine.root)
        if device not in (None, self.settings.device):
            await self.gate.set(Phase.BROKEN, f"the model is on {device!r}, PRISM_DEVICE asks for another")
            return
        await self.weights.restore()

    def _run(self, coroutine: Any) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)  # the loop itself holds tasks only weakly
        task.add_done_callback(self._tasks.discard)
        return task

    def _with_version(self, send: Send) -> Send:
        """Adds the version that is loaded when the answer starts: under the gate, that of all its tokens, but for those
        whose answer says so itself."""

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(raw=[*message.get("headers", [])])
                headers.setdefault(VERSION_HEADER, str(self.weights.version))
                headers[ATTEMPT_HEADER] = str(self.weights.attempt)
                message = {**message, "headers": headers.raw}
            await send(message)

        return sending

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if path in OPEN_PATHS:
            await self._open(scope, receive, send)
            return
        tokens = self.settings.token.get_secret_value(), self.settings.admin_token.get_secret_value()
        refused = refusal(scope, *tokens, admin=path not in DATA_PATHS, admin_port=self.settings.admin_port)
        await (refused or self._limited)(scope, receive, send)

    async def _open(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/metrics":
            metrics.IN_FLIGHT.set(self.gate.in_flight)
            await self.app(scope, receive, send)
        elif scope["path"] == "/readyz":
            await (await self._readiness())(scope, receive, send)
        else:
            await JSONResponse({"status": "ok"})(scope, receive, send)

    async def _readiness(self) -> JSONResponse:
        """200 while generation is served (a push under way included); else 503 and why not."""
        phase, reason = self.gate.phase, self.gate.reason
        if phase in (Phase.SERVING, Phase.SYNCING):
            try:
                await self.engine.health(HEALTH_SECONDS)
            except ServiceError as error:
                phase, reason = Phase.BROKEN, f"the engine is not healthy: {error}"
        ready = phase in (Phase.SERVING, Phase.SYNCING)
        # What a learner looks at whose push waits for answers in flight.
        work = {"in_flight": self.weights.awaited, "progress": self._progress.mark()}
        answer = {"status": "ready" if ready else "not ready", "phase": phase, "reason": reason} | work
        return JSONResponse(answer, 200 if ready else 503)

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A request whose token is right and whose body is within the limit."""
        path, method = scope["path"], scope["method"]
        if path == "/weights":
            await (await self._push(Request(scope, receive)))(scope, receive, send)
            return
        if method == "POST" and path in CHAT_PATHS:
            try:
                receive = await replayed(receive, lambda body: as_learner_sees(body, self.settings, self._control))
            except BadChat as error:
                await error.answer()(scope, receive, send)
                return
        if method != "POST" or path in UNGATED_PATHS:
            await self._vllm(scope, receive, send)
        else:
            await self._generate(scope, receive, send)

    async def _vllm(self, scope: Scope, receive: Receive, send: Send) -> None:
        """On to vLLM. What it raises is answered here, since an answer made further out would name no version."""
        translate = Translate(send)
        try:
            await self.app(scope, receive, translate)
        except Exception as error:
            if translate.started:
                raise
            status = status_of(str(error), 500)
            if status == 500:
                logger.exception("%s failed", scope["path"])
            await JSONResponse({"detail": str(error)}, status)(scope, receive, send)

    async def _push(self, request: Request) -> JSONResponse:
        if request.method != "POST":
            return JSONResponse({"detail": "POST a manifest here"}, 405, headers={"Allow": "POST"})
        try:
            manifest = Manifest.model_validate_json(await request.body())
        except ValidationError as error:
            metrics.PUSHES.labels("malformed").inc()
            return JSONResponse({"detail": describe(error)}, 422)
        try:
            # Shielded: a push that has begun is finished, whatever becomes of the connection it came by.
            in_flight = request.query_params.get("in_flight") == "true"
            result = await asyncio.shield(asyncio.ensure_future(self.weights.push(manifest, in_flight=in_flight)))
        except PushRefused as refused:
            retry = {"Retry-After": RETRY_SECONDS} if refused.status == 503 else None
            return JSONResponse({"detail": refused.reason}, refused.status, headers=retry)
        return JSONResponse(result.model_dump())

    async def _generate(self, scope: Scope, receive: Receive, send: Send) -> None:
        arrived = time.monotonic()
        try:
            # A client that gives up what is silent is told instead, before it does.
            await self.gate.enter(2 * self.settings.comment_interval if accepts_events(scope) else None)
        except NotServing as error:
            metrics.REFUSED.labels(self.gate.phase).inc()
            answer = JSONResponse({"detail": str(error)}, 503, headers={"Retry-After": RETRY_SECONDS})
            await answer(scope, receive, send)
            return
        answers = self.weights.answers
        answer = answers.begin(scope, self.weights.version)
        try:
            metrics.GATE_WAIT_SECONDS.observe(time.monotonic() - arrived)
            if salt := answers.salt:
                receive = await replayed(receive, lambda body: salted(body, salt))
            app = partial(answers.write, answer, self._vllm) if answer else self._vllm
            commented = WithComments(app, self._progress, self.settings.comment_interval)
            await (self._too_old(scope) or commented)(scope, receive, send)
        finally:
            answers.end(answer)
            metrics.BUSY_SECONDS.inc(self.gate.leaving())
            await self.gate.left()

    def _too_old(self, scope: Scope) -> JSONResponse | None:
        """None if the request may be answered with the weights that are loaded."""
        asked = Request(scope).headers.get(MIN_VERSION_HEADER)
        if asked is None:
            return None
        if not (asked.isascii() and asked.isdigit()):
            return JSONResponse({"detail": f"{MIN_VERSION_HEADER} must be a number, not {asked!r}"}, 422)
        if self.weights.version < int(asked):
            detail = f"the policy is at version {self.weights.version}, the request asks for {asked} or newer"
            return JSONResponse({"detail": detail}, 409)
        return None


def _device(root: Any) -> str | None:
    """The kind of device vLLM runs on, if the application behind us is vLLM's."""
    config = getattr(getattr(root, "state", None), "vllm_config", None)
    return None if config is None else str(config.device_config.device_type)
