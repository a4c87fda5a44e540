"""How the process of a stage is started: alone, or by ``torchrun`` as ranks on the GPUs of one node or several.

On every node runs the same ``prism run --attach``; the first node's makes the run, the others' take part in its stages.
(No torch here.)
"""

import os
import sys

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

RETRY_SECONDS = 5.0


class Launch(BaseSettings):
    """PRISM_* variables of the trainer, the same on all nodes but for the rank."""

    model_config = SettingsConfigDict(env_prefix="PRISM_", extra="ignore")

    node_processes: int = Field(1, ge=1, description="ranks on this node, one for each of its GPUs")
    nodes: int = Field(1, ge=1, description="nodes that train together")
    node_rank: int = Field(0, ge=0, description="which of them this is")
    rendezvous: str = Field(
        "", pattern=r"^$|^[^:/]+:\d+$", description="host:port of the first, where the others find it"
    )

    @model_validator(mode="after")
    def _consistent(self) -> "Launch":
        if self.node_rank >= self.nodes:
            raise ValueError(f"PRISM_NODE_RANK is counted from 0: it must be below PRISM_NODES, which is {self.nodes}")
        if self.nodes > 1 and not self.rendezvous:
            raise ValueError("several PRISM_NODES need PRISM_RENDEZVOUS, host:port of the first")
        return self

    @property
    def is_first(self) -> bool:
        return self.node_rank == 0

    @property
    def leads(self) -> bool:
        """Whether this process is the first rank of the first node, or the only process."""
        return self.is_first and os.environ.get("RANK", "0") == "0"  # RANK is torchrun's

    def python(self, what: str) -> list[str]:
        """The command that Python's own arguments follow; ``what`` is the same on all nodes, for one start of ranks."""
        if self.nodes * self.node_processes == 1:
            return [sys.executable]
        command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={self.node_processes}"]
        if self.nodes == 1:
            return [*command, "--standalone"]
        return [
            *command,
            f"--nnodes={self.nodes}",
            "--rdzv-backend=c10d",
            f"--rdzv-endpoint={self.rendezvous}",
            f"--rdzv-conf=is_host={int(self.is_first)}",
            f"--rdzv-id={what}",
        ]
