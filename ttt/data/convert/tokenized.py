"""Chats as records of ids: the prompt and its answer written in the tokenizer's template, cut to a length.

The pieces of the template are tokenized one by one, so the border between prompt and answer is exact, and the header of
the answer belongs to the prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttt.data.convert.core import LeftOutError
from ttt.data.read.examples import example_from_json
from ttt.data.read.records import RecordError

if TYPE_CHECKING:
    from ttt.text.tokenizer import TextTokenizer


class Tokenizers:
    """The tokenizer of a converter: a folder, or (empty) the one beside the data."""

    tokenizer: str

    @cached_property
    def _known(self) -> dict[str, TextTokenizer]:
        return {}

    def _tokenizer(self, beside: Path) -> TextTokenizer:
        from ttt.text.tokenizer import TextTokenizer

        folder = self.tokenizer or str(beside)
        if folder not in self._known:
            self._known[folder] = TextTokenizer.load(folder)
        return self._known[folder]


def ids_record(record: Mapping[str, Any], where: str, tokenizer: TextTokenizer, max_tokens: int) -> dict[str, Any]:
    """``input_ids`` (at most ``max_tokens``) and ``prompt_length`` of a chat with one answer, and both as text.

    ``cut``: how many tokens fell away, where some did.  Raises `RecordError` for a chat with several answers to learn,
    and `LeftOutError` where the prompt alone fills ``max_tokens``.
    """
    from ttt.data.encode import encode_example
    from ttt.text.template import pieces

    example = example_from_json(record, where)
    answers = sum(t.is_target for t in example.turns)
    if answers != 1:
        raise RecordError(
            where, "several answers",
            f"{answers} answers to learn, a record of ids has one; set per_answer=true or first_exchange=true",
        )  # fmt: skip
    stream = encode_example(example, tokenizer)
    prompt = int(stream.target.argmax())
    if prompt >= max_tokens:
        raise LeftOutError(
            where, "prompt too long", f"the prompt has {prompt} tokens, nothing is left of its answer; see max_tokens"
        )
    written = [(p.span.text, p.target) for p in pieces(example, template=tokenizer.template)]
    made = {
        "uid": example.uid, "task": example.task, "data_type": "text", "input_ids": stream.ids[:max_tokens].tolist(),
        "prompt_length": prompt, "full_text": "".join(text for text, _ in written),
        "prompt_text": "".join(text for text, target in written if not target),
    }  # fmt: skip
    return {**made, "cut": len(stream) - max_tokens} if len(stream) > max_tokens else made
