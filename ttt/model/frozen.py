"""Training with frozen parts: the rows of text tokens, the Transformer's body, or both (``model.freeze``).

Zeroing gradients of frozen rows is not enough: weight decay and Adam's moments move a row that has no gradient, and a
sharded optimiser sees flat pieces of parameters.  So frozen rows are a parameter of their own that no optimiser gets
(`ttt.model.rows`).  They stay bit-equal under every engine.  Saved files hold plain tables.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from ttt.config.schema import ModelSection
from ttt.errors import ConfigError
from ttt.model.folder import read_into
from ttt.model.lm import SpeechTextLM
from ttt.model.rows import plain_tables, split_tables
from ttt.text.special_tokens import MASK, MULTIMODAL_SPECIALS
from ttt.text.tokenizer import TextTokenizer

log = logging.getLogger(__name__)


class FrozenLM(SpeechTextLM):
    """`SpeechTextLM` whose tables may be in two parts; saves and loads plain ones."""

    def save(self, folder: str | Path) -> None:
        """A plain Hugging Face folder."""
        with plain_tables(self.hf):
            super().save(folder)

    def load_weights(self, folder: str | Path) -> None:
        """Read what `save`, or any whole model of this shape, wrote, in place."""
        with plain_tables(self.hf, write_back=True):
            read_into(self.hf, Path(folder))


def frozen(model: SpeechTextLM, section: ModelSection) -> SpeechTextLM:
    """``model`` with the parts frozen that ``section.freeze`` names; adapters freeze by themselves.

    Raises `ConfigError` where nothing would be left to train, or adapters contradict it.
    """
    if section.freeze == "none":
        return model
    if section.lora.rank:
        if section.freeze == "text_rows":
            return model  # adapters leave every row alone that the backbone brought
        raise ConfigError(
            f"model.freeze: {section.freeze!r} contradicts model.lora, which trains the body; use none or text_rows with it"
        )
    hf = model.hf
    tables: list[Any] = [hf.get_input_embeddings(), hf.get_output_embeddings()]
    if section.freeze in ("body", "text_model"):
        hf.requires_grad_(False)
        for table in tables:
            table.requires_grad_(True)
    if section.freeze in ("text_rows", "text_model"):
        first = first_added(model.tokenizer)
        if first >= tables[0].num_embeddings:
            raise ConfigError(
                f"model.freeze: {section.freeze!r} leaves nothing to train: no token was added to the text tokenizer"
            )
        split_tables(hf, first, wide=False, key="model.freeze")
        log.info("model.freeze: %s: rows 0 .. %d of the token tables stay as they are", section.freeze, first - 1)
    model = FrozenLM(hf, model.tokenizer)
    trained = sum(p.numel() for p in hf.parameters() if p.requires_grad)
    log.info(
        "model.freeze: %s: %.2f of %.2f million weights are trained", section.freeze, trained / 1e6,
        sum(p.numel() for p in hf.parameters()) / 1e6,
    )  # fmt: skip
    return model


def first_added(tokenizer: TextTokenizer) -> int:
    """The first id that was added to a text tokenizer: its text rows are those before."""
    vocab = tokenizer.vocab
    named = [tokenizer.backend.token_to_id(name) for name in (*MULTIMODAL_SPECIALS, MASK)]
    added = (vocab.text_vocab, vocab.soa_id, vocab.soa_last_id, *named)
    return min(i for i in added if i is not None and i >= 0)
