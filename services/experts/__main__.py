"""``prism serve perception`` and ``prism serve reasoning``."""

import sys

from prism.expert_section import Section
from prism.service import serve
from prism.settings import load_settings
from services.experts.settings import ExpertSettings


def main(expert: Section) -> None:
    settings = load_settings(ExpertSettings, expert=expert)
    from services.experts.app import create_app  # with torch, for which a mistake in the settings need not wait

    # Threads that read requests would keep the one that feeds the model waiting for up to 5 ms at each operation.
    sys.setswitchinterval(0.0005)
    serve(create_app(settings), settings)
