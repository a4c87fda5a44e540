"""What services that look at prompts read of a run's limits from their environment (``PRISM_*``)."""

import json
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from prism.config.limits import LimitsConfig, place_of
from prism.settings import WeightsSettings

LIMITS = LimitsConfig()


class LimitedSettings(WeightsSettings):
    """Of policy server and experts. What ``run_limits`` names comes first, and whatever contradicts it is refused."""

    run_limits: Path | None = Field(
        None, description="file of a run's limits, as `prism prepare` writes it; unset: each limit's own variable"
    )
    max_images: int = Field(LIMITS.max_images, ge=0, description="images of one prompt")
    max_image_pixels: int = Field(LIMITS.max_image_pixels, ge=1, description="width times height of one image")
    min_pixels: int | None = Field(
        LIMITS.min_pixels, ge=1, description="smaller images are enlarged to as many; unset: the model's own"
    )
    max_pixels: int | None = Field(
        LIMITS.max_pixels, ge=1, description="larger images are scaled down to as many; unset: the model's own"
    )

    @property
    def pixel_bounds(self) -> tuple[int, int] | None:
        return LimitsConfig(min_pixels=self.min_pixels, max_pixels=self.max_pixels).pixel_bounds

    @model_validator(mode="before")
    @classmethod
    def _of_the_run(cls, values: dict[str, Any]) -> dict[str, Any]:
        if not (file := values.get("run_limits")):
            return values
        try:
            limits = json.loads(Path(file).read_text())
        except (OSError, ValueError) as error:
            raise ValueError(f"PRISM_RUN_LIMITS: {file} cannot be read ({error}): `prism prepare` writes it") from None
        for name in sorted(limits.keys() & values.keys()):
            if str(values[name]).lower() != str(limits[name]).lower():  # true, in a variable and in JSON
                raise ValueError(
                    f"PRISM_{name.upper()}: {values[name]} here, {limits[name]} in {file}: set {place_of(name)} in the "
                    "run's configuration, which is everyone's, and leave the variable out"
                )
        return values | {name: value for name, value in limits.items() if value is not None}

    @model_validator(mode="after")
    def _bounds_fit(self) -> Self:
        LimitsConfig(min_pixels=self.min_pixels, max_pixels=self.max_pixels)
        return self
