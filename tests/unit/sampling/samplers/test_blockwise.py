"""The span sampler against a table of logits: no network."""

from dataclasses import replace

import pytest
import torch

from tests.conftest import gen
from ttt.errors import ConfigError
from ttt.registry.families import SAMPLER
from ttt.sampling.samplers.request import SpanRequest
from ttt.sampling.samplers.steps import run_each

CODES, MASK, EOA, EOA_LAST, OTHER = range(8), 8, 9, 10, 11  # a vocabulary of 12


class Table:
    """``predict`` that looks up logits by row and place in the span; remembers its calls."""

    def __init__(self, logits):
        self.logits, self.calls = logits, []

    def __call__(self, rows, tails, last, unconditional=""):
        self.calls.append((rows.tolist(), tails.clone(), last, unconditional))
        at = tails.shape[1]
        return self.logits[rows, at - last : at].clone()


def random_table(rows=1, length=64, seed=0, ends=()):
    """Random preference for codes; ``ends``: (row, place, id) where an end token is certain."""
    logits = torch.randn(rows, length, 12, generator=gen(seed))
    logits[..., EOA] = logits[..., EOA_LAST] = -5.0
    for row, place, token in ends:
        logits[row, place, token] = 9.0
    return logits


def sampler(block=8, steps=4, gen_length=16, **fields):
    return SAMPLER.build(
        {
            "name": "blockwise",
            "block_length": block,
            "gen_length": gen_length,
            "diffusion_steps": steps * gen_length // block,
            **fields,
        },
        "s",
    )


def request(table, rows=1, **fields):
    allowed = torch.zeros(rows, 12, dtype=torch.bool)
    allowed[:, list(CODES)] = True
    allowed[:, EOA] = True
    base = SpanRequest(
        run=run_each(table), mask_id=MASK, end_ids=[(EOA,)] * rows, allowed=allowed, exact=[None] * rows, limit=[100] * rows,
        gens=[gen(i) for i in range(rows)],
    )  # fmt: skip
    return replace(base, **fields)


def fill(s, r):
    out = {row: [] for row in range(r.rows)}
    for block in s.span(r):
        out[block.row] += block.ids.tolist()
    return [out[row] for row in range(r.rows)]


def test_schedule_commits_the_most_certain_first():
    table = Table(random_table())
    commits = []
    r = request(table, on_commit=lambda row, at, ids, score: commits.append((at.tolist(), score.tolist())))
    (ids,) = fill(sampler(block=8, steps=3, gen_length=8), replace(r, limit=[7]))
    # Seven masks and the forced end token in the last place: 3 + 2 + 2 commits.
    assert [len(at) for at, _ in commits] == [3, 2, 2] and len(table.calls) == 3
    scores = [s for _, some in commits for s in some]
    assert min(scores[:3]) >= max(scores[3:5]) and min(scores[3:5]) >= max(scores[5:])
    assert sorted(i for at, _ in commits for i in at) == list(range(7))
    assert ids[:7] == random_table()[0, :7, :8].argmax(-1).tolist() and ids[7] == EOA


@pytest.mark.parametrize("steps", [1, 2, 5, 8, 20])
def test_number_of_calls(steps):
    table = Table(random_table())
    fill(sampler(block=8, steps=steps, gen_length=8), request(table, exact=[None], limit=[7]))
    assert len(table.calls) == min(steps, 7)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("remask", ["low_confidence", "random"])
def test_nothing_is_left_masked_and_settled_ids_are_never_touched(strict, remask):
    table = Table(random_table(3, ends=[(0, 5, EOA), (1, 11, EOA)]))
    r = request(table, 3, strict=strict, forbidden=(MASK, OTHER))
    for ids in fill(sampler(remask=remask), r):
        assert MASK not in ids and ids
    seen: dict[int, list[int]] = {}
    for rows, tails, _, _ in table.calls:
        for row, tail in zip(rows, tails.tolist(), strict=True):
            before = seen.get(row, [])
            assert all(new == old for old, new in zip(before, tail, strict=False) if old != MASK)
            seen[row] = tail


def test_blocks_follow_until_the_end_token():
    table = Table(random_table(1, ends=[(0, 11, EOA)]))
    blocks = list(sampler().span(request(table)))
    assert [(len(b.ids), b.ended) for b in blocks] == [(8, False), (4, True)] and blocks[1].ids[-1] == EOA


@pytest.mark.parametrize("limit", [1, 7, 8, 9, 13])
def test_end_is_forced_at_the_limit(limit):
    (ids,) = fill(sampler(), request(Table(random_table()), limit=[limit]))
    assert len(ids) == limit + 1 and ids[-1] == EOA and EOA not in ids[:-1]


def test_gen_length_is_a_limit_too():
    (ids,) = fill(sampler(block=8, gen_length=16), request(Table(random_table()), limit=[1000]))
    assert len(ids) == 17 and ids[-1] == EOA


