"""``prism serve rollouts``."""

from prism.clients.endpoints import Endpoints
from prism.http.app import serve
from prism.services.rollouts.app import create_app
from prism.services.rollouts.settings import RolloutSettings
from prism.settings import load_settings


def main() -> None:
    settings = load_settings(RolloutSettings)
    serve(create_app(settings, load_settings(Endpoints)), settings)


if __name__ == "__main__":
    main()
