"""Whether a sampled response keeps the response format: what its text alone cannot say.

A response that was cut off at the limit of tokens is not finished, though its tags may happen to be closed: its end
token is missing. And a token that stands for a picture is no text: it has vanished from what experts and grader read.
"""

from collections.abc import Collection

from prism.wire.response import parse_response
from prism.wire.v1 import rollout_pb2 as pb

CUT_OFF = "cut off at the limit of tokens"
NO_TEXT = "holds a token that stands for a picture"
JUDGED = (pb.STATUS_OK, pb.STATUS_INVALID_FORMAT, pb.STATUS_UNPARSEABLE_ANSWER)


def sample_problems(sample: pb.Sample, never: Collection[int] = ()) -> tuple[str, ...]:
    """What breaks the format; empty for a response that is finished and well-formed. ``never``: tokens that stand for
    pictures, ``InputBuilder.vision_token_ids``."""
    cut = (CUT_OFF,) if is_cut_off(sample) else ()
    return (*cut, *((NO_TEXT,) if first_of(sample, never) is not None else ()), *parse_response(sample.text).problems)


def is_cut_off(sample: pb.Sample) -> bool:
    return sample.finish_reason == "length"


def first_of(sample: pb.Sample, never: Collection[int]) -> int | None:
    """The place of the first of these tokens among the sample's; None without one."""
    return next((place for place, token in enumerate(sample.token_ids) if token in never), None) if never else None


def refuse_reward(sample: pb.Sample, never: Collection[int] = ()) -> None:
    """A verdict on a response that is malformed for another reason than its text becomes what the grader says of
    malformed texts. One that says nothing about the response, because gold or grader failed, stays as it is."""
    problems = [problem for problem in sample_problems(sample, never) if problem in (CUT_OFF, NO_TEXT)]
    if problems and sample.HasField("verdict") and sample.verdict.status in JUDGED:
        shown = sample.verdict.extracted
        sample.verdict.CopyFrom(
            pb.Verdict(
                status=pb.STATUS_INVALID_FORMAT,
                accuracy=0,
                format=0,
                reward=0,
                extracted=shown,
                detail="; ".join(problems),
            )
        )
