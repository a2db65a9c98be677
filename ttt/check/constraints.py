"""What a constraint owes: ranges that are codes, the same answers every time, spans that can end."""

from __future__ import annotations

import torch
from torch import Tensor

from ttt.check.core import NotSaid, need, prop
from ttt.interfaces import Constraint

# One codebook, a residual quantiser of four, seven positions of three rates; ids with a gap before and between.
SPACES: tuple[tuple[tuple[int, int], ...], ...] = (
    ((5, 13),), tuple((40 + 9 * q, 48 + 9 * q) for q in range(4)), tuple((100 + 6 * q, 106 + 6 * q) for q in range(7)),
)  # fmt: skip
MOST = 64


def _places() -> Tensor:
    return torch.arange(MOST)


@prop("constraint", "ranges", "every place takes its code from a range of ids that are codes")
def _ranges(constraint: Constraint) -> None:
    for codebooks in SPACES:
        ranges = constraint.ranges(codebooks)
        need(ranges, f"no range of ids for {len(codebooks)} books")
        codes = [i for a, b in codebooks for i in range(a, b)]
        for a, b in ranges:
            need(a < b, f"range [{a}, {b}) is empty")
            if constraint.restricts:
                need(all(i in codes for i in range(a, b)), f"range [{a}, {b}) holds ids that are no codes of {codebooks}")
        number = constraint.range_at(_places(), codebooks)
        need(
            number.shape == (MOST,) and number.dtype == torch.long,
            f"range_at gives {number.dtype} {list(number.shape)}",
        )
        need(
            int(number.min()) >= 0 and int(number.max()) < len(ranges),
            f"range_at {number.tolist()} of {len(ranges)} ranges",
        )


@prop(
    "constraint",
    "frames",
    "whole frames of codes are allowed: position q of the data's frame lies in the range of its place",
)
def _frames(constraint: Constraint) -> None:
    for codebooks in SPACES:
        ranges, number = constraint.ranges(codebooks), constraint.range_at(_places(), codebooks)
        for place in range(MOST):
            (low, high), (a, b) = codebooks[place % len(codebooks)], ranges[int(number[place])]
            need(
                a <= low and high <= b,
                f"place {place}: codes [{low}, {high}) of the data, range [{a}, {b}) of the constraint",
            )


@prop("constraint", "ends", "a span may be empty, and may end after some code")
def _ends(constraint: Constraint) -> None:
    for codebooks in SPACES:
        may = constraint.may_end(_places(), codebooks)
        need(may.shape == (MOST,) and may.dtype == torch.bool, f"may_end gives {may.dtype} {list(may.shape)}")
        need(may[0], "a span may not end at place 0, so not be empty")
        need(may[1:].any(), f"no span of {len(codebooks)} codebooks may end before {MOST} codes")


@prop("constraint", "period", "places that differ by the period are alike")
def _period(constraint: Constraint) -> None:
    for codebooks in SPACES:
        period = constraint.period(codebooks)
        if not period:
            raise NotSaid("no period")
        for name in ("range_at", "may_end"):
            values = getattr(constraint, name)(_places(), codebooks)
            need(torch.equal(values[period:], values[:-period]), f"{name} with period {period} is {values.tolist()}")


@prop("constraint", "shape", "it answers place by place, whatever the shape")
def _shape(constraint: Constraint) -> None:
    for codebooks in SPACES:
        grid = _places().view(4, -1)
        for name in ("range_at", "may_end"):
            ask = getattr(constraint, name)
            need(
                torch.equal(ask(grid, codebooks), ask(_places(), codebooks).view(4, -1)),
                f"{name} depends on the shape of places",
            )
