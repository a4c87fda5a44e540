"""Where the services of a run are, and the tokens they take: PRISM_* variables, or what ``prism up`` wrote down."""

import json
import os
import socket
from pathlib import Path
from typing import TypeVar

import httpx
from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from prism.settings import load_settings


class Endpoints(BaseSettings):
    """Read by rollout workers and the trainer."""

    model_config = SettingsConfigDict(env_prefix="PRISM_", extra="ignore")

    redis_url: SecretStr = Field(description="redis://[:password@]host:port/db")
    blobs: str = Field(description="folder or fsspec URL of the image store")
    policy_url: str = Field(description="base URL of the policy server, or of the balancer before its replicas")
    perception_url: str = Field(description="base URL of the perception expert")
    reasoning_url: str = Field(description="base URL of the reasoning expert")
    grader_url: str = Field(description="base URL of the grader")
    token: SecretStr = Field(description="bearer token of the services' data routes")
    admin_token: SecretStr | None = Field(
        default=None, description="bearer token of their admin routes: the trainer needs it, rollout workers do not"
    )
    admin_port: int | None = Field(
        default=None, description="where services keep their admin routes, if on a port of their own"
    )

    def expert_url(self, expert: str) -> str:
        return {"perception": self.perception_url, "reasoning": self.reasoning_url}[expert]

    def admin_url(self, model: str) -> str:
        """Where weights of ``model``, the policy's or an expert's, are pushed to."""
        url = self.policy_url if model == "policy" else self.expert_url(model)
        return admin_url(url, self.admin_port)


class ExpertEndpoints(BaseSettings):
    """Read by whoever only wants scores. One expert may be all there is."""

    model_config = SettingsConfigDict(env_prefix="PRISM_", extra="ignore")

    perception_url: str | None = Field(default=None, description="base URL of the perception expert; unset: not asked")
    reasoning_url: str | None = Field(default=None, description="base URL of the reasoning expert; unset: not asked")
    token: SecretStr = Field(description="bearer token of the experts' data routes")
    admin_token: SecretStr | None = Field(
        default=None, description="bearer token of their admin routes; `prism calibrate` alone needs it"
    )
    admin_port: int | None = Field(
        default=None, description="where experts keep their admin routes, if on a port of their own"
    )


def admin_url(url: str, admin_port: int | None) -> str:
    """Where the service at ``url`` keeps its admin routes."""
    return str(httpx.URL(url, port=admin_port)) if admin_port else url


def replica_urls(url: str) -> list[str]:
    """``url`` by each address of its host; as it is where the host is one address, or none yet."""
    parts = httpx.URL(url)
    try:
        found = socket.getaddrinfo(parts.host, parts.port, type=socket.SOCK_STREAM)
    except socket.gaierror:
        return [url]  # its server is away, which is waited for
    addresses = sorted({str(address[0]) for family, _, _, _, address in found if family == socket.AF_INET})
    return [str(parts.copy_with(host=address)) for address in addresses] if len(addresses) > 1 else [url]


SettingsT = TypeVar("SettingsT", bound=BaseSettings)


def load_endpoints(stack_file: Path, kind: type[SettingsT] = Endpoints) -> SettingsT:
    """From the environment, each variable that is not set there from ``stack_file`` (written by ``prism up``).

    Raises ConfigError that names the variables which neither has.
    """
    noted = json.loads(stack_file.read_text()) if stack_file.is_file() else {}
    fields = {name: value for name, value in noted.items() if f"PRISM_{name.upper()}" not in os.environ}
    return load_settings(kind, **fields)
