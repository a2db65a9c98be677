"""Text <-> ids through a Hugging Face ``tokenizer.json``; the vocabulary extension; a small trainable tokenizer.

The `tokenizers` library alone is needed to encode (fast to import); `save` also writes the files with which plain
transformers loads the tokenizer.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from ttt.config.load import to_plain
from ttt.errors import ConfigError, DataError, TttError
from ttt.interfaces import CodePattern
from ttt.io.digests import digest_of_bytes
from ttt.registry.families import PATTERN
from ttt.text.forms import DEFAULT_FORM, Form, form_named, recognise
from ttt.text.special_tokens import BASE_SPECIALS
from ttt.text.template import NO_THOUGHT, Template
from ttt.text.vocab import FLATTEN, Vocabulary, derive

log = logging.getLogger(__name__)


class TextTokenizer:
    """A tokenizer with audio tokens, the `Vocabulary` derived from it, and the template that chats are written in."""

    def __init__(
        self, backend, pad: str = "<|endoftext|>", num_codebooks: int = 0, mask_id: int | None = None,
        pattern: CodePattern = FLATTEN, form: Form | None = None,
    ) -> None:  # fmt: skip
        """``num_codebooks``: 0: as usual in the form; ``mask_id``: an id to use as mask, in forms that allow it; ``form``: for
        a tokenizer whose tokens do not tell."""
        self.backend = backend
        self.chat_template: Any = None  # of the backbone, for plain transformers: kept, never used here
        self.form = form or recognise(backend.token_to_id)
        self.vocab: Vocabulary = derive(
            backend.token_to_id, backend.get_vocab_size(with_added_tokens=True), pad, num_codebooks, mask_id, pattern, self.form
        )
        if mask_id is not None and not self.form.fixed_mask and mask_id not in backend.get_added_tokens_decoder():
            raise DataError(
                f"tokenizer: mask id {mask_id} is {backend.id_to_token(mask_id)!r}, an ordinary word of this vocabulary: text "
                "that holds it could not be told from masked text; name a special token's id as mask_id, or leave it out"
            )

    @classmethod
    def load(cls, folder: str | Path) -> TextTokenizer:
        """Read ``folder/tokenizer.json`` (or the file itself), and what ``vocab.json`` beside it says of the codec.

        Raises `DataError` when it is absent or damaged, or when the two files do not belong together.
        """
        path = (Path(folder) if Path(folder).is_dir() else Path(folder).parent) / "vocab.json"
        if not Vocabulary.is_saved(path):
            made = cls(read_backend(folder))
            made.chat_template = stored_chat_template(folder)
            return made
        stored = Vocabulary.load(path)
        made = cls(
            read_backend(folder), num_codebooks=stored.num_codebooks, mask_id=stored.mask_id, pattern=stored.pattern,
            form=stored.rules if stored.rules.text_of else None,
        )  # fmt: skip
        if stored != made.vocab:
            raise DataError(
                f"{path}: tells of another vocabulary ({stored.form}, {stored.size} ids, codes from {stored.code_start}) than "
                f"the tokenizer.json beside it ({made.vocab.form}, {made.vocab.size} ids, codes from {made.vocab.code_start}); "
                "run 'ttt tokenizer' again, or copy both from where the model was trained"
            )
        made.vocab, made.chat_template = stored, stored_chat_template(folder)
        return made

    @classmethod
    def extended(
        cls,
        folder: str | Path,
        num_codes: int,
        num_codebooks: int = 1,
        form: str = DEFAULT_FORM,
        mask_id: int | None = None,
        pattern: CodePattern = FLATTEN,
    ) -> TextTokenizer:
        """The tokenizer of a backbone with the audio tokens of a ``form`` added in order.  Raises like `load`.

        ``num_codes``: 0: text alone; ``mask_id``: for text alone and LLaDA-TTS, a mask that is none of the added tokens.
        """
        backend = extend(read_backend(folder), num_codes, num_codebooks, form, pattern, mask_id is None)
        alone = None if num_codes else form_named(form, num_codes=0)
        made = cls(backend, num_codebooks=num_codebooks, mask_id=mask_id, pattern=pattern, form=alone)
        if not made.has_form(form):
            raise DataError(
                f"{folder}: has audio tokens of the form {made.vocab.form!r} already; start from the backbone's own"
            )
        made.chat_template = stored_chat_template(folder)
        return made

    def has_form(self, form: str) -> bool:
        """Is this what ``data.form`` calls ``form``?"""
        return form in (self.form.name, self.form.stored, self.form.text_of)

    def check_form(self, form: str) -> TextTokenizer:
        """Returns self.  Raises `ConfigError` when a recipe asks for another form than this tokenizer has."""
        if form != DEFAULT_FORM and not self.has_form(form):  # the default asks for nothing
            raise ConfigError(
                f"data.form: {form!r}, but the tokenizer in data.tokenizer has the form {self.vocab.form!r}; name another folder, "
                "or make it with 'ttt tokenizer'"
            )
        return self

    def check_pattern(self, pattern: CodePattern) -> TextTokenizer:
        """Returns self.  Raises `ConfigError` when a recipe asks for another order of codes than this tokenizer has."""
        pattern = PATTERN.build(pattern, "data.pattern")
        if pattern not in (FLATTEN, self.vocab.pattern):  # the default asks for nothing
            asked, own = to_plain(pattern), to_plain(self.vocab.pattern)
            raise ConfigError(
                f"data.pattern: {asked}, but the tokenizer in data.tokenizer has {own}; name another folder, or make it with "
                "'ttt tokenizer'"
            )
        return self

    def made_by(self, codec: str, frame_rate_hz: float) -> TextTokenizer:
        """Note in the vocabulary which codec the codes are of; returns self."""
        self.vocab = dataclasses.replace(self.vocab, codec=codec, frame_rate_hz=frame_rate_hz)
        return self

    @cached_property
    def template(self) -> Template:
        """The template that chats are written in (the form decides)."""
        return self.form.template(thinks=len(self.thought_ids) == 2)

    @cached_property
    def thought_ids(self) -> tuple[int, ...]:
        """Ids of ``<think>`` and ``</think>``, where the tokenizer has them."""
        ids = (self.backend.token_to_id(mark) for mark in NO_THOUGHT[::2])
        return tuple(i for i in ids if i is not None)

    @cached_property
    def digest(self) -> str:
        """Short digest of everything that decides ids: two tokenizers with one digest give the same ids."""
        return digest_of_bytes(self.backend.to_str().encode())

    def encode(self, text: str) -> list[int]:
        """Ids of one piece of text; special tokens spelled in it become their ids."""
        return self.backend.encode(text, add_special_tokens=False).ids

    def pieces(self, text: str) -> list[str]:
        """The text of each token of ``text``, as written: joined they are the text.

        A character that several tokens spell belongs to the last of them; the others are empty.
        """
        offsets = self.backend.encode(text, add_special_tokens=False).offsets
        pieces, at = [], 0
        for number, (_, stop) in enumerate(offsets, 1):
            stop = max(at, min(stop, offsets[number][0]) if number < len(offsets) else stop)
            pieces.append(text[at:stop])
            at = stop
        if at < len(text):  # blanks at the end that no token counts as its own
            pieces[-1:] = ["".join([*pieces[-1:], text[at:]])]
        return pieces

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; special tokens are left out."""
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=True)

    def token(self, token_id: int) -> str:
        """Spelling of one id."""
        return self.backend.id_to_token(int(token_id)) or f"<{token_id}>"

    @cached_property
    def _special_texts(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Added tokens that begin with "<|", and special ones that do not (`ttt.text.forms.TAGS`).

        Apart, because codes are many and "<|" is rare.  Ordinary added tokens, like ``<think>``, may be part of a text.
        """
        added = self.backend.get_added_tokens_decoder().values()
        barred = tuple(t.content for t in added if t.content.startswith("<|"))
        return barred, tuple(t.content for t in added if t.special and t.content not in barred and t.content.strip())

    def refuse_specials(self, text: str, where: str) -> None:
        """Raise `DataError` when ordinary text spells a special token: it would act as one."""
        barred, others = self._special_texts
        others += tuple(p for p in self.form.prefixes if p in text)  # codes are too many to look for one by one
        for token in (*others, *barred) if "<|" in text else others:
            if token in text:
                raise DataError(
                    f"{where}: text contains the special token {token!r} literally; remove it or write the audio as a span"
                )

    def save_settings(self, folder: Path) -> None:
        """Write tokenizer_config.json, with which plain transformers loads the tokenizer; the backbone's chat template is in it."""
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast", "pad_token": self.token(self.vocab.pad_id),
            "eos_token": self.token(self.vocab.im_end_id),
            "clean_up_tokenization_spaces": False, "model_max_length": 1_000_000,
            **({"chat_template": self.chat_template} if self.chat_template else {}),
        }  # fmt: skip
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")

    def save(self, folder: Path) -> None:
        """Write tokenizer.json, tokenizer_config.json and vocab.json."""
        folder.mkdir(parents=True, exist_ok=True)
        self.backend.save(str(folder / "tokenizer.json"))
        self.save_settings(folder)
        self.vocab.save(folder / "vocab.json")


