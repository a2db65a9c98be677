from dataclasses import replace

import numpy as np
import pytest

from ttt.errors import DataError
from ttt.text.special_tokens import FINAL_SPECIALS, MULTIMODAL_SPECIALS, code_token
from ttt.text.vocab import Vocabulary, derive

BASE, CODES = 151_665, 16_384  # Qwen2.5's tokenizer and GLM-4-Voice's codebook


@pytest.fixture(scope="module")
def official():
    """The official id table without its tokenizer: only the order of the added tokens matters."""
    order = [*MULTIMODAL_SPECIALS, *(code_token(c) for c in range(CODES)), *FINAL_SPECIALS]
    table = {token: BASE + i for i, token in enumerate(order)}
    table |= {"<|endoftext|>": 151_643, "<|im_start|>": 151_644, "<|im_end|>": 151_645}
    return table


def test_official_ids(official):
    v = derive(official.get, BASE + 20 + CODES + 3)
    assert len(MULTIMODAL_SPECIALS) == 20 and len(set(MULTIMODAL_SPECIALS)) == 20
    assert official["<|begin_of_image|>"] == 151_665 and official["<|context_of_patch|>"] == 151_673
    assert official["<|end_of_quad|>"] == 151_677 and official["<|end_of_box|>"] == 151_681
    assert (v.soa_id, v.user_end_id, v.soa_last_id, v.audio_start) == (151_674, 151_675, 151_676, 151_684)
    assert (v.code_start, v.code_stop, v.mask_id, v.eoa_id, v.eoa_last_id) == (
        151_685,
        168_069,
        168_069,
        168_070,
        168_071,
    )
    assert v.size == 168_072 and v.num_codes == CODES and v.pad_id == 151_643


def test_modality_rule(official):
    v = derive(official.get, 168_072)
    text_ids = [v.soa_id, v.soa_last_id, v.user_end_id, v.im_end_id, v.pad_id, official["<|video|>"]]
    audio_ids = [v.audio_start, v.code_start, v.code_stop - 1, v.mask_id, v.eoa_id, v.eoa_last_id]
    assert not v.is_audio(np.array(text_ids)).any() and v.is_audio(np.array(audio_ids)).all()


@pytest.mark.parametrize("gone", ["<|audio|>", "<|mask_token|>", "<|begin_of_quad|>", "<|im_end|>", "<|audio_0|>"])
def test_missing_token_is_named(official, gone):
    with pytest.raises(DataError, match="token .* is missing; extend the vocabulary") as error:
        derive({k: i for k, i in official.items() if k != gone}.get, 168_072)
    assert gone in str(error.value)


def test_codes_out_of_order_are_named(official):
    with pytest.raises(DataError, match=r"'<\|audio_5\|>' breaks the run of codes"):
        derive({**official, code_token(5): 12}.get, 168_072)


@pytest.fixture
def small():
    return Vocabulary(
        size=120, audio_start=100, code_start=101, num_codes=8, mask_id=110, soa_id=90, soa_last_id=91, user_end_id=92,
        eoa_id=111, eoa_last_id=112, im_start_id=93, im_end_id=94, pad_id=95,
    )  # fmt: skip


@pytest.mark.parametrize(
    "change, pattern",
    [
        ({"soa_id": 100}, "soa_id = 100 must be a text id"), ({"user_end_id": 115}, "user_end_id = 115 must be a text id"),
        ({"mask_id": 99}, "mask_id = 99 must be an audio id"), ({"eoa_id": 120}, "eoa_id = 120 must be an audio id"),
        ({"eoa_last_id": 111}, "special ids must differ"), ({"mask_id": 105}, "overlap a special id"),
        ({"num_codes": 40}, "overlap a special id or the end"), ({"pad_id": 90}, "special ids must differ"),
    ],
)  # fmt: skip
def test_invariants(small, change, pattern):
    with pytest.raises(DataError, match=pattern):
        replace(small, **change)


def test_code_ids_and_back(small):
    codes = np.array([[0], [7], [3]], dtype=np.int32)
    ids = small.code_ids(codes)
    assert ids.tolist() == [101, 108, 104]
    mixed = np.concatenate([[small.soa_id], ids, [small.eoa_id]])
    assert small.codes(mixed).tolist() == codes.tolist() and small.codes(mixed).dtype == np.int32
    assert small.codes(np.array([], dtype=np.int64)).shape == (0, 1)


@pytest.mark.parametrize("bad", [8, -1])
def test_code_outside_the_book(small, bad):
    with pytest.raises(DataError, match=rf"a\.wav: code {bad} at frame 1 is outside the codebook of 8"):
        small.code_ids(np.array([[1], [bad]]), "a.wav")


def test_several_books_go_frame_by_frame(small):
    two = replace(small, num_codes=4, num_codebooks=2)
    codes = np.array([[0, 1], [3, 2]], dtype=np.int32)
    assert two.code_ids(codes).tolist() == [101, 106, 104, 107]
    assert two.codes(two.code_ids(codes)).tolist() == codes.tolist()
    assert two.codes(two.code_ids(codes)[:3]).tolist() == [[0, 1]], "an incomplete frame is left out"
    with pytest.raises(DataError, match=r"expected codes \[F, 2\], got \[2, 1\]"):
        two.code_ids(codes[:, :1])


def test_openers_and_closers(small):
    assert [small.opener(s) for s in ("user", "span", "last", "open_span", "open_last")] == [90, 90, 91, 90, 91]
    assert [small.closer(s) for s in ("user", "span", "last", "open_span", "open_last")] == [92, 111, 112, None, None]


def test_digests_of_older_folders_hold(small):
    """Fields that came later count only where they are used."""
    import hashlib
    import json

    old = list(Vocabulary.__dataclass_fields__)[:14]
    assert old[-1] == "num_codebooks"
    text = json.dumps({name: getattr(small, name) for name in old}, sort_keys=True)
    assert small.digest == hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
    assert replace(small, codec="mimi", frame_rate_hz=12.5).digest == small.digest


def test_save_load_digest(small, tmp_path):
    small.save(tmp_path / "vocab.json")
    assert Vocabulary.load(tmp_path / "vocab.json") == small
    assert replace(small, size=121).digest != small.digest
    (tmp_path / "vocab.json").write_text("{")
    with pytest.raises(DataError, match="not a vocabulary file"):
        Vocabulary.load(tmp_path / "vocab.json")
    with pytest.raises(DataError, match="no vocabulary here"):
        Vocabulary.load(tmp_path / "gone.json")
