"""A tokenizer.json that asks for truncation or padding: texts are neither cut nor padded, and the log says so."""

import json
import logging

import pytest

from tests.conftest import tiny_tokenizer
from ttt.cli.main import main
from ttt.errors import DataError
from ttt.text.tokenizer import TextTokenizer, read_backend

TEXT = "the quick brown fox jumps over the lazy dog " * 3


def save(folder, truncation=False, padding=False):
    tiny_tokenizer().save(folder)
    path = folder / "tokenizer.json"
    from tokenizers import Tokenizer

    backend = Tokenizer.from_file(str(path))
    if truncation:
        backend.enable_truncation(5)
    if padding:
        backend.enable_padding(length=64, pad_token="<|endoftext|>", pad_id=backend.token_to_id("<|endoftext|>"))
    backend.save(str(path))
    return folder


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"truncation": True}, "asks for truncation to 5 tokens, which is switched off"),
        ({"padding": True}, "asks for padding, which is switched off"),
        ({"truncation": True, "padding": True}, "asks for truncation to 5 tokens and padding"),
    ],
)
def test_texts_stay_whole(tmp_path, settings, words, caplog, capsys):
    folder = save(tmp_path / "tok", **settings)
    tokenizer = TextTokenizer.load(folder)
    assert tokenizer.encode(TEXT) == tiny_tokenizer().encode(TEXT) and words in caplog.text
    assert tokenizer.digest == tiny_tokenizer().digest
    caplog.clear()
    TextTokenizer.load(folder)
    assert not caplog.text, "said once"
    (tmp_path / "x.jsonl").write_text(json.dumps({"text": TEXT}) + "\n")
    caplog.set_level(logging.INFO)
    words = ["data", "pack", str(tmp_path / "x.jsonl"), "--tokenizer", str(folder), "--out", str(tmp_path / "store")]
    assert main(words) == 0 and f"1 examples, {len(tiny_tokenizer().encode(TEXT))} tokens" in caplog.text
    extended = TextTokenizer.extended(folder, 32)
    extended.save(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "tokenizer.json").read_text())["truncation"] is None
    assert read_backend(folder).truncation is None


@pytest.mark.parametrize("content", [b"", b"{}", b"[" * 100_000, b'{"version": "1.0", "model": 5}', b"\xff\xfe{\0}\0"])
def test_no_tokenizer(tmp_path, content, capsys):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(DataError, match="tokenizer.json: not a tokenizer file: "):
        TextTokenizer.load(tmp_path)
    (tmp_path / "x.jsonl").write_text('{"text": "a"}\n')
    assert main(["data", "check", str(tmp_path / "x.jsonl"), "--tokenizer", str(tmp_path)]) == 2
    assert "\n" not in capsys.readouterr().err.strip()
