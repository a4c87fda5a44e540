"""``prism serve rollouts``."""

from prism.endpoints import Endpoints
from prism.service import serve
from prism.settings import load_settings
from services.rollouts.app import create_app
from services.rollouts.settings import RolloutSettings


def main() -> None:
    settings = load_settings(RolloutSettings)
    serve(create_app(settings, load_settings(Endpoints)), settings)


if __name__ == "__main__":
    main()
