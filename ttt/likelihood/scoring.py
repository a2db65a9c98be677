"""-log q of chosen positions of clean and of masked rows, some rows of logits at a time.

A network call holds ``budget`` positions at most; their logits are never held together (`position_nll`), so memory does not
grow with the number of masked copies, of masked tokens, or of both times the vocabulary.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ttt.likelihood.factors import Part, first_at_position
from ttt.types import Columns, Kind, TokenStream, audio_runs

if TYPE_CHECKING:
    from torch import Tensor

    from ttt.interfaces import Constraint, LanguageModel, MaskRule
    from ttt.model.cross_entropy import Ranges
    from ttt.text.vocab import Vocabulary
    from ttt.types import CodeSpace

MODALITIES = ("text", "audio")


def chain_nll(
    model: LanguageModel, mask: MaskRule, streams: Sequence[TokenStream], wanted: Sequence[np.ndarray], budget: int
) -> list[np.ndarray]:
    """-log q of the ``wanted`` positions (> 0) of clean streams, each predicted by the one before: f64 [n] each.

    Codes that stand at one position of the network are all predicted by the one before it, each among those of its column.
    """
    import torch

    from ttt.objective.pairs import columns_of_books

    out = [np.zeros(len(at)) for at in wanted]
    space = model.tokenizer.vocab.code_space
    todo = [i for i, at in enumerate(wanted) if len(at)]
    for chunk in batches([len(streams[i]) for i in todo], budget):
        rows = [todo[j] for j in chunk]
        hidden = hidden_at(model, mask, [streams[i] for i in rows], [_before(streams[i], wanted[i], space) for i in rows])
        targets = np.concatenate([streams[i].ids[wanted[i]] for i in rows])
        columns = columns_of_books(space, torch.from_numpy(targets)) if space.together else None
        nll = position_nll(model, hidden, targets, columns)
        for i, values in zip(rows, np.split(nll, np.cumsum([len(wanted[i]) for i in rows])[:-1]), strict=True):
            out[i] = values
    return out


def _before(stream: TokenStream, at: np.ndarray, space: CodeSpace) -> np.ndarray:
    """The last token before the network's position of each of the tokens ``at``."""
    return first_at_position(stream, space)[at] - 1


def masked_nll(
    model: LanguageModel, mask: MaskRule, parts: Sequence[Part], masks: Sequence[np.ndarray], budget: int,
    cfg_scale: float = 0.0, allowed: Tensor | None = None, constraint: Constraint | None = None, with_ends: bool = True,
) -> list[np.ndarray]:  # fmt: skip
    """(n / k) sum over masked -log q of every copy, apart by modality of the token: f64 [K, 2] (text, audio) each.

    ``masks``: bool [K, n] per part, at least one True in every row.  ``allowed``: bool [V], ids that q is spread over
    (default: all); or ``constraint``: codes take theirs from what may stand at their place, and what may not has probability
    0 (``with_ends``: see `ttt.objective.places.constrained`).
    """
    held = constraint is not None and constraint.restricts
    if held and allowed is not None:
        raise ValueError("a vocabulary and a constraint cannot both say which ids q is spread over")
    out = [np.zeros((len(m), len(MODALITIES))) for m in masks]
    todo = [(i, c) for i, m in enumerate(masks) for c in range(len(m))]
    vocab = model.tokenizer.vocab
    for chunk in batches([len(parts[i].stream) for i, _ in todo], budget):
        rows = [todo[j] for j in chunk]
        at = [parts[i].at[masks[i][c]] for i, c in rows]
        noisy = [_hidden(parts[i].stream, hide, vocab.mask_id) for (i, _), hide in zip(rows, at, strict=True)]
        sets = [parts[i].at for i, _ in rows]
        sources = [parts[i].sources(hide) for (i, _), hide in zip(rows, at, strict=True)]
        hidden = guided_at(model, mask, noisy, sources, sets, cfg_scale, [parts[i].stream for i, _ in rows])
        targets = np.concatenate([parts[i].stream.ids[hide] for (i, _), hide in zip(rows, at, strict=True)])
        if held:
            assert constraint is not None
            nll = _held_nll(model, hidden, targets, constraint, [parts[i].stream for i, _ in rows], at, with_ends)
        else:
            nll = position_nll(model, hidden, targets, columns_of(allowed, len(targets)))
        for (i, c), hide, values in zip(rows, at, np.split(nll, np.cumsum([len(h) for h in at])[:-1]), strict=True):
            audio = parts[i].stream.kind[hide] == Kind.AUDIO
            scale = len(parts[i].at) / len(hide)
            out[i][c] = scale * values[~audio].sum(), scale * values[audio].sum()
    return out


