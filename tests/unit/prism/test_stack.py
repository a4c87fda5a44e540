"""Services as local processes: named when they fail, and all gone afterwards."""

import io
import json
import math
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis
from rich.console import Console

from prism.config import DevicesConfig, RunConfig, load_config
from prism.errors import ServiceError
from prism.stack.local import RunningServices, ServiceProcess, Stack
from prism.stack.ports import free_port
from prism.stack.restarts import Restarts

# Says that it is ready by a file, so that nothing needs a port; ends as soon as it is asked to.
READY = "import pathlib, time; pathlib.Path(r'{flag}').touch(); time.sleep(600)"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + READY
PARENT = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); " + READY
BROKEN = "import sys; [print('line', i) for i in range(40)]; print('no such device', file=sys.stderr); sys.exit(3)"
SLOW = "import time; print('loading', flush=True); time.sleep(600)"


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    for name in [name for name in os.environ if name.startswith("PRISM_")]:
        monkeypatch.delenv(name)
    return load_config(
        Path("configs/demo.toml"),
        [f"runs_dir={tmp_path}", f"stack.base_port={free_port(in_a_row=8)}", "stack.start_deadline_seconds=20"],
    )


@pytest.fixture
def stack(config: RunConfig, tmp_path: Path) -> Iterator[Stack]:
    made = Stack(config, tmp_path / "model", Console(file=io.StringIO(), width=300, highlight=False))
    yield made
    made.stop()


@pytest.fixture
def service(tmp_path: Path, config: RunConfig) -> Callable[..., ServiceProcess]:
    """A service that runs a line of Python."""

    def make(name: str, code: str) -> ServiceProcess:
        flag = tmp_path / f"{name}.ready"
        command = [sys.executable, "-c", code.replace("{flag}", str(flag))]
        port = config.stack.base_port + len(list(tmp_path.glob("*.log")))
        return ServiceProcess(
            name, command, {}, port, tmp_path / "logs" / name, lambda: None if flag.exists() else "no flag"
        )

    return make


def said(stack: Stack) -> str:
    assert isinstance(stack.console.file, io.StringIO)
    return stack.console.file.getvalue()


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [one for one in processes if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]


def family(stack: Stack) -> list[psutil.Process]:
    started = [psutil.Process(service.process.pid) for service in stack.services if service.process]
    return started + [child for one in started for child in one.children(recursive=True)]


def test_a_run_has_all_services_on_consecutive_ports_with_tokens_of_their_own(
    config: RunConfig, tmp_path: Path
) -> None:
    console = Console(file=io.StringIO())
    one, two = Stack(config, tmp_path, console), Stack(config, tmp_path, console)
    assert [service.name for service in one.services] == [
        "redis",
        "policy",
        "perception",
        "reasoning",
        "grader",
        "rollouts-1",
    ]
    assert [service.port for service in one.services] == [config.stack.base_port + i for i in range(6)]
    first, second = one.environment(), two.environment()
    assert first["PRISM_TOKEN"] != first["PRISM_ADMIN_TOKEN"]
    assert {first[name] != second[name] for name in ("PRISM_TOKEN", "PRISM_ADMIN_TOKEN", "PRISM_REDIS_URL")} == {True}
    for each in one.services:  # arguments can be read by anyone on the machine
        assert not any(secret in " ".join(each.command) for secret in (first["PRISM_TOKEN"], first["PRISM_REDIS_URL"]))
    settings = config.run_dir / "redis" / "redis.conf"
    assert settings.stat().st_mode & 0o077 == 0


def test_experts_start_from_a_folder_of_their_own_where_they_have_one(config: RunConfig, tmp_path: Path) -> None:
    def models(**options: Any) -> dict[str, str]:
        stack = Stack(config, tmp_path / "policy", Console(file=io.StringIO()), **options)
        return {s.name: s.environment["PRISM_MODEL"] for s in stack.services if "PRISM_MODEL" in s.environment}

    policy, one, two = (str(tmp_path / name) for name in ("policy", "one", "two"))
    assert models() == {"policy": policy, "perception": policy, "reasoning": policy}
    own = models(experts={"perception": Path(one), "reasoning": Path(two)})
    assert own == {"policy": policy, "perception": one, "reasoning": two}


