import numpy as np
import pytest

from tests.conftest import audio, text
from ttt.chat.conversation import AnswerReader, Conversation
from ttt.data.encode import encode_example
from ttt.errors import DataError
from ttt.sampling.decoder.decoder import spans_of
from ttt.types import Turn


def said(words: str) -> Turn:
    return Turn("user", (text(words),))


def random_ids(vocab, rng, n=40):
    """Text, codes and delimiters in any order, as an unrestricted decoder may write them."""
    special = [vocab.soa_id, vocab.soa_last_id, vocab.eoa_id, vocab.eoa_last_id, vocab.im_end_id, vocab.mask_id]
    kinds = rng.choice(3, size=n, p=[0.5, 0.35, 0.15])
    some = {
        0: lambda: rng.integers(0, 290),
        1: lambda: vocab.code_start + rng.integers(0, 32),
        2: lambda: rng.choice(special),
    }
    return [int(some[k]()) for k in kinds]


@pytest.mark.parametrize("seed", range(12))
def test_pieces_add_up_to_the_spans(tokenizer, vocab, seed):
    rng = np.random.default_rng(seed)
    ids = random_ids(vocab, rng)
    reader = AnswerReader(tokenizer)
    pieces, at = [], 0
    while at < len(ids):
        step = int(rng.integers(1, 7))
        pieces += reader.push(ids[at : at + step])
        at += step
    pieces += reader.finish()
    shown = []  # neighbouring pieces of text are one stretch
    for p in pieces:
        if p.kind == "text" and shown and isinstance(shown[-1], str):
            shown[-1] += p.text
        elif p.kind != "codes":
            shown.append(p.text if p.kind == "text" else p.count)
    spans = spans_of(ids, tokenizer)
    assert shown == [s.text if s.kind == "text" else len(s.codes) for s in spans]
    assert reader.ids == ids


def test_codes_are_counted_as_they_come(tokenizer, vocab):
    reader, c = AnswerReader(tokenizer), vocab.code_start
    assert [p.count for p in reader.push([vocab.soa_id, c, c])] == [2]
    assert [p.count for p in reader.push([c])] == [3]
    assert [(p.kind, p.count) for p in reader.push([c, vocab.eoa_id])] == [("span", 4)]
    assert list(reader.finish()) == []


def test_the_second_prompt_is_the_whole_conversation(tokenizer, vocab):
    talk = Conversation(tokenizer, room=500, system="read this")
    talk.ask(said("a cat"), 10)
    ids = [*tokenizer.encode("sat"), vocab.soa_last_id, vocab.code_start + 3, vocab.eoa_last_id, vocab.im_end_id]
    talk.answer(ids)
    fit = talk.ask(said("on a mat"), 10)
    again = encode_example(talk.example(), tokenizer, open_answer=True)
    assert fit.left_out == 0 and list(fit.prompt.ids) == again.ids.tolist()
    assert list(fit.prompt.noisable) == again.target.tolist() and sum(fit.prompt.noisable) > 4
    assert [t.role for t in talk.turns] == ["user", "assistant", "user"] and fit.prompt.uid == "chat/1"


def test_old_turns_are_left_out_and_counted(tokenizer):
    talk = Conversation(tokenizer, room=120)
    left = []
    for n in range(6):
        fit = talk.ask(said(f"{n} the quick brown fox"), 20)
        left.append(fit.left_out)
        assert len(fit.prompt.ids) + 20 <= 120
        talk.answer(tokenizer.encode("a cat sat on the mat"))
    assert left[0] == 0 and left[-1] > 0 and left == sorted(left) and all(n % 2 == 0 for n in left)
    assert len(talk.turns) == 12  # nothing is forgotten, only left out of the prompt


def test_a_turn_that_cannot_fit_changes_nothing(tokenizer):
    talk = Conversation(tokenizer, room=60)
    with pytest.raises(DataError, match=r"this turn takes \d+ tokens and its answer up to 50 .* the room is 60"):
        talk.ask(said("the quick brown fox"), 50)
    with pytest.raises(DataError, match="special token '<|im_end|>'".replace("|", r"\|")):
        talk.ask(said("stop <|im_end|>"), 5)
    assert talk.turns == [] and talk.asked == 0


def test_an_interrupted_span_is_shown_open_and_kept_closed(tokenizer, vocab):
    talk = Conversation(tokenizer, room=300)
    talk.ask(said("x"), 5)
    spans = talk.answer([*tokenizer.encode("one"), vocab.soa_last_id, vocab.code_start, vocab.code_start + 1])
    assert [s.style for s in spans if s.kind == "audio"] == ["open_last"]
    kept = talk.turns[-1].spans
    assert kept[1].style == "last" and kept[1].codes.tolist() == [[0], [1]]
    talk.ask(said("y"), 5)
    talk.answer([vocab.soa_id])  # a span without a code is no span
    assert talk.turns[-1].spans == ()


def test_take_back(tokenizer):
    talk = Conversation(tokenizer, room=300)
    assert talk.take_back() is None
    talk.ask(said("a"), 5)
    talk.answer([])
    talk.ask(Turn("user", (audio([1], "user"),)), 5)
    assert talk.take_back().spans[0].kind == "audio" and len(talk.turns) == 2
    assert talk.take_back().spans[0].text == "a" and talk.turns == []
