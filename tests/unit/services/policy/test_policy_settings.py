"""What the service reads from its environment, and the server it starts from that."""

import json
from pathlib import Path
from typing import Any

import pytest
from fake_vllm import ADMIN_TOKEN, DATA_TOKEN, write_weights

from prism.errors import ConfigError
from prism.services.policy.launcher import server_argv, server_environment
from prism.services.policy.settings import PolicySettings
from prism.settings import load_settings


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Variables that are right."""
    write_weights(tmp_path / "model")
    values: dict[str, Any] = {
        "MODEL": tmp_path / "model",
        "WEIGHTS_ROOT": tmp_path / "weights",
        "STATE_DIR": tmp_path / "state",
        "PORT": 8000,
        "TOKEN": DATA_TOKEN,
        "ADMIN_TOKEN": ADMIN_TOKEN,
    }
    for name, value in values.items():
        monkeypatch.setenv(f"PRISM_{name}", str(value))
    return monkeypatch


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("PRISM_MODEL", "models/policy", "PRISM_MODEL: .*absolute"),
        ("PRISM_MODEL", "Qwen/Qwen3-VL-4B-Instruct", "hf download Qwen/Qwen3-VL-4B-Instruct"),
        ("PRISM_MODEL", "/nowhere", "PRISM_MODEL: .*config.json"),
        ("PRISM_STATE_DIR", "state", "PRISM_STATE_DIR: .*absolute"),
        ("PRISM_DEVICE", "tpu", "PRISM_DEVICE"),
        ("PRISM_VLLM_FLAGS", "--seed 0 --middleware=other.Class", "PRISM_VLLM_FLAGS: .*--middleware"),
        ("PRISM_VLLM_FLAGS", "--middle other.Class", "PRISM_VLLM_FLAGS: .*--middle"),
        ("PRISM_VLLM_FLAGS", "'--port 1'", "PRISM_VLLM_FLAGS: .*--port"),
        ("PRISM_VLLM_FLAGS", "--seed 'open", "PRISM_VLLM_FLAGS"),
        ("PRISM_TOKEN", None, "PRISM_TOKEN: is not set"),
        ("PRISM_ADMIN_TOKEN", DATA_TOKEN, "must differ"),
    ],
)
def test_a_wrong_variable_is_named(environment: pytest.MonkeyPatch, name: str, value: str | None, told: str) -> None:
    environment.setenv(name, value) if value is not None else environment.delenv(name)
    with pytest.raises(ConfigError, match=told):
        load_settings(PolicySettings)


def test_flags_are_written_as_on_a_command_line(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("PRISM_VLLM_FLAGS", "--tensor-parallel-size 2 --chat-template '/a b.jinja' --model-impl auto")
    settings = load_settings(PolicySettings)
    assert settings.vllm_flags == [
        "--tensor-parallel-size",
        "2",
        "--chat-template",
        "/a b.jinja",
        "--model-impl",
        "auto",
    ]
    environment.setenv("PRISM_VLLM_FLAGS", '["--seed", "1"]')
    assert load_settings(PolicySettings).vllm_flags == ["--seed", "1"]


def test_cpu_and_gpu_differ_in_flags_alone(environment: pytest.MonkeyPatch) -> None:
    cpu = load_settings(PolicySettings)
    gpu = load_settings(PolicySettings, device="cuda")
    on_cpu, on_gpu = server_argv(cpu), server_argv(gpu)
    cpu_only = {"--enforce-eager", "--no-enable-chunked-prefill", "--max-num-batched-tokens", "16384", "float32"}
    assert set(on_cpu) - set(on_gpu) == cpu_only
    assert set(on_gpu) - set(on_cpu) == {"auto"}
    added = server_environment(cpu, {}).keys() - server_environment(gpu, {}).keys()
    assert added == {"VLLM_CPU_KVCACHE_SPACE", "TORCH_COMPILE_DISABLE"}


def test_bounds_of_pixels_are_vllms_processors_and_come_in_pairs(environment: pytest.MonkeyPatch) -> None:
    assert "--mm-processor-kwargs" not in server_argv(load_settings(PolicySettings))
    argv = server_argv(load_settings(PolicySettings, min_pixels=1024, max_pixels=4096))
    given = json.loads(argv[argv.index("--mm-processor-kwargs") + 1])
    assert given == {"size": {"shortest_edge": 1024, "longest_edge": 4096}}
    for bounds in ({"max_pixels": 4096}, {"min_pixels": 4096, "max_pixels": 1024}):
        with pytest.raises(ConfigError, match="min_pixels"):
            load_settings(PolicySettings, **bounds)


def test_the_server_runs_behind_the_middleware_and_fetches_nothing(environment: pytest.MonkeyPatch) -> None:
    settings = load_settings(PolicySettings)
    argv = server_argv(settings)
    assert argv[argv.index("--middleware") + 1] == "prism.services.policy.middleware.PolicyMiddleware"
    assert argv[argv.index("--allowed-media-domains") + 1].endswith(".invalid")
    assert argv[argv.index("--logprobs-mode") + 1] == "processed_logprobs"
    server = server_environment(settings, {"VLLM_API_KEY": "x", "PYTHONPATH": "/theirs"})
    assert "VLLM_API_KEY" not in server
    assert server["PYTHONPATH"].endswith(":/theirs")
    assert not any(DATA_TOKEN in argument or ADMIN_TOKEN in argument for argument in argv), "ps would show them"
