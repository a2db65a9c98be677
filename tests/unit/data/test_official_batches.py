"""Batches as TtT's official program makes them: so many samples each, rows that end at the longest length."""

from __future__ import annotations

import numpy as np
import pytest

from tests.conftest import audio, chat, random_streams, text, tiny_tokenizer
from ttt.data.batches.loader import Loader, fixed_batches
from ttt.data.encode import encode_example
from ttt.diffusion.strategies import Sst
from ttt.errors import ConfigError
from ttt.text.tokenizer import train_bpe
from ttt.types import Kind, Span

V = tiny_tokenizer().vocab


def streams_of(*answers):
    return [encode_example(chat(f"e{n}", [text("why")], spans), tiny_tokenizer()) for n, spans in enumerate(answers)]


@pytest.mark.parametrize("number", range(6))
def test_the_first_tokens_of_a_stream(number):
    stream = random_streams(3, 6)[number]
    for longest in range(1, len(stream) + 2):
        cut = stream.first(longest)
        n = min(longest, len(stream))
        for name in ("ids", "kind", "run_id", "target", "noisable"):
            assert np.array_equal(getattr(cut, name), getattr(stream, name)[:n])
        for s, whole in zip(cut.segments, stream.segments, strict=False):
            assert s.start == whole.start and s.stop == min(whole.stop, n) and s.turn_stop == min(whole.turn_stop, n)
            assert s.style.startswith("open") == (whole.stop >= n), "a span without its end token is open"
            assert (cut.kind[s.start : s.stop] == Kind.AUDIO).all()
        assert len(cut.segments) == sum(s.start < n for s in stream.segments)


def test_speech_of_several_codebooks_ends_with_a_whole_frame():
    tokenizer = train_bpe(["a b"], 260, 8, 3)
    codes = np.arange(18, dtype=np.int32).reshape(6, 3) % 8
    stream = encode_example(chat("e", [text("a")], [Span("audio", codes=codes, style="last")]), tokenizer)
    (segment,) = stream.segments
    for more in range(10):
        cut = stream.first(segment.start + more, frame=3)
        assert len(cut) == segment.start + more // 3 * 3 and len(cut.segments) == (more >= 3)


@pytest.mark.parametrize("pack", [True, False])
def test_rows_end_after_span_truncation(pack):
    """The strategy sees the whole span: what it keeps may be shorter or longer than the row."""
    made = streams_of([text("so"), audio([1] * 100, "last")], [text("one two")])
    prompt = made[0].segments[0].start
    row = prompt + 50
    loader = Loader(
        made, V, row_tokens=row, batch_tokens=row, seed=0, pack=pack, strategies=[Sst(p=1.0)], long_rows="truncate",
    )  # fmt: skip
    assert loader.report.truncated == 1 and ", 1 truncated" in loader.report.summary() and not loader.report.dropped
    low, high = Sst().keep_range(100)
    kept = {len(loader._stream(epoch, 0)) - prompt for epoch in range(60)}
    assert kept == {min(n, 50) for n in kept} and max(kept) == 50 and low <= min(kept) < 50 < high
    dev = fixed_batches(made, V, row, row, long_rows="truncate", pack=pack)
    assert sorted(batch.n_tokens for batch in dev) == sorted([row, len(made[1])]), "validation draws no truncation"


def test_a_row_may_hold_nothing_but_a_prompt():
    """As in the official program: it is read, and nothing of it is learned."""
    made = [*streams_of([text("so")]), encode_example(chat("long", [text("a " * 40)], [text("b")]), tiny_tokenizer())]
    loader = Loader(made, V, row_tokens=30, batch_tokens=30, seed=0, long_rows="truncate", pack=False)
    seen = {loader.micro_batch(u, 0).uids[0]: int(loader.micro_batch(u, 0).target.sum()) for u in range(2)}
    assert seen["long"] == 0 and seen["e0"] > 0


@pytest.mark.parametrize(("pack", "world"), [(True, 1), (False, 1), (True, 2)])
def test_every_micro_batch_has_so_many_samples(pack, world):
    made = random_streams(1, 50)
    longest = max(map(len, made))
    loaders = [
        Loader(made, V, row_tokens=longest, batch_tokens=0, batch_samples=4, seed=5, pack=pack, accumulate=2, rank=r, world=world)
        for r in range(world)
    ]  # fmt: skip
    updates = loaders[0].updates_per_epoch
    assert updates == 12 // (2 * world)
    seen = []
    for update in range(updates):
        for loader in loaders:
            for index in range(2):
                batch = loader.micro_batch(update, index)
                assert len(batch.uids) == 4 and batch.ids.shape[1] <= longest
                assert batch.ids.shape[0] == 4 or pack
                seen += batch.uids
    assert len(seen) == len(set(seen)) == 4 * 2 * world * updates
    assert loaders[0].micro_batch(0, 0).uids != loaders[0].micro_batch(updates, 0).uids, "the next epoch has another order"
    dev = fixed_batches(made, V, longest, 0, batch_samples=4, pack=pack)
    assert [len(b.uids) for b in dev] == [4] * 12 + [2] and sorted(u for b in dev for u in b.uids) == sorted(s.uid for s in made)
    if pack:
        assert sum(len(b.ids) for b in dev) < 50, "samples share rows where they fit"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_samples": 40}, "data.batch_samples: one update needs 1 batches of 40 examples, the data fill only 0"),
        ({"batch_samples": 2, "pack": False, "buckets": 2}, "leave them 0 with data.batch_samples"),
        ({"batch_tokens": 0}, "data.batch_tokens: 0; give it, or data.batch_samples"),
        ({"batch_tokens": 150}, "data.batch_tokens: 150 must be a multiple of data.row_tokens = 100"),
        ({"batch_tokens": 50, "pack": False}, "data.batch_tokens: 50 is less than data.row_tokens = 100, the longest row"),
    ],
)
def test_sizes_that_cannot_be_filled(options, message):
    with pytest.raises(ConfigError) as error:
        Loader(random_streams(1, 9), V, **{"row_tokens": 100, "batch_tokens": 200, "seed": 0, **options})
    assert message in str(error.value)
