"""The grader service with a grading function that hangs when asked to: started by the test beside this file."""

import time

from services.grader.grading import Item, RewardWeights, Verdict
from services.grader.worker import grade_chunk


def hang_if_asked(items: list[Item], weights: RewardWeights) -> list[Verdict]:
    if any(item.response == "hang" for item in items):
        time.sleep(3600)
    return grade_chunk(items, weights)


if __name__ == "__main__":
    from prism.service import serve
    from prism.settings import load_settings
    from services.grader.app import create_app
    from services.grader.settings import GraderSettings

    settings = load_settings(GraderSettings)
    serve(create_app(settings, hang_if_asked), settings)
