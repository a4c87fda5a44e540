"""Runs of policy versions: added up, refused where they do not, and read from entries of before there were any."""

import pytest

from prism.errors import StreamError
from prism.streams.keys import parse_group
from prism.wire.v1 import rollout_pb2 as pb
from prism.wire.versions import Changes, is_mixed, newest, oldest


def group(version: int, *runs: tuple[int, int]) -> pb.RolloutGroup:
    """Of a sample of three tokens."""
    versions = [pb.VersionRun(policy_version=number, tokens=tokens) for number, tokens in runs]
    sample = pb.Sample(text="x", token_ids=[1, 2, 3], logprobs=[-1.0] * 3, versions=versions)
    return pb.RolloutGroup(policy_version=version, prompt_token_ids=[5], samples=[sample])


def pairs(changes: Changes, choice: int, tokens: int) -> list[tuple[int, int]]:
    return [(run.policy_version, run.tokens) for run in changes.runs(choice, tokens)]


def test_runs_cover_the_tokens_and_none_is_empty() -> None:
    changes = Changes(version=4, later={1: [(5, 0), (6, 3), (7, 8)]})
    assert pairs(changes, 0, 9) == [(4, 9)]
    assert pairs(changes, 1, 9) == [(5, 3), (6, 5), (7, 1)]
    assert pairs(changes, 1, 8) == [(5, 3), (6, 5)], "it ended where the last weights came"
    with pytest.raises(StreamError, match=r"choice 1 of 7 tokens changes its policy version at \[.*\(7, 8\)\]"):
        changes.runs(1, 7)
    with pytest.raises(StreamError, match="choice 0 of 9 tokens"):
        Changes(version=4, later={0: [(5, 6), (6, 5)]}).runs(0, 9)


@pytest.mark.parametrize("runs", [[], [(7, 3)], [(7, 1), (8, 2)]])
def test_what_adds_up_is_taken(runs: list[tuple[int, int]]) -> None:
    made = group(7, *runs)
    assert parse_group(made.SerializeToString()) == made
    assert oldest(made, made.samples[0]) == 7
    assert newest(made) == max(number for number, _ in [*runs, (7, 0)])
    assert is_mixed(made.samples[0]) == (len(runs) > 1)


@pytest.mark.parametrize(
    ("version", "runs", "message"),
    [
        (7, [(7, 2)], "sample 0 has 3 tokens, its runs of policy versions 7: 2 have 2"),
        (7, [(7, 2), (8, 2)], "sample 0 has 3 tokens, its runs of policy versions 7: 2, 8: 2 have 4"),
        (7, [(7, 3), (8, 0)], "sample 0 has 3 tokens, its runs of policy versions 7: 3, 8: 0 have 3"),
        (8, [(7, 1), (8, 2)], "the group is of policy version 8, its oldest token of 7"),
        (6, [(7, 1), (8, 2)], "the group is of policy version 6, its oldest token of 7"),
    ],
)
def test_what_does_not_add_up_is_refused(version: int, runs: list[tuple[int, int]], message: str) -> None:
    with pytest.raises(StreamError) as refused:
        parse_group(group(version, *runs).SerializeToString())
    assert str(refused.value) == message


def test_an_entry_of_an_earlier_release_is_of_its_groups_version() -> None:
    body = bytes.fromhex("180722010528") + b""  # policy_version 7, prompt_token_ids [5], then samples
    body = body[:-1] + b"\x2a\x0e" + b"\x0a\x01x\x12\x01\x01\x1a\x04\x00\x00\x80\xbf\x22\x00"
    made = parse_group(body)
    assert (list(made.samples[0].token_ids), list(made.samples[0].versions), newest(made)) == ([1], [], 7)
