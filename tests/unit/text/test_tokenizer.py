import pytest

from tests.conftest import NUM_CODES, SENTENCES, audio, chat, text
from ttt.errors import DataError
from ttt.text.special_tokens import FINAL_SPECIALS, MULTIMODAL_SPECIALS, code_token
from ttt.text.template import pieces
from ttt.text.tokenizer import TextTokenizer, extend, train_bpe
from ttt.types import Example, Span, Turn

TEXTS = ["the quick fox", " a  b\n\nc", "héllo wörld 你好 🎉", "", "\n", "12345", "x<|im_end|>y<|audio_7|>"]


def test_order_of_the_added_tokens(tokenizer):
    to_id = tokenizer.backend.token_to_id
    added = [to_id(t) for t in (*MULTIMODAL_SPECIALS, *(code_token(c) for c in range(NUM_CODES)), *FINAL_SPECIALS)]
    assert added == list(range(added[0], added[0] + 20 + NUM_CODES + 3))
    assert tokenizer.vocab.size == added[-1] + 1 and tokenizer.vocab.audio_start == to_id("<|audio|>")


@pytest.mark.parametrize("written", TEXTS[:-1])
def test_any_text_survives(tokenizer, written):
    import unicodedata

    assert tokenizer.decode(tokenizer.encode(written)) == unicodedata.normalize("NFC", written)


def test_specials_become_their_ids_and_are_not_decoded(tokenizer):
    ids = tokenizer.encode(TEXTS[-1])
    assert tokenizer.vocab.im_end_id in ids and tokenizer.vocab.code_start + 7 in ids
    assert "<|im_end|>" not in tokenizer.decode(ids)
    assert tokenizer.token(tokenizer.vocab.mask_id) == "<|mask_token|>"


def test_training_is_deterministic():
    a, b = (train_bpe(SENTENCES, 290, 4) for _ in range(2))
    assert a.backend.to_str() == b.backend.to_str()


def test_extending_twice_changes_nothing(tokenizer):
    from tokenizers import Tokenizer

    again = extend(Tokenizer.from_str(tokenizer.backend.to_str()), NUM_CODES)
    assert TextTokenizer(again).vocab == tokenizer.vocab


def test_special_token_in_text_is_refused(tokenizer):
    tokenizer.refuse_specials("a <| b |> c", "here")
    for token in ("<|im_end|>", "<|audio_3|>", "<|mask_token|>", "<|endoftext|>"):
        with pytest.raises(DataError, match="^here: text contains the special token") as error:
            tokenizer.refuse_specials(f"say {token} now", "here")
        assert token in str(error.value)


def test_folder_loads_in_plain_transformers(tokenizer, tmp_path):
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    tokenizer.save(tmp_path)
    assert TextTokenizer.load(tmp_path).vocab == tokenizer.vocab
    for plain in (AutoTokenizer.from_pretrained(tmp_path), PreTrainedTokenizerFast.from_pretrained(tmp_path)):
        assert len(plain) == tokenizer.vocab.size
        for written in (*SENTENCES, *TEXTS):
            assert plain.encode(written, add_special_tokens=False) == tokenizer.encode(written)
        assert (plain.pad_token_id, plain.eos_token_id) == (tokenizer.vocab.pad_id, tokenizer.vocab.im_end_id)
        assert plain.convert_tokens_to_ids("<|begin_of_quad|>") == tokenizer.vocab.soa_last_id


def test_absent_damaged_and_unextended_tokenizers(tmp_path):
    with pytest.raises(DataError, match="no tokenizer here"):
        TextTokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match="not a tokenizer file"):
        TextTokenizer.load(tmp_path)
    from tokenizers import Tokenizer, models

    Tokenizer(models.BPE()).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(DataError, match="is missing; extend the vocabulary"):
        TextTokenizer.load(tmp_path)


def spelled(example, open_answer=False):
    return [(p.span.text if p.span.kind == "text" else p.span.style, p.target) for p in pieces(example, open_answer)]


def test_template_pieces():
    got = spelled(chat("u", [text("hi"), audio([1], "user")], [text("yes"), audio([2], "last")], system="be kind"))
    assert got == [
        *[(t, False) for t in ("<|im_start|>", "system", "\n", "be kind", "<|im_end|>", "\n")],
        *[(t, False) for t in ("<|im_start|>", "user", "\n", "hi", "user", "<|im_end|>", "\n")],
        *[(t, False) for t in ("<|im_start|>", "assistant", "\n")],
        *[(t, True) for t in ("yes", "last", "<|im_end|>", "\n")],
    ]


def test_system_block_is_always_there():
    got = spelled(Example("u", (Turn("user", (text("hi"),)),)), open_answer=True)
    assert [t for t, _ in got[:5]] == ["<|im_start|>", "system", "\n", "<|im_end|>", "\n"]
    assert [t for t, _ in got[-3:]] == ["<|im_start|>", "assistant", "\n"] and not any(target for _, target in got)


def test_open_span_leaves_its_turn_open():
    got = spelled(chat("u", [text("hi")], [audio([2], "open_last")]))
    assert got[-1] == ("open_last", True)


def test_documents_have_no_template():
    assert spelled(Example("d", (Turn("document", (text("once"), audio([1]))),))) == [("once", True), ("span", True)]
    with pytest.raises(DataError, match="a document has one turn"):
        list(pieces(Example("d", (Turn("document", ()), Turn("user", ())))))
    with pytest.raises(DataError, match="role 'system' after the first turn"):
        list(pieces(Example("d", (Turn("user", ()), Turn("system", ())))))


def test_span_checks_itself():
    with pytest.raises(DataError, match="span kind"):
        Span("video")
    with pytest.raises(DataError, match="needs codes"):
        Span("audio")
    with pytest.raises(DataError, match="style must be one of user"):
        audio([1], "qaud")
