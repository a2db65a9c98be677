import pytest
import torch
import torch.nn.functional as F

from tests.conftest import audio, chat, gen, pack, random_streams, text, tiny_model, tiny_tokenizer
from ttt.data.encode import encode_example
from ttt.diffusion.corrupt import corrupt
from ttt.diffusion.schedules import Linear
from ttt.masks.library import Causal
from ttt.masks.materialize import materialize
from ttt.objective.library import TtT
from ttt.objective.losses import plan_terms
from ttt.objective.pairs import ar_pairs, denoising_term, nar_pairs, next_token_term, span_quarters
from ttt.registry.families import OBJECTIVE
from ttt.types import Kind, ModelInputs, PackedBatch, Plan, PlanTerm


def build(name="ttt", **fields):
    return OBJECTIVE.build({"name": name, **fields}, "objective")


def ttt(**fields):
    return build(**{"strategies": [], **fields})


def encode(*examples):
    return [encode_example(e, tiny_tokenizer()) for e in examples]


def hand_batch(kinds, targets, docs):
    """One row; kinds as a string of t and a."""
    kind = torch.tensor([[{"t": 1, "a": 2}[k] for k in kinds]], dtype=torch.uint8)
    n = len(kinds)
    doc = torch.tensor([docs])
    target = torch.tensor([targets]).bool()
    return PackedBatch(
        ids=torch.arange(n)[None], kind=kind, run_id=torch.cumsum(kind == 1, 1), doc=doc, position=torch.arange(n)[None],
        target=target, noisable=target, visible=doc >= 0, n_docs=int(doc.max()) + 1, mask_id=99,
    )  # fmt: skip


def value(terms):
    return sum(float(t.scale * t.sum.detach() / t.count) for t in terms.values())


def test_diffusion_vector_of_the_spec():
    batch = hand_batch("taaaa", [0, 1, 1, 1, 1], [0] * 5)
    masked = torch.tensor([[False, True, False, True, False]])
    p = torch.tensor([0.5])
    term = denoising_term(batch, masked, batch.kind == Kind.AUDIO, 1 / p, p, "sample")
    ce = torch.tensor([2.0, 4.0])
    assert term.source.tolist() == [1, 3] and term.count == 1
    assert float((ce * term.weight).sum() / term.count) == pytest.approx(3.0)
    by_token = denoising_term(batch, masked, batch.kind == Kind.AUDIO, 1 / p, p, "token")
    assert by_token.count == 4 and float((ce * by_token.weight).sum() / by_token.count) == pytest.approx(3.0)
    summed = denoising_term(batch, masked, batch.kind == Kind.AUDIO, 1 / p, p, "sum")
    assert summed.count == 1 and float((ce * summed.weight).sum() / summed.count) == pytest.approx(12.0)


def test_text_vector_of_the_spec():
    batch = hand_batch("tttta", [0, 1, 1, 0, 1], [0, 0, 0, 1, 1])
    term = next_token_term(batch, batch.target & (batch.kind == Kind.TEXT), "sample")
    ce = torch.tensor([1.0, 3.0])
    assert term.source.tolist() == [0, 1] and term.target.tolist() == [1, 2] and term.count == 2
    assert float((ce * term.weight).sum() / term.count) == pytest.approx(1.0)
    by_token = next_token_term(batch, batch.target & (batch.kind == Kind.TEXT), "token")
    assert float((ce * by_token.weight).sum() / by_token.count) == pytest.approx(2.0)


def test_labels_without_loss_still_count_in_n():
    batch = hand_batch("taaaa", [0, 0, 1, 1, 1], [0] * 5)
    masked = torch.tensor([[False, True, True, False, False]])
    term = denoising_term(batch, masked, batch.kind == Kind.AUDIO, torch.ones(1), torch.ones(1), "sample")
    assert term.source.tolist() == [2] and term.weight.tolist() == [0.25]


def test_pairs_stay_inside_their_document():
    batch = hand_batch("ttttt", [1, 1, 1, 1, 1], [0, 0, 1, 1, 1])
    source, target = ar_pairs(batch, batch.target)
    assert source.tolist() == [0, 2, 3] and target.tolist() == [1, 3, 4]
    assert nar_pairs(torch.tensor([[True, False], [False, True]]))[0].tolist() == [0, 3]


