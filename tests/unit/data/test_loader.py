import numpy as np
import pytest
import torch

from tests.conftest import random_streams
from ttt.data.batches.loader import Loader, fixed_batches, streams_digest
from ttt.diffusion.strategies import EndPadding, Sst
from ttt.errors import ConfigError, DataError

ROW = 110


@pytest.fixture(scope="module")
def streams():
    return [s for s in random_streams(5, 70, 20) if len(s) <= ROW]


@pytest.fixture
def make(streams, vocab):
    def one(**changes):
        settings = {"row_tokens": ROW, "batch_tokens": 2 * ROW, "seed": 3, "accumulate": 2, **changes}
        return Loader(settings.pop("streams", streams), vocab, **settings)

    return one


def flat(batch):
    return [x.tolist() for x in (batch.ids, batch.doc, batch.target, batch.position)] + [batch.uids]


def test_micro_batches_are_a_pure_function(make):
    loader = make(strategies=(Sst(p=1.0),))
    wanted = [(u, i) for u in range(3 * loader.updates_per_epoch) for i in range(2)]
    first = {at: flat(loader.micro_batch(*at)) for at in wanted}
    again = make(strategies=(Sst(p=1.0),))
    for at in np.random.default_rng(0).permutation(wanted).tolist():
        assert flat(again.micro_batch(*at)) == first[tuple(at)]


def test_other_seed_other_order(make):
    assert flat(make().micro_batch(0, 0)) != flat(make(seed=4).micro_batch(0, 0))


def test_an_epoch_shows_no_example_twice_and_epochs_differ(make, streams):
    loader = make()
    n = loader.updates_per_epoch
    epochs = [
        [x for u in range(e * n, e * n + n) for i in range(2) for x in loader.micro_batch(u, i).uids] for e in range(2)
    ]
    for seen in epochs:
        assert len(seen) == len(set(seen)) and set(seen) <= {s.uid for s in streams}
    assert epochs[0] != epochs[1]
    assert loader.epoch_of(loader.updates_per_epoch) == 1.0


def test_ranks_partition_the_rows(make):
    alone = make(accumulate=2)
    both = [make(accumulate=1, world=2, rank=r) for r in range(2)]
    assert both[0].updates_per_epoch == both[1].updates_per_epoch == alone.updates_per_epoch
    for update in range(2 * alone.updates_per_epoch):
        shards = [b.micro_batch(update, 0) for b in both]
        assert not set(shards[0].uids) & set(shards[1].uids)
        assert [flat(s) for s in shards] == [flat(alone.micro_batch(update, i)) for i in range(2)]


def test_truncation_is_drawn_anew_every_epoch(make, streams):
    loader = make(strategies=(Sst(p=1.0),))
    lengths: dict[str, set[int]] = {}
    for epoch in range(6):
        for update in range(loader.updates_per_epoch):
            batch = loader.micro_batch(epoch * loader.updates_per_epoch + update, 0)
            for number, uid in enumerate(batch.uids):
                lengths.setdefault(uid, set()).add(int((batch.doc == number).sum()))
    long = {
        s.uid
        for s in streams
        if s.segments and s.segments[-1].style == "last" and s.segments[-1].stop - s.segments[-1].start > 14
    }
    changing = [uid for uid in long & lengths.keys() if len(lengths[uid]) > 1]
    assert len(changing) > len(long & lengths.keys()) / 2
    full = {s.uid: len(s) for s in streams}
    assert all(max(found) <= full[uid] for uid, found in lengths.items())


def test_too_long_examples_are_counted_then_refused(make, streams, caplog):
    long = random_streams(9, 40, 60)
    long = [s for s in long if len(s) > ROW][:1]
    loader = make(streams=[*streams, *long], max_drop_share=0.05)
    assert loader.report.dropped == {"longer than data.row_tokens": [long[0].uid]}
    assert "1 of" in caplog.text and "left out" in caplog.text and "1 dropped" in loader.report.summary()
    with pytest.raises(
        DataError, match=rf"1 of {len(streams) + 1} examples are longer than data.row_tokens = {ROW}.*{long[0].uid}"
    ):
        make(streams=[*streams, *long], max_drop_share=0.0)


def test_impossible_settings(make):
    with pytest.raises(ConfigError, match=r"^data\.batch_tokens: 111 must be a multiple of data\.row_tokens"):
        make(batch_tokens=ROW + 1)
    with pytest.raises(ConfigError, match="one update needs 200 batches"):
        make(accumulate=200)
    with pytest.raises(DataError, match="no training examples"):
        make(streams=[])


def test_report_counts(make, streams):
    report = make().report
    assert report.tokens == sum(map(len, streams)) and report.capacity == report.rows * ROW and 0.5 < report.fill <= 1


def test_validation_batches_hold_everything_in_order(streams, vocab):
    batches = fixed_batches(streams, vocab, ROW, 3 * ROW)
    assert sorted(u for b in batches for u in b.uids) == sorted(s.uid for s in streams)
    assert all(
        torch.equal(a.ids, b.ids) for a, b in zip(batches, fixed_batches(streams, vocab, ROW, 3 * ROW), strict=True)
    )


def test_digest_sees_ids_and_targets(streams):
    from dataclasses import replace

    changed = [replace(streams[0], target=~streams[0].target), *streams[1:]]
    assert streams_digest(streams) == streams_digest(list(streams)) != streams_digest(changed)
    assert streams_digest(streams) != streams_digest(streams[1:])


def test_unpacked_rows_hold_one_document_and_batches_stay_in_budget(make, streams):
    loader = make(pack=False, accumulate=1, batch_tokens=2 * ROW)
    seen = []
    for update in range(loader.updates_per_epoch):
        batch = loader.micro_batch(update, 0)
        assert batch.ids.numel() <= 2 * ROW
        assert all(len(set(row[row >= 0].tolist())) == 1 for row in batch.doc)
        seen += batch.uids
    assert len(seen) == len(set(seen)) and set(seen) <= {s.uid for s in streams}
    assert len(seen) > 0.8 * len(streams)


def test_unpacked_batches_keep_room_for_what_strategies_add(make):
    loader = make(
        pack=False, accumulate=1, strategies=(EndPadding(p=1.0, maximum=6),), row_tokens=ROW + 6, batch_tokens=3 * ROW
    )
    for update in range(2 * loader.updates_per_epoch):
        assert loader.micro_batch(update, 0).ids.numel() <= 3 * ROW


def test_packed_rows_keep_room_for_what_strategies_add(make):
    loader = make(strategies=(EndPadding(p=1.0, maximum=6),), row_tokens=ROW + 6, batch_tokens=2 * (ROW + 6))
    for update in range(2 * loader.updates_per_epoch):
        assert loader.micro_batch(update, 1).ids.shape[1] <= ROW + 6
