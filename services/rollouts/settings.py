"""Settings of a rollout worker (``PRISM_*``; where the other services are: prism.clients.endpoints)."""

import os
import socket

from pydantic import Field

from prism.clients.http import SILENCE_SECONDS
from prism.settings import ServiceSettings


class RolloutSettings(ServiceSettings):
    run: str = Field(min_length=1, description="name of the run whose streams this worker serves")
    worker: str = Field(default_factory=lambda: f"{socket.gethostname()}-{os.getpid()}", description="consumer name")
    concurrency: int = Field(16, ge=1, description="groups at work at a time")
    lease_seconds: float = Field(30, gt=0, description="without a sign of life for so long, others take over")
    patience_seconds: float = Field(
        240, gt=0, description="how long a group at work waits for a service that is away; then it is made later"
    )
    silence_seconds: float = Field(
        SILENCE_SECONDS,
        gt=0,
        description="an answer of a service is given up after so long without a sign that it is being made",
    )
    max_deliveries: int = Field(5, ge=1, description="a request at which workers or services broke so often is buried")
