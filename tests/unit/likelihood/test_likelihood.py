import itertools
import json
import math

import numpy as np
import pytest
import torch

from tests.conftest import audio, chat, pack, text, tiny_model, tiny_tokenizer
from ttt.data.encode import encode_example
from ttt.errors import ConfigError
from ttt.interfaces import Objective
from ttt.likelihood import (
    Draws,
    Part,
    chain_nll,
    estimate,
    every_pattern,
    factorise,
    item_record,
    likelihoods,
    masked_nll,
    patterns,
    spread_counts,
    summarise,
    table,
)
from ttt.masks.library import BlockCausal, Causal, DualStream, Full, Hybrid
from ttt.masks.materialize import materialize
from ttt.objective.dual_stream import DualStreamTtT
from ttt.objective.library import Ar, Nar, TtT
from ttt.rng import generator
from ttt.types import Kind, ModelInputs

EXAMPLE = chat("e", [text("read this")], [text("a cat"), audio([3, 1, 3], "span"), text(" sat on"), audio([5], "last")])


@pytest.fixture(scope="module")
def peaked():
    """A model far from uniform: its codes are likely."""
    v = tiny_tokenizer().vocab
    return tiny_model(bias={v.code_start + c: 2.0 for c in range(6)} | {v.eoa_id: 2.5, v.eoa_last_id: 2.5}).eval()


def log_q(model, mask, stream, ids, at):
    """log softmax at positions ``at`` of one row, the slow way: whole row, no batching."""
    import dataclasses

    batch = pack([[dataclasses.replace(stream, ids=np.asarray(ids))]])
    select = torch.as_tensor(at)
    with torch.no_grad():
        logits = model(
            ModelInputs(batch.ids, batch.position, materialize(mask, batch.layout(), "sdpa", torch.float32), select)
        )
    return logits.double().log_softmax(-1)


def span(model, mask):
    """(stream up to the end of the first span, positions of the span): three codes and an end token."""
    part = factorise(TtT(mask=mask), encode_example(EXAMPLE, model.tokenizer)).parts[0]
    assert len(part.at) == 4
    return part


def by_permutations(model, mask, part):
    """-log q of every order of a span, one token at a time."""
    mask_id = model.tokenizer.vocab.mask_id
    known: dict[tuple, np.ndarray] = {}
    totals = []
    for order in itertools.permutations(range(len(part.at))):
        total = 0.0
        for step, i in enumerate(order):
            seen = tuple(sorted(order[:step]))
            if seen not in known:
                ids = part.stream.ids.copy()
                hidden = [part.at[j] for j in range(len(part.at)) if j not in seen]
                ids[hidden] = mask_id
                known[seen] = log_q(model, mask, part.stream, ids, part.at).numpy()
            total -= known[seen][i, part.stream.ids[part.at[i]]]
        totals.append(total)
    return np.array(totals)


@pytest.mark.parametrize("mask", [Hybrid(), Full()], ids=["hybrid", "full"])
def test_bound_is_the_mean_over_orders_and_above_the_mixture(peaked, mask):
    part = span(peaked, mask)
    orders = by_permutations(peaked, mask, part)
    found = every_pattern(4)
    assert len(found.masked) == 15 and found.weight.sum() == pytest.approx(1)
    (values,) = masked_nll(peaked, mask, [part], [found.masked], 200)
    bound, variance = estimate(values, found)
    assert bound.sum() == pytest.approx(orders.mean(), rel=1e-5) and bound[0] == 0 and not variance.any()
    mixture = -np.log(np.mean(np.exp(-(orders - orders.min())))) + orders.min()
    assert np.ptp(orders) > 0.01 and mixture < bound.sum()


@pytest.mark.parametrize(
    "draws",
    [
        Draws(4000), Draws(4000, "spread", 4), Draws(4000, "spread", 8), Draws(4000, antithetic=True),
        Draws(4000, "spread", 4, antithetic=True), Draws(4000, "official", 4),
    ],
    ids=["uniform", "spread4", "spread8", "antithetic", "spread_antithetic", "official"],
)  # fmt: skip
def test_estimators_are_unbiased(peaked, draws):
    part = span(peaked, Hybrid())
    every = every_pattern(4)
    (values,) = masked_nll(peaked, Hybrid(), [part], [every.masked], 200)
    exact = (every.weight @ values).sum()
    # Values of all masks are known, so many draws cost no network call.
    value_of = {tuple(m): v for m, v in zip(every.masked.tolist(), values)}
    found = patterns(4, draws, generator(1, "test"))
    drawn = np.array([value_of[tuple(m)] for m in found.masked.tolist()])
    mean, variance = estimate(drawn, found)
    assert 0 < variance.sum() < 1 and abs(mean.sum() - exact) < 3.5 * math.sqrt(variance.sum())


