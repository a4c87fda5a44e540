"""Argument list and environment of the stock vLLM server. CPU and GPU differ in what is written here alone."""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from prism import telemetry
from prism.files import write_json
from prism.services.policy.settings import PolicySettings

SITE = Path(__file__).parent / "site"  # a sitecustomize for every interpreter the server starts
ROOT = Path(__file__).parents[3]  # where `prism` is imported from
SUPERVISOR_PID = "PRISM_SUPERVISOR_PID"
LOGGING = "vllm-logging.json"
BATCHED_TOKENS = 16384  # of one forward pass on a CPU, encoder included
TOKENS_PER_EVENT = 32
NO_DOMAIN = "data-uris-only.invalid"  # vLLM takes an empty list for "any host"; RFC 6761 keeps this one unresolvable


def server_argv(settings: PolicySettings) -> list[str]:
    """The command line of ``vllm.entrypoints.openai.api_server``."""
    argv = [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", str(settings.model)),
        *("--served-model-name", settings.served_name),
        *("--host", settings.host, "--port", str(settings.port)),
        *("--middleware", "prism.services.policy.middleware.PolicyMiddleware"),
        *("--worker-extension-cls", "prism.services.policy.receiver.BroadcastWorker"),
        *("--logits-processors", "prism.services.policy.receiver:NoVisionTokens"),
        *("--dtype", "float32" if (settings.device, settings.dtype) == ("cpu", "auto") else settings.dtype),
        # Log-probabilities of the distribution that was sampled, temperature included: what importance ratios need.
        *("--logprobs-mode", "processed_logprobs"),
        # Sampling defaults are the request's, never those a checkpoint's generation_config.json brings along.
        *("--generation-config", "vllm"),
        *("--limit-mm-per-prompt", json.dumps({"image": settings.max_images, "video": 0})),
        *("--allowed-media-domains", NO_DOMAIN),  # the middleware lets images in as data URIs alone
        # Of a streamed answer each event costs the server's process a share of a core: after its first token as many
        # tokens an event as still are a sign of life on a slow machine.
        *("--stream-interval", str(TOKENS_PER_EVENT)),
        "--disable-uvicorn-access-log",
    ]
    if bounds := settings.pixel_bounds:  # as the learner's own processor is told (prism/model/inputs.py)
        size = dict(zip(("shortest_edge", "longest_edge"), bounds, strict=True))
        argv += ["--mm-processor-kwargs", json.dumps({"size": size})]
    if settings.max_model_len is not None:
        argv += ["--max-model-len", str(settings.max_model_len)]
    if settings.device == "cpu":
        # vLLM rewinds the generator of a seeded request whose prefill it splits, which a CPU generator cannot do: the
        # engine would die (gpu_model_runner.py, _bookkeeping_sync). So no prompt is split here, by budget either.
        budget = max(BATCHED_TOKENS, settings.max_model_len or 0)
        argv += ["--enforce-eager", "--no-enable-chunked-prefill", "--max-num-batched-tokens", str(budget)]
    return argv + settings.vllm_flags


def write_logging(settings: PolicySettings) -> None:
    """The logging of vLLM and its web server, as ours, where ``server_environment`` says."""
    handler = {"class": "logging.StreamHandler", "formatter": "json", "stream": "ext://sys.stderr"}
    logger = {"handlers": ["json"], "level": settings.log_level.upper()}
    configuration = {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"json": {"()": "prism.logs.JsonLines"}},
        "handlers": {"json": handler},
        "root": logger | {"level": "WARNING"},
        "loggers": {name: logger | {"propagate": False} for name in ("vllm", "uvicorn")},
    }
    write_json(settings.state_dir / LOGGING, configuration)


def server_environment(settings: PolicySettings, base: Mapping[str, str] = os.environ) -> dict[str, str]:
    """``base`` and what the server needs beside it. The middleware reads the same ``PRISM_*`` variables again."""
    environment = dict(base)
    environment |= {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(SITE), str(ROOT), base.get("PYTHONPATH")])),
        "PYTHONUNBUFFERED": "1",
        "PRISM_DEVICE": settings.device,
        SUPERVISOR_PID: str(os.getpid()),
        "VLLM_SERVER_DEV_MODE": "1",  # /collective_rpc and cache flushes; the middleware keeps them behind a token
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # fresh interpreters, so that sitecustomize runs in all of them
        "VLLM_MAX_IMAGE_PIXELS": str(settings.max_image_pixels),
        "VLLM_MEDIA_URL_ALLOW_REDIRECTS": "0",
        "HF_HUB_OFFLINE": "1",
    }
    environment.pop("VLLM_API_KEY", None)  # vLLM's own check would refuse our tokens
    environment.pop("PROMETHEUS_MULTIPROC_DIR", None)  # would hide the middleware's metrics from vLLM's page
    if settings.log_format == "json":
        environment["VLLM_LOGGING_CONFIG_PATH"] = str(settings.state_dir / LOGGING)
    if telemetry.is_on():  # what the middleware sends, should vLLM trace too (--otlp-traces-endpoint)
        environment.setdefault("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf")
    if settings.device == "cpu":
        environment["VLLM_CPU_KVCACHE_SPACE"] = str(settings.kv_cache_gib)
        # --enforce-eager leaves a few compiled helpers, which would cost the first requests 20 s and a C++ compiler.
        environment["TORCH_COMPILE_DISABLE"] = "1"
    return environment
