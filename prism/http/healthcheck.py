"""``python -m prism.http.healthcheck [PATH]``: exits with 0 once this container's service answers PATH with 200.

The standard library alone, since a container is asked every few seconds.
"""

import os
import sys
import urllib.request


def main(path: str = "/readyz") -> None:
    """Raises OSError, hence exits with 1, for an answer that is no 200 and for none."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # HTTP_PROXY leads out of the container
    direct.open(f"http://127.0.0.1:{os.environ['PRISM_PORT']}{path}", timeout=5)


if __name__ == "__main__":
    main(*sys.argv[1:])