@pytest.mark.parametrize("n, copies", [(4, 4), (5, 3), (7, 8), (12, 8), (3, 2)])
def test_marginals_of_spread_counts_are_uniform(n, copies):
    counts = np.array([spread_counts(n, copies, first) for first in range(1, n + 1)])
    assert (np.sort(counts, axis=0) == np.arange(1, n + 1)[:, None]).all()


def test_spread_follows_the_published_example():
    for official in (False, True):
        assert spread_counts(8, 4, 3, official).tolist() == [3, 5, 7, 1]
    odd = [int(spread_counts(3, 2, first, True)[1]) for first in (1, 2, 3)]
    assert sorted(odd) != [1, 2, 3]  # halves to even: why `spread` rounds otherwise


@pytest.mark.parametrize("draws", [Draws(64), Draws(64, "spread"), Draws(64, "official"), Draws(64, antithetic=True)])
def test_every_copy_masks_one_to_n(draws):
    found = patterns(5, draws, generator(3, "test"))
    assert found.masked.shape == (64, 5) and found.counts.min() >= 1 and found.counts.max() <= 5
    assert found.weight.sum() == pytest.approx(1) and set(found.counts) == {1, 2, 3, 4, 5}


def test_antithetic_pairs_overlap_in_one_token():
    found = patterns(6, Draws(20, antithetic=True), generator(3, "test"))
    first, second = found.masked[:10], found.masked[10:]
    assert ((first & second).sum(1) == 1).all() and (first | second).all()
    assert (found.group[:10] == found.group[10:]).all()


def test_standard_error_needs_independent_groups():
    values = np.array([[1.0, 0], [3.0, 0], [2.0, 0], [6.0, 0]])
    alone = patterns(9, Draws(4), generator(1, "t"))
    assert estimate(values, alone)[1][0] == pytest.approx(np.var([1, 3, 2, 6], ddof=1) / 4)
    grouped = patterns(9, Draws(4, "spread", 2), generator(1, "t"))
    assert estimate(values, grouped)[1][0] == pytest.approx(np.var([2, 4], ddof=1) / 2)
    assert np.isnan(estimate(values, patterns(9, Draws(4, "spread", 4), generator(1, "t")))[1]).all()


def test_one_token_needs_no_draws(peaked):
    found = patterns(1, Draws(16), generator(1, "t"))
    assert found.masked.tolist() == [[True]]
    (item,) = likelihoods(peaked, TtT(mask=Hybrid()), [chat("x", [text("a")], [audio([], "last")])], Draws(16), seed=1, budget=200)
    e = item.by["audio"]  # the end token alone
    assert e.tokens == e.spans == 1 and e.variance == 0 and math.isfinite(e.nats)


def test_ar_is_the_sum_of_log_softmax(peaked):
    stream = encode_example(EXAMPLE, peaked.tokenizer)
    logs = log_q(peaked, Causal(), stream, stream.ids, list(range(len(stream))))
    by_hand = {Kind.TEXT: 0.0, Kind.AUDIO: 0.0}
    for i in np.flatnonzero(stream.target):
        by_hand[Kind(stream.kind[i])] -= float(logs[i - 1, stream.ids[i]])
    (item,) = likelihoods(peaked, Ar(mask=Causal()), [EXAMPLE], Draws(1), seed=1, budget=200)
    assert item.by["text"].nats == pytest.approx(by_hand[Kind.TEXT], rel=1e-5)
    assert item.by["audio"].nats == pytest.approx(by_hand[Kind.AUDIO], rel=1e-5)
    assert item.by["text"].exact and item.by["audio"].exact and item.by["audio"].spans == 2
    assert item.by["audio"].tokens == 6 and item.words == 4


def test_text_sees_clean_speech_before_it(peaked):
    stream = encode_example(EXAMPLE, peaked.tokenizer)
    logs = log_q(peaked, Hybrid(), stream, stream.ids, list(range(len(stream))))
    text_at = [i for i in np.flatnonzero(stream.target) if stream.kind[i] == Kind.TEXT]
    (item,) = likelihoods(peaked, TtT(mask=Hybrid()), [EXAMPLE], Draws(2), seed=1, budget=200)
    assert item.by["text"].nats == pytest.approx(-sum(float(logs[i - 1, stream.ids[i]]) for i in text_at), rel=1e-5)
    assert item.by["text"].exact and not item.by["audio"].exact


