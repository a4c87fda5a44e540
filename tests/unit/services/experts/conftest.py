"""An expert to talk to, and weights to push into it."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from expert_app import ADMIN, DATA, serving
from pydantic import SecretStr

from prism.data.blobs import BlobStore
from prism.model.expert import load_expert, save_expert
from prism.model.inputs import InputBuilder
from prism.services.experts.settings import ExpertSettings
from prism.settings import load_settings


@pytest.fixture(scope="module")
def pushed(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weights root that holds versions 1..4 of the perception expert, each with a head of its own."""
    root = tmp_path_factory.mktemp("weights")
    inputs = InputBuilder(tiny_model)
    for version in range(1, 5):
        save_expert(load_expert(tiny_model, seed=100 + version), root / f"perception/{version}", inputs)
    return root


@pytest.fixture
def settings(tiny_model: Path, pushed: Path, blobs: BlobStore, tmp_path: Path) -> Callable[..., ExpertSettings]:
    def make(**values: Any) -> ExpertSettings:
        usual: dict[str, Any] = {
            "expert": "perception",
            "model": tiny_model,
            "weights_root": pushed,
            "state_dir": tmp_path / "state",
            "blobs": str(blobs._root),
            "port": 1,
            "token": SecretStr(DATA),
            "admin_token": SecretStr(ADMIN),
        }
        return load_settings(ExpertSettings, **(usual | values))

    return make


@pytest.fixture
async def client(settings: Callable[..., ExpertSettings]) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(settings()) as client:
        yield client
