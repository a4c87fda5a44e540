"""``prism serve grader``: the verifiable-reward API. Configured by ``PRISM_*``, see settings.py."""


def main() -> None:
    """Raises ConfigError if the environment cannot be used."""
    # Imported here: multiprocessing may import this module once more in a process of its own, which needs none of it.
    from prism.http.app import serve
    from prism.services.grader.app import create_app
    from prism.services.grader.settings import GraderSettings
    from prism.settings import load_settings

    settings = load_settings(GraderSettings)
    serve(create_app(settings), settings)


if __name__ == "__main__":
    main()
