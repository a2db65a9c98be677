"""The text of an answer is its spans as written; no border between spans and no normaliser adds a blank that is scored."""

import pytest

from tests.conftest import tiny_tokenizer
from ttt.chat.conversation import AnswerReader
from ttt.eval.metrics import Cer, JudgedCer, Wer
from ttt.eval.normalizers import Chars, Verbatim, Words
from ttt.sampling.decoder.spans import spans_of
from ttt.sampling.trace.record import _pieces
from ttt.types import Generation, Span, written_text

TOKENIZER = tiny_tokenizer()
V = TOKENIZER.vocab
SPEECH = [V.soa_id, V.code_start + 1, V.code_start + 2, V.eoa_id]
TEXTS = [
    "the quick brown fox jumps over the lazy dog and sat on the mat", "\u4f60\u597d\u5417\uff0c\u4e16\u754c",
    "caf\u00e9 \U0001f600 na\u00efve", " a blank before\nand a new line ", "don't stop; twenty-one",
]  # fmt: skip


def cut(ids, size):
    """Token ids with speech after every ``size`` of them, as the official TtT data have it (13 text tokens, 26 codes)."""
    answer = []
    for at in range(0, len(ids), size):
        answer += [*ids[at : at + size], *SPEECH]
    return [*answer, V.im_end_id]


def answer(ids):
    return Generation("a", ids, spans_of(ids, TOKENIZER), {}, 0.0)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("size", [1, 2, 3, 13])
def test_text_is_what_the_tokenizer_decodes_in_one_go(text, size):
    ids = cut(TOKENIZER.encode(text), size)
    made = answer(ids)
    assert made.text == written_text(made.spans) == TOKENIZER.decode(TOKENIZER.encode(text)) == text
    assert "".join(_pieces(ids, TOKENIZER)) == text, "trace"
    reader = AnswerReader(TOKENIZER)
    assert "".join(p.text for p in [*reader.push(ids), *reader.finish()] if p.kind == "text") == text, "chat"
    assert sum(len(s.codes) for s in made.spans if s.kind == "audio") == len(made.codes)


@pytest.mark.parametrize("ids", [
    [*TOKENIZER.encode("\u4f60")[:1], *SPEECH], [*TOKENIZER.encode("hi \u4f60")[:-1], *SPEECH, *TOKENIZER.encode("x")],
    [*TOKENIZER.encode("\u4f60")[:1], *SPEECH[:-1]],
])  # fmt: skip
def test_half_characters_are_lost_nowhere(ids):
    text_ids = [i for i in ids if i < V.audio_start]
    assert answer(ids).text == TOKENIZER.decode(text_ids) != ""


def scored(said, reference, normalizer):
    return {
        "text": said, "text_ref": reference, "judged_text": said, "speech_ref": reference,
        "normalize": normalizer.normalize, "characters": normalizer.characters,
    }  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("normalizer", [Words(), Chars(), Verbatim()])
@pytest.mark.parametrize("size", [1, 13])
def test_a_perfect_answer_scores_nothing_however_it_is_cut(text, normalizer, size):
    item = scored(answer(cut(TOKENIZER.encode(text), size)).text, text, normalizer)
    for metric in (Wer(), Cer(), JudgedCer()):
        assert metric.total(metric.item(item)) == 0


@pytest.mark.parametrize(
    "said, reference, edits, letters",
    [
        ("\u4f60\u597d", "\u4f60\u597d\u5417", 1, 3),  # one letter is missing: 1 of 3, not 2 of 5
        ("\u4f60\u597d\u5417\u554a", "\u4f60\u597d\u5417", 1, 3),
        ("\u4f60\u4eec\u5417", "\u4f60\u597d\u5417\uff1f", 1, 3),  # punctuation does not count
        ("\u4f60 \u597d \u5417", "\u4f60\u597d\u5417", 0, 3),
        ("", "\u4f60\u597d\u5417", 3, 3),
        ("\u6211 \u7528 GPU", "\u6211\u7528gpu", 0, 5),
    ],
)
def test_cer_of_letters_counts_letters(said, reference, edits, letters):
    row = Cer().item(scored(said, reference, Chars()))
    assert (row[:3].sum(), row[3]) == (edits, letters)
    assert Cer().total(row) == Wer().total(Wer().item(scored(said, reference, Chars()))), "WER of letters is their CER"


def test_cer_of_words_counts_the_blanks_of_the_text():
    row = Cer().item(scored("a catsat", "a cat sat.", Words()))
    assert (row[:3].sum(), row[3]) == (1, 9)


def test_words_of_answers_in_several_spans_score_as_before():
    """Where chunks are whole words, and the blank belongs to the chunk behind it, the words are the same as joined by a blank."""
    chunks = ["the quick", " brown fox", " jumps"]
    spans = tuple(s for chunk in chunks for s in (Span("text", chunk), *spans_of(SPEECH, TOKENIZER)))
    joined = " ".join(s.text.strip() for s in spans if s.kind == "text")
    assert Words().normalize(written_text(spans)) == Words().normalize(joined) == "the quick brown fox jumps"
