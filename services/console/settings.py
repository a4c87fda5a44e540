"""What the console and its workers read from their environment."""

from pathlib import Path

from pydantic import Field, SecretStr

from prism.services.console.jobs.registry import Place
from prism.services.console.store.engine import Store, sqlite_url
from prism.settings import CommaSeparated, ListenSettings


class StoreSettings(ListenSettings):
    """Of console and worker alike: where runs, jobs and the database are."""

    port: int = Field(8110, ge=1, le=65535, description="port to listen on")
    runs: Path = Field(Path("runs"), description="folder of runs; nothing outside it is shown, read or written")
    configs: Path = Field(Path("configs"), description="folder of configurations that runs can be started from")
    state_dir: Path = Field(
        Path("runs/.console"), description="folder of the console's own: logs of jobs, and SQLite's file"
    )
    database_url: SecretStr = Field(
        SecretStr(""),
        description="postgresql://user:password@host/name, or sqlite:////file; unset: SQLite in PRISM_STATE_DIR, which "
        "must not be on a network file system",
    )
    broker_url: SecretStr = Field(
        SecretStr(""),
        description="redis://… by which workers are told of new jobs at once; unset, they find them within seconds",
    )

    def open_store(self) -> Store:
        if url := self.database_url.get_secret_value():
            return Store(url)
        self.state_dir.mkdir(parents=True, exist_ok=True)
        return Store(sqlite_url(self.state_dir / "console.db"))

    @property
    def jobs_dir(self) -> Path:
        return self.state_dir.resolve() / "jobs"

    @property
    def place(self) -> Place:
        return Place(self.runs.resolve(), self.configs.resolve(), Path.cwd())


class ConsoleSettings(StoreSettings):
    jobs: bool = Field(True, description="offer jobs; false where no worker shares the database: runs are shown alone")
    public_url: str = Field("", description="address that people reach the console at, where it is another one")
    secure_cookie: bool = Field(
        False, description="send the sign-in cookie over https alone: set it where https is what people see"
    )
    session_hours: float = Field(72, gt=0, description="hours after which a browser has to sign in again")


class WorkerSettings(StoreSettings):
    slots: int = Field(1, ge=1, le=64, description="jobs that a worker runs at a time")
    cards: CommaSeparated[str] = Field(
        [], description="GPUs that jobs are given, as CUDA names them, by commas; none by default"
    )
