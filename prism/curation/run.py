"""``prism curate``: mine, ask, verify, split, card; each goes on where it was."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import httpx
from sqlalchemy import func, select

from prism.clients.endpoints import load_endpoints
from prism.clients.services import ExpertClient, GraderClient
from prism.clients.teacher.client import Teacher
from prism.clients.teacher.config import TeacherConfig
from prism.clients.teacher.errors import Stopped
from prism.clients.teacher.keys import JUDGE_KEY, TEACHER_KEY, read_key
from prism.curation.ask import Asked, ask, queue_demos
from prism.curation.batches import ask_in_batches
from prism.curation.calibrate import hold_against, read_labelled
from prism.curation.card import write_card
from prism.curation.checks.expert import CaptionExpert
from prism.curation.checks.judge import Judge
from prism.curation.config import CurateConfig
from prism.curation.estimate import estimate, tell
from prism.curation.mine import CurationEndpoints, mine
from prism.curation.rows import load_problems
from prism.curation.sets.rank import rank
from prism.curation.sets.split import split
from prism.curation.sets.write import write_sets
from prism.curation.state.books import Books
from prism.curation.state.job import OpenJob, begin
from prism.curation.state.store import Store
from prism.curation.state.tables import Demo, Problem
from prism.curation.verify import Verifier, verify
from prism.data.blobs import BlobStore
from prism.errors import ConfigError
from prism.files import make_folder
from prism.http.client import async_client
from prism.wire.response import Expert

Step = Literal["mine", "ask", "verify", "split", "card"]
STEPS: tuple[Step, ...] = get_args(Step)
Say = Callable[[str], None]


@dataclass
class Curation:
    """One start of a job."""

    config: CurateConfig
    job: OpenJob
    blobs: BlobStore
    say: Say
    transport: httpx.AsyncBaseTransport | None = None
    """For teacher and judge; the network by default."""

    @property
    def folder(self) -> Path:
        return self.config.folder

    def endpoints(self) -> CurationEndpoints:
        """Raises ConfigError that says which service is not known."""
        return load_endpoints(self.config.run / "stack.json", CurationEndpoints)

    def load(self) -> None:
        config = self.config
        count = load_problems(
            self.job, config.data, config.path, self.blobs, config.limits, mined=config.mine is not None
        )
        self.say(f"{count:,} problems in {config.database_url if config.database else self.folder / 'curation.db'}")

    async def mine(self) -> None:
        settings = self.config.mine
        if settings is None:
            return
        at = self.endpoints()
        if not at.policy_url:
            raise ConfigError("PRISM_POLICY_URL is not set: mining samples the policy (or leave [mine] out)")
        await mine(self.job, self.config, settings, at, self.blobs)
        routes = self.counts(Problem.route, Problem.job)
        self.say("mined: " + ", ".join(f"{count:,} {route}" for route, count in routes.items()))

    async def ask(self) -> None:
        asked = Asked.of(self.config)
        queue_demos(self.job, asked)
        async with self.teacher(self.config.teacher, "teacher", TEACHER_KEY) as teacher:
            if self.config.teacher.batch:
                await ask_in_batches(self.job, asked, teacher, self.blobs, self.say)
            else:
                await ask(self.job, asked, teacher, self.blobs)
        self._tell_demos("asked")

    async def verify(self) -> None:
        async with AsyncExitStack() as stack:
            verifier = await self._verifier(stack)
            if self.config.verify.labelled:
                labelled = read_labelled(self.config.verify.labelled, self.blobs, self.config.limits)
                agreement = await hold_against(verifier, labelled)
                self.job.note(agreement=agreement, labelled=str(self.config.verify.labelled), margin=verifier.margin)
            waiting = await verify(self.job, verifier)
        self._tell_demos("verified")
        if waiting:
            self.say(f"{waiting:,} answers wait for a check that gave no verdict; the same command goes on")

    async def split(self) -> None:
        scores: dict[int, float] = {}
        at = self.endpoints()
        urls: dict[Expert, str | None] = {"perception": at.perception_url, "reasoning": at.reasoning_url}
        if all(urls.values()):
            async with async_client() as http:
                token = at.token.get_secret_value()
                clients: dict[Expert, ExpertClient] = {
                    expert: ExpertClient(http, url, token, 60) for expert, url in urls.items() if url
                }
                scores = await rank(self.job, clients, self.blobs)
        split(self.job, self.config, self.blobs, scores)
        sets = write_sets(self.job, self.folder, self.config.split.warmup)
        self.job.note(sets=sets)
        self.say("sets: " + ", ".join(f"{count:,} {name}" for name, count in sets.items()))

    async def card(self) -> None:
        self.say(f"card: {write_card(self.job, self.config, self.blobs)}")

    async def _verifier(self, stack: AsyncExitStack) -> Verifier:
        at, settings = self.endpoints(), self.config.verify
        http, token = await stack.enter_async_context(async_client()), at.token.get_secret_value()
        verifier = Verifier(settings, GraderClient(http, at.grader_url, token, 60), self.blobs, margin=settings.margin)
        if self.config.judge:
            teacher = self.teacher(self.config.judge, "judge", JUDGE_KEY)
            verifier.judge = Judge(await stack.enter_async_context(teacher), self.job.store)
        if "expert" in (settings.caption, settings.second):
            if not at.perception_url:
                raise ConfigError("PRISM_PERCEPTION_URL is not set: [verify] asks the perception expert")
            verifier.expert = CaptionExpert(ExpertClient(http, at.perception_url, token, 60), settings.words)
        return verifier

    def teacher(self, config: TeacherConfig, purse: str, variable: str) -> Teacher:
        return Teacher(config, read_key(variable), Books(self.job, purse), transport=self.transport)

    def counts(self, column: object, job: object) -> dict[str, int]:
        with self.job.store.reading() as connection:
            found = connection.execute(
                select(column, func.count()).where(job == self.job.id).group_by(column)  # pyright: ignore[reportCallIssue, reportArgumentType]
            ).all()
        return {str(name): count for name, count in sorted(found, key=str)}

    def _tell_demos(self, what: str) -> None:
        states = self.counts(Demo.state, Demo.job)
        self.say(f"{what}: " + ", ".join(f"{count:,} {state}" for state, count in states.items()))


def curate(
    config: CurateConfig, steps: Sequence[Step], say: Say, transport: httpx.AsyncBaseTransport | None = None
) -> None:
    """``steps`` in the chain's order, over services that run. Raises Stopped with its reason, which the job keeps."""
    make_folder(config.folder)
    caps = {"teacher": config.teacher.cap} | ({"judge": config.judge.cap} if config.judge else {})
    with Store(config.database_url) as store:
        job = begin(store, config.name, config.folder, caps)
        curation = Curation(config, job, BlobStore(str(config.folder.resolve() / "blobs")), say, transport)
        curation.load()
        job.note(terms=config.terms.model_dump())
        for step in steps:
            try:
                asyncio.run(getattr(curation, step)())
            except Stopped as error:
                job.stop(f"{step}: {error}")
                raise


def plan(config: CurateConfig, say: Say) -> None:
    """What asking would take: reads the data, sends nothing."""
    make_folder(config.folder)
    with Store(config.database_url) as store:
        job = begin(store, config.name, config.folder, {"teacher": config.teacher.cap})
        curation = Curation(config, job, BlobStore(str(config.folder.resolve() / "blobs")), say)
        curation.load()
        asked = Asked.of(config)
        queue_demos(job, asked)
        tell(estimate(job, asked, curation.blobs), asked, say)