def _hidden(stream: TokenStream, at: np.ndarray, mask_id: int) -> TokenStream:
    """The stream with the tokens ``at`` masked."""
    ids = stream.ids.copy()
    ids[at] = mask_id
    return dataclasses.replace(stream, ids=ids)


def _held_nll(
    model: LanguageModel, hidden: Tensor, targets: np.ndarray, constraint: Constraint, streams: Sequence[TokenStream],
    at: Sequence[np.ndarray], with_ends: bool,
) -> np.ndarray:  # fmt: skip
    """`position_nll` with each position's own ids; infinite for targets that may not stand where they stand.

    ``streams``: the clean rows.
    """
    import torch

    from ttt.data.batches.rows import collate
    from ttt.objective.places import constrained

    vocab: Vocabulary = model.tokenizer.vocab
    width = max(map(len, streams))
    batch = collate([[s] for s in streams], width, vocab.pad_id, vocab.mask_id, vocab.code_space)
    flat = torch.from_numpy(np.concatenate([row * width + positions for row, positions in enumerate(at)]))
    found = constrained(batch, constraint, flat, with_ends)
    assert found is not None
    nll = np.full(len(targets), math.inf)
    keep = found.keep.numpy()
    nll[keep] = position_nll(model, hidden[found.keep.to(hidden.device)], targets[keep], found.columns)
    return nll


def without_context(stream: TokenStream, at: np.ndarray, mask_id: int) -> TokenStream:
    """Everything but ``at`` masked.  Mask tokens are audio for the attention mask, as they are in decoding."""
    context = np.ones(len(stream), dtype=bool)
    context[at] = False
    kind = np.where(context, Kind.AUDIO, stream.kind).astype(np.uint8)
    ids = np.where(context, mask_id, stream.ids)
    return dataclasses.replace(stream, ids=ids, kind=kind, run_id=audio_runs(kind))


def batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Numbers of rows by falling length, at most ``budget`` positions with padding in a batch (one row at least)."""
    found: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if found and (len(found[-1]) + 1) * lengths[found[-1][0]] <= budget:
            found[-1].append(i)
        else:
            found.append([i])
    return found


def hidden_at(
    model: LanguageModel, mask: MaskRule, streams: Sequence[TokenStream], at: Sequence[np.ndarray],
    clean: Sequence[TokenStream] = (),
) -> Tensor:  # fmt: skip
    """Last hidden states [N, D] of positions ``at`` of every stream, one row each.

    ``clean``: the streams before anything was masked, which say what codes stand together (default: the streams).
    """
    import torch

    from ttt.data.batches.rows import collate
    from ttt.masks.materialize import materialize
    from ttt.model.joined import fold

    vocab = model.tokenizer.vocab
    width = max(map(len, streams))
    batch = collate([[s] for s in streams], width, vocab.pad_id, vocab.mask_id, vocab.code_space)
    ids, position, layout, step = batch.ids, batch.position, batch.layout(), None
    if vocab.codes_together > 1:
        whole = collate([[s] for s in clean or streams], width, vocab.pad_id, vocab.mask_id, vocab.code_space)
        assert whole.joined is not None
        ids, position, layout, step = fold(ids, position, layout, whole.joined)
    select = torch.from_numpy(
        np.concatenate([row * ids.shape[1] + (p if step is None else step[row, p].numpy()) for row, p in enumerate(at)])
    )
    with torch.no_grad():
        allowed = materialize(mask, layout.to(model.device), model.attention, model.dtype)
        states = model.hidden(ids.to(model.device), position.to(model.device), allowed)
        return states.flatten(0, 1)[select.to(model.device)]


def guided_at(
    model: LanguageModel, mask: MaskRule, streams: Sequence[TokenStream], at: Sequence[np.ndarray],
    sets: Sequence[np.ndarray], cfg_scale: float, clean: Sequence[TokenStream] = (),
) -> Tensor:  # fmt: skip
    """`hidden_at` with guidance; ``sets``: positions of each stream that its empty twin keeps.

    Guidance is a combination of logits whose factors sum to 1, and logits are an affine function of the states: so it is the
    same combination of the states, and takes one product with the output layer instead of two.
    """
    hidden = hidden_at(model, mask, streams, at, clean)
    if not cfg_scale:
        return hidden
    from ttt.sampling.samplers.logits import guide

    mask_id = model.tokenizer.vocab.mask_id
    blind = [without_context(s, own, mask_id) for s, own in zip(streams, sets, strict=True)]
    return guide(hidden.float(), hidden_at(model, mask, blind, at, clean).float(), cfg_scale).to(hidden.dtype)


def columns_of(allowed: Tensor | None, n: int) -> Columns | None:
    """The same ids for ``n`` positions: ``allowed`` bool [V]; None: all."""
    import torch

    if allowed is None or bool(allowed.all()):
        return None
    edges = torch.diff(allowed.cpu().int(), prepend=torch.zeros(1), append=torch.zeros(1))
    starts, stops = (edges == 1).nonzero().flatten().tolist(), (edges == -1).nonzero().flatten().tolist()
    return Columns(torch.zeros(n, dtype=torch.long), (tuple(zip(starts, stops, strict=True)),))


def logit_chunks(
    model: LanguageModel, hidden: Tensor, columns: Columns | None = None, rows: int = 0
) -> Iterator[tuple[Tensor, Tensor, Ranges]]:
    """Logits of the states ``hidden`` [N, D], some at a time: (their numbers i64 [c], logits f32 [c, m], of which ids).

    ``columns``: over which ids each goes (None: all); only those rows of the output layer are multiplied.  ``rows`` of a
    chunk (0: as in training, `ttt.model.cross_entropy.chunk_rows`).
    """
    import torch

    from ttt.model.cross_entropy import chunk_rows

    size = rows or chunk_rows(model.num_ids, hidden.device)
    index = torch.full((len(hidden),), -1) if columns is None else columns.index
    for number in index.unique().tolist():
        ranges = ((0, model.num_ids),) if columns is None or number < 0 else columns.sets[number]
        for some in (index == number).nonzero().flatten().to(hidden.device).split(size):
            with torch.no_grad():
                logits = [model.head(hidden[some], slice(*r)) for r in ranges]
            yield some, logits[0] if len(logits) == 1 else torch.cat(logits, -1), ranges


def ids_of(ranges: Ranges, device: Any) -> Tensor:
    """The ids i64 [m] of ranges put side by side."""
    import torch

    return torch.cat([torch.arange(*r, device=device) for r in ranges])


def position_nll(
    model: LanguageModel, hidden: Tensor, targets: np.ndarray, columns: Columns | None = None, rows: int = 0
) -> np.ndarray:
    """-log softmax(logits)[targets] f64 [N] of the states ``hidden`` [N, D]; infinite for targets that are none of the ids.

    ``columns``, ``rows``: see `logit_chunks`.
    """
    import torch

    from ttt.model.cross_entropy import column_of

    wanted = torch.from_numpy(targets).to(hidden.device)
    nll = torch.full((len(targets),), math.inf, dtype=torch.float64, device=hidden.device)
    for some, logits, ranges in logit_chunks(model, hidden, columns, rows):
        place = column_of(wanted[some], ranges)
        own = logits.gather(1, place[:, None])[:, 0]
        found = ids_of(ranges, hidden.device)[place] == wanted[some]
        nll[some] = torch.where(found, logits.logsumexp(1) - own, math.inf).double()
    return nll.cpu().numpy()
