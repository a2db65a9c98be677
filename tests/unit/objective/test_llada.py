"""LLaDA's losses: the specification's vectors, slow twins, the switches, rates, and what the log says."""

import dataclasses
from functools import lru_cache

import pytest
import torch
import torch.nn.functional as F

from tests.conftest import SENTENCES, gen, pack, random_batch, tiny_tokenizer
from ttt.config.schema import ModelSection
from ttt.data.batches.rows import collate
from ttt.data.encode import encode_example
from ttt.diffusion.corrupt import corrupt
from ttt.diffusion.rates import CurriculumRate, ProgressRate
from ttt.diffusion.schedules import Linear
from ttt.diffusion.strategies import RandomLength, first_columns
from ttt.errors import ConfigError, DataError
from ttt.masks.materialize import materialize
from ttt.model.causal_lm import build_lm
from ttt.model.lm import SpeechTextLM
from ttt.objective.library import Nar
from ttt.objective.padding import with_padding
from ttt.objective.places import span_places, whole_spans
from ttt.registry.families import INITIALIZER, OBJECTIVE
from ttt.text.tokenizer import TextTokenizer, train_bpe
from ttt.types import CodeSpace, Example, Kind, ModelInputs, PackedBatch, Span, Turn

BOOKS, CODES = 4, 6


def build(**fields) -> Nar:
    return OBJECTIVE.build({"name": "nar", **fields}, "objective")


@lru_cache(maxsize=2)
def world(form: str = "interleaved") -> SpeechTextLM:
    """A random model whose frames have four positions of six codes."""
    if form == "llada":
        from ttt.text.tokenizer import extend

        backend = train_bpe(SENTENCES * 3, 300, 1).backend
        tokenizer = TextTokenizer(extend(backend, CODES, BOOKS, "llada_tts_audio"), num_codebooks=BOOKS)
    else:
        tokenizer = TextTokenizer(train_bpe(SENTENCES * 3, 300, BOOKS * CODES).backend, num_codebooks=BOOKS)
    shape = {"hidden_size": 16, "intermediate_size": 24, "initializer_range": 0.4}
    section = ModelSection(preset="toy", overrides=shape, init=INITIALIZER.build("normal", "init"))
    return build_lm(section, tokenizer, seed=0).eval()


def spoken(model, uid: str, frames: int, seed: int = 0) -> Example:
    codes = torch.randint(CODES, (frames, BOOKS), generator=gen(seed)).int().numpy()
    turns = (
        Turn("system", (Span("text", ""),)), Turn("user", (Span("text", "a cat sat"),)),
        Turn("assistant", (Span("audio", codes=codes, style="last"),)),
    )  # fmt: skip
    return Example(uid, turns, "tts")


def written(uid: str) -> Example:
    turns = (
        Turn("system", (Span("text", ""),)), Turn("user", (Span("text", "what is it"),)),
        Turn("assistant", (Span("text", "a cat on the mat"),)),
    )  # fmt: skip
    return Example(uid, turns, "text_qa")


def batch_of(model, *rows, width: int = 0) -> PackedBatch:
    v = model.tokenizer.vocab
    streams = [[encode_example(e, model.tokenizer) for e in row] for row in rows]
    longest = max(sum(map(len, row)) for row in streams)
    return collate(streams, max(width, longest), v.pad_id, v.mask_id, v.code_space)


def mixed(model) -> PackedBatch:
    return batch_of(model, [spoken(model, "a", 3)], [written("b"), spoken(model, "c", 2, 1)], [written("d")])


def hand(ids, codebooks=((10, 14), (14, 18)), ends=(30,), answer_from=0, kind=None) -> PackedBatch:
    """One row; ids in codebooks are audio, all others text."""
    x = torch.tensor([ids])
    audio = torch.zeros_like(x, dtype=torch.bool)
    for a, b in codebooks:
        audio |= (x >= a) & (x < b)
    kinds = torch.where(audio, int(Kind.AUDIO), int(Kind.TEXT)).to(torch.uint8)
    at = torch.arange(x.shape[1])[None]
    target = at >= answer_from
    return PackedBatch(
        ids=x, kind=kinds, run_id=torch.cumsum(~audio, 1), doc=torch.zeros_like(x), position=at, target=target, noisable=target,
        visible=torch.ones_like(audio), n_docs=1, mask_id=99, space=CodeSpace(tuple(codebooks), tuple(ends)),
    )  # fmt: skip


