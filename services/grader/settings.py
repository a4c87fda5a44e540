"""What the grader reads from its environment: ``PRISM_*``, beside host, port, tokens and log level."""

import os

from pydantic import Field

from prism.settings import ServiceSettings
from services.grader.grading import RewardWeights


class GraderSettings(ServiceSettings):
    """Limits are answered with 413 or 422 that name them; the deadline ends in a verdict of its own."""

    workers: int = Field(
        default_factory=lambda: max(1, len(os.sched_getaffinity(0))), ge=1, le=256, description="worker processes"
    )
    deadline_seconds: float = Field(5.0, gt=0, le=600, description="a worker is killed after this long on one chunk")
    worker_memory_mib: int = Field(512, ge=128, description="address space of one worker, MiB")
    worker_max_chunks: int = Field(10_000, ge=1, description="a worker is replaced after this many chunks")
    chunk_items: int = Field(64, ge=1, description="most items sent to a worker at once")

    max_items: int = Field(10_000, ge=1, description="most items of one request (413)")
    max_text_chars: int = Field(65_536, ge=1, description="longest response or gold, characters (422)")
    max_body_bytes: int = Field(32 * 2**20, ge=1024, description="largest request body, bytes (413)")

    accuracy_weight: float = Field(0.8, ge=0, le=1, description="reward = this * accuracy + format_weight * format")
    format_weight: float = Field(0.2, ge=0, le=1, description="what a valid format earns by itself")

    @property
    def reward_weights(self) -> RewardWeights:
        return RewardWeights(accuracy=self.accuracy_weight, format=self.format_weight)
