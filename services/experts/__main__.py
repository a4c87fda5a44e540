"""``prism serve perception`` and ``prism serve reasoning``."""

from prism.expert_section import Section
from prism.service import serve
from prism.settings import load_settings
from services.experts.settings import ExpertSettings


def main(expert: Section) -> None:
    settings = load_settings(ExpertSettings, expert=expert)
    from services.experts.app import create_app  # with torch, for which a mistake in the settings need not wait

    serve(create_app(settings), settings)