# --- vectors of the specification (section 17)


def test_masking_probability():
    b = random_batch()
    for t, p in ((0.5, 0.5005), (0.0, 0.001)):
        found = corrupt(b, build().maskable(b), torch.full((b.n_docs,), t), torch.ones(b.ids.shape), Linear(), 1e-3)
        assert found.p[0] == pytest.approx(p)


def losses_of(objective, batch, u, ce, t=0.5) -> float:
    """The objective's loss with cross-entropies ``ce`` in place of the network's."""
    plan = objective.plan_from(batch, objective.maskable(batch), torch.full((batch.n_docs,), t), torch.tensor([u]))
    (term,) = plan.terms.values()
    assert len(term.source) == len(ce)
    return float((torch.tensor(ce) * term.weight).sum() / term.count)


def test_pretraining_and_sft_losses():
    u = [0.9, 0.1, 0.9, 0.1]
    whole = hand([1, 2, 3, 4])
    exact = {"min_mask_prob": 0.0}
    for normalize in ("token", "all_tokens", "sample"):  # B L where all rows have one length
        assert losses_of(build(**exact, audio_normalize=normalize), whole, u, [1.0, 3.0]) == pytest.approx(2.0)
    answer = hand([1, 2, 3, 4], answer_from=2)
    assert losses_of(build(**exact), answer, [0.9, 0.9, 0.1, 0.1], [1.0, 3.0]) == pytest.approx(4.0)
    assert losses_of(
        build(**exact, audio_normalize="all_tokens"), answer, [0.9, 0.9, 0.1, 0.1], [1.0, 3.0]
    ) == pytest.approx(2.0)
    mean = build(**exact, audio_normalize="masked", weighting="uniform")
    assert losses_of(mean, answer, [0.9, 0.9, 0.1, 0.1], [1.0, 3.0]) == pytest.approx(2.0)
    assert losses_of(build(audio_normalize="masked"), answer, [0.9] * 4, []) == 0.0  # nothing masked: no loss, no share


def test_what_is_noised_of_a_spoken_answer():
    speech = hand([9, 128257, 10, 15, 11, 30, 9])
    keep = build(noised="speech", ends="keep")
    assert keep.maskable(speech)[0].nonzero().flatten().tolist() == [2, 3, 4]
    assert build(noised="speech").maskable(speech)[0].nonzero().flatten().tolist() == [2, 3, 4, 5]
    open_ = hand([9, 128257, 10, 15, 11, 9])
    assert not keep.maskable(open_).any() and not build(noised="speech").maskable(open_).any()
    two = hand([1, 10, 15, 30, 5, 11, 16, 30, 30, 2])
    assert keep.maskable(two)[0].nonzero().flatten().tolist() == [1, 2, 5, 6]
    assert build(noised="speech", spans="first", ends="keep").maskable(two)[0].nonzero().flatten().tolist() == [1, 2]
    assert build(noised="speech").maskable(two)[0].nonzero().flatten().tolist() == [1, 2, 3, 5, 6, 7, 8]
    first_open = hand([1, 10, 15, 5, 11, 16, 30, 2])
    assert not build(noised="speech", spans="first").maskable(first_open).any()


# --- the constraint in the loss


def slow_loss(model, plan, batch, with_ends: bool) -> dict[int, tuple[float, bool]]:
    """-log p and hit of every target, from full logits and a mask made position by position."""
    v = model.tokenizer.vocab
    space = v.code_space
    (term,) = plan.terms.values()
    mask = materialize(plan.mask, plan.layout, model.attention, model.dtype)
    logits = model(ModelInputs(plan.input_ids, plan.position_ids, mask, term.source)).detach()
    out = {}
    for row, source, target in zip(logits, term.source.tolist(), term.target.tolist(), strict=True):
        b, i = divmod(source, batch.ids.shape[1])
        start = i
        while start > 0 and int(batch.ids[b, start]) not in (v.soa_id, v.soa_last_id):
            start -= 1
        place = i - start - 1
        low, high = space.codebooks[place % BOOKS]
        inside = torch.zeros(len(row), dtype=torch.bool)
        inside[low:high] = True
        if with_ends and place % BOOKS == 0:
            inside[list(space.ends)] = True
        row = row.masked_fill(~inside, -torch.inf)
        out[source] = (float(F.cross_entropy(row[None], torch.tensor([target]))), int(row.argmax()) == target)
    return out


