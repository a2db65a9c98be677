"""Flat ids of a batch -> frames of codes, for models that see all codebooks of a frame at once, and the text before them.

Letters: ``D`` documents, ``L`` text tokens, ``S`` frames of the prompt, ``T`` frames of the target, ``Q`` codebooks.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from ttt.errors import DataError
from ttt.types import Kind, PackedBatch, Words


@dataclass(frozen=True)
class Frames:
    """Codes of some documents: ``prompt`` i64 [D, S, Q], ``target`` i64 [D, T, Q], 0 on padding; lengths i64 [D].

    ``prompt_at``, ``target_at`` i64 [D, S], [D, T]: flat position (row * width + column) of a frame's first code in the
    batch.  ``doc`` i64 [D]: number of the document in the batch (those without target frames are not there).
    ``stretch``: number of frames at the end of every prompt that are copies of target frames; positions do not count
    them.  ``words``: the text of the prompts, template included.  ``voices`` f32 [D, E]: who speaks, where the batch says so.
    """

    prompt: Tensor
    prompt_lens: Tensor
    target: Tensor
    target_lens: Tensor
    prompt_at: Tensor
    target_at: Tensor
    doc: Tensor
    words: Words
    stretch: int = 0
    voices: Tensor | None = None

    @property
    def count(self) -> int:
        """Frames to predict."""
        return int(self.target_lens.sum())


def frames_of(batch: PackedBatch) -> Frames:
    """The frames of every document that has some to predict: targets by ``batch.target``, all other codes as its prompt.

    Raises `DataError` for a batch that does not say which ids are codes, for codes out of the order of codebooks, and
    for documents without a prompt.
    """
    if batch.space is None:
        raise DataError("this batch does not say which ids are codes; make it with collate(..., vocab.code_space)")
    codebooks = batch.space.codebooks
    first, stop, size = codebooks[0][0], codebooks[-1][1], codebooks[0][1] - codebooks[0][0]
    ids = batch.ids.flatten()
    is_code = (ids >= first) & (ids < stop) & batch.visible.flatten()
    at = is_code.nonzero().flatten()
    if not len(at):
        return _empty(len(codebooks))
    codebook = (ids[at] - first) // size
    # Frames are whole and in order, so the n-th code of a document is of codebook n mod Q.
    doc, target = batch.doc.flatten()[at], batch.target.flatten()[at]
    if len(at) % len(codebooks) or not torch.equal(codebook, torch.arange(len(at)) % len(codebooks)):
        wrong = _name(batch, int(doc[(codebook[: len(at)] != torch.arange(len(at)) % len(codebooks)).long().argmax()]))
        raise DataError(f"example {wrong}: its codes are no whole frames of {len(codebooks)}; make the examples again")
    codes = (ids[at] - first - codebook * size).view(-1, len(codebooks))
    at, doc, target = at[:: len(codebooks)], doc[:: len(codebooks)], target[:: len(codebooks)]
    kept = torch.unique(doc[target])
    if not len(kept):
        return _empty(len(codebooks))
    slot = torch.full((batch.n_docs,), -1)
    slot[kept] = torch.arange(len(kept))
    parts = [_padded(codes, at, slot[doc], mine, len(kept)) for mine in (~target, target)]
    (prompt, prompt_lens, prompt_at), (answer, answer_lens, answer_at) = parts
    if bool((prompt_lens == 0).any()):
        raise DataError(
            f"example {_name(batch, int(kept[int((prompt_lens == 0).long().argmax())]))}: has no audio before its answer; a "
            "continuation needs a prompt"
        )
    voices = None if batch.voices is None else batch.voices[kept]
    words = _words(batch, slot, len(kept))
    return Frames(prompt, prompt_lens, answer, answer_lens, prompt_at, answer_at, kept, words, voices=voices)


def resplit(frames: Frames, lengths: Tensor) -> Frames:
    """The same recordings with prompts of ``lengths`` i64 [D] frames: each is its prompt and target in one piece."""
    total = frames.prompt_lens + frames.target_lens
    if bool(((lengths < 1) | (lengths >= total)).any()):
        raise DataError(f"cut: prompts of {lengths.tolist()} frames do not fit recordings of {total.tolist()}")
    codes, at, slot, in_prompt = [], [], [], []
    for d in range(len(total)):
        s, t = int(frames.prompt_lens[d]), int(frames.target_lens[d])
        codes.append(torch.cat([frames.prompt[d, :s], frames.target[d, :t]]))
        at.append(torch.cat([frames.prompt_at[d, :s], frames.target_at[d, :t]]))
        slot.append(torch.full((s + t,), d))
        in_prompt.append(torch.arange(s + t) < lengths[d])
    whole, places, owner, of_prompt = (torch.cat(part) for part in (codes, at, slot, in_prompt))
    parts = [_padded(whole, places, owner, chosen, len(total)) for chosen in (of_prompt, ~of_prompt)]
    (prompt, prompt_lens, prompt_at), (answer, answer_lens, answer_at) = parts
    return dataclasses.replace(
        frames, prompt=prompt, prompt_lens=prompt_lens, target=answer, target_lens=answer_lens, prompt_at=prompt_at,
        target_at=answer_at, stretch=0,
    )  # fmt: skip


def with_stretch(frames: Frames, starts: Tensor, length: int) -> Frames:
    """Prompts that are longer by ``length`` frames of their targets, from frame ``starts`` i64 [D] on; the same targets."""
    at = starts[:, None] + torch.arange(length)  # [D, length]
    rows = torch.arange(len(starts))[:, None]
    codes, places, slot = [], [], []
    for d, s in enumerate(frames.prompt_lens.tolist()):
        codes.append(torch.cat([frames.prompt[d, :s], frames.target[rows[d], at[d]]]))
        places.append(torch.cat([frames.prompt_at[d, :s], frames.target_at[rows[d], at[d]]]))
        slot.append(torch.full((s + length,), d))
    whole = torch.cat(slot)
    prompt, lens, prompt_at = _padded(torch.cat(codes), torch.cat(places), whole, whole >= 0, len(starts))
    return dataclasses.replace(frames, prompt=prompt, prompt_lens=lens, prompt_at=prompt_at, stretch=length)


def _words(batch: PackedBatch, slot: Tensor, rows: int) -> Words:
    """Text that is no target, of the documents that have a ``slot`` i64 [documents] >= 0."""
    of_prompt = (batch.kind == Kind.TEXT) & batch.visible & ~batch.target
    at = of_prompt.flatten().nonzero().flatten()
    doc = batch.doc.flatten()[at]
    ids, lens, _ = _padded(batch.ids.flatten()[at, None], at, slot[doc], doc >= 0, rows)
    return Words(ids[..., 0], lens)


def _padded(codes: Tensor, at: Tensor, slot: Tensor, chosen: Tensor, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes [n, Q], positions [n] and rows [n] of the chosen frames -> [rows, most, Q], lengths [rows], [rows, most]."""
    chosen = chosen & (slot >= 0)
    slot, codes, at = slot[chosen], codes[chosen], at[chosen]
    lengths = torch.bincount(slot, minlength=rows)
    order = torch.argsort(slot, stable=True)
    slot, codes, at = slot[order], codes[order], at[order]
    place = torch.arange(len(slot)) - (torch.cumsum(lengths, 0) - lengths)[slot]
    width = int(lengths.max()) if len(slot) else 0
    out = codes.new_zeros(rows, width, codes.shape[1])
    where = at.new_zeros(rows, width)
    out[slot, place], where[slot, place] = codes, at
    return out, lengths, where


def _empty(codebooks: int) -> Frames:
    codes, lens, at = (torch.zeros(shape, dtype=torch.long) for shape in ((0, 0, codebooks), (0,), (0, 0)))
    return Frames(codes, lens, codes, lens, at, at, lens, Words(at, lens))


def _name(batch: PackedBatch, doc: int) -> str:
    return repr(batch.uids[doc]) if doc < len(batch.uids) else f"number {doc} of the batch"
