"""Settings of one expert's scoring API (``PRISM_*``)."""

from pydantic import Field

from prism.expert_section import Section
from prism.settings import WeightsSettings


class ExpertSettings(WeightsSettings):
    expert: Section = Field(description="which section of a response this deployment judges")
    blobs: str | None = Field(None, description="blob store for images named by sha256; unset: data URIs only")
    seed: int = Field(0, description="seed of a new head, where the model folder has none")
    threads: int | None = Field(None, ge=1, description="CPU threads of the model; unset: torch's choice")
    max_body_bytes: int = Field(32 * 2**20, ge=1024)
    max_responses: int = Field(256, ge=1, description="responses of one request")
    max_images: int = Field(8, ge=1, description="images of one request")
    max_image_pixels: int = Field(16_000_000, ge=1)
    max_tokens: int = Field(8192, ge=1, description="tokens of prompt and section together; more is too_long")
    max_batch_tokens: int = Field(16_384, ge=1, description="tokens of one forward pass, padding included")
    max_queue: int = Field(256, ge=1, description="requests waiting; one more gets 429")
