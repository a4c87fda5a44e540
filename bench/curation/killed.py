"""A curation that is killed (SIGKILL) at random moments and begun again each time, until it was killed often enough and
is let through; then what its database says is printed as JSON. Used by ``bench.curation.kills`` and by a test:

    python -m bench.curation.killed job.toml --kills 200 --seed 0

Each start is forked from this process, which has everything imported and no threads: it begins within milliseconds.
"""

import json
import os
import random
import signal
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from sqlalchemy import select

from bench.shared import command_line
from prism.config import load_toml
from prism.curation.config import CurateConfig
from prism.curation.run import STEPS, curate
from prism.curation.state.store import Store
from prism.curation.state.tables import Answer, Demo, Purse, SendRow


def main() -> None:
    parser = command_line("bench.curation.killed", __doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the moments; by default the clock's")
    parser.add_argument("--seconds", type=float, default=0.6, help="after which a start is killed, at most")
    options = parser.parse_args()
    config, rng, kills, early = load_toml(options.config, CurateConfig), random.Random(options.seed), 0, 0
    while kills < options.kills:
        child = start(config)
        time.sleep(rng.uniform(0, options.seconds))
        os.kill(child, signal.SIGKILL)
        if os.WIFEXITED(os.waitpid(child, 0)[1]):
            early += 1
            if early > 3:
                break  # it is through: there is nothing left to kill
        else:
            kills += 1
    status = os.waitpid(start(config), 0)[1]
    print(json.dumps({"kills": kills, "status": os.waitstatus_to_exitcode(status)} | books(config)))


def start(config: CurateConfig) -> int:
    """A process that curates; its number."""
    if child := os.fork():
        return child
    status = 1
    try:
        curate(config, STEPS, lambda _: None)
        status = 0
    except Exception as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    finally:
        os._exit(status)


def books(config: CurateConfig) -> dict[str, Any]:
    """What was paid for, and what was paid for twice: sends of a question after one whose answer is stored."""
    with Store(config.database_url) as store, store.reading() as connection:
        sends = connection.execute(select(SendRow.id, SendRow.key, SendRow.state, SendRow.purse)).all()
        stored = set(connection.scalars(select(Answer.key)))
        purses = connection.execute(select(Purse.name, Purse.cap, Purse.spent, Purse.reserved)).all()
        demos = list(connection.scalars(select(Demo.state)))
    of_key: dict[str, list[tuple[list[int], str]]] = defaultdict(list)
    for send in sends:
        of_key[send.key].append(([int(part) for part in send.id.split(".")], send.state))
    again = sum(state == "settled" for ends in of_key.values() for _, state in sorted(ends)[:-1])
    return {
        "demos": {state: demos.count(state) for state in set(demos)},
        "asked_again_though_stored": again,
        "answers": len(stored),
        "sends": {name: sum(send.state == name for send in sends) for name in {send.state for send in sends}},
        "purses": {row.name: {"cap": row.cap, "spent": row.spent, "reserved": row.reserved} for row in purses},
    }


if __name__ == "__main__":
    main()
