"""What every route of the console works with."""

from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from prism.services.console.access import identity
from prism.services.console.access.guard import Attempts, address_of, who
from prism.services.console.access.identity import Identity
from prism.services.console.jobs.bell import Bell
from prism.services.console.jobs.registry import Place
from prism.services.console.news import News
from prism.services.console.runs.found import Finder
from prism.services.console.runs.index import Index
from prism.services.console.settings import ConsoleSettings
from prism.services.console.store.engine import Store


@dataclass
class Console:
    settings: ConsoleSettings
    store: Store
    bell: Bell
    attempts: Attempts = field(default_factory=Attempts)

    def __post_init__(self) -> None:
        self.place: Place = self.settings.place
        self.index = Index(self.place.runs, self.store)
        self.finder = Finder(self.place.runs)
        self.news = News(self.store, self.index)


@dataclass
class Asked:
    """A request of somebody who may make it."""

    console: Console
    by: Identity
    address: str

    @property
    def store(self) -> Store:
        return self.console.store

    def record(self, action: str, target: str, detail: str = "") -> None:
        """In the audit log."""
        identity.record(self.store, self.by.name, self.address, action, target, detail)


def console_of(request: Request) -> Console:
    return request.app.state.console


def asked(request: Request) -> Asked:
    return Asked(console_of(request), who(request), address_of(request))


ConsoleState = Annotated[Console, Depends(console_of)]
Caller = Annotated[Asked, Depends(asked)]
