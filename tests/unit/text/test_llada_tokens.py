"""Tokens of LLaDA-TTS: the published ids, both spellings, the template, and the way back."""

import json
from dataclasses import replace

import numpy as np
import pytest

from tests.conftest import SENTENCES
from ttt.data.encode import encode_example
from ttt.errors import DataError
from ttt.sampling.decoder.decoder import spans_of
from ttt.text.forms import LladaTts, LladaTtsAudio
from ttt.text.tokenizer import TextTokenizer, train_bpe
from ttt.text.vocab import Vocabulary, derive
from ttt.types import Example, Kind, Span, Turn

LLAMA3 = 128_256
CUSTOM, AUDIO = LladaTts(), LladaTtsAudio()


def published(form, codes=4096, codebooks=7, base=LLAMA3):
    return {name: base + i for i, name in enumerate(form.tokens(codes, codebooks))}


@pytest.fixture(scope="module", params=[CUSTOM.name, AUDIO.name])
def tokenizer(request):
    return train_bpe(SENTENCES * 3, 300, 5, 3, request.param)


@pytest.mark.parametrize("form", [CUSTOM, AUDIO], ids=lambda form: form.name)
def test_published_ids(form):
    table = published(form)
    v = derive(table.get, LLAMA3 + len(table))
    assert len(table) == 28_683 and v.size == 156_939
    assert (v.soa_id, v.eoa_id, v.im_start_id, v.im_end_id, v.pad_id) == (128_257, 128_258, 128_259, 128_262, 128_263)
    assert v.soa_last_id == v.soa_id and v.eoa_last_id == v.user_end_id == v.eoa_id
    starts = [v.code_ids(np.zeros((1, 7), np.int32))[q] for q in range(7)]
    assert starts == [128_266, 132_362, 136_458, 140_554, 144_650, 148_746, 152_842]
    assert v.code_stop == 156_938 == v.mask_id
    assert v.code_ids(np.array([[0, 0, 0, 0, 100, 0, 0]]))[4] == 144_750
    text = [0, 128_009, v.soa_id, v.eoa_id, v.im_end_id, v.pad_id]
    assert not v.is_audio(np.array(text)).any() and v.is_audio(np.array([128_266, 156_937, v.mask_id])).all()


def test_both_spellings_are_one_vocabulary():
    assert len({derive(published(s).get, 156_939).digest for s in (CUSTOM, AUDIO)}) == 1


