"""What a prompt may hold: the same for data, learners and services."""

from pydantic import Field

from prism.config.strict import ConfigModel


class LimitsConfig(ConfigModel):
    """Checked when data is read, row by row, and by every service, whose setting has the key's name (``PRISM_*``)."""

    max_images: int = Field(default=8, ge=0)
    """Images of one prompt. 8 by default: at the usual thousand tokens each they fill a context of 8,192 tokens."""
    max_image_pixels: int = Field(default=2**24, ge=1)
    """Width times height of one image. The default, 16.8 million, is what Qwen3-VL's processor scales larger images
    down to: beyond it, pixels cost time and teach nothing."""
    body_limit: int = Field(default=128 * 2**20, ge=1024)
    """Bytes of a request to the policy server: text and, as base64 of PNG, all images of a prompt. The default of 128
    MiB holds two images of the largest size whatever they show, and a dozen photos of 6 megapixels."""

    def environment(self) -> dict[str, str]:
        """The services' settings of the same names."""
        return {f"PRISM_{name.upper()}": str(value) for name, value in self.model_dump().items()}
