"""What every plug-in of a family owes, run over all registered names: a plug-in is tested the day it is registered."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.conftest import NUM_CODES, gen, pack, random_batch, random_streams, tiny_hf, tiny_model, tiny_tokenizer
from ttt.masks.materialize import dense, materialize
from ttt.registry.families import LENGTH, MASK, NOISE, OBJECTIVE, REMASK, SAMPLER, STRATEGY, TASK, WEIGHTING
from ttt.types import Example, Kind, Layout

V = tiny_tokenizer().vocab


def every(registry):
    return pytest.mark.parametrize("name", registry.names())


# --- masks


@every(MASK)
@pytest.mark.parametrize("seed", range(3))
def test_mask_isolates_documents_and_hides_invisible_keys(name, seed):
    rule, layout = MASK.build(name, "mask"), random_batch(seed).layout()
    allowed = dense(rule, layout)
    assert allowed.dtype == torch.bool and allowed.shape == (*layout.shape, layout.shape[1])
    same = layout.doc[:, :, None] == layout.doc[:, None, :]
    assert not (allowed & ~same).any() and not (allowed & ~layout.visible[:, None, :]).any()
    itself = torch.diagonal(allowed, dim1=1, dim2=2)
    assert itself[layout.visible].all(), "a real token looks at itself"


@every(MASK)
def test_mask_does_not_depend_on_the_company(name):
    rule, streams = MASK.build(name, "mask"), random_streams(1, 2)
    together = dense(rule, pack([streams]).layout())[0]
    n = len(streams[0])
    assert torch.equal(together[:n, :n], dense(rule, pack([streams[:1]]).layout())[0])


@every(MASK)
def test_mask_serves_every_attention(name):
    from torch.nn.attention.flex_attention import create_mask

    rule, layout = MASK.build(name, "mask"), random_batch().layout()
    b, t = layout.shape
    assert torch.equal(create_mask(rule.allow(layout), b, 1, t, t, device="cpu")[:, 0], dense(rule, layout))
    for implementation in ("sdpa", "eager"):
        mask = materialize(rule, layout, implementation, torch.float32)
        assert mask.shape == (b, 1, t, t)


@every(MASK)
@pytest.mark.parametrize("seed", range(10))
def test_frozen_prefix_keeps_its_word(name, seed):
    rule = MASK.build(name, "mask")
    g = gen(seed)
    n, more = 10, 4
    kind = torch.where(torch.rand(1, n + more, generator=g) < 0.6, int(Kind.AUDIO), int(Kind.TEXT)).to(torch.uint8)
    closed = torch.rand(1, generator=g) < 0.5
    if closed:
        kind[0, n] = int(Kind.TEXT)
    column = torch.arange(n + more)[None]

    def layout(length):
        return Layout(
            kind=kind, span=torch.cumsum(kind != Kind.AUDIO, 1), doc=torch.zeros_like(column), position=column,
            prompt=column < 3, visible=column < length, stream=torch.zeros_like(column),
        )  # fmt: skip

    frozen = int(rule.frozen_prefix(layout(n), closed))
    now, later = (dense(rule, layout(length))[0] for length in (n, n + more))
    assert 0 <= frozen <= n
    assert not later[:frozen, n:].any() and torch.equal(later[:frozen, :n], now[:frozen, :n])


# --- noise


@every(NOISE)
def test_schedule_falls_from_one_to_zero(name):
    schedule = NOISE.build(name, "noise")
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    alpha = schedule.alpha(t)
    assert float(alpha[0]) == pytest.approx(1, abs=1e-6) and float(alpha[-1]) == pytest.approx(0, abs=1e-6)
    assert (alpha.diff() <= 0).all() and schedule.alpha(torch.rand(2, 3)).shape == (2, 3)


@every(NOISE)
def test_slope_is_the_derivative(name):
    schedule = NOISE.build(name, "noise")
    t = torch.linspace(0.01, 0.99, 50, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(schedule.alpha(t).sum(), t)
    assert torch.allclose(schedule.dalpha(t.detach()), slope, atol=1e-9) and (slope <= 0).all()


@every(WEIGHTING)
@pytest.mark.parametrize("noise", NOISE.names())
def test_weights_are_finite_and_not_negative(name, noise):
    schedule = NOISE.build(noise, "noise")
    t = torch.linspace(0, 1, 101)
    p = 0.999 * (1 - schedule.alpha(t)) + 1e-3
    weight = WEIGHTING.build(name, "weighting").weight(t, p, schedule)
    assert weight.shape == t.shape and torch.isfinite(weight).all() and (weight >= 0).all()


# --- strategies


@every(STRATEGY)
@pytest.mark.parametrize("seed", range(5))
def test_strategy_adds_no_maskable_position_and_changes_no_input(name, seed):
    strategy = STRATEGY.build({"name": name, "p": 1.0 if seed % 2 else 0.5}, "strategy")
    batch = random_batch(seed)
    maskable = (batch.kind == Kind.AUDIO) & batch.answer
    before, ids = maskable.clone(), batch.ids.clone()
    after = strategy.on_maskable(batch, maskable, gen(seed))
    assert after.dtype == torch.bool and not (after & ~before).any()
    assert torch.equal(maskable, before) and torch.equal(batch.ids, ids)
    assert torch.equal(after, strategy.on_maskable(batch, maskable, gen(seed)))


@every(STRATEGY)
def test_strategy_leaves_streams_consistent(name):
    strategy = STRATEGY.build({"name": name, "p": 1.0}, "strategy")
    for i, stream in enumerate(random_streams(3, 10, 25)):
        kept = copy.deepcopy(stream)
        out = strategy.on_stream(stream, np.random.default_rng(i))
        for field in ("ids", "kind", "span", "target", "answer"):
            assert np.array_equal(getattr(stream, field), getattr(kept, field))
        assert len(out) <= len(stream) + strategy.growth(stream) and np.array_equal(
            out.kind == Kind.AUDIO, V.is_audio(out.ids)
        )
        again = strategy.on_stream(stream, np.random.default_rng(i))
        assert np.array_equal(out.ids, again.ids) and not (out.answer & ~out.target).any()


@every(STRATEGY)
def test_strategy_survives_a_batch_without_audio(name):
    strategy = STRATEGY.build({"name": name, "p": 1.0}, "strategy")
    batch = random_batch()
    nothing = torch.zeros_like(batch.answer)
    assert not strategy.on_maskable(batch, nothing, gen()).any()


@every(STRATEGY)
def test_strategy_has_a_checked_probability(name):
    with pytest.raises(Exception, match="strategy: "):
        STRATEGY.build({"name": name, "p": 2.0}, "strategy")


# --- objectives


@every(OBJECTIVE)
def test_objective_counts_before_and_trains(name):
    from ttt.model.lm import SpeechTextLM

    model = SpeechTextLM(copy.deepcopy(tiny_hf()), tiny_tokenizer())
    objective, batch = OBJECTIVE.build(name, "objective"), random_batch(2)
    plan = objective.plan(batch, gen(4))
    counts = {k: t.count for k, t in plan.terms.items()}
    assert counts and all(c > 0 for c in counts.values())
    for term in plan.terms.values():
        assert len(term.source) == len(term.target) == len(term.weight) and (term.weight >= 0).all()
        assert (term.source >= 0).all() and (term.source < plan.input_ids.numel()).all()
    result = objective.terms(model, plan)
    assert {k: t.count for k, t in result.terms.items()} == counts
    total = sum(t.scale * t.sum / t.count for t in result.terms.values())
    total.backward()
    assert torch.isfinite(total) and float(total.detach()) > 0
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


@every(OBJECTIVE)
def test_objective_is_deterministic_and_changes_no_input(name):
    objective, batch = OBJECTIVE.build(name, "objective"), random_batch(2)
    ids = batch.ids.clone()
    for make in (objective.plan, objective.clean_plan):
        one, two = make(batch, gen(4)), make(batch, gen(4))
        assert torch.equal(one.input_ids, two.input_ids) and one.terms.keys() == two.terms.keys()
        assert all(torch.equal(one.terms[k].source, two.terms[k].source) for k in one.terms)
    assert torch.equal(batch.ids, ids)


@every(OBJECTIVE)
def test_objective_survives_a_batch_without_audio(name):
    model, objective = tiny_model(), OBJECTIVE.build(name, "objective")
    quiet = [s for s in random_streams(0, 60) if not (s.kind == Kind.AUDIO).any()][:2]
    batch = pack([quiet])
    result = objective.terms(model, objective.plan(batch, gen()))
    assert quiet and all(torch.isfinite(t.sum) and t.count > 0 for t in result.terms.values())


@every(OBJECTIVE)
def test_loss_sits_on_targets_of_real_documents_only(name):
    objective, batch = OBJECTIVE.build(name, "objective"), random_batch(3)
    plan = objective.plan(batch, gen(1))
    visible, doc = batch.visible.flatten(), batch.doc.flatten()
    for term in plan.terms.values():
        assert visible[term.source].all() and (doc[term.source] >= 0).all()
    changed = plan.input_ids != batch.ids
    assert not (changed & ~batch.answer).any() and (plan.input_ids[changed] == V.mask_id).all()


# --- decoding


@every(REMASK)
def test_remask_scores(name):
    rule = REMASK.build(name, "remask")
    logits = torch.randn(3, 5, 11, generator=gen())
    logits[..., 4] = -torch.inf
    chosen = logits.argmax(-1)
    score = rule.score(logits, chosen, [gen(i) for i in range(3)])
    assert score.shape == (3, 5) and score.is_floating_point() and torch.isfinite(score).all()
    assert torch.equal(score, rule.score(logits, chosen, [gen(i) for i in range(3)]))
    assert torch.allclose(score[1:2], rule.score(logits[1:2], chosen[1:2], [gen(1)])), "rows do not see each other"


@every(LENGTH)
@pytest.mark.parametrize("last", [True, False])
def test_length_rule(name, last):
    rule = LENGTH.build(name, "length")
    exact = rule.exact_codes(last)
    assert rule.max_codes(last) >= 1 and (exact is None or 1 <= exact <= rule.max_codes(last))


SETTINGS = {"blockwise": {"block_length": 4, "gen_length": 12, "diffusion_steps": 6}}


@every(SAMPLER)
@pytest.mark.parametrize("length", LENGTH.names())
def test_sampler_leaves_nothing_masked(name, length):
    from ttt.sampling.interleave import Decoder, DecodeSettings
    from ttt.sampling.session import Prompt

    model = tiny_model(bias={V.soa_id: 4.0, V.soa_last_id: 3.0})
    sampler = SAMPLER.build({"name": name, **SETTINGS.get(name, {})}, "sampler")
    some = [Prompt("a", [V.im_start_id, 5, 6]), Prompt("b", [V.im_start_id, 7, 8, 9, 10])]
    for mask in MASK.names():
        d = Decoder(
            model,
            MASK.build(mask, "mask"),
            sampler,
            DecodeSettings(max_tokens=20, length=LENGTH.build(length, "length")),
        )
        answers = d.generate(some)
        assert [g.ids for g in answers] == [d.generate([p])[0].ids for p in some]
        for g in answers:
            assert V.mask_id not in g.ids and 1 <= len(g.ids) <= 20 and g.codes.size and g.stopped


# --- tasks

ITEM = {
    "id": "i", "input": "u1", "output": "u2", "text_in": "what is it", "text_out": "a b c", "answer_key": "b", "split": "test",
}  # fmt: skip


@every(TASK)
def test_task_builds_prompts_and_scores(name):
    from ttt.data.formats import example_from_json, example_to_json
    from ttt.data.spans import encode_example
    from ttt.registry.families import METRIC

    task = TASK.build(name, "task")
    codes = {u: np.arange(NUM_CODES, dtype=np.int32)[:, None] for u in ("u1", "u2")}
    item = {**ITEM, "task": name}
    example = task.build(item, codes)
    assert isinstance(example, Example) and example.task == task.label and item == {**ITEM, "task": name}
    stream = encode_example(example, tiny_tokenizer())
    prompt = encode_example(task.prompt(example), tiny_tokenizer(), open_answer=True)
    assert stream.target.any() and not prompt.target.any()
    assert prompt.ids.tolist() == stream.ids[: len(prompt)].tolist()
    again = example_from_json(example_to_json(example), "here")
    assert np.array_equal(encode_example(again, tiny_tokenizer()).ids, stream.ids) and again.meta == example.meta
    assert set(task.metrics.values()) <= set(METRIC.names())
    assert replace(task) == task
