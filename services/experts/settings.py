"""Settings of one expert's scoring API (``PRISM_*``)."""

from typing import Literal, Self

from pydantic import Field, IPvAnyNetwork, model_validator

from prism.config import LimitedSettings
from prism.settings import CommaSeparated
from prism.wire.response import Expert, JudgedSection


class ExpertSettings(LimitedSettings):
    expert: Expert = Field(description="which section of a response this deployment judges")
    expert_pictures: bool = Field(
        True, description="whether the expert is shown a prompt's pictures, as it was trained"
    )
    expert_section: JudgedSection = Field(
        "own", description="what of a response the expert is shown, as it was trained: its own section, or the whole"
    )
    blobs: str | None = Field(None, description="blob store for images named by sha256; unset: no such images")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="of the weights; auto: float32 on a CPU, bfloat16 on a GPU, where attention has no other"
    )
    seed: int = Field(0, description="seed of a new head, where the model folder has none")
    receive_deadline: float = Field(120, gt=0, description="seconds for each tensor that a learner broadcasts")
    threads: int | None = Field(None, ge=1, description="CPU threads of the model; unset: torch's choice")

    peer_url: str | None = Field(None, description="base URL of the other expert, for /v1/mixture")
    peer_timeout_seconds: float = Field(120, gt=0, description="longest wait for the other expert's scores")

    allow_urls: bool = Field(False, description="whether images may be given as http(s) URLs")
    url_networks: CommaSeparated[IPvAnyNetwork] = Field(
        [], description="comma-separated CIDRs of image servers that may be fetched from although they are not public"
    )
    url_max_bytes: int = Field(20 * 2**20, ge=1, description="bytes of one fetched image; more is an error of its item")
    url_max_request_bytes: int | None = Field(
        None,
        ge=1,
        description="bytes of one request's fetched images (413); unset: 256 MiB, or max_images of the largest",
    )
    url_max_redirects: int = Field(3, ge=0, description="redirects followed for one image, each checked like the URL")
    url_timeout_seconds: float = Field(10, gt=0, description="of one image, redirects included")

    max_body_bytes: int = Field(32 * 2**20, ge=1024, description="largest request body, bytes (413)")
    max_items: int = Field(256, ge=1, description="items of one request")
    max_responses: int = Field(1024, ge=1, description="responses of one item")
    max_request_responses: int = Field(4096, ge=1, description="responses of one request")
    max_request_images: int = Field(64, ge=0, description="images of one request")
    max_request_pixel_bytes: int | None = Field(
        None,
        ge=1,
        description="bytes of one request's images once they are decoded to float32 (413); unset: 512 MiB. It is no "
        "less than the largest prompt takes that max_images, max_image_pixels, max_pixels and max_model_len allow",
    )
    max_pixel_bytes: int | None = Field(
        None,
        ge=1,
        description="bytes of decoded images of all requests at work; those that would be over it wait; "
        "unset: twice max_request_pixel_bytes, of which it must hold one",
    )
    max_text_chars: int = Field(1_000_000, ge=1, description="characters of a prompt or a response; more is too_long")
    max_model_len: int = Field(8192, ge=1, description="tokens of prompt and section together; more is too_long")
    max_batch_tokens: int = Field(16_384, ge=1, description="tokens that go through the model together")
    cache_tokens: int = Field(16_384, ge=0, description="tokens of prompts, and of images, whose states are kept")
    max_queue: int = Field(256, ge=1, description="requests being worked on or waiting; one more gets 429")

    @model_validator(mode="after")
    def _device_computes_dtype(self) -> Self:
        on_gpu = self.device.startswith("cuda")
        if on_gpu and self.dtype == "float32":
            raise ValueError("PRISM_DTYPE: on a GPU attention computes in bfloat16: set that, or leave it out")
        self.dtype = "float32" if self.dtype == "auto" and not on_gpu else "bfloat16" if on_gpu else self.dtype
        return self

    @model_validator(mode="after")
    def _one_prompt_is_fetched(self) -> Self:
        least = self.max_images * self.url_max_bytes
        if self.url_max_request_bytes is not None and self.url_max_request_bytes < least:
            raise ValueError(
                f"PRISM_URL_MAX_REQUEST_BYTES: {self.url_max_request_bytes} is less than the images of one prompt may "
                f"have: {self.max_images} (PRISM_MAX_IMAGES) of {self.url_max_bytes} bytes (PRISM_URL_MAX_BYTES)"
            )
        return self

    @property
    def fetched_bytes(self) -> int:
        """That the images of one request which are fetched may have together."""
        return self.url_max_request_bytes or max(2**28, self.max_images * self.url_max_bytes)

    @property
    def judging(self) -> str:
        """Model and way of judging: scores of another mean something else."""
        ways = [] if self.expert_pictures else ["without pictures"]
        ways += ["of whole responses"] if self.expert_section == "whole" else []
        return " ".join([str(self.model), *ways])

    @property
    def base(self) -> str:
        """Name of the folder or hub model the service starts from."""
        return self.model.name if self.model.is_dir() else str(self.model)

    @property
    def limits(self) -> dict[str, int]:
        limits = {
            name: value for name, value in self.model_dump().items() if name.startswith("max_") and value is not None
        }
        # A group is one item, and what the run admits in a prompt is scored.
        return limits | {"max_request_images": max(self.max_request_images, self.max_images)}