@pytest.mark.parametrize("form", ["interleaved", "llada"])
@pytest.mark.parametrize("ends", ["keep", "learn"])
def test_constrained_loss_equals_masking_everything_else(form, ends):
    model = world(form)
    batch = batch_of(model, [spoken(model, "a", 3)], [spoken(model, "b", 2, 1)])
    objective = build(noised="speech", ends=ends, constraint="frame", audio_normalize="masked", weighting="uniform")
    plan = objective.plan_from(batch, objective.maskable(batch), torch.full((2,), 0.999), torch.zeros(batch.ids.shape))
    (term,) = plan.terms.values()
    assert len(term.source) == 5 * BOOKS + 2 * (ends == "learn") and term.stats["valid_targets"][0] == len(term.source)
    slow = slow_loss(model, plan, batch, ends == "learn")
    found = objective.terms(model, plan)
    value = float(found.terms["nar"].sum / found.terms["nar"].count)
    assert value == pytest.approx(sum(nll for nll, _ in slow.values()) / len(slow), rel=1e-5)
    assert found.stats["accuracy/nar"] == (sum(hit for _, hit in slow.values()), len(slow))
    assert found.stats["nll/nar/position_2"][1] == 5 and found.stats["accuracy/nar/position_0"][1] == 5
    assert found.stats["valid_targets/nar"][0] == found.stats["valid_targets/nar"][1]
    found.terms["nar"].sum.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    model.zero_grad()


def test_targets_outside_their_range_are_dropped_and_counted():
    wrong = hand([9, 128257, 10, 15, 16, 15, 30, 9])  # place 2 holds a code of position 1
    objective = build(noised="speech", constraint="frame")
    plan = objective.plan_from(wrong, objective.maskable(wrong), torch.ones(1), torch.zeros(wrong.ids.shape))
    (term,) = plan.terms.values()
    assert term.source.tolist() == [2, 3, 5, 6] and term.stats["valid_targets"] == (4.0, 5.0)
    inside = hand([9, 128257, 10, 15, 11, 30, 9])  # the end stands inside a frame
    plan = objective.plan_from(inside, objective.maskable(inside), torch.ones(1), torch.zeros(inside.ids.shape))
    assert plan.terms["nar"].source.tolist() == [2, 3, 4] and plan.terms["nar"].stats["valid_targets"] == (3.0, 4.0)
    filled = hand([9, 128257, 10, 15, 30, 30, 30, 9])  # filled up with end tokens
    plan = objective.plan_from(filled, objective.maskable(filled), torch.ones(1), torch.zeros(filled.ids.shape))
    assert plan.terms["nar"].source.tolist() == [2, 3, 4, 5, 6]
    assert plan.terms["nar"].columns.index.tolist() == [1, 2, 1, 3, 1]  # 2 q, and 1 more where an end token may stand


def test_codes_outside_their_book_never_become_tokens():
    model = world()
    bad = spoken(model, "odd", 2)
    codes = bad.turns[2].spans[0].codes.copy()
    codes[1, 2] = CODES
    turns = (*bad.turns[:2], Turn("assistant", (Span("audio", codes=codes, style="last"),)))
    with pytest.raises(DataError, match="'odd'.*code 6 at frame 1 is outside the codebook of 6"):
        encode_example(Example("odd", turns, "tts"), model.tokenizer)
    v = model.tokenizer.vocab
    ids = v.code_ids(codes.clip(max=CODES - 1))
    assert (v.frames(ids, "x") == codes.clip(max=CODES - 1)).all()
    with pytest.raises(DataError, match="x: id .* at place 1 is no code for position 1 of frame 0"):
        v.frames(ids[[0, 2]], "x")


