"""What every registered sampler promises, and what single ones do, against a small stand-in for a network."""

import math
from dataclasses import dataclass, replace

import pytest
import torch

from tests.conftest import gen
from tests.unit.sampling.samplers.toy_logits import CODES, EOA, MASK, PAD, Sure, Toy, V, build, fill, request
from ttt.errors import CheckpointError, ConfigError
from ttt.interfaces import RemaskRule
from ttt.registry.families import LENGTH, REMASK, SAMPLER
from ttt.sampling.samplers.blocks import BlockSampler
from ttt.sampling.samplers.iterative import IterativeSampler, num_remasked

NAMES = [n for n in SAMPLER.names() if not (SAMPLER.get(n).autoregressive or SAMPLER.get(n).arch)]
EVERY = pytest.mark.parametrize("name", NAMES)
VARIANTS = pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 0.0}, {"temperature": 1.0}, {"temperature": 1.0, "remask": "random", "whole_canvas": True},
        {"temperature": 0.0, "cfg_scale": 0.7, "end_guard": False}, {"remask": "entropy", "top_k": 0, "top_p": 1.0},
    ],
    ids=["greedy", "drawn", "random-whole", "guided", "entropy"],
)  # fmt: skip
CANVAS = pytest.mark.parametrize("canvas", ["span", "answer"])


@EVERY
@VARIANTS
@CANVAS
@pytest.mark.parametrize("end_bias", [-9.0, 2.0], ids=["long", "short"])
def test_answers_are_complete_and_well_formed(name, fields, canvas, end_bias):
    r = request(Toy([0, 9, 20], end_bias=end_bias), canvas)
    for ids, limit in zip(fill(build(name, canvas=canvas, **fields), r), r.limit, strict=True):
        assert set(ids) <= {*CODES, EOA} and EOA not in ids[:-1]
        longest = min(limit, 12) + (canvas == "span")
        assert 1 <= len(ids) <= longest
        assert ids[-1] == EOA or (canvas == "answer" and len(ids) == longest), "an end, or the limit"


@EVERY
@pytest.mark.parametrize("exact", [1, 4, 9])
def test_exact_lengths(name, exact):
    r = request(Toy([0, 9], end_bias=9.0), exact=[exact, None], limits=(exact, 30))
    first, second = fill(build(name), r)
    assert len(first) == exact + 1 and first.index(EOA) == exact and second[-1] == EOA


@EVERY
@VARIANTS
@CANVAS
def test_settled_ids_are_never_touched(name, fields, canvas):
    toy = Toy([0, 9, 20])
    r = request(toy, canvas)
    sampler = build(name, canvas=canvas, **fields)
    settled: list[list[int]] = [[] for _ in range(3)]
    last: dict[int, list[int]] = {}
    seen = 0
    for block in sampler.span(r):
        for rows, tails, _ in toy.calls[seen:]:
            for row, tail in zip(rows, tails.tolist(), strict=True):
                assert tail[: len(settled[row])] == settled[row]
                if isinstance(sampler, BlockSampler):
                    assert all(new == old for old, new in zip(last.get(row, []), tail, strict=False) if old != MASK)
                last[row] = tail
        seen = len(toy.calls)
        settled[block.row] += block.ids.tolist()
    assert seen == len(toy.calls) and all(settled)


@EVERY
@VARIANTS
def test_one_seed_one_result(name, fields):
    runs = [fill(build(name, **fields), request(Toy([0, 9, 20]), seed=s)) for s in (1, 1, 2)]
    assert runs[0] == runs[1]
    draws = "temperature" in fields and fields["temperature"] > 0
    if draws:
        assert runs[0] != runs[2]


@EVERY
@VARIANTS
@CANVAS
def test_batching_changes_nothing(name, fields, canvas):
    sampler, contexts, limits = build(name, canvas=canvas, **fields), [0, 9, 20, 30], (30, 3, 7, 12)
    together = fill(sampler, request(Toy(contexts, end_bias=0.0), canvas, limits))
    for row in range(4):
        alone = request(Toy(contexts[row : row + 1], end_bias=0.0), canvas, limits[row : row + 1], gens=[gen(row)])
        assert fill(sampler, alone) == [together[row]]
    backwards = request(Toy(contexts[::-1], end_bias=0.0), canvas, limits[::-1], gens=[gen(i) for i in (3, 2, 1, 0)])
    assert fill(sampler, backwards) == together[::-1]


