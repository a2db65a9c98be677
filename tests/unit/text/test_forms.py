"""The text-then-speech forms: ids, labels and spans against published numbers (SLAM-Omni, arXiv 2412.15649)."""

import json
from dataclasses import replace

import numpy as np
import pytest
from tokenizers import Tokenizer, models

from tests.conftest import SENTENCES, chat, text
from ttt.data.encode import encode_example
from ttt.errors import ConfigError, DataError
from ttt.text.special_tokens import ABSENT, TAGS
from ttt.text.tokenizer import TextTokenizer, extend, train_bpe
from ttt.text.vocab import Vocabulary
from ttt.types import Example, Kind, Span, Turn

PLAIN, TAGGED = "text_then_speech", "text_then_speech_tags"

QWEN3 = {  # the ids of Qwen3-0.6B that the vectors name; every other id is a filler
    "<|endoftext|>": 151_643, "<|im_start|>": 151_644, "<|im_end|>": 151_645, "<think>": 151_667, "</think>": 151_668,
    "\n": 198, "\n\n": 271, "user": 872, "assistant": 77_091, "system": 8_948, "Hi": 13_048, "Yo": 64_725,
}  # fmt: skip
YO, HI = QWEN3["Yo"], QWEN3["Hi"]
HEADER = [151_644, 872, 198, HI, 151_645, 198, 151_644, 77_091, 198]  # user turn, then the assistant's header
THOUGHT = [151_667, 271, 151_668, 271]


def numbered(num_codes=4096, form=TAGGED, without=()):
    """A tokenizer of one word a piece that has Qwen3's 151,669 ids."""
    ids = {i: t for t, i in QWEN3.items() if t not in without}
    words = {ids.get(i, f"w{i}"): i for i in range(151_669)}
    backend = Tokenizer(models.WordLevel(words, unk_token="w0"))
    backend.add_special_tokens([t for t in QWEN3 if t.startswith("<|")])
    backend.add_tokens([t for t in ("<think>", "</think>") if t not in without])
    return TextTokenizer(extend(backend, num_codes, form=form))


@pytest.fixture(scope="module")
def tagged():
    return numbered()


@pytest.fixture(scope="module")
def plain():
    return numbered(form=PLAIN)


def answer(codes=(0, 4095), words="Yo"):
    speech = Span("audio", codes=np.asarray(codes, dtype=np.int32)[:, None], style="last")
    return chat("u", [text("Hi")], [text(words), speech])


def test_ids_of_both_forms(plain, tagged):
    assert (plain.vocab.text_vocab, plain.vocab.code_start, plain.vocab.size) == (151_669, 151_669, 155_765)
    assert (tagged.vocab.text_vocab, tagged.vocab.code_start, tagged.vocab.size) == (151_669, 151_673, 155_769)
    assert plain.vocab.modality_tokens == {}
    assert tagged.vocab.modality_tokens == dict(zip(TAGS, range(151_669, 151_673), strict=True))
    for v in (plain.vocab, tagged.vocab):
        assert v.num_codes == 4096 and v.mask_id == ABSENT
        assert (v.pad_id, v.im_start_id, v.im_end_id) == (151_643, 151_644, 151_645)


def test_vector_of_the_tagged_form(tagged):
    """Labels are masked up to the bar before <text>: the empty thought belongs to the prompt."""
    stream = encode_example(answer(), tagged)
    prompt = HEADER + THOUGHT
    assert stream.ids.tolist() == [*prompt, 151_669, YO, 151_670, 151_671, 151_673, 155_768, 151_672, 151_645]
    assert stream.target.tolist() == [False] * len(prompt) + [True] * 8
    assert np.array_equal(stream.noisable, stream.target)
    (speech,) = stream.segments
    assert (speech.start, speech.stop, speech.style) == (len(prompt) + 4, len(prompt) + 6, "last")
    assert np.flatnonzero(stream.kind == Kind.AUDIO).tolist() == [speech.start, speech.start + 1]


def test_vector_of_the_plain_form(plain):
    """Everything behind the header is supervised, the empty thought too; codes follow the text directly."""
    stream = encode_example(answer(), plain)
    assert stream.ids.tolist() == [*HEADER, *THOUGHT, YO, 151_669, 155_764, 151_645]
    assert stream.target.tolist() == [False] * len(HEADER) + [True] * 8
    (speech,) = stream.segments
    assert (speech.stop - speech.start, speech.style) == (2, "open_last"), "a span without an end token"
    assert stream.ids[speech.start] == 151_669


