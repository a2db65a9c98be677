"""Rows of tokens that grow together, and the network calls on them: what is cached is exactly what cannot change."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ttt.errors import ConfigError
from ttt.interfaces import MaskRule
from ttt.masks.materialize import carry, dense
from ttt.model.cache import SlotCache
from ttt.model.lm import SpeechTextLM
from ttt.types import Kind, Layout


@dataclass(frozen=True)
class Prompt:
    """``ids`` of one prompt.  ``content`` marks what comes from the data and not from the template (for guidance);

    ``answer`` the model's own earlier turns, which masks treat like in training, as answers (default: there are none).
    """

    uid: str
    ids: Sequence[int]
    content: Sequence[bool] | None = None
    answer: Sequence[bool] | None = None


class Session:
    """Token rows with per-row state.

    `logits` runs the network on committed tokens plus a tentative tail; `append` commits.  With a cache only positions
    that may still change (by the mask rule's own word) are run again, so every result equals the uncached one.
    """

    def __init__(
        self, model: SpeechTextLM, mask: MaskRule, prompts: Sequence[Prompt], use_cache: bool, room: int
    ) -> None:
        if model.attention == "flex_attention":
            raise ConfigError(
                "decoding needs model.attention=sdpa or eager: a block mask cannot carry single query rows"
            )
        self.model, self.mask, self.vocab = model, mask, model.tokenizer.vocab
        self.device = model.device
        self.lengths = torch.tensor([len(p.ids) for p in prompts])
        capacity = int(self.lengths.max()) + room
        self.ids = torch.full((len(prompts), capacity), self.vocab.pad_id, dtype=torch.long)
        self.content = torch.zeros((len(prompts), capacity), dtype=torch.bool)
        self.asked = torch.zeros((len(prompts), int(self.lengths.max())), dtype=torch.bool)  # the prompt, answers left out
        for row, prompt in enumerate(prompts):
            self.ids[row, : len(prompt.ids)] = torch.tensor(list(prompt.ids), dtype=torch.long)
            if prompt.content is not None:
                self.content[row, : len(prompt.ids)] = torch.tensor(list(prompt.content))
            self.asked[row, : len(prompt.ids)] = True
            if prompt.answer is not None:
                self.asked[row, : len(prompt.ids)] = ~torch.tensor(list(prompt.answer))
        self.closed = torch.zeros(len(prompts), dtype=torch.bool)
        layers = model.hf.config.num_hidden_layers
        self.cache = SlotCache(len(prompts), layers, capacity, self.device) if use_cache else None

    def row(self, row: int) -> list[int]:
        """All committed tokens of one row."""
        return self.ids[row, : int(self.lengths[row])].tolist()

    def append(self, row: int, ids: Tensor, closed: bool = False) -> None:
        """Commit tokens; ``closed``: no audio will follow a trailing audio run."""
        start, n = int(self.lengths[row]), len(ids)
        while start + n > self.ids.shape[1]:
            self.ids = torch.cat([self.ids, torch.full_like(self.ids, self.vocab.pad_id)], 1)
            self.content = torch.cat([self.content, torch.zeros_like(self.content)], 1)
        self.ids[row, start : start + n] = ids.cpu()
        self.lengths[row] += n
        self.closed[row] = closed

    def logits(self, rows: Tensor, tails: Tensor, last: int, unconditional: str = "") -> Tensor:
        """Logits f32 [R, last, V] at the last positions of (committed tokens + ``tails`` i64 [R, m])."""
        rows = rows.cpu()
        committed = self.lengths[rows]  # [R]
        full, lengths = self._joined(rows, committed, tails.cpu())
        if unconditional:
            hide = torch.arange(full.shape[1]) < (lengths - last)[:, None]
            if unconditional == "mask_prompt_content":
                content = torch.zeros_like(hide)
                width = min(full.shape[1], self.content.shape[1])
                content[:, :width] = self.content[rows, :width]
                hide &= content
            full = full.masked_fill(hide, self.vocab.mask_id)
            return self._run(rows, full, lengths, torch.zeros_like(lengths), last, None)
        starts = torch.zeros_like(lengths) if self.cache is None else self.cache.lengths[rows.to(self.device)].cpu()
        return self._run(rows, full, lengths, starts, last, committed)

    def _joined(self, rows: Tensor, committed: Tensor, tails: Tensor) -> tuple[Tensor, Tensor]:
        lengths = committed + tails.shape[1]
        width = int(lengths.max())
        full = torch.full((len(rows), width), self.vocab.pad_id, dtype=torch.long)
        have = min(width, self.ids.shape[1])
        full[:, :have] = self.ids[rows, :have]
        columns = torch.arange(width)
        full.masked_fill_(columns >= committed[:, None], self.vocab.pad_id)
        if tails.shape[1]:
            full.scatter_(1, committed[:, None] + torch.arange(tails.shape[1]), tails)
        return full, lengths

    def _layout(self, full: Tensor, lengths: Tensor, rows: Tensor) -> Layout:
        visible = torch.arange(full.shape[1]) < lengths[:, None]
        audio = self.vocab.is_audio(full) & visible
        kind = torch.where(audio, int(Kind.AUDIO), int(Kind.TEXT)).to(torch.uint8)
        columns = torch.arange(full.shape[1]).expand_as(full)
        asked = torch.zeros_like(visible)
        width = min(full.shape[1], self.asked.shape[1])
        asked[:, :width] = self.asked[rows, :width]
        return Layout(
            kind=kind, span=torch.cumsum(~audio, 1), doc=torch.zeros_like(full), position=columns,
            prompt=asked, visible=visible, stream=torch.zeros_like(kind),
        )  # fmt: skip

    def _run(
        self, rows: Tensor, full: Tensor, lengths: Tensor, starts: Tensor, last: int, committed: Tensor | None
    ) -> Tensor:
        layout = self._layout(full, lengths, rows)
        width = int((lengths - starts).max())
        at = starts[:, None] + torch.arange(width)  # [R, w] absolute positions of the new columns
        inside = at.clamp(max=full.shape[1] - 1)
        cache = None
        keys = int(starts.max()) + width
        if keys > full.shape[1]:  # rows that start late leave unused columns behind short rows
            layout = _widen(layout, keys)
        if self.cache is not None and committed is not None:
            cache = self.cache.begin(rows.to(self.device), width)
        allowed = dense(self.mask, layout, at)
        mask = carry(allowed, self.model.attention, self.model.dtype, at)
        hidden = self.model.hidden(
            full.gather(1, inside).to(self.device), inside.to(self.device), mask.to(self.device), cache
        )  # [R, w, D]
        if cache is not None and committed is not None and self.cache is not None:
            frozen = self.mask.frozen_prefix(_committed(layout, committed), self.closed[rows])
            self.cache.keep(rows.to(self.device), torch.maximum(frozen, starts).to(self.device))
        columns = (lengths - starts)[:, None] - last + torch.arange(last)  # [R, last]
        wanted = hidden.gather(1, columns[..., None].expand(-1, -1, hidden.shape[-1]).to(self.device))
        return self.model.head(wanted)


def _widen(layout: Layout, width: int) -> Layout:
    def pad(x: Tensor, value: int) -> Tensor:
        return torch.nn.functional.pad(x, (0, width - x.shape[1]), value=value)

    fills = {"doc": -1}
    return Layout(**{f.name: pad(getattr(layout, f.name), fills.get(f.name, 0)) for f in dataclasses.fields(layout)})


def _committed(layout: Layout, committed: Tensor) -> Layout:
    columns = torch.arange(layout.kind.shape[1], device=layout.kind.device)
    return dataclasses.replace(layout, visible=layout.visible & (columns < committed.to(columns.device)[:, None]))
