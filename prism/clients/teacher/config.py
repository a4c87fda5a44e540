"""How a teacher, or a judge, is reached, what it costs and how fast it may be asked."""

from typing import Literal

from pydantic import Field, field_validator

from prism.clients.teacher.reply import Prices
from prism.config.strict import ConfigModel

BATCH_SHARE = 0.5


class TeacherConfig(ConfigModel):
    """One model behind one API. Its key never stands here: it comes from the environment or a file of secrets."""

    api: Literal["openai", "anthropic"]
    """``openai``: chat completions, of OpenAI and of all who speak it (Gemini's ``url`` ends in ``/v1beta/openai``,
    vLLM's in ``/v1``). ``anthropic``: Anthropic's own ``/v1/messages``."""
    url: str = Field(pattern=r"^https?://")
    """Base URL, to which ``/chat/completions`` or ``/v1/messages`` is added."""
    model: str = Field(min_length=1)
    """The model's name there."""
    input_price: float = Field(ge=0)
    """Dollars for a million tokens that are sent. No default: prices change, and a wrong one breaks the cap."""
    output_price: float = Field(ge=0)
    """Dollars for a million tokens that are answered, thoughts included."""
    cap: float = Field(gt=0)
    """Dollars that may be spent on this job, all its starts together. The most that a request can cost is reserved
    before it is sent, so the cap holds whatever happens."""
    max_tokens: int = Field(default=8192, gt=0)
    """Tokens of an answer at most, thoughts included; they are what is reserved. 8192 leaves a long answer room."""
    expected_tokens: int = Field(default=1500, gt=0)
    """Tokens of an answer that a dry run reckons with. 1500 is a dense caption, a page of steps and an answer."""
    temperature: float | None = Field(default=None, ge=0)
    """How answers are drawn. By default the model's own, since some newer ones take no other."""
    image_tokens: int = Field(default=5000, gt=0)
    """Tokens that an image may cost at most, for what is reserved. 5000 covers what large providers charge for their
    highest resolution; should one be billed higher, the job stops and says so."""
    requests_per_minute: float | None = Field(default=None, gt=0)
    """The account's limit. By default none: the teacher's 429 are waited out."""
    tokens_per_minute: float | None = Field(default=None, gt=0)
    """The same for tokens, sent and answered. By default none."""
    concurrency: int = Field(default=32, gt=0)
    """Questions under way at a time. 32 at half a minute each are one a second."""
    timeout_seconds: float = Field(default=300, gt=0)
    """Silence after which a request is given up; it may be billed all the same. Long, because a model that thinks says
    nothing meanwhile; with ``stream`` a minute would do."""
    stream: bool = False
    """Takes answers as streams, which shows that one is being made. Off by default: it costs a little."""
    patience_seconds: float = Field(default=900, ge=0)
    """How long a question is asked again while the teacher is busy or away. 15 minutes outlast most outages; after that
    the question has failed, and the next run asks it again."""
    max_sends: int = Field(default=3, gt=0)
    """Sends of one question in one run that may cost money, when answers are unusable or lost. 3: an answer that is
    empty three times will stay so."""
    batch: bool = False
    """Uses the API's batches: half the price, within 24 hours. Off by default: nobody wants to wait a day to see what a
    prompt gives."""
    batch_rows: int = Field(default=2000, gt=0)
    """Questions in a batch. 2000 with an image of 50 kB each are 130 MB, below the 200 MB that the APIs take."""
    poll_seconds: float = Field(default=60, gt=0)
    """How often a batch is asked about. A minute, of the hours that it takes."""
    proxy: str | None = None
    """Proxy on the way out, such as ``http://proxy:3128``. None by default, and the environment's is not looked at."""

    @field_validator("url")
    @classmethod
    def _no_slash(cls, url: str) -> str:
        return url.rstrip("/")

    @property
    def prices(self) -> Prices:
        return Prices(self.input_price, self.output_price, BATCH_SHARE if self.batch else 1.0)
