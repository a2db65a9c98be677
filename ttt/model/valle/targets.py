"""Inputs and labels of the AR decoder: the codes of the first codebook, shifted by one, and the end token.

Letters: ``N`` codes of a codebook.  The end is id N, which is padding too, and the beginning N + 1, as in
``valle/models/valle.py`` of the program lifeiteng/vall-e (VALL-E: arXiv 2301.02111).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

IGNORED = -100
EosRule = Literal["first", "padding"]


def ar_targets(codes: Tensor, lengths: Tensor, num_codes: int) -> Tensor:
    """Codes i64 [B, T] of the first codebook -> i64 [B, T + 1]: the codes, then the end token at every place behind them.

    >>> ar_targets(torch.tensor([[3, 7, 0]]), torch.tensor([2]), 10)
    tensor([[ 3,  7, 10, 10]])
    """
    at = torch.arange(codes.shape[1] + 1, device=codes.device)
    longer = torch.cat([codes, codes.new_full((len(codes), 1), num_codes)], 1)
    return torch.where(at < lengths[:, None], longer, num_codes)


def ar_inputs_labels(
    codes: Tensor, lengths: Tensor, num_codes: int, bos: bool, eos: EosRule = "first"
) -> tuple[Tensor, Tensor]:
    """(inputs, labels) of the target's rows; ``bos``: begin with id N + 1, else with the first code.

    ``eos``: what is learned behind a row's end.  ``first``: nothing; ``padding``: the end token at each place of the
    padding.  Labels that are not learned are -100.

    >>> ar_inputs_labels(torch.tensor([[3, 7, 0]]), torch.tensor([2]), 10, bos=True, eos="padding")
    (tensor([[11,  3,  7, 10]]), tensor([[ 3,  7, 10, 10]]))
    >>> ar_inputs_labels(torch.tensor([[3, 7, 0]]), torch.tensor([2]), 10, bos=False)
    (tensor([[ 3,  7, 10]]), tensor([[   7,   10, -100]]))
    """
    targets = ar_targets(codes, lengths, num_codes)
    labels = targets.clone()
    if eos == "first":
        labels[torch.arange(labels.shape[1], device=codes.device) > lengths[:, None]] = IGNORED
    if bos:
        first = targets.new_full((len(targets), 1), num_codes + 1)
        return torch.cat([first, targets[:, :-1]], 1), labels
    return targets[:, :-1], labels[:, 1:]
