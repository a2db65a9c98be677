"""Pieces of text put together are the text, and no piece ends inside a character."""

import numpy as np
import pytest

from tests.conftest import tiny_tokenizer
from ttt.text.delta import INCOMPLETE, TextStream

T = tiny_tokenizer()


def pieces(ids):
    stream = TextStream(T)
    return [*(stream.push(i) for i in ids), stream.finish()]


@pytest.mark.parametrize(
    "text",
    [
        "a cat sat",
        "naïve café",
        "你好，世界",
        "emoji 👩‍👩‍👧 and 🏳️‍🌈!",
        " two  spaces\n\nlines ",
        "\ufffd literal \ufffd",
        "",
    ],
)
def test_pieces_are_the_text_and_whole_characters(text):
    ids = T.encode(text)
    got = pieces(ids)
    assert "".join(got) == T.decode(ids)
    if INCOMPLETE not in text:
        assert not any(INCOMPLETE in p for p in got)
        whole = 0  # the text is given out as soon as its bytes are there
        for n, piece in enumerate(got[:-1], 1):
            whole += len(piece)
            sofar = T.decode(ids[:n])
            assert sofar.endswith(INCOMPLETE) or whole == len(sofar)


def test_any_bytes_at_all():
    """Ids whose bytes are no text: the replacement characters are those of decoding in one go."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        ids = rng.integers(0, T.vocab.audio_start, size=rng.integers(1, 12)).tolist()
        assert "".join(pieces(ids)) == T.decode(ids)


def test_special_tokens_are_no_text_and_a_stream_begins_anew():
    ids = [*T.encode("hi"), T.vocab.im_end_id]
    stream = TextStream(T)
    assert "".join(stream.push(i) for i in ids) == "hi" and stream.finish() == ""
    assert "".join(stream.push(i) for i in T.encode("you")) == "you"


def test_few_ids_are_decoded_at_a_time():
    longest = 0

    class Counts:
        def decode(self, ids):
            nonlocal longest
            longest = max(longest, len(ids))
            return T.decode(ids)

    stream = TextStream(Counts())
    for token in T.encode("the quick brown fox jumps over the lazy dog " * 20):
        stream.push(token)
    assert longest <= 4
