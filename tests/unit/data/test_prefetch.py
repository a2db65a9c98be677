import threading

import numpy as np
import pytest
import torch

from tests.conftest import random_streams
from ttt.data.batches.loader import Loader
from ttt.data.batches.prefetch import Prefetcher
from ttt.diffusion.strategies import Sst
from ttt.errors import ConfigError


@pytest.fixture
def loader(vocab):
    streams = [s for s in random_streams(5, 70, 20) if len(s) <= 110]
    return Loader(streams, vocab, row_tokens=110, batch_tokens=220, seed=3, accumulate=2, strategies=(Sst(p=1.0),))


def same(a, b):
    return a.uids == b.uids and torch.equal(a.ids, b.ids) and torch.equal(a.doc, b.doc)


def test_in_order_and_out_of_order_the_source_s_batches(loader):
    ahead = Prefetcher(loader, 2, 3)
    wanted = [(u, i) for u in range(6) for i in range(2)]
    wanted += [tuple(w) for w in np.random.default_rng(0).permutation(wanted).tolist()]
    found = [ahead.micro_batch(*at) for at in wanted]
    ahead.close()
    assert all(same(b, loader.micro_batch(*at)) for b, at in zip(found, wanted, strict=True))
    assert ahead.digest == loader.digest and ahead.epoch_of(3) == loader.epoch_of(3)


class Watched:
    """Counts calls; waits until it may go on."""

    digest = "d"

    def __init__(self):
        self.calls, self.threads, self.go = [], set(), threading.Event()

    def micro_batch(self, update, index):
        self.go.wait(5)
        self.calls.append((update, index))
        self.threads.add(threading.get_ident())
        if update == 2:
            raise ValueError("update 2 is broken")
        return update, index

    def epoch_of(self, update):
        return 0.0


def test_what_comes_next_is_under_way_and_no_more():
    source = Watched()
    source.go.set()
    ahead = Prefetcher(source, 2, 3)
    assert ahead.micro_batch(0, 0) == (0, 0)
    ahead._worker.submit(lambda: None).result()  # whatever was asked for is done
    assert source.calls == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert ahead.micro_batch(0, 1) == (0, 1) and ahead.micro_batch(1, 0) == (1, 0)
    assert len(source.threads) == 1 and threading.get_ident() not in source.threads
    ahead.close()


def test_errors_appear_where_their_batch_is_asked_for():
    source = Watched()
    source.go.set()
    ahead = Prefetcher(source, 1, 4)
    assert ahead.micro_batch(0, 0) == (0, 0) and ahead.micro_batch(1, 0) == (1, 0)
    with pytest.raises(ValueError, match="update 2 is broken"):
        ahead.micro_batch(2, 0)
    assert ahead.micro_batch(3, 0) == (3, 0)
    ahead.close()


def test_depth_is_checked():
    with pytest.raises(ConfigError, match="data.prefetch: must be >= 1"):
        Prefetcher(Watched(), 1, 0)
