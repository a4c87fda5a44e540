"""What every service reads from its environment (``PRISM_*``), and the rules for secrets.

A variable may also be a file: ``$PRISM_SECRETS_DIR/prism_token`` holds PRISM_TOKEN. The variable itself comes first.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BeforeValidator, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from prism.errors import ConfigError

Settings = TypeVar("Settings", bound=BaseSettings)
Part = TypeVar("Part")

SHORTEST_TOKEN = 16
COMMENT_SECONDS = 10.0  # a client bears five times as long a silence
GONE = {
    "PRISM_IMAGE_DOMAINS": "the policy server fetches no images any more; send them as data URIs, or ask the experts, "
    "which fetch with PRISM_ALLOW_URLS",
    "PRISM_MAX_TOKENS": "an expert's longest text is the policy's, a run's stack.max_model_len, or PRISM_MAX_MODEL_LEN",
    "PRISM_CACHE_ITEMS": "the grader's cache is bounded by memory: set PRISM_CACHE_BYTES",
}
"""Variables that did something once, and what does it now. To ignore them would leave someone believing in them."""


def _by_comma(value: object) -> object:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


CommaSeparated = Annotated[list[Part], NoDecode, BeforeValidator(_by_comma)]


class ListenSettings(BaseSettings):
    """Common to whatever listens: where, and how it logs."""

    model_config = SettingsConfigDict(env_prefix="PRISM_", extra="ignore")

    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(ge=1, le=65535, description="port to listen on")
    run: str = Field("", description="name of the run that the service is for, told in its logs")
    log_level: str = Field("info", description="least important records that are logged: debug, info, warning, error")
    log_format: Literal["text", "json"] = Field("text", description="lines for people, or a JSON object a line")


class ServiceSettings(ListenSettings):
    """Common to a run's HTTP services. Each service's ``settings.py`` adds its own fields.

    A service without admin routes is given no admin token: it has no use for one.
    """

    token: SecretStr = Field(description="bearer token of data routes, 16 characters or more")

    comment_interval: float = Field(
        COMMENT_SECONDS,
        gt=0,
        description="seconds between two signs to a client that waits for an answer as a stream: a comment while the "
        "service works for anybody; behind a push to the policy, 503 after two of them",
    )

    @field_validator("token", "admin_token", check_fields=False)
    @classmethod
    def _long(cls, token: SecretStr) -> SecretStr:
        if len(token.get_secret_value()) < SHORTEST_TOKEN:
            raise ValueError(f"needs {SHORTEST_TOKEN} characters or more")
        return token


class AdminSettings(ServiceSettings):
    """Common to services that have admin routes."""

    admin_token: SecretStr = Field(description="bearer token of admin routes, 16 characters or more, another one")
    admin_port: int | None = Field(
        None, ge=1, le=65535, description="another port, on which alone admin routes are served; unset: all on one"
    )

    @model_validator(mode="after")
    def _apart(self) -> Self:
        if self.token.get_secret_value() == self.admin_token.get_secret_value():
            raise ValueError("PRISM_TOKEN and PRISM_ADMIN_TOKEN must differ")
        if self.admin_port == self.port:
            raise ValueError("PRISM_PORT and PRISM_ADMIN_PORT must differ")
        return self


class WeightsSettings(AdminSettings):
    """Common to services whose weights can be pushed."""

    model: Path = Field(description="Hugging Face folder (or hub name) the service starts from")
    weights_root: Path = Field(description="folder shared with the learner, under which pushed weights lie")
    state_dir: Path = Field(description="folder of the service's own, where it notes the newest weights it was given")
    device: str = Field("cpu", description="device the weights must be on for the service to be ready")


def load_settings(kind: type[Settings], **values: Any) -> Settings:
    """Read the environment. Raises ConfigError that names each variable and what is wrong with it."""
    if gone := [f"{name}: {now}" for name, now in GONE.items() if os.environ.get(name)]:
        raise ConfigError("\n".join(gone))
    try:
        return kind(**values, _secrets_dir=os.environ.get("PRISM_SECRETS_DIR"))
    except ValidationError as error:
        raise ConfigError("\n".join(describe(error, env_prefix="PRISM_"))) from None


def describe(
    error: ValidationError, suggest: Callable[[Sequence[int | str]], str] = lambda loc: "", *, env_prefix: str = ""
) -> list[str]:
    """One readable line for each problem pydantic found, with the key as the user wrote it.

    ``suggest`` is asked what to add for an unknown key, given its place.
    """
    lines: list[str] = []
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"])
        name = f"{env_prefix}{key.upper()}" if env_prefix else key
        text = {"missing": "is not set", "extra_forbidden": "is not a known key"}.get(problem["type"], problem["msg"])
        text = text.removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            text += suggest(problem["loc"])
        plain = isinstance(problem["input"], str | int | float | bool | None)
        shown = plain and key and problem["type"] not in ("missing", "extra_forbidden")
        given = f" (given: {repr(problem['input'])[:200]})" if shown else ""
        if key.endswith("token"):
            given = ""
        lines.append(f"{name}: {text}{given}" if name != env_prefix else text)
    return lines