def test_a_mask_token_that_is_a_word_is_refused():
    backend = world("llada").tokenizer.backend
    with pytest.raises(DataError, match="mask id 65 is .* an ordinary word of this vocabulary"):
        TextTokenizer(backend, num_codebooks=BOOKS, mask_id=65)
    special = backend.token_to_id("<special_token_8>")
    assert TextTokenizer(backend, num_codebooks=BOOKS, mask_id=special).vocab.mask_id == special


def test_batches_without_code_ranges_are_refused():
    batch = dataclasses.replace(mixed(world()), space=None)
    with pytest.raises(DataError, match="space=vocab.code_space"):
        build(constraint="frame").plan(batch, gen())


def test_places_restart_with_every_span_and_survive_padding():
    batch = mixed(world())
    place, length = span_places(batch)
    audio = batch.kind == Kind.AUDIO
    assert (
        torch.equal(place >= 0, audio)
        and int(length.max()) == 13
        and set(place[0][audio[0]].tolist()) == set(range(13))
    )
    assert place[1][audio[1]].tolist() == list(range(9))


# --- text beside speech


@pytest.mark.parametrize("form", ["interleaved", "llada"])
def test_text_rows_are_noised_as_text_and_speech_rows_as_speech(form):
    model = world(form)
    batch = mixed(model)
    objective = build(noised="by_kind", ends="keep")
    maskable = objective.maskable(batch)
    for doc, kind in enumerate(("a", "b", "c", "d")):
        here = batch.doc == doc
        if kind in "ac":
            assert not (maskable & here & (batch.kind != Kind.AUDIO)).any()
            assert int((maskable & here).sum()) == {"a": 12, "c": 8}[kind]
        else:
            assert torch.equal(maskable & here, batch.noisable & here)
    plan = objective.plan_from(batch, maskable, torch.full((4,), 0.999), torch.zeros(batch.ids.shape))
    assert set(plan.terms) == {"text", "audio"} and len(plan.terms["audio"].source) == 20
    one = build(noised="by_kind", ends="keep", weigh="kinds").plan_from(
        batch, maskable, torch.full((4,), 0.999), torch.zeros(batch.ids.shape)
    )
    assert [plan.terms[k].count for k in ("text", "audio")] == [4, 4] and [
        one.terms[k].count for k in ("text", "audio")
    ] == [2, 2]
    whole = build(noised="by_kind", ends="keep", audio_normalize="token").plan_from(
        batch, maskable, torch.full((4,), 0.999), torch.zeros(batch.ids.shape)
    )
    assert {t.count for t in whole.terms.values()} == {float(maskable.sum())}
    found = objective.terms(model, plan)
    assert found.stats["nll/text"][1] + found.stats["nll/audio"][1] == int(maskable.sum())


# --- padding, real masks, lengths


def test_padding_as_data():
    model = world()
    batch = batch_of(model, [written("a")], [spoken(model, "b", 3)])
    wide = with_padding(batch)
    assert wide.visible.all() and wide.doc.min() == 0 and (wide.doc[0] == 0).all()
    added = ~batch.visible
    assert added.any() and wide.noisable[added].all() and (wide.kind[added] == int(Kind.TEXT)).all()
    assert (wide.ids[added] == model.tokenizer.vocab.pad_id).all()
    assert (wide.position[0].diff() == 1).all() and (wide.run_id[0].diff() >= 0).all()
    sft, plain = build(padding="learn"), build()
    for objective, n in ((sft, int((batch.noisable | added).sum())), (plain, int(batch.noisable.sum()))):
        ready = objective.prepared(batch)
        plan = objective.plan_from(
            ready, objective.maskable(ready), torch.full((2,), 0.9999), torch.zeros(batch.ids.shape)
        )
        assert len(plan.terms["nar"].source) == n
    assert sft.plan(batch, gen()).layout.visible.all() and with_padding(wide) is wide


def test_mask_tokens_in_the_data():
    batch = hand([1, 99, 3, 99, 5], answer_from=2)
    clean = torch.ones(batch.ids.shape)
    assert not len(build().plan_from(batch, build().maskable(batch), torch.zeros(1), clean).terms["nar"].source)
    counted = build(real_masks="count")
    assert counted.plan_from(batch, counted.maskable(batch), torch.zeros(1), clean).terms["nar"].source.tolist() == [
        1,
        3,
    ]


