"""What the policy service reads from its environment (``PRISM_*``)."""

import json
import re
import shlex
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator
from pydantic_settings import NoDecode

from prism.config import LimitedSettings, LimitsConfig

# The launcher's own: a second value would undo a guarantee (tokens, versions, limits) without a word.
RESERVED_FLAGS = frozenset(
    {
        "--allowed-local-media-path",
        "--allowed-media-domains",
        "--api-key",
        "--api-server-count",
        "--dtype",
        "--generation-config",
        "--host",
        "--limit-mm-per-prompt",
        "--logits-processors",
        "--logprobs-mode",
        "--max-model-len",
        "--middleware",
        "--mm-processor-kwargs",
        "--model",
        "--port",
        "--root-path",
        "--served-model-name",
        "--tokenizer",
        "--trust-request-chat-template",
        "--uds",
        "--worker-extension-cls",
    }
)


class PolicySettings(LimitedSettings):
    """Of the vLLM server, the middleware inside it and the supervisor above it. Times are in seconds."""

    device: str = Field("cpu", pattern="^(cpu|cuda)$", description="where the model runs; not ready on any other")
    served_name: str = Field("policy", description="the model's name in requests, and in the manifests it accepts")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="auto: float32 on a CPU, the checkpoint's own on a GPU"
    )
    max_model_len: int | None = Field(None, ge=16, description="tokens of prompt and response; unset: the model's own")
    kv_cache_gib: int = Field(1, ge=1, description="GiB for keys and values on a CPU; a GPU takes what is left on it")
    vllm_flags: Annotated[list[str], NoDecode] = Field(
        [], description="more flags for vLLM, as on its command line (or a JSON list)"
    )
    body_limit: int = Field(LimitsConfig().body_limit, ge=1024, description="bytes of one request's body")

    verify_deadline: float = Field(300, gt=0, description="to read and hash the files of a push")
    drain_deadline: float = Field(
        120, gt=0, description="without progress of the requests in flight that a push waits for: it is put off"
    )
    reload_deadline: float = Field(120, gt=0, description="to load pushed weights, to flush the caches")
    probe_deadline: float = Field(60, gt=0, description="to score a manifest's probe")

    start_deadline: float = Field(900, gt=0, description="from start to ready, weights given again included")
    hang_deadline: float = Field(60, gt=0, description="without an answer or any token generated: the server hangs")
    health_interval: float = Field(5, gt=0, description="between two looks at the server's health")
    stop_deadline: float = Field(6, gt=0, le=9, description="for the server to end by itself when asked to")
    max_quick_failures: int = Field(5, ge=1, description="failures in a row after which the service gives up")
    quick_failure_seconds: float = Field(60, gt=0, description="a server that fails within this time of being ready")

    @field_validator("model", "weights_root", "state_dir")
    @classmethod
    def _absolute(cls, path: Path) -> Path:
        if not path.is_absolute():
            raise ValueError(f"must be the absolute path of a folder (download a hub model first: hf download {path})")
        return path

    @field_validator("model")
    @classmethod
    def _model_folder(cls, path: Path) -> Path:
        if not (path / "config.json").is_file():
            raise ValueError("is not a Hugging Face model folder: it holds no config.json")
        return path

    @field_validator("vllm_flags", mode="before")
    @classmethod
    def _split_flags(cls, value: object) -> object:
        if isinstance(value, str):
            return json.loads(value) if value.lstrip().startswith("[") else shlex.split(value)
        return value

    @field_validator("vllm_flags")
    @classmethod
    def _reserved_flags(cls, flags: list[str]) -> list[str]:
        names = {re.split(r"[=\s]", flag)[0].replace("_", "-") for flag in flags if flag.startswith("--")}
        # argparse takes an unambiguous beginning for the whole flag.
        taken = sorted(name for name in names if any(flag.startswith(name) for flag in RESERVED_FLAGS))
        if taken:
            raise ValueError(f"{', '.join(taken)}: set by the service itself; use its own PRISM_* variables")
        return flags
