"""What the rollout-driven stages share: services, streams, prompts, publishers."""

from dataclasses import dataclass, field
from pathlib import Path

import redis
from redis.backoff import ExponentialBackoff
from redis.retry import Retry
from rich.console import Console

from prism import logs
from prism.clients.endpoints import Endpoints, load_endpoints
from prism.config import RolloutConfig, RunConfig
from prism.data.blobs import BlobStore
from prism.data.rows import DataFile, read_rows, to_prompt
from prism.model.inputs import InputBuilder
from prism.streams.trainer import TrainerStream
from prism.trainer.checkpoint.saver import Checkpoints
from prism.trainer.flow.demonstrations import report_problems
from prism.trainer.flow.examples import GroupExamples
from prism.trainer.flow.intake import Intake, PromptSequence
from prism.trainer.learn import ranks
from prism.trainer.run.result import next_attempt
from prism.trainer.weights.publish import Publisher, open_publisher


@dataclass
class Context:
    """One attempt at a stage."""

    config: RunConfig
    stage: str
    attempt: int
    endpoints: Endpoints
    blobs: BlobStore
    inputs: InputBuilder
    examples: GroupExamples
    console: Console
    data: list[DataFile] = field(default_factory=list)
    """The files of which prompts are taken."""

    def checkpoints(self) -> Checkpoints:
        return Checkpoints(self.config.run_dir / "checkpoints" / self.stage, self.config.keep_checkpoints)

    def say(self, text: str, **ids: object) -> None:
        """``ids`` are what it is about, for logs."""
        logs.say(self.console, text, **ids)

    def intake(self, rollouts: RolloutConfig, learners: tuple[str, ...], require: tuple[str, ...]) -> Intake:
        """Of the first rank; the others' has no prompts, and is not asked."""
        file = read_rows(self.config.path(rollouts.data), self.config.on_bad_row, require=require, say=self.say)
        report_problems(file, self.console)
        self.data = [file]
        prompts = [to_prompt(row, file, self.blobs) for row in file.rows] if ranks.is_first() else []
        client = redis.Redis.from_url(
            self.endpoints.redis_url.get_secret_value(),
            health_check_interval=15,
            retry=Retry(ExponentialBackoff(cap=5, base=0.1), retries=20),
            retry_on_error=[redis.ConnectionError, redis.TimeoutError],
        )
        stream = TrainerStream(client, self.config.name, learners)
        seed = self.config.seed
        return Intake(stream, PromptSequence(prompts, seed), self.stage, rollouts, self.attempt, seed)

    def publisher(self, model: str) -> Publisher:
        return open_publisher(self.config, self.endpoints, model, self.attempt)


def open_context(config: RunConfig, stage: str, start: Path | str) -> Context:
    """Count the attempt up and find the services. Raises ConfigError where they are not to be found."""
    endpoints = load_endpoints(config.run_dir / "stack.json")
    inputs = InputBuilder(start)
    blobs = BlobStore(endpoints.blobs)
    attempt = ranks.from_first(lambda: next_attempt(config.run_dir))
    logs.about(attempt=attempt)
    examples = GroupExamples(inputs, blobs)
    return Context(config, stage, attempt, endpoints, blobs, inputs, examples, ranks.console())
