"""``prism serve console``."""

from prism.http.app import serve
from prism.services.console.access.identity import new_code
from prism.services.console.app import create_app
from prism.services.console.settings import ConsoleSettings
from prism.services.console.store.migrate import upgrade
from prism.settings import load_settings


def main() -> None:
    """Until SIGTERM. Prints a link that signs one browser in, once."""
    settings = load_settings(ConsoleSettings)
    store = settings.open_store()
    upgrade(store)
    print(sign_in_link(settings, new_code(store, "first link")), flush=True)
    serve(create_app(settings, store), settings)


def sign_in_link(settings: ConsoleSettings, code: str) -> str:
    """What follows ``#`` stays in the browser: it is in no log, and no page is asked for with it."""
    host = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host  # noqa: S104
    url = settings.public_url.rstrip("/") or f"http://{host}:{settings.port}"
    return f"console: {url}/sign-in#{code}  (good for one sign-in within 15 minutes)"


if __name__ == "__main__":
    main()