def test_unknown_normalizer():
    with pytest.raises(Exception, match="objective.text_normalize: no .* Choices: sample, token"):
        ttt(text_normalize="tokens")


def test_terms_against_a_slow_twin(model):
    """Losses position by position from full logits, as written in section 6 of the spec."""
    batch = pack([random_streams(1, 2), random_streams(2, 1)])
    objective = ttt()
    t, u = torch.rand(3, generator=gen(1)), torch.rand(batch.ids.shape, generator=gen(2))
    plan = objective.plan_from(batch, objective.maskable(batch), t, u)
    with torch.no_grad():
        terms = objective.terms(model, plan).terms
        b, n = batch.ids.shape
        mask = materialize(objective.mask, batch.layout(), "sdpa", torch.float32)
        logits = model(ModelInputs(plan.input_ids, batch.position, mask, torch.arange(b * n))).view(b, n, -1)
    ar = nar = 0.0
    for d in range(3):
        row, columns = int((batch.doc == d).nonzero()[0, 0]), (batch.doc == d).nonzero()[:, 1].tolist()
        p = 0.999 * float(t[d]) + 1e-3
        texts = [c for c in columns[1:] if batch.target[row, c] and batch.kind[row, c] == Kind.TEXT]
        codes = [c for c in columns if batch.target[row, c] and batch.kind[row, c] == Kind.AUDIO]
        nll = lambda at, c, row=row: float(F.cross_entropy(logits[row, at], batch.ids[row, c]))  # noqa: E731
        ar += sum(nll(c - 1, c) for c in texts) / max(1, len(texts)) / 3
        nar += sum(nll(c, c) / p for c in codes if u[row, c] < p) / max(1, len(codes)) / 3
    assert float(terms["ar"].sum) / terms["ar"].count == pytest.approx(ar, rel=1e-5)
    assert float(terms["nar"].sum) / terms["nar"].count == pytest.approx(nar, rel=1e-5)


@pytest.mark.parametrize(
    "objective", [ttt(), ttt(text_normalize="token", audio_normalize="token"), build("nar"), build("ar")], ids=str
)
def test_packed_equals_unpacked(objective, model):
    streams = random_streams(3, 5)
    draws = [
        (torch.rand((), generator=gen(i)), torch.rand(len(s), generator=gen(100 + i))) for i, s in enumerate(streams)
    ]

    def loss(rows):
        batch = pack(rows)
        if not isinstance(objective, TtT):
            plan = objective.plan(batch, gen())
        else:
            u = torch.ones(batch.ids.shape)
            for d in range(batch.n_docs):
                u[batch.doc == d] = draws[d][1]
            plan = objective.plan_from(batch, objective.maskable(batch), torch.stack([t for t, _ in draws]), u)
        with torch.no_grad():
            return objective.terms(model, plan).terms

    packed, alone = loss([streams[:3], streams[3:]]), loss([[s] for s in streams])
    assert packed.keys() == alone.keys()
    for name in packed:
        assert packed[name].count == alone[name].count
        assert float(packed[name].sum) == pytest.approx(
            float(alone[name].sum), rel=1e-5
        )  # float32 sums of a hundred terms


@pytest.mark.parametrize("normalize", ["sample", "token"])
def test_uneven_micro_batches_add_up_to_the_whole(model, normalize):
    """Sums and counts of micro-batches of 1 and 4 documents equal those of one batch; a mean of means would not."""
    objective = ttt(text_normalize=normalize, audio_normalize=normalize)
    streams = random_streams(4, 5)
    t = torch.rand(5, generator=gen(1))
    us = [torch.rand(len(s), generator=gen(50 + i)) for i, s in enumerate(streams)]

    def terms(which):
        batch = pack([[streams[i]] for i in which])
        u = torch.ones(batch.ids.shape)
        for row, i in enumerate(which):
            u[row, : len(us[i])] = us[i]
        with torch.no_grad():
            return objective.terms(
                model, objective.plan_from(batch, objective.maskable(batch), t[list(which)], u)
            ).terms

    whole, parts = terms(range(5)), [terms([0]), terms([1, 2, 3, 4])]
    for name in whole:
        total = sum(float(p[name].sum) for p in parts) / sum(p[name].count for p in parts)
        assert total == pytest.approx(float(whole[name].sum) / whole[name].count, rel=1e-5)
    means = sum(value({n: p[n] for n in whole}) for p in parts) / 2
    assert means != pytest.approx(value(whole), rel=1e-3)


