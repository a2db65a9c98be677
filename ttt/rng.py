"""Randomness as a pure function of (seed, stream, numbers).

Nothing in `ttt` draws from a global generator.  A draw names its stream ("noise", "order", "decode", ...) and its
coordinates (step, rank, index, ...), so a run that was killed draws the same numbers again after a resume, and the
data order does not depend on the number of workers.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def derive_seed(seed: int, stream: str, *coordinates: int) -> int:
    """63-bit seed from (seed, stream, coordinates) by BLAKE2b; equal input, equal output, on every machine.

    >>> derive_seed(1, "noise", 0) == derive_seed(1, "noise", 0)
    True
    >>> derive_seed(1, "noise", 0) == derive_seed(1, "order", 0)
    False
    """
    text = "/".join([str(int(seed)), stream, *(str(int(c)) for c in coordinates)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, stream: str, *coordinates: int) -> torch.Generator:
    """A CPU `torch.Generator` seeded with `derive_seed`.  Draw on the CPU and move: same numbers on every device."""
    import torch

    return torch.Generator().manual_seed(derive_seed(seed, stream, *coordinates))
