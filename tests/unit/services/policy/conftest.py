"""The middleware over the stand-in for vLLM, started."""

from pathlib import Path

import pytest
from fake_vllm import ADMIN_TOKEN, DATA_TOKEN, Service, write_weights
from pydantic import SecretStr

from prism.services.policy.settings import PolicySettings
from prism.settings import load_settings


@pytest.fixture
def settings(tmp_path: Path) -> PolicySettings:
    write_weights(tmp_path / "base")
    return load_settings(
        PolicySettings,
        model=tmp_path / "base",
        weights_root=tmp_path / "weights",
        state_dir=tmp_path / "state",
        port=8000,
        token=SecretStr(DATA_TOKEN),
        admin_token=SecretStr(ADMIN_TOKEN),
        body_limit=4096,
        drain_deadline=0.3,
        reload_deadline=0.3,
        probe_deadline=0.3,
    )


@pytest.fixture
async def service(settings: PolicySettings) -> Service:
    service = Service(settings)
    await service.settled()
    service.vllm.calls.clear()
    return service