def stored_chat_template(folder: str | Path) -> Any:
    """The chat template beside a tokenizer (``chat_template.jinja``, or in ``tokenizer_config.json``) as it stands; or None."""
    folder = Path(folder) if Path(folder).is_dir() else Path(folder).parent
    try:
        if (folder / "chat_template.jinja").is_file():
            return (folder / "chat_template.jinja").read_text(encoding="utf-8")
        settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return settings.get("chat_template") if isinstance(settings, dict) else None


def read_backend(folder: str | Path, error: type[TttError] = DataError) -> Any:
    """The `tokenizers` tokenizer of ``folder/tokenizer.json`` (or of the file itself).

    What the file says of truncation and padding is switched off, and said once: a text is never cut or padded here.
    Raises ``error`` when the file is absent or damaged.
    """
    from tokenizers import Tokenizer

    path = Path(folder)
    path = path / "tokenizer.json" if path.is_dir() else path
    if not path.is_file():
        raise error(f"{path}: no tokenizer here; make one with 'ttt tokenizer' or set data.tokenizer")
    try:
        backend = Tokenizer.from_file(str(path))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as fault:  # the Rust library raises bare Exception, and a class of its own where it panics
        message = " ".join(str(fault).split())
        raise error(f"{path}: not a tokenizer file: {message}; copy it again") from fault
    asked = [
        *([f"truncation to {backend.truncation['max_length']} tokens"] if backend.truncation else []),
        *(["padding"] if backend.padding else []),
    ]
    backend.no_truncation()
    backend.no_padding()
    if asked and path.resolve() not in _said:
        _said.add(path.resolve())
        log.warning("%s: asks for %s, which is switched off: texts are neither cut nor padded", path, " and ".join(asked))
    return backend


