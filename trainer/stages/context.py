"""What the rollout-driven stages share: services, streams, prompts, publishers."""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from rich.console import Console

from prism import logs
from prism.clients.endpoints import Endpoints, load_endpoints
from prism.config import AlignConfig, RolloutConfig, RunConfig, SftConfig
from prism.data.blobs import BlobStore
from prism.data.mixture import data_files
from prism.data.rows import DataFile, Prompts, read_rows
from prism.model.inputs import InputBuilder
from prism.streams.patience import Patience
from prism.streams.trainer import TrainerStream, connect, newest_attempt
from prism.trainer.checkpoint.saver import Checkpoints
from prism.trainer.flow.demonstrations import report_problems
from prism.trainer.flow.examples import GroupExamples, refuse_unservable
from prism.trainer.flow.intake import Intake, PromptSequence
from prism.trainer.flow.rollout_log import RolloutLog
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
        """Of the first rank, which takes the run over; the others' has no prompts, and is not asked."""
        prompts: list[Prompts] = []
        # The others wait: opening images may take longer than a collective does.
        ranks.from_first(lambda: prompts.append(self._prompts(rollouts, require)))
        stream = TrainerStream(
            connect(self.endpoints.redis_url.get_secret_value()),
            self.config.name,
            learners,
            self.attempt,
            patience_seconds=self.config.redis_patience_seconds,
            say=self.say,
        )
        if ranks.is_first():
            stream.open()  # before the newest checkpoint is looked for: none of an older attempt's comes after it
        seed = self.config.seed
        sequence = PromptSequence(prompts[0], seed, prompts[0].parts) if prompts else PromptSequence((), seed)
        rules = self.config.grader.rules_json()
        return Intake(stream, sequence, self.stage, rollouts, self.attempt, seed, rules_json=rules)

    def _prompts(self, rollouts: RolloutConfig, require: tuple[str, ...]) -> Prompts:
        config, stage = self.config, self.config.stages[self.stage]
        judged = stage.experts.section if isinstance(stage, AlignConfig) else None
        self.data = [
            read_rows(
                path,
                config.on_bad_row,
                require=require,
                say=self.say,
                limits=config.limits,
                check=refuse_unservable(self.inputs, config.stack.max_model_len, rollouts.max_tokens, judged=judged),
                entry=entry,
            )
            for path, entry in data_files(rollouts.data, config.path)
        ]
        for file in self.data:
            report_problems(file, self.console)
        return Prompts(self.data, self.blobs)

    def rollout_log(self) -> RolloutLog:
        decode = self.inputs.tokenizer.decode
        return RolloutLog(self.config.run_dir, self.stage, self.config.rollout_log, decode, self.say)

    def publisher(self, model: str) -> Publisher:
        return open_publisher(self.config, self.endpoints, model, self.attempt)


def open_context(config: RunConfig, stage: str, start: Path | str) -> Context:
    """Count the attempt up and find the services. Raises ConfigError where they are not to be found."""
    endpoints = load_endpoints(config.run_dir / "stack.json")
    inputs = InputBuilder(start, config.limits.pixel_bounds)
    blobs = BlobStore(endpoints.blobs)
    client = connect(endpoints.redis_url.get_secret_value())
    console = ranks.console()
    patience = Patience(config.redis_patience_seconds, partial(logs.say, console))
    # Of a run whose folder was begun afresh, Redis may know more attempts than the folder.
    attempt = ranks.from_first(lambda: next_attempt(config.run_dir, newest_attempt(client, config.name, patience)))
    logs.about(attempt=attempt)
    of_stage = config.stages[stage]
    assert not isinstance(of_stage, SftConfig)
    examples = GroupExamples(inputs, blobs, cache_bytes=int(of_stage.rollouts.cache_gib * 2**30))
    return Context(config, stage, attempt, endpoints, blobs, inputs, examples, console)