def test_a_redis_of_ones_own_and_more_workers_are_taken(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRISM_REDIS_URL", "redis://elsewhere:1/0")
    more = config.model_copy(update={"stack": config.stack.model_copy(update={"rollout_workers": 2})})
    stack = Stack(more, tmp_path, Console(file=io.StringIO()))
    assert [service.name for service in stack.services][-2:] == ["rollouts-1", "rollouts-2"]
    assert "redis" not in [service.name for service in stack.services]
    assert stack.environment()["PRISM_REDIS_URL"] == "redis://elsewhere:1/0"


def test_a_port_in_use_is_named_before_anything_starts(stack: Stack, service: Callable[..., ServiceProcess]) -> None:
    stack.services = [service("one", READY), service("two", READY)]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        stack.services[1].port = taken.getsockname()[1]
        with pytest.raises(ServiceError, match=rf"port {stack.services[1].port}, meant for the two service, is in use"):
            stack.start()
    assert not any(each.process for each in stack.services)


def test_leaving_stops_everything(stack: Stack, service: Callable[..., ServiceProcess], config: RunConfig) -> None:
    stack.services = [service("one", READY), service("two", READY), service("parent", PARENT)]
    file = config.run_dir / "stack.json"
    started: list[psutil.Process] = []

    def interrupted() -> None:
        with stack:
            assert "services ready" in said(stack)
            assert "one :" in said(stack)
            assert file.stat().st_mode & 0o077 == 0
            assert json.loads(file.read_text())["token"] == stack.environment()["PRISM_TOKEN"]
            stack.check()
            started.extend(family(stack))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert len(started) == 4
    psutil.wait_procs(started, timeout=3)
    assert alive(started) == []
    assert not file.exists()


def test_what_does_not_end_when_asked_is_killed(
    stack: Stack, service: Callable[..., ServiceProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prism.stack.local.STOP_SECONDS", 0.3)
    stack.services = [service("stubborn", STUBBORN)]
    with stack:
        started = family(stack)
    assert alive(started) == []


def test_a_service_that_does_not_start_is_named_with_its_last_lines(
    stack: Stack, service: Callable[..., ServiceProcess]
) -> None:
    stack.services = [service("one", READY), service("broken", BROKEN)]
    with pytest.raises(ServiceError) as failed, stack:
        pass
    message = str(failed.value)
    assert message.startswith("the broken service ended with status 3; the end of ")
    assert message.endswith("  no such device")
    assert "  line 39\n" in message
    assert "  line 5\n" not in message
    assert stack.services[0].process is None  # what had started was stopped


def die(service: ServiceProcess) -> None:
    """As by the kernel's OOM killer."""
    process = service.process
    assert process
    process.kill()
    process.wait()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_service_that_dies_later_is_started_again_without_what_it_left_behind(
    stack: Stack, service: Callable[..., ServiceProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prism.stack.local.LOOK_SECONDS", 0.05)
    stack.services = [service("one", READY), service("two", PARENT)]
    one, two = stack.services
    two.restarts = Restarts(first_pause=0.2)
    with stack:
        other = one.process
        until(lambda: len(family(stack)) == 3)
        assert other
        before = [process for process in family(stack) if process.pid != other.pid]
        die(two)
        stack.check()
        until(lambda: two.process is not None and two.process.pid != before[0].pid and "ready again" in said(stack))
        until(lambda: alive(before) == [])  # killed, but perhaps not dead yet
        assert one.process is other
        stack.check()
        assert "the two service ended with status -9; it is started again in 0 s" in said(stack)
        assert "the two service is ready again" in said(stack)
        started = family(stack)
    until(lambda: alive(started) == [])


def test_a_service_that_dies_again_and_again_is_named_with_its_last_lines(
    stack: Stack, service: Callable[..., ServiceProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prism.stack.local.LOOK_SECONDS", 0.05)
    stack.services = [service("one", READY), service("two", READY)]
    two = stack.services[1]
    two.restarts = Restarts(limit=3, first_pause=0.01)
    with stack:
        die(two)
        two.command = [sys.executable, "-c", BROKEN]
        until(lambda: two.restarts.failures == 3)
        with pytest.raises(ServiceError, match="the two service ended with status 3, 3 times in a row; ") as failed:
            until(lambda: stack.check() is not None)
        assert str(failed.value).endswith("  no such device")


def test_failures_in_a_row_are_those_of_a_service_that_was_not_ready_for_long() -> None:
    restarts = Restarts(limit=4)
    pauses = [restarts.failed(ready) for ready in (-math.inf, 3, 61, 1, 59.9, -math.inf)]
    assert pauses == [1, 2, 1, 2, 4, None]
    assert [Restarts(limit=9, failures=n).failed(0) for n in range(4, 9)] == [16, 30, 30, 30, None]


def test_a_service_that_is_not_ready_again_in_time_is_named(
    stack: Stack, service: Callable[..., ServiceProcess], config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prism.stack.local.LOOK_SECONDS", 0.05)
    stack.services = [service("one", READY)]
    one = stack.services[0]
    one.restarts = Restarts(first_pause=0.01)
    with stack:
        one.ready = lambda: "no flag"
        stack.config = config.model_copy(
            update={"stack": config.stack.model_copy(update={"start_deadline_seconds": 1})}
        )
        die(one)
        with pytest.raises(ServiceError, match=r"the one service is not ready after 1 s \(no flag\)"):
            until(lambda: stack.check() is not None)


def test_a_service_that_is_never_ready_is_named_with_what_it_waits_for(
    stack: Stack, service: Callable[..., ServiceProcess], config: RunConfig
) -> None:
    stack.config = config.model_copy(update={"stack": config.stack.model_copy(update={"start_deadline_seconds": 1})})
    stack.services = [service("slow", SLOW)]
    with pytest.raises(ServiceError, match=r"the slow service is not ready after 1 s \(no flag\)(?s:.*)  loading"):
        stack.start()


def test_its_redis_takes_the_password_it_was_given_and_no_other(stack: Stack) -> None:
    stack.services = stack.services[:1]
    assert stack.services[0].name == "redis"
    with stack:
        url = stack.environment()["PRISM_REDIS_URL"]
        with redis.Redis.from_url(url) as client:
            assert client.ping()
        with redis.Redis(port=stack.services[0].port) as stranger, pytest.raises(redis.AuthenticationError):
            stranger.ping()


def test_each_expert_knows_where_the_other_is(stack: Stack) -> None:
    environments = {service.name: service.environment for service in stack.services}
    for expert, other in (("perception", "reasoning"), ("reasoning", "perception")):
        assert environments[expert]["PRISM_PEER_URL"] == stack.environment()[f"PRISM_{other.upper()}_URL"]


def test_services_on_gpus_have_their_cards_and_a_share(config: RunConfig, tmp_path: Path) -> None:
    devices = {"policy": "0", "experts": "0", "learner": "1"}
    stack_config = config.stack.model_copy(update={"device": "cuda", "devices": DevicesConfig.model_validate(devices)})
    on_gpus = config.model_copy(update={"stack": stack_config})
    made = Stack(on_gpus, tmp_path / "model", Console(file=io.StringIO()), policy_share=0.7)
    environments = {service.name: service.environment for service in made.services}
    seen = {name: values.get("CUDA_VISIBLE_DEVICES") for name, values in environments.items()}
    assert seen == {
        "redis": None,
        "policy": "0",
        "perception": "0",
        "reasoning": "0",
        "grader": None,
        "rollouts-1": None,
    }
    assert environments["policy"]["PRISM_VLLM_FLAGS"] == "--gpu-memory-utilization=0.7"


def test_services_that_run_already_are_waited_for_and_named_when_they_are_late(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"http://127.0.0.1:{config.stack.base_port}"
    urls = {f"PRISM_{name}_URL": url for name in ("REDIS", "POLICY", "PERCEPTION", "REASONING", "GRADER")}
    for name, value in (urls | {"PRISM_BLOBS": "/blobs", "PRISM_TOKEN": "x" * 16}).items():
        monkeypatch.setenv(name, value)
    late = config.model_copy(update={"stack": config.stack.model_copy(update={"start_deadline_seconds": 0.1})})
    console = Console(file=io.StringIO(), highlight=False)
    with pytest.raises(ServiceError, match=f"{url} is not ready: ConnectError"), RunningServices(late, console):
        pass
