import pytest
from hypothesis import given
from hypothesis import strategies as st

from prism.errors import StreamError
from prism.trainer.flow.staleness import StalenessBound, staleness


def test_staleness_counts_updates_between_sampling_and_training() -> None:
    assert staleness(group_version=7, learner_version=7) == 0
    assert staleness(group_version=5, learner_version=7) == 2


def test_a_group_from_the_future_is_refused() -> None:
    with pytest.raises(StreamError, match="version 8 reached a learner at version 7"):
        staleness(group_version=8, learner_version=7)
    with pytest.raises(StreamError):
        StalenessBound(3).accepts(8, 7)


def test_a_negative_limit_is_refused() -> None:
    with pytest.raises(ValueError, match="must not be negative"):
        StalenessBound(-1)


def test_lock_step_asks_for_one_step_at_a_time() -> None:
    bound = StalenessBound(0)
    assert bound.admits(step=0, version=0)
    assert not bound.admits(step=1, version=0)
    assert bound.admits(step=1, version=1)
    assert bound.min_version(5) == 5
    assert bound.accepts(5, 5)
    assert not bound.accepts(4, 5)


def test_a_bound_of_two_runs_two_steps_ahead() -> None:
    bound = StalenessBound(2)
    assert [bound.admits(step, version=0) for step in range(4)] == [True, True, True, False]
    assert [bound.min_version(step) for step in range(5)] == [0, 0, 0, 1, 2]
    assert bound.admits(step=3, version=1)
    assert not bound.admits(step=4, version=1)


@given(limit=st.integers(0, 5), versions=st.integers(0, 30))
def test_whatever_is_admitted_is_never_too_old_and_the_pipeline_never_starves(limit: int, versions: int) -> None:
    bound, next_step = StalenessBound(limit), 0
    sampled_at: dict[int, int] = {}
    for version in range(versions):
        while bound.admits(next_step, version):
            sampled_at[next_step] = version  # the oldest policy that can have sampled it
            next_step += 1
        assert bound.accepts(sampled_at[version], version)  # the learner trains step = version
        assert staleness(sampled_at[version], version) <= limit
