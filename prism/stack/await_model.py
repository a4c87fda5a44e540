"""``python -m prism.stack.await_model FILE... -- FOLDER...``: waits until the files are there, then makes the folders.

What a pod of a service runs first: the trainer's makes or downloads the model meanwhile.
"""

import sys
import time
from pathlib import Path

from prism.stack.ending import end_on_sigterm

LOOK_SECONDS = 2


def wait_for(path: Path) -> None:
    print(f"waiting for {path}", flush=True)
    while not path.exists():
        time.sleep(LOOK_SECONDS)


def main(*arguments: str) -> None:
    """Raises ValueError without "--"."""
    until = arguments.index("--")
    for file in arguments[:until]:
        wait_for(Path(file))
    for folder in arguments[until + 1 :]:
        Path(folder).mkdir(parents=True, exist_ok=True)


if __name__ == "__main__":
    end_on_sigterm()
    main(*sys.argv[1:])
