import numpy as np
import pytest
import torch

from tests.conftest import audio, chat, gen, pack, random_batch, random_streams, text
from ttt.data.encode import encode_example
from ttt.diffusion.corrupt import corrupt, draw, per_document, per_position, span_starts
from ttt.diffusion.schedules import Cosine, Linear, Polynomial
from ttt.diffusion.strategies import Banom, Ppm, Sst, choose_splits, preserve_prefix
from ttt.diffusion.weightings import Clipped, Elbo, InverseP, Uniform
from ttt.types import Kind, PackedBatch

IDS = [5, 6, 101, 102, 191, 7, 103, 191, 8]


def spec_batch():
    ids = torch.tensor([IDS])
    is_audio = ids >= 100
    column = torch.arange(9)[None]
    return PackedBatch(
        ids=ids, kind=torch.where(is_audio, int(Kind.AUDIO), int(Kind.TEXT)).to(torch.uint8), run_id=torch.cumsum(~is_audio, 1),
        doc=torch.zeros_like(ids), position=column, target=column >= 3, noisable=column >= 3,
        visible=torch.ones_like(is_audio), n_docs=1, mask_id=190,
    )  # fmt: skip


def maskable_of(batch):
    return (batch.kind == Kind.AUDIO) & batch.noisable & batch.visible


def test_vector_of_the_spec():
    batch = spec_batch()
    maskable = maskable_of(batch)
    assert maskable[0].nonzero().flatten().tolist() == [3, 4, 6, 7]
    starts = span_starts(batch)[0].nonzero().flatten().tolist()
    assert starts == [2, 6], "position 2 lies in the prompt, so only 6 can be chosen"
    for choice in (0.0, 0.5, 0.999):
        split = choose_splits(batch, maskable, torch.tensor([True]), torch.tensor([choice]))
        assert split.tolist() == [6]
        assert preserve_prefix(batch, maskable, split)[0].nonzero().flatten().tolist() == [6, 7]
    assert choose_splits(batch, maskable, torch.tensor([False]), torch.tensor([0.5])).tolist() == [-1]
    assert torch.equal(preserve_prefix(batch, maskable, torch.tensor([-1])), maskable)


@pytest.mark.parametrize("schedule", [Linear(), Cosine(), Polynomial(3.0)], ids=str)
def test_masking_probability_at_t(schedule):
    batch, t = spec_batch(), torch.tensor([0.25])
    noised = corrupt(batch, maskable_of(batch), t, torch.full((1, 9), 0.5), schedule, 1e-3)
    expected = 0.999 * (1 - schedule.alpha(t)) + 1e-3
    assert torch.allclose(noised.p, expected)
    if isinstance(schedule, Linear):
        assert float(noised.p) == pytest.approx(0.25075)


def test_corruption_touches_maskable_positions_below_p_only():
    batch = spec_batch()
    u = torch.tensor([[0.0, 0.0, 0.0, 0.1, 0.9, 0.0, 0.49, 0.51, 0.0]])
    before = batch.ids.clone()
    noised = corrupt(batch, maskable_of(batch), torch.tensor([0.5]), u, Linear(), 0.0)
    assert noised.masked[0].nonzero().flatten().tolist() == [3, 6]
    assert noised.input_ids[0].tolist() == [190 if i in (3, 6) else x for i, x in enumerate(IDS)]
    assert torch.equal(batch.ids, before)


def test_extremes_of_t_and_floor():
    batch = spec_batch()
    u = torch.rand(1, 9, generator=gen())
    none = corrupt(batch, maskable_of(batch), torch.tensor([0.0]), u, Linear(), 0.0)
    every = corrupt(batch, maskable_of(batch), torch.tensor([1.0]), u, Linear(), 0.0)
    assert not none.masked.any() and torch.equal(every.masked, maskable_of(batch))


def test_per_document_and_per_position_are_transposes():
    doc = torch.tensor([[0, 0, 1, -1], [2, -1, -1, -1]])
    assert per_position(torch.tensor([1.0, 2.0, 3.0]), doc).tolist() == [[1, 1, 2, 0], [3, 0, 0, 0]]
    assert per_document(torch.ones(2, 4), doc, 3).tolist() == [2, 1, 1]


