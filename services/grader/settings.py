"""What the grader reads from its environment: ``PRISM_*``, beside host, port, tokens and log level."""

import os

from pydantic import BaseModel, Field, SecretStr

from prism.services.grader.verdict import RewardFormula
from prism.settings import ServiceSettings


class EngineSettings(BaseModel):
    """The grader without HTTP: what `prism grade FILE` starts by itself."""

    workers: int = Field(
        default_factory=lambda: max(1, len(os.sched_getaffinity(0))), ge=1, le=256, description="worker processes"
    )
    slow_workers: int = Field(
        1, ge=1, le=64, description="worker processes beside them, of lower priority, for what takes long"
    )
    deadline_seconds: float = Field(5.0, gt=0, le=600, description="a comparison's process is killed after this long")
    patience_seconds: float = Field(
        0.25,
        gt=0,
        le=60,
        description="processor time after which a comparison goes on in a slow worker, out of the way",
    )
    worker_memory_mib: int = Field(512, ge=256, description="address space of one worker, MiB")
    worker_max_chunks: int = Field(2_000, ge=1, description="a worker is replaced after this many chunks")
    chunk_items: int = Field(8, ge=1, description="most comparisons sent to a worker at once")
    cache_bytes: int = Field(2**26, ge=0, description="bytes of outcomes kept, by content; failures have as many more")

    max_text_chars: int = Field(
        65_536, ge=1, description="longest response or gold, characters (else its item's status is error)"
    )

    accuracy_weight: float = Field(0.8, ge=0, le=1, description="reward = this * accuracy + …")
    format_weight: float = Field(0.2, ge=0, le=1, description="… + this * format + …")
    overlong_weight: float = Field(
        1.0, ge=0, le=10, description="… + this * the over-long penalty, if one is asked for"
    )
    invalid_format_reward: float = Field(0.0, ge=-10, le=1, description="what breaking the required format earns")

    judge_url: str | None = Field(
        None,
        description="base URL of an OpenAI-compatible server for kind judge, such as http://host:8000/v1; off if unset",
    )
    judge_model: str = Field("judge", description="the model's name there")
    judge_token: SecretStr | None = Field(None, description="bearer token for it")
    judge_proxy: str | None = Field(
        None, description="URL of the HTTP proxy on the way to it; unset: none, whatever HTTP_PROXY says"
    )
    judge_timeout_seconds: float = Field(60.0, gt=0, le=600, description="longest wait for one judgement")
    judge_max_calls: int = Field(
        10_000, ge=0, description="judgements this process may ask for; then the status is error"
    )
    judge_max_chars: int = Field(
        16_384, ge=1, description="characters of question, answer and gold answers in one judgement; more is an error"
    )
    judge_max_tokens: int = Field(
        1024, ge=8, le=2**20, description="tokens of one reply, what the model thinks included; more is an error"
    )
    judge_concurrency: int = Field(16, ge=1, le=1024, description="judgements asked for at once")

    @property
    def formula(self) -> RewardFormula:
        return RewardFormula(self.accuracy_weight, self.format_weight, self.overlong_weight, self.invalid_format_reward)


class GraderSettings(EngineSettings, ServiceSettings):
    """Limits of a request are answered with 413 that names them; those of an item with its own verdict."""

    max_items: int = Field(10_000, ge=1, description="most items of one request (413)")
    max_body_bytes: int = Field(64 * 2**20, ge=1024, description="largest request body, bytes (413)")
