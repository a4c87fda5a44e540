"""Bounds of what a healthy run does not cross."""

from pydantic import Field

from prism.config.strict import ConfigModel


class AlertsConfig(ConfigModel):
    """Signs of collapse in alignment and RLVR. A bound that is crossed is said, recorded and exported; nothing stops.

    What is compared is a figure's mean over the last ``steps`` steps. Bounds may be changed before a run goes on.
    """

    steps: int = Field(default=3, gt=0)
    """Steps that a figure is averaged over: a single odd batch is no alert. 3 see a collapse soon."""
    format_rate_below: float = Field(default=0.5, ge=0, le=1)
    """Share of sampled responses with a valid format. Below 0.5, the default, most are lost; 0 never alerts."""
    entropy_below: float = Field(default=0.01, ge=0)
    """Nats a sampled token: below, responses of a group are all but alike, and nothing is left to compare. The default
    is a sixth of the demo's, whose answers are short and sure; raise it for long reasoning. 0 never alerts."""
    entropy_above: float = Field(default=4.0, gt=0)
    """Nats a sampled token: above, text turns to noise. The default is far beyond a language model's 0.3 to 1.5."""
    response_tokens_below: float = Field(default=8, ge=0)
    """Mean tokens of a response: three sections with a word in each take more than 8, the default. 0 never alerts."""
    truncated_above: float = Field(default=0.5, ge=0, le=1)
    """Share of responses cut off at ``max_tokens``, which answers that grow without end reach. 1 never alerts."""
    grad_norm_above: float = Field(default=10, gt=0)
    """The policy's gradient norm before it is clipped to ``max_grad_norm``; usual are 0.1 to 1. By default 10."""
    clip_fraction_above: float = Field(default=0.5, ge=0, le=1)
    """Share of tokens that earn nothing since their ratio is out of its clip. By default 0.5: half of a step is wasted;
    GSPO clips some 15 % in health. 1 never alerts."""
