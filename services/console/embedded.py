"""``prism console``: pages, a worker and the packaged Redis as processes of one machine, over SQLite."""

import os
import secrets
import sys
from contextlib import ExitStack
from pathlib import Path

from prism import logs
from prism.errors import ServiceError
from prism.files import make_folder, write_text
from prism.http.app import serve
from prism.services.console.__main__ import sign_in_link
from prism.services.console.access.identity import new_code
from prism.services.console.app import create_app
from prism.services.console.settings import ConsoleSettings
from prism.services.console.store.migrate import upgrade
from prism.settings import load_settings
from prism.stack.folder_lock import lock_run
from prism.stack.local import redis_server, refuse_taken_port
from prism.stack.processes import end_group, start_process

STOP_SECONDS = 40  # of a worker: its jobs are ended politely first
OWN = ("PRISM_DATABASE_URL", "PRISM_BROKER_URL", "PRISM_STATE_DIR")


def run(*, runs: Path, configs: Path, host: str, port: int, slots: int, cards: str) -> None:
    """Until Ctrl-C. Raises ServiceError where something else listens already."""
    console = logs.console()
    for name in OWN:
        os.environ.pop(name, None)  # of a console that is not this one
    state = runs.resolve() / ".console"
    make_folder(state)
    state.chmod(0o700)
    refuse_taken_port("console", port)
    # A socket, which nobody but this user may open: no port, no password.
    socket = state / "redis.sock"
    if len(str(socket)) > 100:
        socket = Path(os.environ.get("XDG_RUNTIME_DIR", "/tmp")) / f"prism-{secrets.token_hex(8)}.sock"  # noqa: S108
    settings = load_settings(
        ConsoleSettings,
        runs=runs,
        configs=configs,
        host=host,
        port=port,
        state_dir=state,
        broker_url=f"redis+socket://{socket}",
    )
    store = settings.open_store()
    upgrade(store)
    conf = state / "redis.conf"
    write_text(conf, f'port 0\nunixsocket {socket}\nunixsocketperm 700\nsave ""\ndir "{state}"\n', mode=0o600)
    environment = {
        "PRISM_RUNS": str(settings.runs.resolve()),
        "PRISM_CONFIGS": str(settings.configs.resolve()),
        "PRISM_STATE_DIR": str(state),
        "PRISM_BROKER_URL": settings.broker_url.get_secret_value(),
        "PRISM_SLOTS": str(slots),
        "PRISM_CARDS": cards,
    }
    processes = []
    held = ExitStack()
    try:
        held.enter_context(lock_run(state, "services"))
        with (state / "redis.log").open("ab") as log:
            processes.append(start_process([redis_server(), str(conf)], {}, output=log))
        with (state / "worker.log").open("ab") as log:
            processes.append(start_process([sys.executable, "-m", "prism", "serve", "jobs"], environment, output=log))
        console.print(sign_in_link(settings, new_code(store, "first link")), soft_wrap=True)
        serve(create_app(settings, store), settings)
    except OSError as error:
        raise ServiceError(f"the console could not start: {error}") from None
    finally:
        for process in reversed(processes):
            process.terminate()
        for process in reversed(processes):
            end_group(process, STOP_SECONDS)
        store.close()
        held.close()
