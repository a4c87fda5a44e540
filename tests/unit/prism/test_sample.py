"""What breaks a sampled response's format, beside its text: that it was cut off, or that a picture's token is in it."""

import pytest

from prism.wire.sample import CUT_OFF, NO_TEXT, refuse_reward, sample_problems
from prism.wire.v1 import rollout_pb2 as pb

WHOLE = "<caption>- a seven</caption><think>7</think><answer>7</answer>"
PICTURES = frozenset({90, 91})


@pytest.mark.parametrize(
    ("sample", "problems"),
    [
        (pb.Sample(text=WHOLE, token_ids=[1, 2], finish_reason="stop"), ()),
        (pb.Sample(text=WHOLE), ()),  # a row's own response, which nobody sampled
        (pb.Sample(text=WHOLE, token_ids=[1, 2], finish_reason="length"), (CUT_OFF,)),
        (pb.Sample(text=WHOLE, token_ids=[1, 91, 2], finish_reason="stop"), (NO_TEXT,)),
        (pb.Sample(text="7", token_ids=[90], finish_reason="length"), (CUT_OFF, NO_TEXT)),
    ],
)
def test_a_response_is_well_formed_if_it_is_whole_and_all_of_it_is_text(
    sample: pb.Sample, problems: tuple[str, ...]
) -> None:
    found = sample_problems(sample, PICTURES)
    assert found[: len(problems)] == problems
    assert bool(found[len(problems) :]) is (sample.text == "7")
    assert NO_TEXT not in sample_problems(sample)


VERDICTS = {
    "right": pb.Verdict(status=pb.STATUS_OK, accuracy=1, format=1, reward=1, extracted="7"),
    "masked": pb.Verdict(status=pb.STATUS_UNPARSEABLE_ANSWER, extracted="7"),
    "bad gold": pb.Verdict(status=pb.STATUS_UNPARSEABLE_GOLD),
    "no grader": pb.Verdict(status=pb.STATUS_ERROR, detail="away"),
    "late": pb.Verdict(status=pb.STATUS_TIMEOUT),
}


@pytest.mark.parametrize("tokens", [[1, 2], [1, 90]], ids=["cut off", "picture"])
@pytest.mark.parametrize("given", VERDICTS)
def test_what_is_malformed_earns_what_malformed_texts_earn(given: str, tokens: list[int]) -> None:
    cut = pb.Sample(text=WHOLE, token_ids=tokens, verdict=VERDICTS[given])
    cut.finish_reason = "length" if tokens == [1, 2] else "stop"
    refuse_reward(cut, PICTURES)
    if given in ("right", "masked"):
        verdict = cut.verdict
        assert (verdict.status, verdict.extracted) == (pb.STATUS_INVALID_FORMAT, "7")
        named = ("accuracy", "format", "reward")
        assert [(verdict.HasField(name), getattr(verdict, name)) for name in named] == [(True, 0)] * 3
        assert verdict.detail == (CUT_OFF if tokens == [1, 2] else NO_TEXT)
    else:
        assert cut.verdict == VERDICTS[given], "a failure never becomes a number"


def test_what_is_well_formed_or_not_graded_stays_as_it_is() -> None:
    whole = pb.Sample(text=WHOLE, token_ids=[1, 2], finish_reason="stop", verdict=VERDICTS["right"])
    refuse_reward(whole, PICTURES)
    assert whole.verdict == VERDICTS["right"]
    ungraded = pb.Sample(text=WHOLE, token_ids=[1, 2], finish_reason="length")
    refuse_reward(ungraded, PICTURES)
    assert not ungraded.HasField("verdict")
    broken = pb.Sample(text="7", finish_reason="stop", verdict=VERDICTS["right"])
    refuse_reward(broken, PICTURES)
    assert broken.verdict == VERDICTS["right"], "of texts the grader is the judge"
