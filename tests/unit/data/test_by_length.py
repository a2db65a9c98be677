"""Batches of one document a row: the quadratic rule, buckets, and what the loader promises of them."""

from __future__ import annotations

import numpy as np
import pytest

from ttt.data.batches.by_length import bucketed, counts, pooled
from ttt.data.batches.loader import Loader
from ttt.errors import ConfigError
from ttt.text.vocab import Vocabulary
from ttt.types import Kind, TokenStream

LENGTHS = np.random.default_rng(3).integers(4, 60, 400)


def cost_by_hand(n: int, q: float) -> float:
    return n + n * n / q if q else float(n)


@pytest.mark.parametrize("quadratic", [0.0, 20.0])
@pytest.mark.parametrize("buckets", [1, 4, 10])
def test_batches_hold_every_example_once_within_the_budget(buckets, quadratic):
    order = np.random.default_rng(1).permutation(len(LENGTHS)).tolist()
    cost = counts(LENGTHS, quadratic)
    assert cost.tolist() == pytest.approx([cost_by_hand(int(n), quadratic) for n in LENGTHS])
    for batches in (bucketed(order, cost, 300.0, buckets), pooled(order, cost, 300.0, 50)):
        assert sorted(i for rows in batches for row in rows for i in row) == sorted(order)
        for rows in batches:
            longest = max(cost_by_hand(int(LENGTHS[i]), quadratic) for row in rows for i in row)
            assert len(rows) == 1 or longest * len(rows) <= 300.0


def test_a_bucketed_batch_closes_exactly_where_the_next_row_would_exceed_the_budget():
    """One bucket: the rule number by number, in order."""
    lengths = np.array([10, 20, 10, 30, 10, 10, 100, 10])
    found = bucketed(range(8), counts(lengths, 100.0), 80.0, 1)  # 10: 11, 20: 24, 30: 39, 100: 200
    assert found == [[[0], [1], [2]], [[3], [4]], [[5]], [[6]], [[7]]]


def test_buckets_part_the_lengths_at_their_quantiles():
    order = np.random.default_rng(2).permutation(len(LENGTHS)).tolist()
    edges = np.quantile(LENGTHS, [0.25, 0.5, 0.75])
    for rows in bucketed(order, LENGTHS.astype(float), 200.0, 4):
        assert len({int(np.searchsorted(edges, LENGTHS[i], side="right")) for (i,) in rows}) == 1


def streams() -> list[TokenStream]:
    made = []
    for i, n in enumerate(LENGTHS):
        kind = np.full(n, int(Kind.TEXT), dtype=np.uint8)
        made.append(TokenStream(
            uid=f"e{i}", ids=np.zeros(n, dtype=np.int32), kind=kind, run_id=np.zeros(n, dtype=np.int32),
            target=np.ones(n, dtype=bool), noisable=np.ones(n, dtype=bool), segments=(), task="t", prompt_length=0,
        ))  # fmt: skip
    return made


def loader(**values) -> Loader:
    return Loader(
        streams(), vocabulary(),
        **{"row_tokens": 60, "batch_tokens": 300, "seed": 5, "pack": False, "buckets": 5, "quadratic": 60.0, **values},
    )  # fmt: skip


def vocabulary() -> Vocabulary:
    from ttt.text.tokenizer import train_bpe

    return train_bpe(["a b c"], 300, 8).vocab


def test_ranks_share_the_batches_of_one_process_equally():
    alone = loader(accumulate=4)
    ranks = [loader(rank=r, world=2, accumulate=2) for r in range(2)]
    assert all(r.updates_per_epoch == alone.updates_per_epoch for r in ranks)
    for update in (0, 3, alone.updates_per_epoch + 1):
        whole = [alone.micro_batch(update, i).uids for i in range(4)]
        shared = [ranks[n % 2].micro_batch(update, n // 2).uids for n in range(4)]
        assert whole == shared


def test_any_update_is_at_hand_and_epochs_differ():
    first, again = loader(), loader()
    far = 7 * first.updates_per_epoch + 2
    for update in range(5):
        first.micro_batch(update, 0)
    assert first.micro_batch(far, 0).uids == again.micro_batch(far, 0).uids
    epochs = [[first.micro_batch(e * first.updates_per_epoch + u, 0).uids for u in range(10)] for e in range(2)]
    assert epochs[0] != epochs[1]


def test_prefetching_does_not_change_the_batches():
    from ttt.data.batches.prefetch import Prefetcher

    plain, ahead = loader(), Prefetcher(loader(), 1, 3)
    assert [ahead.micro_batch(u, 0).uids for u in range(6)] == [plain.micro_batch(u, 0).uids for u in range(6)]


def test_the_policy_is_refused_for_packed_rows():
    with pytest.raises(ConfigError, match="data.buckets, data.quadratic_tokens: they are for one document a row"):
        loader(pack=True)