def test_spans_see_clean_history_and_nothing_after(peaked):
    parts = factorise(TtT(mask=Hybrid()), encode_example(EXAMPLE, peaked.tokenizer)).parts
    assert [len(p.at) for p in parts] == [4, 2] and [p.at[-1] + 1 for p in parts] == [len(p.stream) for p in parts]
    assert [p.span for p in parts] == [0, 1]


def test_blocks_are_scored_given_clean_earlier_blocks(peaked):
    """The chain of blocks by hand; whole-span scoring of a block-causal mask would show later blocks nothing anyway."""
    mask = BlockCausal(block_length=2)
    objective = TtT(mask=mask)
    parts = factorise(objective, encode_example(EXAMPLE, peaked.tokenizer)).parts
    assert [len(p.at) for p in parts] == [2, 2, 2] and [p.span for p in parts] == [0, 0, 1]
    assert [len(p.at) for p in factorise(objective, encode_example(EXAMPLE, peaked.tokenizer), 0).parts] == [4, 2]
    total = sum(by_permutations(peaked, mask, p).mean() for p in parts)
    (item,) = likelihoods(peaked, objective, [EXAMPLE], Draws(1, "exact"), seed=1, budget=200)
    assert item.by["audio"].nats == pytest.approx(total, rel=1e-5) and item.by["audio"].spans == 2


def test_dual_stream_fills_the_last_block_like_its_training(peaked):
    mask = DualStream(clean=BlockCausal(block_length=3))
    stream = encode_example(EXAMPLE, peaked.tokenizer)
    parts = factorise(DualStreamTtT(mask=mask), stream).parts
    assert [len(p.at) for p in parts] == [3, 3, 3] and [p.tokens for p in parts] == [3, 1, 2]
    v = peaked.tokenizer.vocab
    assert (parts[1].stream.ids[-3:] == v.eoa_id).all() and (parts[2].stream.ids[-2:] == v.eoa_last_id).all()
    (item,) = likelihoods(peaked, DualStreamTtT(mask=mask), [EXAMPLE], Draws(4), seed=1, budget=400)
    assert item.by["audio"].tokens == 6  # fillers are in the bound, not in the count


def test_dual_stream_bound_is_what_its_objective_computes(peaked):
    """Decoding's view (cut rows) and training's (a noisy copy in one row) give one and the same loss."""
    from ttt.registry.families import OBJECTIVE

    mask = DualStream(clean=BlockCausal(block_length=2))
    objective = OBJECTIVE.build(
        {"name": "dual_stream", "mask": {"name": "dual_stream", "clean": {"name": "block_causal", "block_length": 2}}}, "o"
    )
    stream = encode_example(EXAMPLE, peaked.tokenizer)
    batch = pack([[stream]])
    # u = 0 masks all: every block with k = n, weight 1 / p = 1
    plan = objective.plan_from(batch, objective.maskable(batch), torch.ones(1), torch.zeros(batch.ids.shape))
    term = plan.terms["nar"]
    with torch.no_grad():
        total = float(objective.terms(peaked, plan).terms["nar"].sum) * 6  # weights 1/N
    parts = factorise(objective, stream).parts
    values = masked_nll(peaked, mask, parts, [np.ones((1, len(p.at)), dtype=bool) for p in parts], 400)
    assert len(term.target) == 6 and sum(v.sum() for v in values) == pytest.approx(total, rel=1e-5)


def test_nar_scores_the_whole_answer_with_text_in_it(peaked):
    example = chat("n", [text("a")], [audio([2, 4], "last")])
    stream = encode_example(example, peaked.tokenizer)
    (part,) = factorise(Nar(mask=Full()), stream).parts
    assert (part.at == np.flatnonzero(stream.target)).all()
    orders = by_permutations(peaked, Full(), part)
    (item,) = likelihoods(peaked, Nar(mask=Full()), [example], Draws(1, "exact"), seed=1, budget=400)
    assert item.by["text"].nats + item.by["audio"].nats == pytest.approx(orders.mean(), rel=1e-5)
    assert not item.by["text"].exact and item.by["text"].tokens + item.by["audio"].tokens == len(part.at)


