"""What a prompt may hold, and what experts are shown of it: the same for data, learners and services."""

from pathlib import Path
from typing import Self

from pydantic import Field, ValidationError, model_validator

from prism.config.strict import ConfigModel
from prism.files import write_json
from prism.wire.response import JudgedSection

LIMITS_FILE = "limits.json"
"""In a run's folder, for services that others than `prism run` start (PRISM_RUN_LIMITS)."""


class LimitsConfig(ConfigModel):
    """Checked when data is read, row by row, and by every service, whose setting has the key's name (``PRISM_*``)."""

    max_images: int = Field(default=8, ge=0)
    """Images of one prompt. 8 by default: at the usual thousand tokens each they fill a context of 8,192 tokens."""
    max_image_pixels: int = Field(default=2**24, ge=1)
    """Width times height of one image. The default, 16.8 million, is what Qwen3-VL's processor scales larger images
    down to: beyond it, pixels cost time and teach nothing."""
    min_pixels: int | None = Field(default=None, ge=1)
    """Pixels up to which the model's processor enlarges a smaller image, as Qwen's ``min_pixels``. By default what the
    model's own folder says. Give it and ``max_pixels`` together: transformers takes neither alone."""
    max_pixels: int | None = Field(default=None, ge=1)
    """Pixels down to which the model's processor scales a larger image, as Qwen's ``max_pixels``: at Qwen3-VL's 32 x 32
    pixels a token, 1048576 make at most 1,024 tokens an image. By default what the model's own folder says."""
    body_limit: int = Field(default=128 * 2**20, ge=1024)
    """Bytes of a request to the policy server: text and, as base64 of PNG, all images of a prompt. The default of 128
    MiB holds two images of the largest size whatever they show, and a dozen photos of 6 megapixels."""

    @model_validator(mode="after")
    def _bounds_fit(self) -> Self:
        if (self.min_pixels is None) != (self.max_pixels is None):
            raise ValueError("min_pixels and max_pixels go together: set both, or neither")
        if self.min_pixels and self.max_pixels and self.min_pixels > self.max_pixels:
            raise ValueError(f"min_pixels: {self.min_pixels} is more than max_pixels = {self.max_pixels}")
        return self

    @property
    def pixel_bounds(self) -> tuple[int, int] | None:
        """``min_pixels`` and ``max_pixels``; None leaves images to the model's own processor."""
        return (self.min_pixels, self.max_pixels) if self.min_pixels and self.max_pixels else None

    def environment(self) -> dict[str, str]:
        """The services' settings of the same names."""
        return {f"PRISM_{name.upper()}": str(value) for name, value in self.model_dump(exclude_none=True).items()}

    def write(self, run_dir: Path) -> None:
        """For the services of a run that are started from elsewhere, in its folder."""
        write_json(run_dir / LIMITS_FILE, self.model_dump())


class RunLimits(LimitsConfig):
    """All that ``limits.json`` holds: a run's [limits], and what else of its configuration a server has to admit."""

    max_model_len: int = Field(gt=0)
    """``stack.max_model_len``."""
    expert_pictures: bool = True
    """``experts.pictures`` of the run's alignments."""
    expert_section: JudgedSection = "own"
    """``experts.section`` of the run's alignments."""


def place_of(name: str) -> str:
    """Where a run's configuration has the limit."""
    if name.startswith("expert_"):
        return f"experts.{name.removeprefix('expert_')} of each alignment"
    return f"limits.{name}" if name in LimitsConfig.model_fields else f"stack.{name}"


def read_limits(run_dir: Path) -> RunLimits | None:
    """As ``RunLimits.write`` left them; None if there are none, or none that this release reads."""
    try:
        return RunLimits.model_validate_json((run_dir / LIMITS_FILE).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