@pytest.mark.parametrize("name", ["ttt", "ar", "nar"])
def test_batch_without_audio(name, model):
    batch = pack([encode(chat("a", [text("hi")], [text("yes")]), chat("b", [text("what")], [text("no")]))])
    objective = build(name)
    result = objective.terms(model, objective.plan(batch, gen()))
    total = sum(t.scale * t.sum / t.count for t in result.terms.values() if t.count)
    assert torch.isfinite(total)
    if name == "ttt":
        assert (
            float(result.terms["nar"].sum.detach()) == 0
            and result.terms["nar"].count == 2
            and float(total.detach()) > 0
        )


def test_batch_of_audio_only(model):
    from ttt.types import Example, Turn

    batch = pack([encode(*(Example(f"d{i}", (Turn("document", (audio([1, 2, 3]),)),)) for i in range(2)))])
    result = ttt().terms(model, ttt().plan(batch, gen(1)))
    assert float(result.terms["ar"].sum.detach()) == 0, "the opening token has nothing before it"
    assert result.terms["ar"].count == 2 and result.terms["nar"].count == 2


def test_no_loss_position_at_all(model):
    batch = pack([encode(chat("a", [text("hi")], [text("yes")]))])
    empty = torch.zeros(0, dtype=torch.long)
    plan = Plan(
        batch.ids, batch.position, batch.layout(), Causal(), {"ar": PlanTerm(empty, empty, torch.zeros(0), 1.0)}
    )
    term = plan_terms(model, plan).terms["ar"]
    assert float(term.sum.detach()) == 0 and term.sum.requires_grad


def test_ar_objective_covers_every_target(model):
    batch = pack([random_streams(5, 2)])
    objective = build("ar")
    plan = objective.plan(batch, gen())
    assert torch.equal(plan.input_ids, batch.ids) and len(plan.terms["ar"].source) == int(batch.target.sum())
    stats = objective.terms(model, plan).stats
    assert stats["nll/ar"][1] == stats["nll/ar/text"][1] + stats["nll/ar/audio"][1]
    assert stats["nll/ar/audio"][1] == int((batch.target & (batch.kind == Kind.AUDIO)).sum())


def test_nar_objective_may_mask_the_whole_answer_and_nothing_else(vocab):
    batch = pack([random_streams(5, 2)])
    objective = build("nar")
    plan = objective.plan_from(batch, objective.maskable(batch), torch.ones(2), torch.zeros(batch.ids.shape))
    assert torch.equal(plan.input_ids == vocab.mask_id, batch.noisable)


def test_ttt_masks_answer_audio_only(vocab):
    batch = pack([random_streams(5, 3)])
    objective = ttt()
    plan = objective.plan_from(batch, objective.maskable(batch), torch.ones(3), torch.zeros(batch.ids.shape))
    assert torch.equal(plan.input_ids == vocab.mask_id, batch.target & (batch.kind == Kind.AUDIO))
    assert torch.equal(plan.input_ids[~batch.target], batch.ids[~batch.target])


def test_banom_leaves_the_text_loss_alone(model):
    batch = pack([random_streams(6, 3)])
    plan = build(strategies=[{"name": "banom", "p": 1.0}]).plan(batch, gen())
    assert torch.equal(plan.input_ids, batch.ids) and len(plan.terms["nar"].source) == 0
    assert plan.terms["nar"].count == 3 and len(plan.terms["ar"].source) > 0


def test_clean_plan_draws_no_strategies():
    batch = pack([random_streams(6, 3)])
    objective = build(strategies=[{"name": "banom", "p": 1.0}])
    plans = [objective.clean_plan(batch, gen(7)) for _ in range(2)]
    assert len(plans[0].terms["nar"].source) > 0 and torch.equal(plans[0].input_ids, plans[1].input_ids)


def test_buckets_sum_to_the_total(model):
    batch = pack([[s] for s in random_streams(7, 12)])
    with torch.no_grad():
        stats = ttt().terms(model, ttt().plan(batch, gen(3))).stats
    for kind in ("p", "span_q"):  # each of the two partitions covers every masked token once
        parts = [v for k, v in stats.items() if k.startswith(f"nll/nar/{kind}")]
        assert len(parts) > 1
        assert sum(p[0] for p in parts) == pytest.approx(stats["nll/nar"][0])
        assert sum(p[1] for p in parts) == stats["nll/nar"][1]


