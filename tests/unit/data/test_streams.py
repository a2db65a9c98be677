"""Sources: subsets and mixtures show what they say, and say what they hold."""

import numpy as np
import pytest

from tests.conftest import random_streams
from ttt.data.batches.loader import Loader
from ttt.data.sources.streams import InMemory, Joined, Mixture, as_streams, streams_digest
from ttt.errors import DataError


@pytest.fixture(scope="module")
def streams():
    return random_streams(3, 60)


def test_a_list_as_a_source(streams):
    source = as_streams(streams)
    assert as_streams(source) is source
    assert len(source) == 60 and list(source) == streams and source[-1] is streams[-1] and source[2:4] == streams[2:4]
    assert source.lengths.tolist() == [len(s) for s in streams] and source.digest == streams_digest(streams)
    with pytest.raises(IndexError):
        source[60]


def test_subset_and_joined(streams):
    source = Joined([InMemory(streams[:20]), InMemory(streams[20:])])
    assert [s.uid for s in source] == [s.uid for s in streams]
    kept = np.array([50, 3, 19, 20])
    some = source.subset(kept)
    assert [s.uid for s in some] == [streams[i].uid for i in kept] and some.lengths.tolist() == [
        len(streams[i]) for i in kept
    ]
    assert [s.uid for s in some.subset(np.array([2, 0]))] == [streams[19].uid, streams[50].uid]
    assert len({source.digest, some.digest, source.subset(kept[::-1]).digest}) == 3


@pytest.mark.parametrize("weights", [(1, 1, 1), (5, 1, 1), (1, 0, 2), (0.02, 1, 1)])
def test_mixture_gives_shares_of_tokens(streams, weights):
    parts = [InMemory(streams[:6]), InMemory(streams[6:30]), InMemory(streams[30:])]
    mix = Mixture(parts, weights)
    total = mix.lengths.sum()
    shown = [mix.epoch(e) for e in range(40)]
    owner = np.repeat([0, 1, 2], [6, 24, 30])
    tokens = np.mean([np.bincount(owner[s], mix.lengths[s], minlength=3) for s in shown], axis=0)
    assert np.allclose(tokens / tokens.sum(), np.array(weights) / sum(weights), atol=0.02), "averaged over epochs"
    assert abs(tokens.sum() / total - 1) < 0.05, "an epoch is as long as all sources together"
    for s in shown[:5]:
        for part in range(3):
            seen = np.bincount(s[owner[s] == part], minlength=60)[owner == part]
            assert len(seen) == 0 or seen.max() - seen.min() <= 1, (
                "no example is shown twice before all were shown once"
            )
    assert np.array_equal(shown[3], mix.epoch(3)) and not np.array_equal(shown[0], shown[1]) or weights[0] == weights[1]


def test_mixture_of_fewer_examples_is_still_that_mixture(streams):
    mix = Mixture([InMemory(streams[:30]), InMemory(streams[30:])], (3, 1))
    some = mix.subset(np.arange(0, 60, 2))
    assert isinstance(some, Mixture) and [len(p) for p in some.parts] == [15, 15] and some.weights == mix.weights
    assert [s.uid for s in some] == [s.uid for s in streams[::2]]
    for weights in ((0, 0), (1, -1)):
        with pytest.raises(DataError, match="weights >= 0"):
            Mixture(mix.parts, weights)


def test_loader_shows_an_epoch_of_the_mixture(streams, vocab):
    mix = Mixture([InMemory(streams[:10]), InMemory(streams[10:])], (1, 1))
    loader = Loader(mix, vocab, row_tokens=200, batch_tokens=200, seed=1)
    for epoch in range(2):
        uids = []
        for update in range(loader.updates_per_epoch):
            uids += loader.micro_batch(epoch * loader.updates_per_epoch + update, 0).uids
        expected = [mix[int(i)].uid for i in mix.epoch(epoch)]
        missing = len(expected) - len(uids)
        assert 0 <= missing <= len(expected) // 5 and all(uids.count(u) <= expected.count(u) for u in uids)
