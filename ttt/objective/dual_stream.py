"""Dual stream: the exact factorisation in one forward pass (an objective of this toolkit).

TtT's own objective noises the answer's audio in place, so text after a span is trained on noisy history, while in decoding
its history is clean; BANOM and PPM reduce that mismatch (TtT, arXiv 2509.20072, section 3.4).  Here the clean sample is kept,
and a noisy copy of every span is appended that attends only to clean positions before its block.  The layout is that of block
diffusion (arXiv 2503.09573, section 3.2), the history that of TtT's hybrid mask.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from ttt.diffusion.corrupt import Times, corrupt, draw_times
from ttt.diffusion.rates import RandomRate
from ttt.errors import ConfigError
from ttt.interfaces import MaskingRate, Strategy
from ttt.masks.library import run_offsets
from ttt.objective.library import TtT
from ttt.objective.pairs import next_token_term
from ttt.registry import component, components, name_of
from ttt.registry.families import OBJECTIVE
from ttt.types import Kind, PackedBatch, Plan


@OBJECTIVE.register("dual_stream")
@dataclass(frozen=True)
class DualStreamTtT(TtT):
    """Next-token loss on clean text + diffusion on a noisy copy of each audio span that sees clean history only.

    With a mask of blocks every block has its own time and is denoised given the clean blocks before it, as in block-wise
    decoding.  ``fill_blocks``: the last block of a span is padded with its end token, as in decoding when a span ends inside a
    block.  ``times`` are drawn over all blocks of a batch.
    """

    mask: Any = component("mask", "dual_stream")
    strategies: Any = components("strategy", ())
    times: Times = "stratified"
    fill_blocks: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.logit_alignment != "same":
            raise ConfigError(
                "objective.logit_alignment: nothing stands before a copy of a span, so dual_stream has only 'same'; leave it out"
            )
        for strategy in self.strategies:
            if type(strategy).on_maskable is not Strategy.on_maskable:
                raise ConfigError(
                    f"objective.strategies: {name_of(strategy)!r} decides which spans stay clean; dual_stream "
                    "always has a clean and a noisy copy of every span: leave it out"
                )
        if name_of(self.mask) != "dual_stream":
            raise ConfigError(
                "objective.mask: dual_stream needs the mask dual_stream; put yours inside: {name: dual_stream, clean: ...}"
            )

    def plan(self, batch: PackedBatch, gen: Generator) -> Plan:
        """Copy the spans, draw one time per block (per span without blocks), build both terms."""
        for strategy in self.strategies:
            batch = strategy.on_batch(batch, gen)
        return self._plan(batch, gen, self.rate)

    def clean_plan(self, batch: PackedBatch, gen: Generator) -> Plan:
        """Validation: only strategies that shape the canvas (already applied), times as drawn."""
        return self._plan(batch, gen, RandomRate())

    def _plan(self, batch: PackedBatch, gen: Generator, rate: MaskingRate) -> Plan:
        if batch.joined is not None:
            raise ConfigError(
                "objective: dual_stream works with one id at a position; use ttt, or a tokenizer with pattern flatten"
            )
        wide, group, n_groups = with_copies(batch, self.maskable(batch), self.mask.block_length, self.fill_blocks)
        t = rate.times(draw_times(n_groups, gen, self.times), batch.progress, gen)
        u = torch.rand(tuple(wide.ids.shape), generator=gen)
        return self.plan_copies(wide, group, t, u)

    def plan_from(self, batch: PackedBatch, maskable: Tensor, t: Tensor, u: Tensor) -> Plan:
        """The plan for given draws: ``t`` f32 [n_docs] (one for all blocks of a document), ``u`` f32 [B, T] of the sample."""
        wide, group, n_groups = with_copies(batch, maskable, self.mask.block_length, fill=False)
        copied = group >= 0
        owner = torch.zeros(n_groups, dtype=torch.long)
        owner[group[copied]] = wide.doc[copied]
        wide_u = torch.zeros(wide.ids.shape)
        for row in range(len(u)):
            wide_u[row, copied[row]] = u[row, maskable[row]]
        return self.plan_copies(wide, group, t[owner], wide_u)

    def plan_copies(self, wide: PackedBatch, group: Tensor, t: Tensor, u: Tensor) -> Plan:
        """``wide``, ``group``: from `with_copies`; ``t`` f32 [n_groups]; ``u`` f32 [B, T + C]."""
        copied = group >= 0
        noised = corrupt(wide, copied, t, u, self.noise, self.min_mask_prob, group)
        text = wide.target & (wide.kind == Kind.TEXT)
        terms = {
            "ar": next_token_term(wide, text, self.text_normalize, self.text_scale),
            "nar": self.diffusion_term(wide, noised),
        }
        layout = dataclasses.replace(wide.layout(), stream=copied.to(torch.uint8))
        return Plan(noised.input_ids, wide.position, layout, self.mask, terms)


def with_copies(
    batch: PackedBatch, maskable: Tensor, block_length: int, fill: bool
) -> tuple[PackedBatch, Tensor, int]:
    """The batch with a copy of its maskable audio after every row, in order.

    -> (batch [B, T + C], group i64 [B, T + C], number of groups): the group of a copied position numbers its block (its
    span if ``block_length`` is 0) over the whole batch, -1 elsewhere.  ``fill`` adds copies of a span's last token up to
    the end of its last block, where that token ends the span.
    """
    offset = run_offsets(batch.layout())
    rows, columns, offsets, groups = [], [], [], []
    n_groups = 0
    for row in range(len(batch.ids)):
        at = maskable[row].nonzero().flatten()
        off = offset[row, at]
        if fill and block_length and len(at):
            at, off = _filled(batch, row, at, off, block_length)
        block = off // block_length if block_length else torch.zeros_like(off)
        new = torch.ones_like(at, dtype=torch.bool)
        new[1:] = (batch.run_id[row, at][1:] != batch.run_id[row, at][:-1]) | (block[1:] != block[:-1])
        new[1:] |= batch.doc[row, at][1:] != batch.doc[row, at][:-1]
        group = torch.cumsum(new.long(), 0) - 1 + n_groups
        n_groups += int(new.sum())
        rows.append(at)
        offsets.append(off)
        groups.append(group)
        columns.append(len(at))
    width = max(columns, default=0)
    size = (len(batch.ids), width)
    source = torch.zeros(size, dtype=torch.long)
    moved = torch.zeros(size, dtype=torch.long)
    tail_group = torch.full(size, -1, dtype=torch.long)
    for row, (at, off, group) in enumerate(zip(rows, offsets, groups, strict=True)):
        source[row, : len(at)] = at
        moved[row, : len(at)] = off - offset[row, at]  # padded positions continue the count
        tail_group[row, : len(at)] = group
    real = tail_group >= 0

    def joined(values: Tensor, padding: int | bool) -> Tensor:
        copy = values.gather(1, source)
        return torch.cat([values, torch.where(real, copy, torch.full_like(copy, padding))], 1)

    wide = dataclasses.replace(
        batch, ids=joined(batch.ids, 0), kind=joined(batch.kind, int(Kind.PAD)), run_id=joined(batch.run_id, 0),
        doc=joined(batch.doc, -1), position=joined(batch.position, 0), target=joined(batch.target, False),
        noisable=joined(batch.noisable, False), visible=joined(batch.visible, False),
    )  # fmt: skip
    t_size = batch.ids.shape[1]
    wide.position[:, t_size:] += torch.where(real, moved, 0)
    return wide, torch.cat([torch.full_like(batch.doc, -1), tail_group], 1), n_groups


def _filled(batch: PackedBatch, row: int, at: Tensor, off: Tensor, block_length: int) -> tuple[Tensor, Tensor]:
    last = torch.ones_like(at, dtype=torch.bool)
    last[:-1] = (at[1:] != at[:-1] + 1) | (batch.run_id[row, at][1:] != batch.run_id[row, at][:-1])
    last[:-1] |= batch.doc[row, at][1:] != batch.doc[row, at][:-1]
    # A truncated span has no end token: it is followed by another document or by the end of the row.
    after = at + 1
    inside = after < batch.ids.shape[1]
    follows = torch.zeros_like(last)
    follows[inside] = batch.doc[row, after[inside]] == batch.doc[row, at[inside]]
    missing = torch.where(last & follows, (-(off + 1)) % block_length, 0)
    repeats = missing + 1
    extra = torch.arange(int(repeats.sum())) - torch.repeat_interleave(torch.cumsum(repeats, 0) - repeats, repeats)
    return torch.repeat_interleave(at, repeats), torch.repeat_interleave(off, repeats) + extra