def test_one_length_for_all_rows():
    from tests.conftest import text

    documents = [Example(f"d{i}", (Turn("document", (text(" ".join(SENTENCES[: i + 1])),)),), "doc") for i in range(3)]
    batch = pack(
        [[encode_example(d, tiny_tokenizer()) for d in documents[:2]], [encode_example(documents[2], tiny_tokenizer())]]
    )
    rule = RandomLength(p=1.0, scope="batch")
    sizes = {rule.on_batch(batch, gen(seed)).ids.shape[1] for seed in range(40)}
    assert min(sizes) < 10 and max(sizes) <= batch.ids.shape[1] and len(sizes) > 15
    cut = first_columns(batch, 5)
    assert cut.n_docs == 2 and cut.uids == ("d0", "d2") and cut.doc.max() == 1
    for idle in (RandomLength(p=0.0, scope="batch"), RandomLength(p=1.0)):
        assert idle.on_batch(batch, gen()) is batch
    chats = random_batch()
    assert rule.on_batch(chats, gen()) is chats
    plan = build(strategies=[{"name": "random_length", "p": 1.0, "scope": "batch"}]).plan(batch, gen(3))
    assert plan.input_ids.shape[1] <= batch.ids.shape[1]


# --- rates


def test_rates_follow_their_formulas():
    t = torch.tensor([0.2, 0.8])
    assert ProgressRate().times(t, 0.25, gen()).tolist() == [0.25, 0.25]
    rule = CurriculumRate(target=0.5)
    normal = (torch.randn(2, generator=gen(3)) * 0.5 + 0.3).clamp(0, 1)
    assert torch.allclose(rule.times(t, 0.2, gen(3)), 0.6 * t + 0.4 * normal)
    assert torch.allclose(rule.times(t, 0.9, gen(3)), normal) and torch.equal(rule.times(t, 0.0, gen(3)), t)


def test_the_rate_is_a_function_of_the_update_and_leaves_validation_alone():
    batch = random_batch()
    for rate in ("random", "progress", "curriculum"):
        objective = build(rate=rate, min_mask_prob=0.001)
        some = [objective.plan(dataclasses.replace(batch, progress=p), gen(5)) for p in (0.0, 0.5, 0.5, 1.0)]
        assert torch.equal(some[1].input_ids, some[2].input_ids)
        masked = [int((plan.input_ids == batch.mask_id).sum()) for plan in some]
        if rate == "progress":
            assert masked[0] <= 1 and masked[0] < masked[1] < masked[3] == int(objective.maskable(batch).sum())
        dev = [objective.clean_plan(dataclasses.replace(batch, progress=p), gen(5)) for p in (0.0, 1.0)]
        assert torch.equal(dev[0].input_ids, dev[1].input_ids)
        assert torch.equal(dev[0].input_ids, build(min_mask_prob=0.001).clean_plan(batch, gen(5)).input_ids)


@pytest.mark.parametrize(
    "fields", [{"noised": "codes"}, {"ends": "x"}, {"padding": "eos"}, {"weigh": "both"}, {"audio_normalize": "row"}]
)
def test_unknown_choices_are_refused(fields):
    with pytest.raises(ConfigError, match=f"{next(iter(fields))}: no .* Choices: "):
        build(**fields)


def test_every_objective_with_a_constraint_runs_and_reaches_every_weight():
    for name in ("ttt", "nar", "dual_stream"):
        model = world()
        objective = OBJECTIVE.build({"name": name, "constraint": "frame", "strategies": []}, "objective")
        found = objective.terms(model, objective.plan(mixed(model), gen(2)))
        sum(t.sum for t in found.terms.values()).backward()
        assert all(torch.isfinite(p.grad).all() for p in model.parameters())
        assert found.stats["valid_targets/nar"][0] == found.stats["valid_targets/nar"][1] > 0
        model.zero_grad()


def test_canvases():
    assert build().canvases == ("answer",) and build(noised="speech").canvases == ("speech",)
    assert build(noised="by_kind").canvases == ("answer", "speech") and build(noised="by_kind").canvas == "answer"
    assert not build(noised="speech", ends="keep").learns_ends and build().learns_ends
    assert whole_spans(mixed(world())).any()
