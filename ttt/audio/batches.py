"""Which recordings, or code sequences, go through a network together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

_LONGER = 1.25  # a row is at most so much longer than the shortest of its batch, or padding would cost more than it saves


def batches(lengths: Sequence[int], most: int, padded: bool) -> Iterator[list[int]]:
    """Indices of rows that share a batch: of one length each, or of similar lengths if rows may be ``padded``.

    A batch has at most ``most`` positions, padding counted; a longer row goes alone.  Rows without length are left out.

    >>> list(batches([5, 9, 0, 5, 6], 100, padded=False))
    [[0, 3], [4], [1]]
    >>> list(batches([5, 9, 0, 5, 6], 100, padded=True)), list(batches([5, 9, 0, 5, 6], 12, padded=True))
    ([[0, 3, 4], [1]], [[0, 3], [4], [1]])
    """
    batch: list[int] = []
    for i in sorted((i for i, n in enumerate(lengths) if n), key=lambda i: lengths[i]):
        if batch:
            longest = lengths[batch[0]] * (_LONGER if padded else 1)
            if lengths[i] > longest or lengths[i] * (len(batch) + 1) > most:
                yield batch
                batch = []
        batch.append(i)
    if batch:
        yield batch
