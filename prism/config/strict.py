"""The base of all tables of a configuration."""

from pydantic import BaseModel, ConfigDict


class ConfigModel(BaseModel):
    """Refuses unknown keys, NaN and infinity; cannot be changed. The docstring under a key is its description."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)
