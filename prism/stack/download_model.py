"""``python -m prism.download_model NAME FOLDER``: a model of the hub, all of it or no FOLDER; once."""

import os
import sys
from pathlib import Path

from prism.stack.await_model import wait_for


def main(name: str, folder: str) -> None:
    target = Path(folder)
    if target.is_dir():
        print(f"{target} is there")
        return
    if os.environ.get("PRISM_NODE_RANK", "0") != "0":  # of several nodes that train together the first downloads
        wait_for(target)
        return
    from huggingface_hub import snapshot_download

    partial = target.with_name(f"{target.name}.partial")  # a download that was cut off goes on
    snapshot_download(name, local_dir=partial)
    partial.rename(target)


if __name__ == "__main__":
    main(*sys.argv[1:])