@pytest.mark.parametrize("ends", ["learn", "keep"])
def test_llada_speech_bound_under_its_constraint(peaked, ends):
    """The mean over all orders, each factor normalised over what may stand at its place; above the mixture of orders."""
    from ttt.registry.families import OBJECTIVE

    objective = OBJECTIVE.build({"name": "nar", "noised": "speech", "ends": ends, "constraint": "frame"}, "o")
    example = chat("s", [text("a")], [audio([2, 4, 1], "last")])
    stream = encode_example(example, peaked.tokenizer)
    v = peaked.tokenizer.vocab
    (part,) = factorise(objective, stream, space=v.code_space).parts
    n = 3 + (ends == "learn")
    assert len(part.at) == n and (stream.kind[part.at] == Kind.AUDIO).all()
    inside = list(range(v.code_start, v.code_stop)) + [v.eoa_id, v.eoa_last_id] * (ends == "learn")
    orders = []
    for order in itertools.permutations(range(n)):
        total = 0.0
        for step, i in enumerate(order):
            ids = stream.ids.copy()
            ids[[part.at[j] for j in range(n) if j not in order[:step]]] = v.mask_id
            logits = log_q(peaked, objective.mask, stream, ids, part.at[i : i + 1])[0]
            total -= float(logits[stream.ids[part.at[i]]] - logits[inside].logsumexp(0))
        orders.append(total)
    orders = np.array(orders)
    (item,) = likelihoods(peaked, objective, [example], Draws(1, "exact"), seed=1, budget=400)
    assert item.by["audio"].nats == pytest.approx(orders.mean(), rel=1e-5) and item.by["audio"].tokens == n
    mixture = -np.log(np.mean(np.exp(-(orders - orders.min())))) + orders.min()
    assert np.ptp(orders) > 1e-3 and mixture < item.by["audio"].nats and "text" not in item.by
    free = OBJECTIVE.build({"name": "nar", "noised": "speech", "ends": ends}, "o")
    (wide,) = likelihoods(peaked, free, [example], Draws(1, "exact"), seed=1, budget=400)
    assert item.by["audio"].nats < wide.by["audio"].nats


def test_guidance_hides_all_but_the_span(peaked):
    part = span(peaked, Full())
    masks = np.array([[True, False, True, True]])
    (guided,) = masked_nll(peaked, Full(), [part], [masks], 200, cfg_scale=0.5)
    v = peaked.tokenizer.vocab
    ids = part.stream.ids.copy()
    ids[part.at[masks[0]]] = v.mask_id
    blind = np.full_like(ids, v.mask_id)
    blind[part.at] = ids[part.at]
    c, u = (log_q(peaked, Full(), part.stream, x, part.at[masks[0]]) for x in (ids, blind))
    logs = (u + 1.5 * (c - u)).log_softmax(-1)
    by_hand = -sum(float(logs[i, t]) for i, t in enumerate(part.stream.ids[part.at[masks[0]]]))
    assert guided.sum() == pytest.approx(4 / 3 * by_hand, rel=1e-5)
    assert guided.sum() != pytest.approx(masked_nll(peaked, Full(), [part], [masks], 200)[0].sum(), rel=1e-3)


def test_numbers_do_not_depend_on_budget_or_company(peaked):
    other = chat("f", [text("the quick brown fox")], [text("a"), audio([1, 2, 3, 4, 5], "last")])
    draws = Draws(6)
    both = likelihoods(peaked, TtT(mask=Hybrid()), [EXAMPLE, other], draws, seed=4, budget=500)
    alone = likelihoods(peaked, TtT(mask=Hybrid()), [other], draws, seed=4, budget=1)
    for kind in ("text", "audio"):
        assert both[1].by[kind].nats == pytest.approx(alone[0].by[kind].nats, rel=1e-5)
    (reseeded,) = likelihoods(peaked, TtT(mask=Hybrid()), [other], draws, seed=5, budget=1)
    assert reseeded.by["audio"].nats != alone[0].by["audio"].nats


def test_chain_of_nothing_is_zero(peaked):
    stream = encode_example(EXAMPLE, peaked.tokenizer)
    (nll,) = chain_nll(peaked, Causal(), [stream], [np.zeros(0, dtype=np.int64)], 100)
    assert nll.shape == (0,)