@pytest.mark.parametrize("codes, codebooks", [(8, 1), (64, 4), (4096, 7), (10, 8)])
def test_any_number_of_positions(codes, codebooks):
    table = published(CUSTOM, codes, codebooks, base=100)
    v = derive(table.get, 100 + len(table), num_codebooks=codebooks)
    frames = np.random.default_rng(0).integers(0, codes, (20, codebooks))
    ids = v.code_ids(frames)
    assert np.array_equal(v.frames(ids), frames) and np.array_equal(v.codes(ids), frames)
    assert np.array_equal((ids - v.code_start).reshape(20, codebooks) // codes, np.tile(np.arange(codebooks), (20, 1)))


def test_the_constant_of_the_published_programs_may_be_the_mask():
    table = published(AUDIO)
    del table[AUDIO.mask]  # 28,682 tokens: none is left for the mask
    with pytest.raises(DataError, match="no token is left for the mask .*name the id that the model was trained with"):
        derive(table.get, 156_938)
    v = derive(table.get, 156_938, mask_id=126_336)
    assert v.mask_id == 126_336 and v.is_audio(126_336) and not v.is_audio(126_335)
    assert v.is_audio(np.array([126_335, 126_336, 128_266])).tolist() == [False, True, True]
    with pytest.raises(DataError, match="mask_id = 200000 must lie in"):
        derive(table.get, 156_938, mask_id=200_000)
    with pytest.raises(DataError, match="special ids must differ"):
        derive(table.get, 156_938, mask_id=128_257)


def test_wrong_tokens_are_named():
    table = published(CUSTOM, 4, 2, base=50)
    with pytest.raises(DataError, match=r"'<custom_token_3>' has id 7, expected 50 \+ 3"):
        derive({**table, "<custom_token_3>": 7}.get, 100, num_codebooks=2)
    with pytest.raises(DataError, match="8 code tokens are not 5 positions of one size; say num_codebooks"):
        derive(table.get, 100, num_codebooks=5)
    with pytest.raises(DataError, match="too few for 30 positions"):
        derive(table.get, 100, num_codebooks=30)
    with pytest.raises(DataError, match="form 'llada_ttss' is none of .* Did you mean 'llada_tts'"):
        train_bpe(SENTENCES, 300, 4, 2, "llada_ttss")


@pytest.mark.parametrize("ids, message", [
    ([0, 5, 10, 1, 5], r"rows\[3\]: 5 codes are no whole frames of 3; cut the last 2 codes off"),
    ([0, 5, 15], r"id 115 at place 2 is no code for position 2 of frame 0, whose ids are 110 to 114"),
    ([0, 5, 10, 5, 5, 10], r"id 105 at place 3 is no code for position 0 of frame 1, whose ids are 100 to 104"),
    ([-4, 5, 10], r"id 96 at place 0"),
])  # fmt: skip
def test_ids_out_of_range_name_their_place(ids, message):
    v = derive(published(CUSTOM, 5, 3, base=90).get, 200, num_codebooks=3)
    with pytest.raises(DataError, match=message):
        v.frames(np.array(ids) + v.code_start, "rows[3]")


def test_sequence(tokenizer):
    v = tokenizer.vocab
    codes = np.array([[0, 1, 2], [4, 3, 0]], dtype=np.int32)
    example = Example(
        "a", (Turn("user", (Span("text", "a cat"),)), Turn("assistant", (Span("audio", codes=codes, style="last"),)))
    )
    stream = encode_example(example, tokenizer)
    first = tokenizer.backend.token_to_id(tokenizer.form.token(0))
    words = tokenizer.encode("a cat")
    ids = v.code_ids(codes).tolist()
    assert stream.ids.tolist() == [first + 3, *words, first + 4, first + 5, first + 1, *ids, first + 2, first + 6]
    begin = len(words) + 3
    assert stream.target.tolist() == [False] * begin + [True] * 9
    assert (stream.kind == Kind.AUDIO).sum() == 6 and stream.segments[0].start == begin + 1
    prompt = encode_example(Example("a", example.turns[:1]), tokenizer, open_answer=True)
    assert prompt.ids.tolist() == [first + 3, *words, first + 4, first + 5]
    back = spans_of(stream.ids[begin:].tolist(), tokenizer)
    assert [s.kind for s in back] == ["audio"] and np.array_equal(back[0].codes, codes)


def test_no_place_for_a_system_message(tokenizer):
    turns = (Turn("system", (Span("text", "be kind"),)), Turn("user", (Span("text", "on"),)))
    with pytest.raises(DataError, match="no place for a system message"):
        encode_example(Example("a", turns), tokenizer)
    assert len(encode_example(Example("a", (Turn("system", ()), turns[1])), tokenizer)) > 2


@pytest.mark.parametrize("spelled", ["<custom_token_12>", "<audio_token_2>", "<special_token_1>"])
def test_text_must_not_spell_codes(tokenizer, spelled):
    with pytest.raises(DataError, match="text contains the special token"):
        tokenizer.refuse_specials(f"say {spelled} now", "here")
    tokenizer.refuse_specials("1 < 2 and <b>bold</b>", "here")


def test_saved_and_loaded(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    again = TextTokenizer.load(tmp_path)
    assert again.vocab == tokenizer.vocab and again.form is tokenizer.form
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["pad_token"] == tokenizer.form.token(7)
    assert config["eos_token"] == tokenizer.form.token(6)
    other = replace(tokenizer.vocab, mask_id=tokenizer.vocab.soa_id + 7)  # a model that was trained with another mask
    other.save(tmp_path / "vocab.json")
    assert TextTokenizer.load(tmp_path).vocab == other
    replace(other, mask_id=3).save(tmp_path / "vocab.json")
    with pytest.raises(DataError, match="mask id 3 is .* an ordinary word"):
        TextTokenizer.load(tmp_path)
    assert Vocabulary.load(tmp_path / "vocab.json").digest != tokenizer.vocab.digest


def test_a_backbone_is_extended(tmp_path):
    from tokenizers import Tokenizer, models

    Tokenizer(models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?")).save(str(tmp_path / "tokenizer.json"))
    made = TextTokenizer.extended(tmp_path, 4, 7, "llada_tts_audio")
    assert made.vocab.size == 3 + 10 + 28 + 1 and made.vocab.form == "llada_tts" and made.vocab.num_codebooks == 7
    made.save(tmp_path / "more")
    again = TextTokenizer.extended(tmp_path / "more", 4, 7, "llada_tts_audio", mask_id=11)
    assert again.vocab == replace(made.vocab, mask_id=11)
    with pytest.raises(DataError, match="is there already"):
        TextTokenizer.extended(tmp_path / "more", 5, 7, "llada_tts_audio")


def test_benchmarks_ask_text_only(tokenizer):
    from ttt.textbench.texts import chat_text, encode, vocabulary

    v = tokenizer.vocab
    allowed = vocabulary(tokenizer, v.size + 3, "text")
    assert int(allowed.sum()) == v.soa_id - 1 and not allowed[[v.soa_id, v.mask_id, v.code_start, v.im_end_id]].any()
    history = [{"role": "user", "content": "a cat"}, {"role": "assistant", "content": "on"}]
    turns = tuple(Turn(m["role"], (Span("text", m["content"]),)) for m in history)
    asked = encode(tokenizer, chat_text(tokenizer, history[:1], "ttt"))
    assert asked == encode_example(Example("a", turns[:1]), tokenizer, open_answer=True).ids.tolist()
    told = encode(tokenizer, chat_text(tokenizer, history, "ttt", open_answer=False))
    assert told == encode_example(Example("a", turns), tokenizer).ids.tolist()[:-1]
    with pytest.raises(DataError, match="message 0: this model's template has no place for a system message"):
        chat_text(tokenizer, [{"role": "system", "content": "x"}, *history], "ttt")
