"""``python -m prism.stack.download_model NAME FOLDER``: a model of the hub, all of it or no FOLDER; once."""

import os
import sys
from pathlib import Path

from prism.files import partial_of, seal
from prism.stack.await_model import wait_for
from prism.stack.ending import end_on_sigterm


def main(name: str, folder: str) -> None:
    target = Path(folder)
    if target.is_dir():
        print(f"{target} is there")
        return
    if os.environ.get("PRISM_NODE_RANK", "0") != "0":  # of several nodes that train together the first downloads
        wait_for(target)
        return
    from huggingface_hub import snapshot_download

    partial = partial_of(target)  # a download that was cut off goes on
    snapshot_download(name, local_dir=partial)
    seal(partial, target)


if __name__ == "__main__":
    end_on_sigterm()
    main(*sys.argv[1:])
