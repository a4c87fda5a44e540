"""What people wrote about runs."""

from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import delete, select

from prism.services.console.store.engine import Store
from prism.services.console.store.models import RunNote


@dataclass(frozen=True)
class Notes:
    by_run: dict[str, RunNote]

    def tags(self, run: str) -> list[str]:
        return self.by_run[run].tags if run in self.by_run else []

    def note(self, run: str) -> str:
        return self.by_run[run].note if run in self.by_run else ""


def all_notes(store: Store) -> Notes:
    with store.read() as session:
        return Notes({note.run: note for note in session.scalars(select(RunNote))})


def write(store: Store, run: str, note: str, tags: Collection[str]) -> None:
    with store.write() as session:
        session.merge(RunNote(run=run, note=note, tags=list(dict.fromkeys(tags))))


def tag(store: Store, runs: Collection[str], name: str, *, on: bool) -> None:
    """Give a tag to runs, or take it off."""
    with store.write() as session:
        for run in runs:
            noted = session.get(RunNote, run) or RunNote(run=run, tags=[], note="")
            others = [each for each in noted.tags if each != name]
            noted.tags = [*others, name] if on else others
            session.add(noted)


def forget(store: Store, run: str) -> None:
    with store.write() as session:
        session.execute(delete(RunNote).where(RunNote.run == run))
