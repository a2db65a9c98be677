"""Text <-> ids through a Hugging Face ``tokenizer.json``; the vocabulary extension; a small trainable tokenizer.

The `tokenizers` library alone is needed to encode (fast to import); `save` also writes the files with which plain
transformers loads the tokenizer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

from ttt.errors import DataError
from ttt.text.vocab import FINAL_SPECIALS, MULTIMODAL_SPECIALS, Vocabulary, code_token, derive

BASE_SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


class TextTokenizer:
    """A tokenizer with the official audio tokens and the `Vocabulary` derived from it."""

    def __init__(self, backend, pad: str = "<|endoftext|>") -> None:
        self.backend = backend
        self.vocab: Vocabulary = derive(backend.token_to_id, backend.get_vocab_size(with_added_tokens=True), pad)

    @classmethod
    def load(cls, folder: str | Path) -> TextTokenizer:
        """Read ``folder/tokenizer.json`` (or the file itself).  Raises `DataError` when it is absent or damaged."""
        return cls(_backend(folder))

    @classmethod
    def extended(cls, folder: str | Path, num_codes: int) -> TextTokenizer:
        """The tokenizer of a backbone with the audio tokens added in the official order.  Raises like `load`."""
        return cls(extend(_backend(folder), num_codes))

    @cached_property
    def digest(self) -> str:
        """Short digest of everything that decides ids: two tokenizers with one digest give the same ids."""
        return hashlib.blake2b(self.backend.to_str().encode(), digest_size=8).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Ids of one piece of text; special tokens spelled in it become their ids."""
        return self.backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; special tokens are left out."""
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=True)

    def token(self, token_id: int) -> str:
        """Spelling of one id."""
        return self.backend.id_to_token(int(token_id)) or f"<{token_id}>"

    @cached_property
    def _special_texts(self) -> tuple[str, ...]:
        added = self.backend.get_added_tokens_decoder().values()
        return tuple(token.content for token in added)

    def refuse_specials(self, text: str, where: str) -> None:
        """Raise `DataError` when ordinary text spells a special token: it would act as one."""
        if "<|" not in text:
            return
        for token in self._special_texts:
            if token in text:
                raise DataError(
                    f"{where}: text contains the special token {token!r} literally; remove it or write the audio as a span"
                )

    def save(self, folder: Path) -> None:
        """Write tokenizer.json, tokenizer_config.json and vocab.json."""
        folder.mkdir(parents=True, exist_ok=True)
        self.backend.save(str(folder / "tokenizer.json"))
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<|endoftext|>", "eos_token": "<|im_end|>",
            "clean_up_tokenization_spaces": False, "model_max_length": 1_000_000,
        }  # fmt: skip
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")
        self.vocab.save(folder / "vocab.json")


def _backend(folder: str | Path):
    from tokenizers import Tokenizer

    path = Path(folder)
    path = path / "tokenizer.json" if path.is_dir() else path
    if not path.is_file():
        raise DataError(f"{path}: no tokenizer here; make one with 'ttt tokenizer' or set data.tokenizer")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the Rust library raises bare Exception
        raise DataError(f"{path}: not a tokenizer file: {error}") from error


def extend(backend, num_codes: int):
    """Add the audio tokens in the official order to a base tokenizer (in place); tokens that exist stay as they are."""
    from tokenizers import AddedToken

    def special(names: Iterable[str]):
        return [AddedToken(n, special=True, normalized=False) for n in names if backend.token_to_id(n) is None]

    backend.add_special_tokens(special(BASE_SPECIALS))
    backend.add_special_tokens(special(MULTIMODAL_SPECIALS))
    codes = [code_token(c) for c in range(num_codes)]
    backend.add_tokens(
        [AddedToken(c, special=False, normalized=False) for c in codes if backend.token_to_id(c) is None]
    )
    backend.add_special_tokens(special(FINAL_SPECIALS))
    return backend


def train_bpe(texts: Iterable[str], vocab_size: int, num_codes: int) -> TextTokenizer:
    """A byte-level BPE with Qwen-style pre-tokenization learnt from ``texts``, extended by the audio tokens.

    Any text can be encoded (all 256 bytes are in the base); deterministic.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    pattern = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    return TextTokenizer(extend(backend, num_codes))
