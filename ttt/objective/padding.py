"""Padding as data: the padding of a row becomes the end of its last document."""

from __future__ import annotations

import dataclasses

import torch

from ttt.types import Kind, PackedBatch


def with_padding(batch: PackedBatch) -> PackedBatch:
    """The batch with the padding of every row as further answer text of its last document, which is noised and learned.

    LLaDA's SFT (arXiv 2502.09992) pads answers with the end-of-text token to the longest row of the batch and learns the
    padding: a model with full attention learns from it where answers end.  Meant for one document a row (``data.pack: false``).
    """
    padding = batch.doc < 0
    if not bool(padding.any()):
        return batch
    columns = torch.arange(batch.ids.shape[1]).expand(batch.ids.shape)
    last = torch.where(padding, -1, columns).amax(1, keepdim=True)  # column of each row's last real token
    padding = padding & (last >= 0)
    distance = columns - last

    def filled(values: torch.Tensor, new: torch.Tensor | int | bool) -> torch.Tensor:
        return torch.where(padding, torch.as_tensor(new, dtype=values.dtype), values)

    at = last.clamp(min=0)
    return dataclasses.replace(
        batch, kind=filled(batch.kind, int(Kind.TEXT)), run_id=filled(batch.run_id, batch.run_id.gather(1, at) + distance),
        doc=filled(batch.doc, batch.doc.gather(1, at)), position=filled(batch.position, batch.position.gather(1, at) + distance),
        target=filled(batch.target, True), noisable=filled(batch.noisable, True), visible=filled(batch.visible, True),
    )  # fmt: skip