def test_buckets_follow_the_masking_probability():
    batch = pack([[s] for s in random_streams(7, 4)])
    t = torch.tensor([0.1, 0.3, 0.6, 0.99])
    noised = corrupt(batch, ttt().maskable(batch), t, torch.zeros(batch.ids.shape), Linear(), 1e-3)
    term = ttt().diffusion_term(batch, noised)
    docs = batch.doc.flatten()[term.source]
    buckets = term.partitions[0]
    assert torch.equal(buckets.index, docs) and buckets.names == ("p00_25", "p25_50", "p50_75", "p75_100")


def test_places_in_the_span_by_hand():
    # Two documents in a row: runs of 8, 2 and 5 audio tokens.
    kinds = "taaaaaaaataa" + "taaaaa"
    batch = hand_batch(kinds, [False] * len(kinds), [0] * 12 + [1] * 6)
    got = "".join("-" if q < 0 else str(q) for q in span_quarters(batch)[0].tolist())
    assert got == "-00112233-02" + "-00123"


@pytest.mark.parametrize("name", ["ttt", "dual_stream", "nar"])
def test_places_in_the_span_are_those_of_the_targets(name):
    batch = pack([random_streams(9, 3), random_streams(10, 2)])
    plan = build(name).plan(batch, gen(1))
    term = plan.terms["nar"]
    place = next(p for p in term.partitions if p.names[0] == "span_q1")
    kind = plan.layout.kind.flatten()[term.source]
    assert torch.equal(place.index >= 0, kind == int(Kind.AUDIO))
    position = plan.position_ids.flatten()[term.source]
    run = plan.layout.doc.flatten()[term.source] * 1000 + plan.layout.run_id.flatten()[term.source]
    for one in run[place.index >= 0].unique():  # later positions never lie in an earlier quarter
        inside = (run == one) & (place.index >= 0)
        order = position[inside].argsort()
        assert (place.index[inside][order].diff() >= 0).all()


def test_logits_exist_at_loss_positions_only(monkeypatch):
    from ttt.model import lm

    seen = []
    chunked = lm.chunked_scores
    monkeypatch.setattr(lm, "chunked_scores", lambda head, h, *a, **k: (seen.append(tuple(h.shape)), chunked(head, h, *a, **k))[1])
    monkeypatch.setattr(lm.SpeechTextLM, "head", lambda *a: pytest.fail("logits of all positions at once"))
    batch = pack([random_streams(8, 3)])
    plan = ttt().plan(batch, gen())
    ttt().terms(tiny_model(), plan)
    wanted = sum(len(t.source) for t in plan.terms.values())
    assert seen == [(wanted, 32)] and wanted < batch.ids.numel()


def test_gradient_of_every_parameter_is_finite():
    import copy

    from ttt.model.lm import SpeechTextLM

    model = SpeechTextLM(copy.deepcopy(tiny_model().hf), tiny_tokenizer())
    batch = pack([random_streams(9, 2), random_streams(10, 1)])
    result = ttt().terms(model, ttt().plan(batch, gen(1)))
    sum(t.scale * t.sum / t.count for t in result.terms.values()).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_scales_travel_with_the_terms():
    plan = ttt(text_scale=0.5, audio_scale=2.0).plan(pack([random_streams(9, 2)]), gen())
    assert (plan.terms["ar"].scale, plan.terms["nar"].scale) == (0.5, 2.0)


def test_times_of_the_documents_can_be_stratified():
    batch = pack([random_streams(seed, 2) for seed in range(4)])
    t = []
    for seed in range(3):
        plan = ttt(times="stratified", noise="linear", min_mask_prob=0.0, weighting="inverse_p").plan(batch, gen(seed))
        again = ttt(times="stratified", noise="linear", min_mask_prob=0.0, weighting="inverse_p").plan(batch, gen(seed))
        assert torch.equal(plan.input_ids, again.input_ids)
        t.append(plan.input_ids)
    assert not torch.equal(t[0], t[1])
    with pytest.raises(Exception, match="times: no 'sobol'. Choices: independent, stratified, antithetic"):
        ttt(times="sobol")
