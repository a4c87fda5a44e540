"""``python -m prism.stack.await_model MODEL FOLDER...``: waits until MODEL is a model's folder, makes other folders.

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


def main(model: str, *folders: str) -> None:
    wait_for(Path(model) / "config.json")
    for folder in folders:
        Path(folder).mkdir(parents=True, exist_ok=True)


if __name__ == "__main__":
    end_on_sigterm()
    main(*sys.argv[1:])
