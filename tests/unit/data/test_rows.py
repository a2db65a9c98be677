import numpy as np
import pytest
import torch

from tests.conftest import pack, random_streams
from ttt.data.batches.rows import collate, longest_first, pack_lengths
from ttt.errors import DataError
from ttt.types import PackedBatch


@pytest.mark.parametrize("seed", range(20))
def test_rows_hold_every_example_once_and_never_overflow(seed):
    rng = np.random.default_rng(seed)
    width = int(rng.integers(5, 200))
    lengths = rng.integers(1, width + 1, size=rng.integers(1, 300)).tolist()
    order = rng.permutation(len(lengths))
    rows = pack_lengths(lengths, width, order)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    used = [sum(lengths[i] for i in row) for row in rows]
    assert max(used) <= width
    # Best-fit: a row was only opened when no older one had room, so any two rows together exceed one row.
    assert all(a + b > width for n, a in enumerate(used) for b in used[:n])


def test_best_fit_against_an_obvious_twin():
    rng = np.random.default_rng(0)
    for _ in range(30):
        lengths = rng.integers(1, 31, size=60).tolist()
        free: list[int] = []
        for length in lengths:
            fitting = [i for i, f in enumerate(free) if f >= length]
            if fitting:
                free[min(fitting, key=lambda i: free[i])] -= length
            else:
                free.append(30 - length)
        rows = pack_lengths(lengths, 30, range(60))
        assert sorted(30 - sum(lengths[i] for i in r) for r in rows) == sorted(free)


def test_collate_keeps_every_token(vocab):
    s = random_streams(1, 6)
    rows = [s[:2], s[2:5], s[5:]]
    batch = pack(rows)
    assert batch.n_tokens == sum(map(len, s)) and batch.uids == tuple(x.uid for x in s) and batch.n_docs == 6
    for number, stream in enumerate(s):
        at = batch.doc == number
        assert batch.ids[at].tolist() == stream.ids.tolist() and batch.kind[at].tolist() == stream.kind.tolist()
        assert batch.run_id[at].tolist() == stream.run_id.tolist() and batch.target[at].tolist() == stream.target.tolist()
        assert batch.position[at].tolist() == list(range(len(stream)))
    empty = batch.doc == -1
    assert torch.equal(empty, ~batch.visible) and (batch.ids[empty] == vocab.pad_id).all()
    assert not (batch.target | batch.noisable)[empty].any() and (batch.kind[empty] == 0).all()


def test_width_is_the_longest_row_and_overflow_is_refused(vocab):
    s = random_streams(2, 2)
    assert collate([[s[0]], [s[1]]], 500, 0, 1).ids.shape[1] == max(map(len, s))
    with pytest.raises(ValueError, match="row 0 holds more than"):
        collate([s], max(map(len, s)), 0, 1)


def test_batches_check_their_shapes():
    x = torch.zeros(1, 3, dtype=torch.long)
    with pytest.raises(DataError, match="must share one"):
        PackedBatch(x, x, x, x, x, x, x, x[:, :2], 1, 9)


def test_the_longest_first_in_pools_keep_every_example_and_fill_better():
    rng = np.random.default_rng(0)
    lengths = (rng.gamma(2.0, 150.0, size=2000).astype(int) + 20).clip(max=2048)
    order = rng.permutation(2000)
    first = longest_first(lengths, order, 32 * 2048)
    assert sorted(first) == list(range(2000)) and first != sorted(first, key=lambda i: -lengths[i])
    fills = [lengths.sum() / (len(pack_lengths(lengths, 2048, o)) * 2048) for o in (order, first)]
    assert fills[1] > 0.99 and fills[1] > fills[0]
