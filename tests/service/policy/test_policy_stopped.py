"""What becomes of the policy service's processes, and of its traces. The last on the one server of all tests here."""

import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from policy_process import PolicyProcess, policy_process

pytestmark = pytest.mark.timeout(600)


def test_a_killed_supervisor_leaves_nothing_behind(policy: PolicyProcess) -> None:
    family = policy.family()
    assert len(family) > 2
    policy.process.kill()
    _, alive = psutil.wait_procs(family, timeout=10)
    assert [process for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []


def test_a_completion_is_a_span_of_its_callers_trace(
    models: list[Path], tmp_path: Path, collector: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in collector.environment.items():
        monkeypatch.setenv(name, value)
    trace_id, caller = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    with policy_process(tmp_path, models[0]) as service:
        service.chat([{"role": "user", "content": "?"}], {"traceparent": f"00-{trace_id}-{caller}-01"}, max_tokens=1)
        assert service.client.get("/v1/models").status_code == 200
        deadline = time.monotonic() + 20
        while not (mine := [span for _, span in collector.spans if span.trace_id.hex() == trace_id]):
            assert time.monotonic() < deadline, "no span came"
            time.sleep(0.1)
    (span,) = mine
    assert (span.name, span.parent_span_id.hex()) == ("POST /v1/chat/completions", caller)
    assert {service for service, _ in collector.spans} == {"prism-policy"}
    assert "GET /v1/models" in {span.name for _, span in collector.spans}