@EVERY
@pytest.mark.parametrize("limit", [1, 4, 5, 11])
def test_calls_as_promised(name, limit):
    toy = Toy([0], end_bias=-50.0)  # no end before the limit
    sampler = build(name)
    (ids,) = fill(sampler, request(toy, limits=(limit,)))
    assert len(ids) == limit + 1
    if isinstance(sampler, BlockSampler):
        total, sizes = limit + 1, []
        while total > 0:
            sizes.append(min(4, total) - (total <= 4))  # the last place of the last block holds the end token
            total -= 4
        most = sum(map(sampler.most_calls, sizes))
        assert len(sizes) - (sizes[-1] == 0) <= len(toy.calls) <= most
        assert len(toy.calls) == most or name in ("threshold", "entropy_bound")
        assert name != "first_hitting" or len(toy.calls) == limit
    else:
        assert isinstance(sampler, IterativeSampler)
        step = getattr(sampler, "length_increment", None)
        if name == "fixed_length":
            sizes = [limit]
        elif step is None:
            sizes = [min(s + 5, limit) - s for s in range(0, limit, 5)]
        else:
            lengths = [min(5, limit + 1)]
            while lengths[-1] < limit + 1:
                lengths.append(min(lengths[-1] + step, limit + 1))
            sizes = [*lengths[:-1], limit]
        assert len(toy.calls) == sum(map(sampler.most_calls, sizes))


@EVERY
@pytest.mark.parametrize(
    "bad, pattern",
    [
        ({"gen_length": 0}, "gen_length"),
        ({"temperature": -1.0}, "temperature"),
        ({"canvas": "page"}, "canvas: no 'page'"),
    ],
)
def test_impossible_settings_of_all(name, bad, pattern):
    with pytest.raises(ConfigError, match=f"^s[.:].*{pattern}"):
        build(name, **bad)


# --- first hitting


def joint(toy, length):
    """The exact law of ids [length] when positions are unmasked one by one in uniformly random order."""
    law = {(MASK,) * length: 1.0}
    for left in range(length, 0, -1):
        after: dict[tuple, float] = {}
        for state, p in law.items():
            logits = toy.row(0, torch.tensor(state))[:, list(CODES)].double()
            for at in (i for i, token in enumerate(state) if token == MASK):
                for token, q in enumerate(logits[at].softmax(-1).tolist()):
                    key = state[:at] + (token,) + state[at + 1 :]
                    after[key] = after.get(key, 0.0) + p * q / left
        law = after
    return law


def test_first_hitting_follows_the_exact_law():
    """Chi-square over all 64 outcomes of two positions, 8 codes each; the order of unmasking matters for this toy."""
    toy, n = Toy([0] * 500, seed=3), 8
    law = joint(toy, 2)
    counts = dict.fromkeys(law, 0)
    sampler = build("first_hitting", block_length=2, gen_length=2, canvas="answer")
    for chunk in range(n):
        allowed = torch.zeros(500, V, dtype=torch.bool)
        allowed[:, list(CODES)] = True
        r = request(toy, "answer", (2,) * 500, allowed=allowed, gens=[gen(1000 * chunk + i) for i in range(500)])
        for ids in fill(sampler, r):
            counts[tuple(ids)] += 1
    total = 500 * n
    statistic = sum((counts[k] - total * p) ** 2 / (total * p) for k, p in law.items() if total * p >= 5)
    bins = sum(total * p >= 5 for p in law.values())
    assert bins > 15 and statistic < bins + 4 * math.sqrt(2 * bins), "mean + 4 standard deviations"
    # The test can tell orders apart: always left to right has another law.
    left_first = {}
    for a, p in enumerate(toy.row(0, torch.tensor([MASK, MASK]))[0, :8].softmax(-1).tolist()):
        for b, q in enumerate(toy.row(0, torch.tensor([a, MASK]))[1, :8].softmax(-1).tolist()):
            left_first[a, b] = p * q
    wrong = sum((total * left_first[k] - total * p) ** 2 / (total * p) for k, p in law.items() if total * p >= 5)
    assert wrong > bins + 4 * math.sqrt(2 * bins)


