"""`end_padding` and `clean_history`, ours, for block-wise decoding; `answer_padding`, LLaDA's."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from tests.conftest import audio, chat, gen, pack, text
from ttt.data.encode import encode_example
from ttt.diffusion.strategies import AnswerPadding, CleanHistory, EndPadding
from ttt.errors import DataError
from ttt.types import Example, Kind, Turn


@pytest.fixture
def stream(tokenizer):
    example = chat(
        "a", [audio([1, 2], "user")], [text("yes"), audio([3, 4, 5], "span"), text("no"), audio([6, 7, 8, 9], "last")]
    )
    return encode_example(example, tokenizer)


def test_end_token_is_repeated_behind_the_last_span_only(stream, vocab):
    sizes = Counter()
    for seed in range(400):
        longer = EndPadding(p=1.0, maximum=3).on_stream(stream, np.random.default_rng(seed))
        extra = len(longer) - len(stream)
        sizes[extra] += 1
        ends = np.flatnonzero(longer.ids == vocab.eoa_last_id)
        assert len(ends) == 1 + extra and (np.diff(ends) == 1).all()
        kept = np.delete(longer.ids, ends[1:])
        assert kept.tolist() == stream.ids.tolist()
        assert longer.target[ends].all() and (longer.kind[ends] == Kind.AUDIO).all()
        assert len(set(longer.run_id[ends].tolist())) == 1
        assert [s.start for s in longer.segments] == [s.start for s in stream.segments]
        assert longer.segments[-1].turn_stop == len(longer)
    assert set(sizes) == {0, 1, 2, 3} and min(sizes.values()) > 60


def test_end_padding_fills_a_span_up_to_a_length(stream, vocab):
    last = int(np.flatnonzero(stream.ids == vocab.eoa_last_id)[0])
    for length, extra in ((9, 4), (5, 0), (3, 0)):  # four codes and their end
        strategy = EndPadding(p=1.0, length=length)
        longer = strategy.on_stream(stream, np.random.default_rng(0))
        assert len(longer) - len(stream) == extra == strategy.growth(stream)
        assert (longer.ids[last : last + extra + 1] == vocab.eoa_last_id).all()
    with pytest.raises(ValueError, match="length: must be >= 0"):
        EndPadding(length=-1)


def test_end_padding_leaves_open_and_text_only_answers(tokenizer):
    strategy = EndPadding(p=1.0, maximum=3)
    for spans in ([text("yes")], [text("yes"), audio([1, 2, 3], "open_last")]):
        one = encode_example(chat("a", [text("hm")], spans), tokenizer)
        assert strategy.growth(one) == 0
        assert strategy.on_stream(one, np.random.default_rng(0)) is one


def test_answers_are_filled_up_to_their_length(stream, tokenizer):
    answer = int(stream.target.sum())
    strategy = AnswerPadding(length=answer + 7)
    longer = strategy.on_stream(stream, np.random.default_rng(0))
    assert strategy.growth(stream) == 7 == len(longer) - len(stream)
    assert longer.ids[: len(stream)].tolist() == stream.ids.tolist() and (longer.ids[-8:] == stream.ids[-1]).all()
    assert longer.target[-8:].all() and longer.noisable[-8:].all() and (longer.kind[-7:] == Kind.TEXT).all()
    assert longer.segments[-1].turn_stop == len(longer) and longer.segments[0] == stream.segments[0]
    assert int(longer.target.sum()) == answer + 7
    again = AnswerPadding(length=answer)
    assert again.growth(stream) == 0 and again.on_stream(stream, np.random.default_rng(0)) is stream


def test_only_the_last_answer_of_a_chat_counts(tokenizer):
    turns = (("user", "hm"), ("assistant", "yes yes yes"), ("user", "oh"), ("assistant", "no"))
    stream = encode_example(Example("a", tuple(Turn(role, (text(words),)) for role, words in turns)), tokenizer)
    last = len(stream) - 1 - int((~stream.target).nonzero()[0][-1])
    assert last < int(stream.target.sum())
    assert AnswerPadding(length=last + 3).growth(stream) == 3


def test_answer_padding_leaves_open_answers_and_documents(tokenizer):
    strategy = AnswerPadding(length=99)
    for example in (
        chat("a", [text("hm")], [text("yes"), audio([1, 2, 3], "open_last")]),
        Example("d", (Turn("document", (text("a page"),)),)),
    ):
        one = encode_example(example, tokenizer)
        assert strategy.growth(one) == 0 and strategy.on_stream(one, np.random.default_rng(0)) is one
    with pytest.raises(DataError, match="inside an audio span"):
        encode_example(chat("a", [text("hm")], [audio([1, 2], "open_last")]), tokenizer).repeat_last(2)
    with pytest.raises(ValueError, match="length: must be >= 1"):
        AnswerPadding(length=0)


def test_clean_history_keeps_a_uniform_share_of_the_last_span(stream):
    batch = pack([[stream]])
    maskable = (batch.kind == Kind.AUDIO) & batch.noisable
    left = Counter()
    for seed in range(1000):
        kept = CleanHistory(p=1.0).on_maskable(batch, maskable, gen(seed))
        assert not (kept & ~maskable).any()
        at = kept[0].nonzero().flatten()
        assert at[-1] == maskable[0].nonzero().flatten()[-1]
        assert (at[1:] - at[:-1] == 1).all()  # one stretch: earlier spans are clean
        left[len(at)] += 1
    assert set(left) == {1, 2, 3, 4, 5} and min(left.values()) > 140  # four codes and the end token


def test_clean_history_never_fires_at_zero(stream):
    batch = pack([[stream]])
    maskable = (batch.kind == Kind.AUDIO) & batch.noisable
    assert torch.equal(CleanHistory(p=0.0).on_maskable(batch, maskable, gen(1)), maskable)
