"""The grader service whose workers hang when asked to: started by the test beside this file."""

import time

from prism.services.grader.verdict import AnswerPair, Outcome
from prism.services.grader.worker import compare_chunk


def hang_if_asked(tasks: list[AnswerPair], patience: float | None, cpu_seconds: float) -> list[Outcome | None]:
    if any(task.answer == "hang" for task in tasks):
        time.sleep(3600)
    return compare_chunk(tasks, patience, cpu_seconds)


if __name__ == "__main__":
    from prism.http.app import serve
    from prism.services.grader.app import create_app
    from prism.services.grader.settings import GraderSettings
    from prism.settings import load_settings

    settings = load_settings(GraderSettings)
    serve(create_app(settings, hang_if_asked), settings)