@pytest.mark.parametrize("form", [PLAIN, TAGGED])
def test_prompt_for_decoding_is_what_training_shows(form):
    tokenizer = numbered(form=form)
    whole = encode_example(answer(), tokenizer)
    prompt = encode_example(Example("u", answer().turns[:-1]), tokenizer, open_answer=True)
    assert prompt.ids.tolist() == HEADER + THOUGHT == whole.ids[: len(prompt)].tolist()
    assert not prompt.target.any() and not prompt.segments


def test_a_system_message_is_written_only_if_there_is_one(tagged):
    silent = replace(answer(), turns=(Turn("system", (Span("text", ""),)), *answer().turns[1:]))
    assert encode_example(silent, tagged).ids.tolist() == encode_example(answer(), tagged).ids.tolist()
    told = replace(answer(), turns=(Turn("system", (text("Yo"),)), *answer().turns[1:]))
    assert encode_example(told, tagged).ids.tolist()[:6] == [151_644, 8_948, 198, YO, 151_645, 198]


def test_several_turns_have_the_thought_before_the_last_answer_only(tagged):
    turns = (*answer().turns, *answer((7,)).turns[1:])
    ids = encode_example(Example("two", turns), tagged).ids.tolist()
    assert ids.count(151_667) == 1 and ids.count(151_669) == 2 and ids[-1] == 151_645
    assert ids[: len(HEADER) + 2] == [*HEADER, 151_669, YO], "an earlier answer as Qwen3's template writes it"


def test_a_tokenizer_that_cannot_think_has_no_thought():
    for form in (PLAIN, TAGGED):
        tokenizer = numbered(4, form, without=("<think>", "</think>"))
        assert encode_example(Example("u", answer().turns[:-1]), tokenizer, open_answer=True).ids.tolist() == HEADER


@pytest.mark.parametrize("form", [PLAIN, TAGGED])
def test_codes_come_back_from_ids(form):
    tokenizer = numbered(form=form)
    stream = encode_example(answer((5, 5, 4095, 0)), tokenizer)
    assert tokenizer.vocab.codes(stream.ids)[:, 0].tolist() == [5, 5, 4095, 0]


@pytest.mark.parametrize("bad", [-1, 4096])
def test_code_outside_the_book(tagged, bad):
    with pytest.raises(DataError, match=f"code {bad} at frame 1 is outside the codebook of 4096"):
        encode_example(answer((0, bad)), tagged)


@pytest.mark.parametrize("mark", ["<|im_start|>", "<text>", "</speech>", "<|audio_7|>"])
def test_marks_in_a_question_are_refused_not_searched(tagged, mark):
    asked = chat("u", [text(f"what is {mark} for")], answer().turns[-1].spans)
    with pytest.raises(DataError, match="user turn: text contains the special token") as error:
        encode_example(asked, tagged)
    assert repr(mark) in str(error.value)


def test_thinking_aloud_is_text(tagged):
    tagged.refuse_specials("<think> is an ordinary added token; 1 < 2 <b>", "here")


def test_vocab_json_says_it_all(tagged, tmp_path):
    tagged.made_by("cosyvoice", 50.0).save(tmp_path)
    said = json.loads((tmp_path / "vocab.json").read_text())
    assert {k: said[k] for k in ("text_vocab", "speech_offset", "speech_vocab", "total", "codec", "frame_rate")} == {
        "text_vocab": 151_669, "speech_offset": 151_673, "speech_vocab": 4096, "total": 155_769, "codec": "cosyvoice",
        "frame_rate": 50.0,
    }  # fmt: skip
    assert said["modality_tokens"]["</speech>"] == 151_672
    again = TextTokenizer.load(tmp_path)
    assert again.vocab == tagged.vocab and (again.vocab.codec, again.vocab.frame_rate_hz) == ("cosyvoice", 50.0)
    assert again.vocab.digest == replace(tagged.vocab, codec="", frame_rate_hz=0.0).digest


def test_vocab_json_of_another_tokenizer_is_refused(tagged, plain, tmp_path):
    tagged.save(tmp_path)
    plain.vocab.save(tmp_path / "vocab.json")
    with pytest.raises(DataError, match=r"vocab.json: tells of another vocabulary \(text_then_speech, 155765 ids"):
        TextTokenizer.load(tmp_path)


def test_vocab_json_that_contradicts_itself_is_refused(tagged, tmp_path):
    path = tmp_path / "vocab.json"
    tagged.vocab.save(path)
    path.write_text(path.read_text().replace('"speech_offset": 151673', '"speech_offset": 151669'))
    with pytest.raises(DataError, match="speech_offset is 151669, the other fields make it 151673"):
        Vocabulary.load(path)


def test_the_token_table_of_a_backbone_is_not_ours(tagged, tmp_path):
    """Hugging Face's slow tokenizers keep their token table under the same name."""
    tagged.backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "vocab.json").write_text('{"a": 0, "b": 1}')
    assert TextTokenizer.load(tmp_path).vocab == tagged.vocab


