"""``prism serve grader``: the verifiable-reward API. Configured by ``PRISM_*``, see settings.py."""


def main() -> None:
    """Raises ConfigError if the environment cannot be used."""
    # Imported here: each worker process imports this module once more, and needs none of it.
    from prism.service import serve
    from prism.settings import load_settings
    from services.grader.app import create_app
    from services.grader.settings import GraderSettings

    settings = load_settings(GraderSettings)
    serve(create_app(settings), settings)


if __name__ == "__main__":
    main()
