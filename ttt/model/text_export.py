"""Saves the text model inside a speech-text model: its tables and tokenizer without the added tokens.

What remains is a plain backbone folder, for comparisons of text alone or to start another speech model from.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ttt.errors import CheckpointError
from ttt.model.causal_lm import load_lm
from ttt.model.frozen import first_added


def save_text_model(source: Path, out: Path) -> int:
    """Write the text model of the folder ``source`` into the existing folder ``out``; -> how many tokens it has.

    Body and text rows are copied as they are.  Raises `CheckpointError` when tokens of speech stand between those of text.
    """
    model = load_lm(source, "sdpa")
    first = first_added(model.tokenizer)
    backend = text_tokenizer(model.tokenizer.backend, first, source)
    model.hf.resize_token_embeddings(first, mean_resizing=False)
    model.hf.save_pretrained(out)
    backend.save(str(out / "tokenizer.json"))
    if max(model.tokenizer.vocab.pad_id, model.tokenizer.vocab.im_end_id) < first:
        model.tokenizer.save_settings(out)
    return first


def text_tokenizer(backend: Any, first: int, source: Path) -> Any:
    """The tokenizer without its added tokens from id ``first`` on; all others keep their ids."""
    from tokenizers import Tokenizer

    plain = json.loads(backend.to_str())
    plain["added_tokens"] = [t for t in plain["added_tokens"] if t["id"] < first]
    made = Tokenizer.from_str(json.dumps(plain))
    if made.get_vocab_size(with_added_tokens=True) != first:
        raise CheckpointError(
            f"{source}: ids from {first} on are no added tokens alone; only the tokens of speech at the end can be cut off"
        )
    return made