def test_draws_are_deterministic_and_one_t_per_document():
    batch = random_batch()
    (t, u), (again, u_again) = draw(batch, gen(3)), draw(batch, gen(3))
    assert t.shape == (batch.n_docs,) and u.shape == batch.ids.shape
    assert torch.equal(t, again) and torch.equal(u, u_again) and not torch.equal(u, draw(batch, gen(4))[1])


@pytest.mark.parametrize("schedule", [Linear(), Polynomial(2.0)], ids=str)
def test_inverse_p_is_unbiased(schedule):
    """E sum of masked CE / p = sum of CE for a model that ignores its context (spec, sections 7 and 13)."""
    ce = torch.tensor([0.3, 1.7, 2.4, 0.9, 3.1])
    n, floor = 400_000, 0.02
    g = gen(1)
    t, u = torch.rand(n, 1, generator=g), torch.rand(n, 5, generator=g)
    p = (1 - floor) * (1 - schedule.alpha(t)) + floor
    estimate = ((u < p) * ce * InverseP().weight(t, p, schedule)).sum(1)
    error = float(estimate.std()) / n**0.5
    assert abs(float(estimate.mean()) - float(ce.sum())) < 4 * error  # four standard errors
    biased = ((u < p) * ce * Uniform().weight(t, p, schedule)).sum(1)
    assert abs(float(biased.mean()) - float(ce.sum())) > 40 * error


def test_weightings():
    t = p = torch.tensor([0.1, 0.5, 1.0])
    assert torch.allclose(Elbo().weight(t, p, Linear()), 1 / t), "the bound's weight is 1/t for the linear schedule"
    assert Clipped(5.0).weight(t, p, Linear()).tolist() == [5.0, 2.0, 1.0]
    assert Elbo().weight(torch.zeros(1), p, Linear()).isfinite().all()
    with pytest.raises(ValueError, match="maximum: must be > 0"):
        Clipped(0)


def many_documents(n=60, per_row=6, seed=2):
    s = random_streams(seed, n, 6)
    return pack([s[i : i + per_row] for i in range(0, n, per_row)])


def test_banom_batch_scope_is_all_or_nothing():
    batch = many_documents()
    maskable = maskable_of(batch)
    outcomes = [Banom(0.3).on_maskable(batch, maskable, gen(i)) for i in range(400)]
    clean = [not o.any() for o in outcomes]
    assert all(c or torch.equal(o, maskable) for c, o in zip(clean, outcomes, strict=True))
    assert pytest.approx(np.mean(clean), abs=0.08) == 0.3  # 3.5 standard errors
    assert torch.equal(Banom(0.0).on_maskable(batch, maskable, gen()), maskable)
    assert not Banom(1.0).on_maskable(batch, maskable, gen()).any()


def test_banom_sample_scope_takes_whole_documents():
    batch = many_documents()
    maskable = maskable_of(batch)
    shares = []
    for i in range(40):
        out = Banom(0.3, "sample").on_maskable(batch, maskable, gen(i))
        kept, had = (per_document(x.float(), batch.doc, batch.n_docs) for x in (out, maskable))
        assert ((kept == 0) | (kept == had)).all()
        shares.append(float(((kept == 0) & (had > 0)).sum() / (had > 0).sum()))
    assert pytest.approx(np.mean(shares), abs=0.05) == 0.3


def five_span_batch(n):
    answer = [s for i in range(5) for s in (text("a"), audio([i] * (i + 1)))]
    from tests.conftest import tiny_tokenizer

    streams = [encode_example(chat(f"u{i}", [audio([1], "user")], answer), tiny_tokenizer()) for i in range(n)]
    return pack([streams[i : i + 10] for i in range(0, n, 10)])