@pytest.mark.parametrize(
    "change, message",
    [
        ({"mask_id": 5}, "has no mask_id, got 5"), ({"soa_last_id": 151_672}, "opens and ends all spans alike"),
        ({"size": 155_770}, r"ends with its codes, but ids \[155769, 155770\) follow them"),
        ({"text_open_id": 151_671}, "special ids must differ"), ({"form": "tagged"}, "form 'tagged' is none of"),
        ({"text_close_id": ABSENT}, "text_close_id = -1 must be a text id"),
    ],
)  # fmt: skip
def test_invariants(tagged, change, message):
    with pytest.raises(DataError, match=message):
        replace(tagged.vocab, **change)


def test_tags_out_of_place_are_refused():
    table = {**{tag: 10 + i for i, tag in enumerate(TAGS)}, "<|audio_0|>": 15}
    from ttt.text.vocab import derive

    with pytest.raises(DataError, match="must be the ids right before the codes, which start at 15"):
        derive(table.get, 16)


def test_a_recipe_that_asks_for_another_form_is_refused(plain, tagged):
    assert plain.check_form(PLAIN) is plain and tagged.check_form("interleaved") is tagged
    with pytest.raises(
        ConfigError, match=f"data.form: '{TAGGED}', but the tokenizer in data.tokenizer has the form '{PLAIN}'"
    ):
        plain.check_form(TAGGED)


def test_unknown_form():
    with pytest.raises(DataError, match="form 'text_then_speach' is none of .* Did you mean 'text_then_speech'"):
        numbered(4, "text_then_speach")


def searched(tokenizer, question, answer_text, codes):
    """(ids, labels) as the published converter makes them: one string, tokenized, then searched and cut (section 3)."""
    vocab, find = tokenizer.vocab, tokenizer.backend.token_to_id
    said = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n{answer_text}<|im_end|>\n"
    ids = tokenizer.encode(said)
    newline = tokenizer.encode("\n")
    assert ids[-len(newline) :] == newline and ids[-len(newline) - 1] == vocab.im_end_id
    ids = ids[: -len(newline) - 1]
    speech = [vocab.code_start + c for c in codes]
    second = [i for i, t in enumerate(ids) if t == vocab.im_start_id][1]
    if vocab.form == PLAIN:
        masked = second + 1 + len(tokenizer.encode("assistant")) + len(newline)
        whole = [*ids, *speech, vocab.im_end_id]
    else:
        masked = ids.index(find("</think>")) + 1 + len(tokenizer.encode("\n\n"))
        tag = {t: find(t) for t in TAGS}
        text_part = [tag["<text>"], *ids[masked:], tag["</text>"]]
        whole = [*ids[:masked], *text_part, tag["<speech>"], *speech, tag["</speech>"], vocab.im_end_id]
    return whole, [-100] * masked + whole[masked:]


@pytest.mark.parametrize("form", [PLAIN, TAGGED])
def test_equal_to_the_published_converter(form):
    """On texts that do not begin with white space and spell no mark, building by pieces gives what searching gives."""
    tokenizer = train_bpe(SENTENCES, 320, 4096, form=form)
    rng = np.random.default_rng(0)
    pieces = [*SENTENCES, "a\n\nb", "1 < 2", "é 你好", "tail ", "x\n", "<b>", "end."]
    for n in range(60):
        question, reply = (" ".join(rng.choice(pieces, int(rng.integers(1, 4)))) for _ in range(2))
        codes = rng.integers(0, 4096, int(rng.integers(1, 9))).astype(np.int32)
        spoken = Span("audio", codes=codes[:, None], style="last")
        stream = encode_example(chat(f"r{n}", [text(question)], [text(reply), spoken]), tokenizer)
        ids, labels = searched(tokenizer, question, reply, codes.tolist())
        assert stream.ids.tolist() == ids
        assert np.where(stream.target, stream.ids, -100).tolist() == labels


@pytest.mark.parametrize("form", [PLAIN, TAGGED])
def test_small_trained_tokenizer(form, tmp_path):
    tokenizer = train_bpe(SENTENCES, 300, 8, form=form)
    tokenizer.save(tmp_path)
    again = TextTokenizer.load(tmp_path)
    assert again.vocab == tokenizer.vocab and again.vocab.form == form and again.template.thought
    stream = encode_example(answer((1, 7), "the quick fox"), again)
    assert stream.ids[-1] == again.vocab.im_end_id and stream.target[-1]
    assert again.decode(stream.ids[stream.kind == Kind.TEXT]).endswith("the quick fox")
