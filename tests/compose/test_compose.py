"""`docker compose up` for real: the demo through all stages, whatever dies on the way."""

import json
import re
import socket
import subprocess
from pathlib import Path

import httpx
import pytest
import yaml
from composed_run import ALIGN_STEPS, PORTS, RLVR_STEPS, VICTIMS, WARMUP_STEPS, Composed
from helm_python.chart import Chart

from prism.clients.console import ConsoleClient

pytestmark = pytest.mark.timeout(1500)  # the first test makes the run
CHART = Path(__file__).parents[2] / "deploy" / "helm" / "prism"
OFFICIAL_BASE = 130_000_000  # bytes of python:3.11-slim-bookworm
LAST = {"align": WARMUP_STEPS + ALIGN_STEPS, "rlvr": RLVR_STEPS}


def test_the_run_ends_by_itself(run: Composed) -> None:
    assert run.trainer_status == 0, run.trainer_log
    assert "resumed after step" in run.trainer_log
    assert run.killed.keys() == set(VICTIMS)
    assert "report: /runs/demo/report.html" in run.trainer_log


@pytest.mark.parametrize("stage", LAST)
def test_every_step_was_made_and_nothing_is_lost(run: Composed, stage: str) -> None:
    lines = run.steps(stage)
    assert [line["step"] for line in lines] == list(range(1, LAST[stage] + 1))
    assert all(line["lost_groups"] == 0 for line in lines)
    positions = [position for line in lines for position in line["positions"]]
    assert sorted(positions) == list(range(len(positions))), "each prompt of the sequence exactly once, in one lineage"


def test_every_stage_is_measured(run: Composed) -> None:
    lines = [json.loads(line) for line in run.read("evaluations.jsonl").splitlines()]
    assert [line["stage"] for line in lines] == ["sft", "align", "rlvr"]
    assert all(line["judged"] == line["questions"] == 32 for line in lines)


def test_it_stops_in_time_and_goes_on(run: Composed) -> None:
    assert run.down_seconds < 20
    assert run.step_at_down > 0


def test_the_grader_is_small_and_holds_no_torch(run: Composed) -> None:
    """Above its base, whose size is not ours: the official one has about 130 MB."""

    def size(image: str) -> int:
        command = ["docker", "image", "inspect", "--format", "{{.Size}}", image]
        found = subprocess.run(command, capture_output=True, text=True)
        return int(found.stdout) if found.returncode == 0 else OFFICIAL_BASE  # pulled for the build alone

    assert size(run.inspect("grader", "{{.Image}}")) - size("python:3.11-slim-bookworm") < 400e6 - OFFICIAL_BASE
    assert run.compose("exec", "-T", "grader", "python3", "-c", "import torch", check=False).returncode


@pytest.mark.parametrize("service", ["policy", "perception", "grader", "rollouts"])
def test_a_container_can_do_little(run: Composed, service: str) -> None:
    assert run.inside(service, "id", "-u").strip() == "10001"
    assert run.compose("exec", "-T", service, "touch", "/app/x", check=False).returncode
    assert "PRISM_TOKEN" not in run.inside(service, "env")


@pytest.mark.parametrize("name", PORTS)
def test_from_outside_only_data_routes_are_reached(run: Composed, name: str) -> None:
    url, service = f"http://127.0.0.1:{run.ports[name]}", name.lower()
    assert httpx.get(f"{url}/readyz").status_code == 200
    assert httpx.post(f"{url}/v1/nothing").status_code in (401, 403)
    if name != "GRADER":
        admin = run.inside(service, "cat", "/secrets/prism_admin_token")
        pushed = httpx.post(f"{url}/weights", headers={"Authorization": f"Bearer {admin}"}, json={})
        assert (pushed.status_code, "PRISM_ADMIN_PORT" in pushed.text) == (403, True)


def test_the_grader_has_one_token_and_reaches_no_other_service(run: Composed) -> None:
    assert run.inside("grader", "ls", "/secrets").split() == ["prism_token"]
    for address in ("redis:6379", "policy:8000", "policy:8001", "perception:8000", "example.org:443"):
        host, port = address.split(":")
        dial = f"import socket; socket.create_connection(({host!r}, {port}), 3)"
        assert run.compose("exec", "-T", "grader", "python3", "-c", dial, check=False).returncode, address


def test_the_console_shows_the_run_and_its_worker_does_a_job(run: Composed) -> None:
    """Signed in by the code of its log, which a restart makes anew."""
    run.compose("restart", "console")
    run.wait(lambda: run.healthy("console"), "the console")
    said = run.compose("logs", "--no-color", "--no-log-prefix", "console").stdout
    code = re.findall(r"/sign-in#(\S+)", said)[-1]
    url = f"http://127.0.0.1:{run.ports['CONSOLE']}"
    with httpx.Client(base_url=url, headers={"Origin": url}) as browser:
        assert browser.post("/sign-in", data={"secret": code}).status_code == 303
        assert '<a href="/runs/demo">' in browser.get("/runs").text
        token = browser.post("/api/v1/tokens", json={"name": "test", "scope": "operate"}).json()["token"]
    console = ConsoleClient(url, token)
    job = console.add("report", {"run": "demo"})
    run.wait(lambda: console.job(job.id).finished is not None, "a job of the console")
    assert (console.job(job.id).state, console.job(job.id).exit_status) == ("done", 0), console.job(job.id)


def test_redis_is_not_reached_from_outside(run: Composed) -> None:
    assert run.inspect("redis", "{{json .NetworkSettings.Ports}}") in ("{}", '{"6379/tcp":null}', '{"6379/tcp":[]}')
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", 6379)) != 0


def test_the_charts_own_test_passes_here_too(run: Composed) -> None:
    """What `helm test` runs in its pod, in a worker's container, which is of the same image."""
    with Chart.load(CHART) as chart:
        (pod,) = [text for path, text in chart.render(name="prism").items() if path.endswith("tests/judge.yaml")]
    (container,) = yaml.safe_load(pod)["spec"]["containers"]
    (script,) = container["args"]
    said = run.compose("exec", "-T", "rollouts", *container["command"], script.replace("//prism-", "//"))
    assert '"accuracy"' in said.stdout


def test_dashboards_ask_for_what_a_running_stack_exposes(run: Composed) -> None:
    page = "\n".join(run.pages.values())
    names = {
        name + suffix
        for name, kind in re.findall(r"^# TYPE (\S+) (\w+)$", page, re.MULTILINE)
        for suffix in (("_bucket", "_sum", "_count") if kind == "histogram" else ("",))
    }
    figures = set(re.findall(r'prism_trainer_value\{figure="([a-z0-9_]+)"', page))
    text = "\n".join(file.read_text() for file in [*CHART.glob("dashboards/*.json"), CHART / "rules.yml"])
    asked = set(re.findall(r"\b(?:prism_|vllm:)[a-z0-9_]+(?=[{\[) ])", text))
    assert asked - names == set()
    of_rlvr = {"reward", "accuracy"}  # the pages were read during alignment
    assert set(re.findall(r'figure=\\?"([a-z0-9_]+)', text)) - figures - of_rlvr == set()
