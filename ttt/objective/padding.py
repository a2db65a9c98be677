"""Padding as data: what stands behind the last document of a row becomes the end of that document."""

from __future__ import annotations

import dataclasses

import torch

from ttt.types import Kind, PackedBatch


def with_padding(batch: PackedBatch) -> PackedBatch:
    """The batch with the padding of every row as further answer text of its last document, to be noised and learnt.

    LLaDA's SFT fills answers up to the batch's longest row with its end-of-text token and learns it, which is how a model with
    full attention learns where answers end; one document a row (``data.pack: false``) is what that was made for.
    """
    padding = batch.doc < 0
    if not bool(padding.any()):
        return batch
    columns = torch.arange(batch.ids.shape[1]).expand(batch.ids.shape)
    last = torch.where(padding, -1, columns).amax(1, keepdim=True)  # column of each row's last real token
    padding = padding & (last >= 0)
    behind = columns - last

    def filled(values: torch.Tensor, new: torch.Tensor | int | bool) -> torch.Tensor:
        return torch.where(padding, torch.as_tensor(new, dtype=values.dtype), values)

    at = last.clamp(min=0)
    return dataclasses.replace(
        batch, kind=filled(batch.kind, int(Kind.TEXT)), run_id=filled(batch.run_id, batch.run_id.gather(1, at) + behind),
        doc=filled(batch.doc, batch.doc.gather(1, at)), position=filled(batch.position, batch.position.gather(1, at) + behind),
        target=filled(batch.target, True), noisable=filled(batch.noisable, True), visible=filled(batch.visible, True),
    )  # fmt: skip
