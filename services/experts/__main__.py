"""``prism serve perception`` and ``prism serve reasoning``."""

import sys

from prism.http.app import serve
from prism.services.experts.settings import ExpertSettings
from prism.settings import load_settings
from prism.wire.section import Expert


def main(expert: Expert) -> None:
    settings = load_settings(ExpertSettings, expert=expert)
    from prism.services.experts.app import create_app  # with torch, for which a mistake in the settings need not wait

    # Threads that read requests would keep the one that feeds the model waiting for up to 5 ms at each operation.
    sys.setswitchinterval(0.0005)
    serve(create_app(settings), settings)
