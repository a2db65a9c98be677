import numpy as np
import pytest

from tests.conftest import audio, chat, random_streams, text
from ttt.data.encode import encode_example
from ttt.errors import DataError
from ttt.types import Example, Kind, Turn, audio_runs


@pytest.fixture(scope="module")
def example():
    return chat(
        "u", [text("hi"), audio([1, 2], "user")], [text("yes"), audio([3, 4], "span"), text(" so"), audio([5, 6, 7], "last")],
        system="be kind",
    )  # fmt: skip


def test_ids_are_the_pieces_one_after_another(tokenizer, vocab, example):
    v, e, c = vocab, tokenizer.encode, vocab.code_start
    expected = [
        v.im_start_id, *e("system"), *e("\n"), *e("be kind"), v.im_end_id, *e("\n"),
        v.im_start_id, *e("user"), *e("\n"), *e("hi"), v.soa_id, c + 1, c + 2, v.user_end_id, v.im_end_id, *e("\n"),
        v.im_start_id, *e("assistant"), *e("\n"), *e("yes"), v.soa_id, c + 3, c + 4, v.eoa_id, *e(" so"),
        v.soa_last_id, c + 5, c + 6, c + 7, v.eoa_last_id, v.im_end_id, *e("\n"),
    ]  # fmt: skip
    assert encode_example(example, tokenizer).ids.tolist() == expected


def test_kinds_runs_and_targets(tokenizer, vocab, example):
    s = encode_example(example, tokenizer)
    assert np.array_equal(s.kind == Kind.AUDIO, s.ids >= vocab.audio_start)
    text_tokens = np.array([int((s.kind[: i + 1] == Kind.TEXT).sum()) for i in range(len(s))])
    assert np.array_equal(s.run_id, text_tokens)
    first = (
        np.flatnonzero(s.ids == vocab.im_start_id)[-1]
        + 1
        + len(tokenizer.encode("assistant"))
        + len(tokenizer.encode("\n"))
    )
    assert np.flatnonzero(s.target).tolist() == list(range(first, len(s)))
    assert np.array_equal(s.noisable, s.target) and s.prompt_length == first - 1 - len(
        tokenizer.encode("assistant")
    ) - len(tokenizer.encode("\n"))


def test_segments_point_at_the_codes(tokenizer, vocab, example):
    s = encode_example(example, tokenizer)
    codes = [vocab.codes(s.ids[g.start : g.stop])[:, 0].tolist() for g in s.segments]
    assert codes == [[1, 2], [3, 4], [5, 6, 7]]
    assert [(g.style, g.target) for g in s.segments] == [("user", False), ("span", True), ("last", True)]
    assert s.ids[s.segments[1].stop] == vocab.eoa_id and s.segments[2].turn_stop == len(s)
    assert s.ids[s.segments[0].turn_stop] == vocab.im_start_id


def two_turns():
    turns = []
    for n in range(2):
        turns += [Turn("user", (audio([n], "user"),)), Turn("assistant", (text("a"), audio([n, n], "last")))]
    return Example("m", tuple(turns))


def test_prompt_rule_official_is_the_reference_quirk(tokenizer):
    labels = encode_example(two_turns(), tokenizer)
    official = encode_example(two_turns(), tokenizer, prompt_rule="official")
    assert np.array_equal(labels.target, official.target) and np.array_equal(labels.ids, official.ids)
    assert np.array_equal(official.noisable, np.arange(len(official)) >= official.prompt_length)
    assert not np.array_equal(official.noisable, labels.noisable), (
        "with several turns the boundary lies inside the dialogue"
    )


def test_open_answer_marks_content(tokenizer, example):
    prompt = Example(example.uid, example.turns[:-1])
    s = encode_example(prompt, tokenizer, open_answer=True)
    full = encode_example(example, tokenizer)
    assert full.ids[: len(s)].tolist() == s.ids.tolist() and not s.target.any() and full.target[len(s)]
    number = len(tokenizer.encode("be kind")) + len(tokenizer.encode("hi")) + 4
    assert s.content.sum() == number and full.content is None


def test_documents_are_all_target(tokenizer):
    s = encode_example(Example("d", (Turn("document", (text("once"), audio([1, 2], "span"))),)), tokenizer)
    assert s.target.all() and s.noisable.all() and s.prompt_length == 0


def test_refusals(tokenizer):
    with pytest.raises(DataError, match="example 'u', user turn: code 32 at frame 0 is outside the codebook of 32"):
        encode_example(chat("u", [audio([32], "user")], [text("a")]), tokenizer)
    spelled = chat("u", [text("<|im_end|>")], [text("a")])
    with pytest.raises(DataError, match=r"example 'u', user turn: text contains the special token '<\|im_end\|>'"):
        encode_example(spelled, tokenizer)
    assert encode_example(spelled, tokenizer, literal_specials=True).ids.tolist().count(tokenizer.vocab.im_end_id) == 4
    with pytest.raises(DataError, match="has no tokens"):
        encode_example(Example("d", (Turn("document", ()),)), tokenizer)


def test_truncate_cuts_codes_end_token_and_the_rest_of_the_turn(tokenizer, vocab, example):
    s = encode_example(example, tokenizer)
    before = s.ids.copy()
    cut = s.truncate(2, 2)
    at = s.segments[2].start + 2
    assert cut.ids.tolist() == s.ids[:at].tolist() and cut.segments[2].style == "open_last"
    assert cut.segments[2].stop == cut.segments[2].turn_stop == len(cut)
    assert [(g.start, g.stop) for g in cut.segments[:2]] == [(g.start, g.stop) for g in s.segments[:2]]
    assert cut.segments[1].turn_stop == len(cut)
    assert np.array_equal(s.ids, before), "the input is unchanged"
    with pytest.raises(DataError, match="cannot keep 4 of 3 codes"):
        s.truncate(2, 4)


def test_truncating_a_middle_turn_shifts_what_follows(tokenizer, vocab):
    s = encode_example(two_turns(), tokenizer)
    number = next(i for i, g in enumerate(s.segments) if g.style == "last")
    cut = s.truncate(number, 1)
    assert len(s) - len(cut) == s.segments[number].turn_stop - s.segments[number].start - 1
    for old, new in zip(s.segments, cut.segments, strict=True):
        if old is not s.segments[number]:
            assert cut.ids[new.start : new.stop].tolist() == s.ids[old.start : old.stop].tolist()
            assert new.turn_stop - new.stop == old.turn_stop - old.stop
    assert np.array_equal(cut.run_id, audio_runs(cut.kind)) and np.array_equal(
        cut.kind == Kind.AUDIO, cut.ids >= vocab.audio_start
    )


@pytest.mark.parametrize("seed", range(3))
def test_truncated_streams_stay_consistent(seed, vocab):
    rng = np.random.default_rng(seed)
    for s in random_streams(seed, 20):
        for number, g in enumerate(s.segments):
            cut = s.truncate(number, int(rng.integers(0, g.stop - g.start + 1)))
            assert np.array_equal(cut.run_id, audio_runs(cut.kind))
            for new in cut.segments:
                assert new.start <= new.stop <= new.turn_stop <= len(cut)
                assert vocab.is_audio(cut.ids[new.start : new.stop]).all() and not vocab.is_audio(
                    cut.ids[new.start - 1]
                )
