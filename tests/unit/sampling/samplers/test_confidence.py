"""Samplers that commit as many tokens a call as they are certain of."""

import math

import pytest

from tests.unit.sampling.samplers.toy_logits import Sure, build, fill, request
from ttt.errors import ConfigError
from ttt.registry.families import SAMPLER


def opened(sampler, predict, limit):
    fill(sampler, request(predict, limits=(limit,)))
    return predict.open


def test_threshold_commits_all_that_are_certain_and_at_least_one():
    sampler = build("threshold", block_length=6, gen_length=6, threshold=0.8)
    got = opened(sampler, Sure([0.6, 0.9, 0.7, 0.95, 0.81, 0.5]), 5)  # place 5 holds the forced end
    assert got == [[0, 1, 2, 3, 4], [0, 2], [0]]


@pytest.mark.parametrize("threshold, calls", [(1.0, 5), (0.0, 1), (0.65, 2)])
def test_threshold_and_number_of_calls(threshold, calls):
    sampler = build("threshold", block_length=6, gen_length=6, threshold=threshold)
    assert len(opened(sampler, Sure([0.6, 0.9, 0.7, 0.95, 0.81, 0.5]), 5)) == calls


@pytest.mark.parametrize("factor", [0.05, 0.31, 0.5, 1.0, 3.0])
def test_factor_rule_against_its_definition(factor):
    confidences = [0.6, 0.9, 0.7, 0.95, 0.81]
    sampler = build("threshold", block_length=6, gen_length=6, factor=factor)
    for open_, left in zip(steps := opened(sampler, Sure([*confidences, 0.5]), 5), steps[1:] + [[]], strict=True):
        ordered = sorted((confidences[i] for i in open_), reverse=True)
        passing = [n for n, c in enumerate(ordered, 1) if (n + 1) * (1 - c) < factor]
        assert len(open_) - len(left) == max([1, *passing])


@pytest.mark.parametrize(
    "guard, steps", [(True, [[0, 1, 2, 3, 4], [0, 2, 3], [2, 3], [3]]), (False, [[0, 1, 2, 3, 4], [0, 2], [2]])]
)
def test_end_guard_of_threshold(guard, steps):
    """Place 3 is a certain end, 0 and 2 before it are uncertain: a guarded end waits for both."""
    sampler = build("threshold", block_length=6, gen_length=6, threshold=0.9, end_guard=guard)
    got = opened(sampler, Sure([0.7, 0.95, 0.6, 0.99, 0.98, 0.5], ends=(3,)), 5)
    assert got[: len(steps)] == steps and len(got) <= len(steps)


def test_guarded_end_goes_with_everything_before_it():
    sampler = build("threshold", block_length=6, gen_length=6, threshold=0.9)
    assert len(opened(sampler, Sure([0.95, 0.95, 0.92, 0.99, 0.98, 0.5], ends=(3,)), 5)) == 1


def test_entropy_as_threshold():
    sampler = build("threshold", block_length=6, gen_length=6, remask="entropy", threshold=-0.4)
    confidences = [0.6, 0.9, 0.7, 0.95, 0.81, 0.5]
    left = [i for i in range(5) if entropy(confidences[i]) > 0.4]
    assert opened(sampler, Sure(confidences), 5)[1] == left


def entropy(p):
    return -(p * math.log(p) + (1 - p) * math.log(1 - p))


@pytest.mark.parametrize("gamma", [0.0, 0.2, 0.31, 0.6, 1.2, 9.0])
def test_entropy_bound_against_its_definition(gamma):
    """EB-Sampler: the most places, least entropy first, whose entropies but for the greatest sum to at most gamma."""
    confidences = [0.6, 0.9, 0.7, 0.95, 0.81]
    sampler = build("entropy_bound", block_length=6, gen_length=6, gamma=gamma)
    for open_, left in zip(steps := opened(sampler, Sure([*confidences, 0.5]), 5), steps[1:] + [[]], strict=True):
        h = sorted(entropy(confidences[i]) for i in open_)
        count = max(n for n in range(1, len(h) + 1) if sum(h[:n]) - max(h[:n]) <= gamma)
        assert set(open_) - set(left) == set(sorted(open_, key=lambda i: entropy(confidences[i]))[:count])


def test_entropy_bound_guards_the_end_as_the_threshold_does():
    sampler = build("entropy_bound", block_length=6, gen_length=6, gamma=0.35)
    got = opened(sampler, Sure([0.7, 0.95, 0.6, 0.99, 0.98, 0.5], ends=(3,)), 5)
    assert got == [[0, 1, 2, 3, 4], [0, 2, 3], [2, 3]]


@pytest.mark.parametrize("fields, pattern", [
    ({"gamma": -0.1}, "gamma: must be >= 0"), ({"remask": "low_confidence"}, "remask must be entropy"),
])  # fmt: skip
def test_impossible_entropy_bounds(fields, pattern):
    with pytest.raises(ConfigError, match=f"^s[.:].*{pattern}"):
        SAMPLER.build({"name": "entropy_bound", **fields}, "s")


@pytest.mark.parametrize(
    "fields, pattern",
    [
        ({"threshold": 1.5}, r"must lie in \[0, 1\]"), ({"factor": -1.0}, "factor: must be >= 0"),
        ({"factor": 1.0, "remask": "entropy"}, "remask must be low_confidence"),
    ],
)  # fmt: skip
def test_impossible_thresholds(fields, pattern):
    with pytest.raises(ConfigError, match=f"^s[.:].*{pattern}"):
        build("threshold", **fields)
