"""A token table in two parts: the rows a backbone came with, frozen, and the rows of added tokens, trained.

Added tokens are the last ids of the table, so nothing has to be scattered: gradients and optimiser states exist for the
new rows only, and the old rows cannot move, tied or not.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ttt.errors import ConfigError


class SplitTable(nn.Module):
    """``old`` [first, D] frozen, ``new`` [V - first, D] trainable; both are `nn.Embedding`, so that optimisers know them as
    tables."""

    def __init__(self, old: nn.Embedding, new: nn.Embedding) -> None:
        super().__init__()
        self.old, self.new = old, new

    @property
    def num_embeddings(self) -> int:
        """Rows of both parts."""
        return self.old.num_embeddings + self.new.num_embeddings

    @property
    def weight(self) -> Tensor:
        """The whole table [V, D], put together anew; differentiable in the new rows."""
        return torch.cat([self.old.weight, self.new.weight.to(self.old.weight.dtype)])


class SplitEmbedding(SplitTable):
    """Ids [...] -> vectors [..., D]."""

    def forward(self, ids: Tensor) -> Tensor:
        """Look each id up in its part."""
        first = self.old.num_embeddings
        fresh = ids >= first
        old = self.old(ids.masked_fill(fresh, 0))
        new = self.new((ids - first).clamp(min=0)).to(old.dtype)
        return torch.where(fresh[..., None], new, old)


class SplitHead(SplitTable):
    """Hidden states [..., D] -> logits [..., V]."""

    @property
    def out_features(self) -> int:
        """Width of the logits, as of any linear layer."""
        return self.num_embeddings

    def forward(self, hidden: Tensor) -> Tensor:
        """Both parts' products, side by side."""
        return torch.cat([F.linear(hidden, t.weight.to(hidden.dtype)) for t in (self.old, self.new)], -1)


def split_tables(hf: Any, first: int, wide: bool = True, key: str = "model.lora") -> list[SplitTable]:
    """Replace the embedding and the head of ``hf`` in place; rows from ``first`` on are trained.

    ``wide``: the trained rows become float32, whatever the rest is; else they keep their type.  Returns the tables with rows
    of their own: one if the head is tied to the embedding, else two.  Raises `ConfigError`, naming the setting ``key``, for
    a backbone whose tables are not plain ones.
    """
    embedding, head = hf.get_input_embeddings(), hf.get_output_embeddings()
    if type(embedding) is not nn.Embedding or type(head) is not nn.Linear or head.bias is not None:
        raise ConfigError(
            f"{key}: {type(hf).__name__} has token tables of its own kind ({type(embedding).__name__}, "
            f"{type(head).__name__}), which cannot be split into frozen and trained rows; turn the setting off"
        )
    tied = head.weight is embedding.weight
    inputs = SplitEmbedding(*_parts(embedding.weight, first, wide))
    outputs = SplitHead(inputs.old, inputs.new) if tied else SplitHead(*_parts(head.weight, first, wide))
    hf.set_input_embeddings(inputs)
    hf.set_output_embeddings(outputs)
    return [inputs] if tied else [inputs, outputs]


def join_tables(hf: Any) -> None:
    """The inverse of `split_tables`: plain tables again, tied if they were."""
    inputs, outputs = hf.get_input_embeddings(), hf.get_output_embeddings()
    if not isinstance(inputs, SplitTable):
        return
    with torch.no_grad():
        embedding = nn.Embedding.from_pretrained(inputs.weight.detach().clone(), freeze=False)
        rows, width = embedding.weight.shape
        head = nn.Linear(width, rows, bias=False, device="meta")
        tied = outputs.new is inputs.new
        head.weight = embedding.weight if tied else nn.Parameter(outputs.weight.detach().clone())
    hf.set_input_embeddings(embedding)
    hf.set_output_embeddings(head)


@contextlib.contextmanager
def plain_tables(hf: Any, write_back: bool = False) -> Iterator[None]:
    """Inside, ``hf`` has plain tables, as files know them: copies, of which ``write_back`` takes over what was changed."""
    split = [t for t in (hf.get_input_embeddings(), hf.get_output_embeddings()) if isinstance(t, SplitTable)]
    join_tables(hf)
    plain = [hf.get_input_embeddings(), hf.get_output_embeddings()]
    try:
        yield
    finally:
        if split:
            hf.set_input_embeddings(split[0])
            hf.set_output_embeddings(split[1])
    if write_back and split:
        with torch.no_grad():
            for parts, whole in zip(split, plain, strict=True):
                first = parts.old.num_embeddings
                parts.old.weight.copy_(whole.weight[:first])
                parts.new.weight.copy_(whole.weight[first:])


def _parts(weight: Tensor, first: int, wide: bool) -> tuple[nn.Embedding, nn.Embedding]:
    fresh = weight.detach()[first:]
    old = nn.Embedding.from_pretrained(weight.detach()[:first].clone(), freeze=True)
    new = nn.Embedding.from_pretrained((fresh.float() if wide else fresh).clone(), freeze=False)
    return old, new