@pytest.mark.parametrize(
    "make, pattern",
    [
        (lambda: Draws(estimator="unifrom"), "estimator: no 'unifrom'. Did you mean 'uniform'"),
        (lambda: Draws(0), "draws: must be >= 1"),
        (lambda: Draws(12, "spread", 8), "12 draws do not divide into whole groups of 8"),
        (lambda: Draws(5, antithetic=True), "antithetic pairs need an even number"),
        (lambda: Draws(cfg_scale=-1), "cfg_scale: must be >= 0"),
        (lambda: every_pattern(13), "13 tokens, the limit is 12"),
    ],
)
def test_bad_settings(make, pattern):
    with pytest.raises(ConfigError, match=pattern):
        make()


def test_unknown_objectives_are_refused():
    class Other(Objective):
        def plan(self, batch, gen):
            raise NotImplementedError

        def terms(self, model, plan):
            raise NotImplementedError

    with pytest.raises(ConfigError, match="'Other' has no likelihood"):
        factorise(Other(), encode_example(EXAMPLE, tiny_tokenizer()))


def test_summary_and_table(peaked):
    examples = [EXAMPLE, chat("g", [text("a")], [text("a cat")])]
    items = likelihoods(peaked, TtT(mask=Hybrid()), examples, Draws(4), seed=1, budget=300)
    values = summarise(items, resamples=50)
    total = sum(i.by["text"].nats for i in items)
    assert values["chat/text/nll_per_token"]["value"] == pytest.approx(total / sum(i.by["text"].tokens for i in items))
    assert values["chat/text/nll_per_word"]["value"] == pytest.approx(total / 6)
    assert values["chat/text/nll_per_token"]["bound"] is False and values["chat/text/nll_per_token"]["se_draws"] == 0
    spoken = values["chat/audio/nll_per_span"]
    assert spoken["n"] == 1 and spoken["spans"] == 2 and spoken["bound"] and spoken["se_draws"] > 0
    assert spoken["se_draws"] == pytest.approx(math.sqrt(items[0].by["audio"].variance) / 2)
    shown = table(values)
    assert shown.count("\n") == 2 and "≤" in shown.splitlines()[2] and "≤" not in shown.splitlines()[1]
    json.dumps([item_record(i) for i in items], allow_nan=False)


def test_one_group_of_draws_has_no_error(peaked):
    items = likelihoods(peaked, TtT(mask=Hybrid()), [EXAMPLE], Draws(8, "spread", 8), seed=1, budget=300)
    v = summarise(items, 10)["chat/audio/nll_per_token"]
    assert v["se_draws"] is None and math.isfinite(v["value"])
    json.dumps(item_record(items[0]), allow_nan=False)


def test_verb_end_to_end(peaked, tmp_path, capsys):
    from ttt.cli.main import main
    from ttt.data.read.examples import write_examples

    write_examples(tmp_path / "test.jsonl", [type(EXAMPLE)(EXAMPLE.uid, EXAMPLE.turns, "other", {})])
    peaked.save(tmp_path / "model")
    call = [
        "likelihood", f"run.dir={tmp_path}", f"eval.examples=[{tmp_path}/test.jsonl]", f"eval.checkpoint={tmp_path}/model",
        f"eval.out={tmp_path}/out", "eval.bootstrap=20", "objective=ttt",
    ]  # fmt: skip
    assert main([*call, "--draws", "4"]) == 2  # the file's task is none of the configured
    assert "is of task 'other'" in capsys.readouterr().err
    call.append("tasks=[{name: asr, system: hear}]")
    write_examples(tmp_path / "test.jsonl", [type(EXAMPLE)(EXAMPLE.uid, EXAMPLE.turns, "asr", {"split": "test"})])
    assert main([*call, "--draws", "4"]) == 0
    shown = capsys.readouterr().out
    found = json.loads((tmp_path / "out/likelihood.json").read_text())
    assert found["settings"]["draws"]["draws"] == 4 and found["values"]["asr/audio/nll_per_token"]["bound"]
    assert len((tmp_path / "out/likelihood.items.jsonl").read_text().splitlines()) == 1
    assert main([*call, "--draws", "4"]) == 0 and capsys.readouterr().out == shown  # up to date: only printed
    assert main([*call, "--draws", "8"]) == 2
    assert "made with other settings (setting draws.draws)" in capsys.readouterr().err


def test_parts_are_independent_of_what_follows(peaked):
    stream = encode_example(EXAMPLE, peaked.tokenizer)
    part = factorise(TtT(mask=Hybrid()), stream).parts[0]
    masks = np.ones((1, 4), dtype=bool)
    whole = Part(stream, part.at, 4)
    a, b = (masked_nll(peaked, Hybrid(), [p], [masks], 300)[0].sum() for p in (part, whole))
    assert a == pytest.approx(b, rel=1e-5)