@pytest.mark.parametrize("exact", [1, 5, 8, 20])
def test_exact_length(exact):
    table = Table(random_table(1, ends=[(0, i, EOA) for i in range(40)]))
    (ids,) = fill(sampler(), request(table, exact=[exact], limit=[exact]))
    assert len(ids) == exact + 1 and ids[-1] == EOA and EOA not in ids[:-1]


def test_earliest_end_wins_in_strict_mode_and_list_order_in_the_official_one():
    table = random_table(1, ends=[(0, 2, EOA_LAST), (0, 5, EOA)])
    both = {"end_ids": [(EOA, EOA_LAST)], "allowed": None, "forbidden": (MASK, OTHER)}
    (strict,) = fill(sampler(), request(Table(table), **both))
    (official,) = fill(sampler(), request(Table(table), strict=False, **both))
    assert len(strict) == 3 and strict[-1] == EOA_LAST
    assert len(official) == 6 and official[-1] == EOA


def test_official_mode_stops_at_gen_length_without_an_end():
    (ids,) = fill(
        sampler(), request(Table(random_table()), strict=False, allowed=None, limit=[3], forbidden=(MASK, OTHER))
    )
    assert len(ids) == 16 and EOA not in ids


def test_drop_after_end_saves_calls_and_changes_nothing_before_the_end():
    table = random_table(1, ends=[(0, 1, EOA)])
    runs = {}
    for drop in (True, False):
        t = Table(table)
        (runs[drop],) = fill(sampler(steps=8, drop_after_end=drop), request(t))
        runs[drop, "calls"] = len(t.calls)
    assert runs[True] == runs[False] and len(runs[True]) == 2
    assert runs[True, "calls"] == 2 and runs[False, "calls"] == 8


def test_restriction_and_forbidden_ids():
    table = random_table()
    table[..., OTHER] = 20.0
    table[..., MASK] = 10.0
    (ids,) = fill(sampler(), request(Table(table)))
    assert OTHER not in ids and MASK not in ids
    (ids,) = fill(sampler(), request(Table(table), allowed=None, strict=False, forbidden=(OTHER, MASK)))
    assert OTHER not in ids and MASK not in ids


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("remask", ["low_confidence", "random"])
def test_batching_changes_nothing(temperature, remask):
    logits = random_table(4, ends=[(0, 3, EOA), (1, 12, EOA), (3, 9, EOA)])
    s = sampler(steps=3, temperature=temperature, remask=remask)
    limits = [100, 100, 5, 7]  # the last two: one block width, but fewer open places than the others
    together = fill(s, request(Table(logits), 4, limit=limits))
    for row in range(4):
        alone = request(Table(logits[row : row + 1]), 1, limit=[limits[row]], gens=[gen(row)])
        assert fill(s, alone) == [together[row]]


def test_guidance_asks_twice_and_without_weight_once():
    for weight, expected in ((0.0, {""}), (0.5, {"", "mask_prompt_content"})):
        table = Table(random_table())
        fill(sampler(cfg_scale=weight, cfg_mode="mask_prompt_content"), request(table, limit=[7]))
        assert {call[3] for call in table.calls} == expected


@pytest.mark.parametrize(
    "fields, pattern",
    [
        ({"gen_length": 20, "block_length": 8}, "gen_length 20 must be a multiple of block_length 8"),
        (
            {"gen_length": 16, "block_length": 8, "diffusion_steps": 3},
            "must be a multiple of gen_length // block_length = 2",
        ),
        ({"cfg_scale": -1}, "must be >= 0"),
        ({"cfg_mode": "mask_some"}, "cfg_mode: no 'mask_some'. Did you mean 'mask_all'"),
    ],
)
def test_impossible_settings(fields, pattern):
    with pytest.raises(ConfigError, match=f"^s[.:].*{pattern}"):
        SAMPLER.build({"name": "blockwise", **fields}, "s")


def test_ar_sampler_fills_no_spans():
    with pytest.raises(RuntimeError):
        SAMPLER.build("ar", "s").span(request(None))


def test_end_guard_waits_for_everything_before_the_end():
    table = Table(random_table(ends=[(0, 2, EOA), (0, 6, EOA)]))
    commits = []
    r = request(table, on_commit=lambda row, at, ids, score: commits.append((at.tolist(), ids.tolist())))
    (ids,) = fill(sampler(block=8, steps=4, gen_length=8, end_guard=True), r)
    assert ids[-1] == EOA and len(ids) == 3 and MASK not in ids
    settled: set[int] = set()
    for at, tokens in commits:
        for place, token in sorted(zip(at, tokens, strict=True)):
            if token == EOA:
                assert set(range(place)) <= settled | set(at)
        settled |= set(at)


@pytest.mark.parametrize("guard", [False, True])
@pytest.mark.parametrize("steps", [1, 3, 8])
def test_guard_leaves_nothing_masked(guard, steps):
    table = Table(random_table(rows=3, seed=5, ends=[(0, 9, EOA), (1, 0, EOA), (2, 3, EOA), (2, 4, EOA)]))
    for ids in fill(sampler(block=8, steps=steps, gen_length=16, end_guard=guard), request(table, rows=3)):
        assert ids[-1] == EOA and MASK not in ids and ids.count(EOA) == 1