def test_hitting_times_follow_their_recursion():
    """t_next / t_before with m places left has the law U^(1/m): its m-th power is uniform (Kolmogorov-Smirnov)."""
    times: dict[int, list[float]] = {row: [] for row in range(400)}
    r = request(
        Toy([0] * 400, end_bias=-50.0), "answer", (4,) * 400,
        on_commit=lambda row, at, ids, score: times[row].extend(score.tolist()),
    )  # fmt: skip
    fill(build("first_hitting", canvas="answer"), r)
    for k in range(4):
        before = [1.0] * 400 if k == 0 else [t[k - 1] for t in times.values()]
        uniform = sorted((t[k] / b) ** (4 - k) for t, b in zip(times.values(), before, strict=True))
        distance = max(max(abs(u - i / 400), abs(u - (i + 1) / 400)) for i, u in enumerate(uniform))
        assert distance < 1.95 / math.sqrt(400), "p = 0.001"


# --- LLaDA's switches and its iterative samplers


def test_eos_switches():
    toy = Toy([0], end_bias=30.0)
    (plain,) = fill(build("blockwise", canvas="answer"), request(toy, "answer", (12,)))
    assert plain == [EOA]
    order: list[int] = []
    r = request(
        Sure([0.9, 0.6, 0.9, 0.7], ends=(0, 2)),
        "answer",
        (4,),
        on_commit=lambda row, at, ids, score: order.extend(at.tolist()),
    )
    sampler = build(
        "blockwise", canvas="answer", gen_length=4, diffusion_steps=4, confidence_eos_eot_inf=True, drop_after_end=False
    )
    fill(sampler, r)
    assert sorted(order[:2]) == [1, 3] and sorted(order[2:]) == [0, 2], "end tokens last"
    for switch in (False, True):
        liked = Toy([0])
        liked.place[:, PAD] = 99.0
        r = request(liked, "answer", (12,), allowed=None, forbidden=(MASK, 11), strict=False)
        (ids,) = fill(build("blockwise", canvas="answer", logits_eos_inf=switch), r)
        assert (PAD in ids) is not switch


def slow_refine(toy, canvas, window, iterations, ratio):
    """Greedy refinement of one row with lists."""
    for iteration in range(iterations):
        if not window:
            break
        logits = toy.row(0, torch.tensor(canvas))
        logits[:, [MASK, PAD, 11]] = -torch.inf
        probs = logits.softmax(-1)
        for i in window:
            canvas[i] = int(probs[i].argmax())
        if iteration + 1 < iterations:
            window = sorted(window, key=lambda i: float(probs[i].max()))[: num_remasked(len(window), ratio)]
            for i in window:
                canvas[i] = MASK
    return canvas


def cut(ids):
    return ids[: ids.index(EOA) + 1] if EOA in ids else ids


def slow(name, toy, total):
    if name == "fixed_length":
        return cut(slow_refine(toy, [MASK] * total, list(range(total)), 4, 0.6))
    if name == "semi_ar_padding":
        canvas = [MASK] * total
        for start in range(0, total, 5):
            stop = min(start + 5, total)
            canvas = slow_refine(toy, canvas, list(range(start, stop)), 4, 0.6)
            if EOA in canvas[start:stop]:
                break
        return cut(canvas)
    canvas = [MASK] * min(5, total)
    while True:
        canvas = slow_refine(toy, canvas, list(range(len(canvas))), 4, 0.6)
        if EOA in canvas or len(canvas) == total:
            return cut(canvas)
        canvas += [MASK] * min(3, total - len(canvas))


@pytest.mark.parametrize("name", ["fixed_length", "semi_ar_origin", "semi_ar_padding"])
@pytest.mark.parametrize("total", [1, 5, 12])
@pytest.mark.parametrize("seed", range(4))
def test_iterative_samplers_against_slow_twins(name, total, seed):
    toys = [Toy([0], seed, end_bias=b) for b in (-4.0, 0.0)]
    for toy in toys:
        sampler = build(name, canvas="answer", temperature=0.0)
        assert fill(sampler, request(toy, "answer", (total,))) == [slow(name, toy, total)]


def test_official_faults_of_the_iterative_samplers():
    """Masks left by the last extension, nothing at all from a long first canvas, one end that stops all rows."""
    loose = {"allowed": None, "forbidden": (MASK, PAD, 11), "strict": False}
    never = Toy([0], end_bias=-50.0)
    (ids,) = fill(build("semi_ar_origin", canvas="answer", official=True), request(never, "answer", (12,), **loose))
    assert len(ids) == 12 and ids[-1] == MASK and MASK not in ids[:11]
    (ids,) = fill(
        build("semi_ar_origin", canvas="answer", official=True, initial_length=12),
        request(never, "answer", (12,), **loose),
    )
    assert ids == [MASK] * 12
    mixed = Toy([0, 9], end_bias=-50.0)
    mixed.place[2, EOA] = 99.0  # the first row ends at once, the second never
    stopped = fill(
        build("semi_ar_padding", canvas="answer", official=True), request(mixed, "answer", (12, 12), **loose)
    )
    assert stopped[0][2:] == [EOA] + [PAD] * 9 and stopped[1][5:] == [MASK] * 7
    right = fill(build("semi_ar_padding", canvas="answer"), request(mixed, "answer", (12, 12), **loose))
    assert (
        right[0] == stopped[0][:3] and right[1][:5] == stopped[1][:5] and MASK not in right[1] and len(right[1]) == 12
    )


