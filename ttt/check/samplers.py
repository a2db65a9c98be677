"""What samplers, remasking rules and length rules owe.  Samplers are tried on a table of logits, without a network."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ttt.check import world
from ttt.check.core import Broken, NotSaid, need, prop
from ttt.diffusion.constraints import FramePosition
from ttt.interfaces import LengthRule, RemaskRule, SpanSampler
from ttt.sampling.samplers.allowed import SpanConstraint
from ttt.sampling.samplers.request import SpanRequest
from ttt.sampling.samplers.steps import run_each

CODES, MASK, EOA, EOA_LAST, OTHER = range(10), 10, 11, 12, 13  # a vocabulary of 14 ids
SIZE = 14
# Rows that differ in everything a request can say: where they end, what ends them, how long they must and may be.
ENDS: tuple[tuple[int, ...], ...] = ((EOA,), (EOA,), (EOA,), (EOA_LAST,), (EOA, EOA_LAST))
EXACT: tuple[int | None, ...] = (None, None, 6, None, None)
LIMIT = (9, 4, 6, 13, 11)
LENGTH = 80


@dataclass
class Table:
    """A "model": logits from the row, the place and the token to the left; the row's company changes nothing.

    ``members``: which of the five rows the request holds.  ``calls``: (members, tails) of every call.
    """

    members: Sequence[int]
    calls: list[tuple[list[int], Tensor]] = field(default_factory=list)

    def __post_init__(self) -> None:
        g = world.gen(11)
        self.places = torch.randn(len(ENDS), LENGTH, SIZE, generator=g)
        self.left = 0.7 * torch.randn(SIZE, SIZE, generator=g)
        self.places[..., [EOA, EOA_LAST]] -= 4.0
        self.places[0, 5, EOA] = self.places[3, 10, EOA_LAST] = self.places[4, 2, EOA_LAST] = 12.0

    def __call__(self, rows: Tensor, tails: Tensor, last: int, unconditional: str = "") -> Tensor:
        """Logits f32 [R, last, V]."""
        members = [self.members[r] for r in rows.tolist()]
        if not unconditional:
            self.calls.append((members, tails.clone()))
        n = tails.shape[1]
        need(n <= LENGTH, f"it asks for {n} tokens of a row that may have {max(LIMIT) + 1}")
        before = torch.cat([torch.full((len(rows), 1), OTHER), tails[:, :-1]], 1)
        return (self.places[members, :n] + self.left[before])[:, n - last :]


@dataclass
class Filled:
    """What came out: ids and blocks per member, and the calls made until each block."""

    table: Table
    blocks: dict[int, list[tuple[list[int], bool, int]]]

    def ids(self, member: int) -> list[int]:
        """All ids of one row."""
        return [i for ids, _, _ in self.blocks[member] for i in ids]


def _fill(sampler: SpanSampler, members: Sequence[int] = range(len(ENDS)), seed: int = 0, **changes: Any) -> Filled:
    table = Table(list(members))
    allowed = torch.zeros(len(table.members), SIZE, dtype=torch.bool)
    allowed[:, list(CODES)] = True
    for local, member in enumerate(table.members):
        allowed[local, list(ENDS[member])] = True
    request = SpanRequest(
        run=run_each(table), mask_id=MASK, end_ids=[ENDS[m] for m in table.members], allowed=allowed,
        exact=[EXACT[m] for m in table.members], limit=[LIMIT[m] for m in table.members],
        gens=[world.gen(1000 * seed + m) for m in table.members],
    )  # fmt: skip
    request = dataclasses.replace(request, **changes)
    out = Filled(table, {m: [] for m in table.members})
    for block in sampler.span(request):
        member = table.members[block.row]
        out.blocks[member].append((block.ids.tolist(), bool(block.ended), len(table.calls)))
        need(sum(map(len, out.blocks.values())) <= 10 * LENGTH, "it yields blocks without end")
    return out


def _spans(sampler: SpanSampler) -> None:
    if sampler.autoregressive:
        raise NotSaid("autoregressive: it fills no spans")


def _requests(sampler: SpanSampler) -> Iterator[tuple[str, Filled]]:
    """The span request, and for samplers that write whole answers one without a forced end."""
    yield "span", _fill(sampler)
    if "canvas" in {f.name for f in dataclasses.fields(sampler)}:  # type: ignore[arg-type]
        answer = dataclasses.replace(sampler, canvas="answer")  # type: ignore[type-var]
        yield "answer canvas", _fill(answer, force_end=False, exact=[None] * len(ENDS))


@prop("sampler", "complete", "every row is filled to its end, no mask token is left")
def _complete(sampler: SpanSampler) -> None:
    _spans(sampler)
    for what, out in _requests(sampler):
        for member, blocks in out.blocks.items():
            ids, where = out.ids(member), f"{what}, row {member}"
            need(ids, f"{where}: nothing was written")
            need(MASK not in ids, f"{where}: mask token at place {ids.index(MASK) if MASK in ids else 0} of {ids}")
            ended = [i for i, (_, e, _) in enumerate(blocks) if e]
            stopped = ended == [len(blocks) - 1] or (what != "span" and not ended and len(ids) == LIMIT[member])
            need(stopped, f"{where}: blocks {[b for b, _, _ in blocks]} say ended at {ended}, not at the last")


@prop("sampler", "restriction", "only allowed ids are written: codes up to the limit (or the exact number), then one end token")
def _restriction(sampler: SpanSampler) -> None:
    _spans(sampler)
    out = _fill(sampler)
    for member in out.blocks:
        ids = [i for i in out.ids(member) if i != MASK]
        if not ids:
            continue
        ends = [p for p, i in enumerate(ids) if i in ENDS[member]]
        codes = ids[:-1] if ends == [len(ids) - 1] else ids
        foreign = [i for i in ids if i not in CODES and i not in ENDS[member]]
        need(not foreign, f"row {member}: id {foreign[0] if foreign else ''} may not be written; got {ids}")
        need(len(ends) <= 1 and ends in ([], [len(ids) - 1]), f"row {member}: end token {ENDS[member]} inside {ids}")
        need(len(codes) <= LIMIT[member], f"row {member}: {len(codes)} codes, the limit is {LIMIT[member]}: {ids}")
        exact = EXACT[member]
        need(exact is None or len(codes) == exact, f"row {member}: {len(codes)} codes instead of exactly {exact}: {ids}")


@prop("sampler", "settled", "ids of a finished block stay in place in every later call")
def _settled(sampler: SpanSampler) -> None:
    _spans(sampler)
    out = _fill(sampler)
    for member, blocks in out.blocks.items():
        done: list[int] = []
        starts = [0, *(calls for _, _, calls in blocks)]
        for number, first in enumerate(starts):
            stop = starts[number + 1] if number + 1 < len(starts) else len(out.table.calls)
            for members, tails in out.table.calls[first:stop]:
                if member in members:
                    tail = tails[members.index(member)].tolist()
                    need(tail[: len(done)] == done, f"row {member}: {done} was settled, a later call shows {tail}")
            done = done + (blocks[number][0] if number < len(blocks) else [])


@prop("sampler", "seed", "the same generators give the same ids")
def _seed(sampler: SpanSampler) -> None:
    _spans(sampler)
    for seed in range(3):
        one, two = _fill(sampler, seed=seed), _fill(sampler, seed=seed)
        for member in one.blocks:
            a, b = one.ids(member), two.ids(member)
            need(a == b, f"row {member}, seed {seed}: {a}, and once more: {b}")


@prop("sampler", "company", "a row's ids do not depend on the other rows of the batch, nor on their lengths")
def _company(sampler: SpanSampler) -> None:
    _spans(sampler)
    together, again = _fill(sampler), _fill(sampler)
    if any(together.ids(m) != again.ids(m) for m in together.blocks):
        raise NotSaid("it is not deterministic, so rows cannot be compared")
    for members in ([4, 3, 2, 1, 0], *([m] for m in together.blocks)):
        other = _fill(sampler, members)
        for member in members:
            a, b = together.ids(member), other.ids(member)
            company = "alone" if len(members) == 1 else "in reversed order"
            need(a == b, f"row {member}: {a} among rows 0 to 4, {b} {company}")


@prop("sampler", "calls", "a block takes no more network calls than `most_calls` says (not said: than tokens it writes)")
def _calls(sampler: SpanSampler) -> None:
    _spans(sampler)
    promise = getattr(sampler, "most_calls", None)
    out = _fill(sampler)
    for member, blocks in out.blocks.items():
        before = 0
        total = LIMIT[member] + 1
        for number, (ids, _, until) in enumerate(blocks):
            used = sum(member in members for members, _ in out.table.calls[before:until])
            before = until
            size = min(int(getattr(sampler, "block_length", total)), total)
            # Not every width of a block is known from outside: the promise for the widest bounds all.
            most = max(promise(n) for n in range(size + 1)) if promise is not None else len(ids)
            need(used <= most, f"row {member}, block {number} of {len(ids)} tokens: {used} calls, promised {most}")


@prop("sampler", "constraint", "under a constraint every code comes from the range of its place, and spans end where they may")
def _constraint(sampler: SpanSampler) -> None:
    _spans(sampler)
    for promise in (_complete, _restriction, _seed, _company):
        try:
            promise(sampler)
        except Broken as broken:
            raise NotSaid("it breaks a promise that comes before this one") from broken
    codebooks = ((0, 5), (5, 10))
    table = torch.zeros(4, SIZE, dtype=torch.bool)
    table[0, 0:5] = table[1, 0:5] = table[2, 5:10] = table[3, 5:10] = True
    table[1::2, [EOA, EOA_LAST]] = True
    rule = FramePosition()
    constraint = SpanConstraint(rule, codebooks, table, (), rule.period(codebooks))
    limit = [constraint.codes_within(n) for n in LIMIT]
    for seed in range(3):
        out = _fill(sampler, seed=seed, constraint=constraint, limit=limit)
        for member in out.blocks:
            ids = out.ids(member)
            for place, i in enumerate(ids):
                where = f"row {member}, seed {seed}, place {place} of {ids}: id {i}"
                if i in ENDS[member]:
                    need(place % 2 == 0, f"{where} ends the span inside a frame")
                else:
                    a, b = codebooks[place % 2]
                    need(a <= i < b, f"{where} is outside [{a}, {b})")


# ---------------------------------------------------------------------------------------------- remasking, lengths


def _candidates() -> tuple[Tensor, Tensor]:
    logits = torch.randn(3, 5, SIZE, generator=world.gen())
    logits[..., OTHER] = -torch.inf
    return logits, logits.argmax(-1)


@prop("remask", "shape", "one finite score per position")
def _remask_shape(rule: RemaskRule) -> None:
    logits, chosen = _candidates()
    score = rule.score(logits, chosen, [world.gen(i) for i in range(3)])
    need(score.shape == (3, 5) and score.is_floating_point(), f"scores are {score.dtype} {list(score.shape)}, not f32 [3, 5]")
    need(torch.isfinite(score).all(), f"a score is not finite: {score.tolist()}")


@prop("remask", "seed", "the same generators give the same scores, and the logits stay as they are")
def _remask_seed(rule: RemaskRule) -> None:
    logits, chosen = _candidates()
    kept = logits.clone()
    one, two = (rule.score(logits, chosen, [world.gen(i) for i in range(3)]) for _ in range(2))
    need(torch.equal(one, two), f"{one[0].tolist()}, and once more: {two[0].tolist()}")
    need(torch.equal(logits, kept), "it wrote into the logits")


@prop("remask", "company", "a row's scores do not depend on the other rows")
def _remask_company(rule: RemaskRule) -> None:
    logits, chosen = _candidates()
    together = rule.score(logits, chosen, [world.gen(i) for i in range(3)])
    for row in range(3):
        alone = rule.score(logits[row : row + 1], chosen[row : row + 1], [world.gen(row)])[0]
        # Batched reductions may round differently in the last bits.
        need(torch.allclose(alone, together[row], atol=1e-6), f"row {row}: {together[row].tolist()}, alone {alone.tolist()}")


@prop("length", "bounds", "at least one code, and the exact number within the most")
def _bounds(rule: LengthRule) -> None:
    for last in (False, True):
        exact, most = rule.exact_codes(last), rule.max_codes(last)
        where = f"last={last}: "
        need(isinstance(most, int) and most >= 1, f"{where}max_codes is {most!r}")
        need(exact is None or isinstance(exact, int) and 1 <= exact <= most, f"{where}exact_codes {exact!r}, max_codes {most}")


@prop("length", "deterministic", "asked twice, it says the same")
def _same(rule: LengthRule) -> None:
    for last in (False, True):
        one, two = ((rule.exact_codes(last), rule.max_codes(last)) for _ in range(2))
        need(one == two, f"last={last}: (exact, most) is {one}, then {two}")
