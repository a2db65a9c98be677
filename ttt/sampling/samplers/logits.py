"""Pure functions on logits: guidance, restriction, temperature, top-k, top-p, draws."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor


def guide(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance l_u + (w + 1)(l_c - l_u), as in LLaDA's and TtT's official samplers."""
    return unconditional + (scale + 1) * (conditional - unconditional)


def sampling_probabilities(logits: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    """Probabilities [..., V]: softmax(logits / temperature), then top-k, then top-p, renormalised; ``temperature`` > 0.

    top-p keeps tokens while the mass *before* them is below top_p, so at least one stays.

    >>> p = torch.tensor([.5, .3, .15, .05])
    >>> sampling_probabilities(p.log(), 1.0, 0, 0.75)
    tensor([0.6250, 0.3750, 0.0000, 0.0000])
    """
    if temperature < 1e-4:  # the quotients would overflow
        logits = logits - logits.amax(-1, keepdim=True)
    probs = (logits / temperature).softmax(-1)
    if 0 < top_k < probs.shape[-1]:
        probs = probs.masked_fill(probs < probs.topk(top_k).values[..., -1:], 0)
    if top_p < 1:
        ordered, index = probs.sort(-1, descending=True)
        keep = ordered.cumsum(-1) - ordered < top_p * ordered.sum(-1, keepdim=True)
        keep[..., 0] = True
        probs = torch.zeros_like(probs).scatter(-1, index, ordered * keep)
    return probs / probs.sum(-1, keepdim=True)


def choose_text(logits: Tensor, temperature: float, top_k: int, top_p: float, gens: Sequence[Generator]) -> Tensor:
    """One token per row, i64 [R], of logits [R, V]: argmax at temperature 0, else drawn (top-k, then top-p)."""
    if temperature <= 0:
        return logits.argmax(-1)
    probs = sampling_probabilities(logits, temperature, top_k, top_p).cpu()
    drawn = [torch.multinomial(p, 1, generator=g) for p, g in zip(probs, gens, strict=True)]
    return torch.cat(drawn).to(logits.device)


def choose_each(logits: Tensor, temperature: float, top_k: int, top_p: float, gens: Sequence[Generator]) -> Tensor:
    """One token per position, i64 [R, m], of logits [R, m, V]; greedy at temperature 0, else drawn (top-k, then top-p)."""
    if temperature <= 0:
        return logits.argmax(-1)
    probs = sampling_probabilities(logits, temperature, top_k, top_p).cpu()
    drawn = [torch.multinomial(p, 1, generator=g)[:, 0] for p, g in zip(probs, gens, strict=True)]
    return torch.stack(drawn).to(logits.device)


def choose_audio(logits: Tensor, temperature: float, gens: Sequence[Generator]) -> Tensor:
    """One token per position, i64 [R, m], of logits [R, m, V]: argmax, or Gumbel-max in float64 at a temperature."""
    if temperature <= 0:
        return logits.argmax(-1)
    noise = torch.stack(
        [torch.rand(row.shape, generator=g, dtype=torch.float64) for row, g in zip(logits, gens, strict=True)]
    )
    gumbel = (-noise.clamp(min=1e-300).log()) ** temperature
    return (logits.double().exp() / gumbel.to(logits.device)).argmax(-1)


def transfer_counts(masked: int, steps: int) -> list[int]:
    """How many tokens each step commits: floor(masked / steps), the first (masked mod steps) steps one more.

    >>> transfer_counts(32, 10)
    [4, 4, 3, 3, 3, 3, 3, 3, 3, 3]
    >>> transfer_counts(5, 8)
    [1, 1, 1, 1, 1, 0, 0, 0]
    """
    low, more = divmod(masked, steps)
    return [low + (step < more) for step in range(steps)]
