"""The work of `ttt bench train` and `loader`: a model's shape and documents drawn from a seed.

Documents are spoken dialogues of the official kind: a prompt of text and the user's audio, then an answer in which text and
audio take turns.  The default is a step of 25 million parameters over 4 documents of 144 to 667 tokens, which a plain loop
pads to 2,048: real tokens are 21 % of its positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from ttt.data.batches.rows import collate
from ttt.rng import derive_seed
from ttt.text.vocab import Vocabulary
from ttt.types import Kind, PackedBatch, TokenStream, audio_runs

if TYPE_CHECKING:
    from ttt.config.schema import Attention
    from ttt.model.lm import SpeechTextLM

# Lengths in tokens of five batches of four documents.
LENGTHS = (
    (648, 636, 522, 249), (376, 304, 604, 407), (379, 574, 667, 373), (144, 303, 237, 652), (662, 302, 289, 298),
)  # fmt: skip
PADDED = 2048  # what the plain loop pads rows to
TEXT_CHUNK, AUDIO_CHUNK = 20, 37  # tokens of text and audio that take turns in an answer
PROMPT = (95, 150)  # tokens of a prompt, of which USER_AUDIO are the user's
USER_AUDIO = (30, 80)

# What differs from the preset ``toy`` (a Qwen2 with rotations to the base of 1e6).
SHAPE: dict[str, Any] = {
    "vocab_size": 20_000, "hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 2,
    "intermediate_size": 768, "tie_word_embeddings": True, "max_position_embeddings": 32_768,
}  # fmt: skip


@dataclass(frozen=True)
class Work:
    """A vocabulary and the documents of each round."""

    vocab: Vocabulary
    rounds: tuple[tuple[TokenStream, ...], ...]

    def tokens(self, number: int) -> int:
        """Real tokens of a round."""
        return sum(map(len, self.rounds[number % len(self.rounds)]))


def vocabulary(size: int) -> Vocabulary:
    """Text below 18 % of the ids, then delimiters, then codes, in the official order."""
    audio_start = round(0.18 * size)
    soa = audio_start - 10
    return Vocabulary(
        size=size, audio_start=audio_start, code_start=audio_start + 1, num_codes=size - audio_start - 4, mask_id=size - 3,
        soa_id=soa, soa_last_id=soa + 2, user_end_id=soa + 1, eoa_id=size - 2, eoa_last_id=size - 1, im_start_id=soa - 11,
        im_end_id=soa - 10, pad_id=soa - 12,
    )  # fmt: skip


def work(seed: int, vocab_size: int = SHAPE["vocab_size"], lengths: Any = LENGTHS) -> Work:
    """Documents of the given lengths, one tuple a round; equal for equal seeds."""
    vocab = vocabulary(vocab_size)
    rng = np.random.default_rng(derive_seed(seed, "bench"))
    return Work(vocab, tuple(tuple(document(vocab, n, rng, f"{i}.{j}") for j, n in enumerate(row))
                             for i, row in enumerate(lengths)))  # fmt: skip


def document(vocab: Vocabulary, length: int, rng: np.random.Generator, uid: str) -> TokenStream:
    """One dialogue of ``length`` tokens: prompt, then text and audio in turn, the answer being the target."""
    prompt = min(int(rng.integers(PROMPT[0], PROMPT[1] + 1)), length * 2 // 3)
    heard = min(int(rng.integers(USER_AUDIO[0], USER_AUDIO[1] + 1)), prompt // 2)

    def text(n: int) -> list[int]:
        return rng.integers(0, vocab.pad_id, n).tolist()

    def codes(n: int) -> list[int]:
        return rng.integers(vocab.code_start, vocab.code_stop, n).tolist()

    ids = [
        *text(prompt - heard - 5),
        vocab.soa_id,
        *codes(heard),
        vocab.user_end_id,
        vocab.im_end_id,
        vocab.im_start_id,
    ]
    ids.append(int(rng.integers(0, vocab.pad_id)))
    while (left := length - len(ids)) > TEXT_CHUNK + AUDIO_CHUNK + 3:
        ids += [*text(TEXT_CHUNK - 1), vocab.soa_id, *codes(AUDIO_CHUNK - 1), vocab.eoa_id]
    words = max(0, min(TEXT_CHUNK - 1, left - 4))
    ids += [*text(words), vocab.soa_last_id, *codes(max(0, left - words - 3)), vocab.eoa_last_id, vocab.im_end_id]
    found = np.asarray(ids[:length], dtype=np.int64)
    kind = np.where(vocab.is_audio(found), int(Kind.AUDIO), int(Kind.TEXT)).astype(np.uint8)
    answer = np.arange(length) >= prompt
    return TokenStream(uid, found, kind, audio_runs(kind), answer, answer.copy(), prompt_length=prompt)


def packed(documents: tuple[TokenStream, ...], vocab: Vocabulary) -> PackedBatch:
    """All documents in one row, as the loader packs them."""
    return collate([documents], sum(map(len, documents)), vocab.pad_id, vocab.mask_id, vocab.code_space)


def network(
    vocab: Vocabulary, seed: int, attention: Attention, shape: dict[str, Any] = SHAPE,
    gradient_checkpointing: bool = False, **overrides: Any,
) -> SpeechTextLM:
    """A Qwen2 of ``shape`` with random weights for ``vocab``, in training mode; no tokenizer behind it."""
    from ttt.config.schema import ModelSection
    from ttt.model.backbone import build_backbone
    from ttt.model.lm import SpeechTextLM
    from ttt.registry.families import INITIALIZER

    values = {k: v for k, v in {**shape, **overrides}.items() if k != "vocab_size"}
    section = ModelSection(
        preset="toy", overrides=values, attention=attention, init=INITIALIZER.build("normal", "bench"),
        gradient_checkpointing=gradient_checkpointing,
    )  # fmt: skip
    return SpeechTextLM(build_backbone(section, vocab, seed), SimpleNamespace(vocab=vocab)).train()  # type: ignore[arg-type]