def test_ppm_chooses_uniformly_among_the_starts():
    batch = five_span_batch(400)
    maskable = maskable_of(batch)
    starts = span_starts(batch) & maskable
    out = Ppm(1.0).on_maskable(batch, maskable, gen(5))
    left = per_document((out & starts).float(), batch.doc, batch.n_docs).long()  # 5: split at the first, 1: at the last
    counts = torch.bincount(left, minlength=6)[1:].double()
    assert counts.sum() == 400
    chi_square = float(((counts - 80) ** 2 / 80).sum())
    assert chi_square < 18.5  # 0.1 % of 4 degrees of freedom
    # What stays is a suffix of the maskable positions of each document.
    for d in range(0, 400, 40):
        flags = out[batch.doc == d][maskable[batch.doc == d]].long()
        assert (flags.diff() >= 0).all()


def test_ppm_probability():
    batch = five_span_batch(400)
    maskable = maskable_of(batch)
    out = Ppm(0.3).on_maskable(batch, maskable, gen(6))
    had, kept = (per_document(x.float(), batch.doc, batch.n_docs) for x in (maskable, out))
    changed = float((kept < had).float().mean())
    assert changed == pytest.approx(0.3 * 4 / 5, abs=0.075)  # a split at the first start changes nothing


def long_stream(n, style="last"):
    from tests.conftest import tiny_tokenizer

    return encode_example(chat("u", [text("hi")], [text("a"), audio([0] * n, style)]), tiny_tokenizer())


@pytest.mark.parametrize("n, limits", [(20, (6, 18)), (11, (5, 9)), (10, None), (1, None), (100, (30, 90))])
def test_sst_ranges(n, limits):
    assert Sst().keep_range(n) == limits
    stream = long_stream(n)
    kept = {
        (s.stop - s.start)
        for s in (Sst(p=1.0).on_stream(stream, np.random.default_rng(i)).segments[0] for i in range(300))
    }
    assert kept == ({n} if limits is None else kept) and (limits is None or (min(kept), max(kept)) == limits)


def test_sst_is_uniform():
    stream = long_stream(20)
    kept = [
        Sst(p=1.0).on_stream(stream, np.random.default_rng(i)).segments[0].stop - stream.segments[0].start
        for i in range(2600)
    ]
    counts = np.bincount(kept, minlength=19)[6:]
    assert len(counts) == 13 and ((counts - 200) ** 2 / 200).sum() < 32.9  # 0.1 % of 12 degrees of freedom


def test_sst_probability_and_untouched_streams():
    stream = long_stream(20)
    same = [Sst(p=0.5).on_stream(stream, np.random.default_rng(i)) is stream for i in range(600)]
    assert np.mean(same) == pytest.approx(0.5, abs=0.07)
    ordinary = long_stream(30, "span")
    assert Sst(p=1.0).on_stream(ordinary, np.random.default_rng(0)) is ordinary, "only quad spans are cut"


def test_sst_turns():
    from tests.conftest import tiny_tokenizer
    from ttt.types import Example, Turn

    def turn(n):
        return [Turn("user", (text("q"),)), Turn("assistant", (text("a"), audio([0] * n, "last")))]

    stream = encode_example(Example("m", (*turn(20), *turn(30))), tiny_tokenizer())
    last = Sst(p=1.0).on_stream(stream, np.random.default_rng(0))
    assert last.segments[0] == stream.segments[0] and last.segments[1].style == "open_last"
    both = Sst(p=1.0, turns="all").on_stream(stream, np.random.default_rng(0))
    assert [s.style for s in both.segments] == ["open_last", "open_last"]


@pytest.mark.parametrize("strategy", [Banom(0.5, "sample"), Ppm(0.7)], ids=str)
def test_strategies_are_redrawn_but_deterministic_per_generator(strategy):
    batch = many_documents()
    maskable = maskable_of(batch)
    run = lambda g: strategy.on_maskable(batch, maskable, g)  # noqa: E731
    assert torch.equal(run(gen(1)), run(gen(1)))
    g = gen(1)
    assert not torch.equal(run(g), run(g))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Banom(1.5),
        lambda: Banom(0.3, "epoch"),
        lambda: Ppm(-1),
        lambda: Sst(low=0.9, high=0.3),
        lambda: Sst(turns="x"),
        lambda: Polynomial(0),
    ],
)
def test_impossible_fields(make):
    with pytest.raises(ValueError):
        make()