_said: set[Path] = set()  # files whose settings were logged


def extend(
    backend, num_codes: int, num_codebooks: int = 1, form: str = DEFAULT_FORM, pattern: CodePattern = FLATTEN, mask: bool = True
):  # fmt: skip
    """Add the audio tokens of a ``form`` in order to a base tokenizer (in place); tokens that exist stay as they are.

    ``num_codes``: 0: text alone, which gets a mask token if ``mask``.
    """
    codes = num_codes + pattern.has_empty if num_codes else 0
    form_named(form, num_codes=num_codes).add_tokens(backend, codes, pattern.columns(num_codebooks), mask)
    return backend


def train_bpe(
    texts: Iterable[str], vocab_size: int, num_codes: int, num_codebooks: int = 1, form: str = DEFAULT_FORM,
    pattern: CodePattern = FLATTEN,
) -> TextTokenizer:  # fmt: skip
    """A byte-level BPE with Qwen-style pre-tokenization learnt from ``texts``, extended by the audio tokens of a ``form``.

    Any text can be encoded (all 256 bytes are in the base); deterministic.  ``num_codes``: of each of ``num_codebooks``
    codebooks. For the text-then-speech forms it also gets the ``<think>`` and ``</think>`` of Qwen3's template.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    words = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    if form_named(form).has_thought:
        backend.add_special_tokens(list(BASE_SPECIALS))
        backend.add_tokens(list(NO_THOUGHT[::2]))
    extend(backend, num_codes, num_codebooks, form, pattern)
    return TextTokenizer(backend, num_codebooks=num_codebooks, pattern=pattern)