def test_official_samplers_need_the_official_mode():
    with pytest.raises(ConfigError, match="eval.sampler.official: .*eval.strict=false"):
        fill(build("fixed_length", official=True), request(Toy([0]), limits=(5,)))
    with pytest.raises(ConfigError, match="needs canvas: answer"):
        build("semi_ar_padding", official=True)


@pytest.mark.parametrize(
    "name, fields, pattern",
    [
        ("fixed_length", {"num_iterations": 0}, "must be >= 1"),
        ("fixed_length", {"remasking_ratio": 1.2}, "must be >= 0 and <= 1"),
        ("fixed_length", {"top_p": 0.0}, "top_p"), ("semi_ar_origin", {"length_increment": 0}, "length_increment"),
        ("semi_ar_padding", {"initial_length": 0}, "initial_length"),
    ],
)  # fmt: skip
def test_impossible_refinements(name, fields, pattern):
    with pytest.raises(ConfigError, match=f"^s[.:].*{pattern}"):
        build(name, **fields)


def test_sizes_of_a_refinement():
    sizes = [100]
    for _ in range(9):
        sizes.append(num_remasked(sizes[-1], 0.8))
    assert sizes == [100, 80, 64, 51, 40, 32, 25, 20, 16, 12]
    assert SAMPLER.build({"name": "fixed_length", "num_iterations": 10}, "s").most_calls(100) == 10
    assert SAMPLER.build({"name": "fixed_length", "remasking_ratio": 0.5}, "s").most_calls(8) == 4, "8, 4, 2, 1"


@EVERY
def test_logits_that_are_nan_end_with_a_word(name):
    def broken(rows, tails, last, unconditional=""):
        return torch.full((len(rows), last, V), torch.nan)

    with pytest.raises(CheckpointError, match="logits are NaN"):
        fill(build(name), request(broken, limits=(5,)))


def test_a_rule_without_finite_scores_cannot_hang_the_sampler():
    @dataclass(frozen=True)
    class Nothing(RemaskRule):
        def score(self, logits, chosen, gens):
            return torch.full(chosen.shape, torch.nan)

    with pytest.raises(ConfigError, match="no candidate has a finite score"):
        fill(replace(build("blockwise"), remask=Nothing()), request(Toy([0]), limits=(5,)))


# --- remasking and length rules


def test_margin_and_entropy_by_hand():
    logits = torch.tensor([[[0.5, 0.3, 0.2], [0.9, 0.1, 0.0]]]).log() + 1.7
    chosen = torch.tensor([[2, 0]])
    assert REMASK.build("margin", "r").score(logits, chosen, []).tolist() == [pytest.approx([0.2, 0.8])]
    expected = [sum(p * math.log(p) for p in ps) for ps in ((0.5, 0.3, 0.2), (0.9, 0.1))]
    assert REMASK.build("entropy", "r").score(logits, chosen, []).tolist() == [pytest.approx(expected)]


@pytest.mark.parametrize("name", REMASK.names())
def test_remasking_rules_rank_restricted_logits(name):
    logits = torch.randn(2, 5, V, generator=gen(1)).masked_fill(torch.arange(V) >= 8, -torch.inf)
    gens = [gen(1), gen(2)]
    score = REMASK.build(name, "r").score(logits, logits.argmax(-1), gens)
    assert score.shape == (2, 5) and score.isfinite().all()
    alone = REMASK.build(name, "r").score(logits[1:], logits[1:].argmax(-1), [gen(2)])
    assert torch.equal(score[1:], alone)


def test_budget():
    rule = LENGTH.build({"name": "budget", "codes": 5, "last_codes": 9}, "l")
    assert [(rule.exact_codes(x), rule.max_codes(x)) for x in (False, True)] == [(None, 5), (None, 9)]
    with pytest.raises(ConfigError, match=r"^l\.\w+: must be >= 1"):
        LENGTH.build({"name": "budget", "codes": 0}, "l")
