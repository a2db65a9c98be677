"""Schedules and weightings: numbers of the papers, and the bound that no schedule changes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.conftest import gen, pack, random_streams
from ttt.data.encode import encode_example
from ttt.diffusion.corrupt import corrupt
from ttt.diffusion.schedules import ClippedUniform, Cosine, Linear, LogLinear, Polynomial
from ttt.diffusion.strategies import RandomLength, first_tokens
from ttt.diffusion.weightings import Clipped, Elbo, InverseP, Uniform
from ttt.registry.families import NOISE
from ttt.types import Example, Kind, Span, Turn, audio_runs


def test_log_linear_is_the_total_noise_of_the_papers():
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    schedule = LogLinear(eps=0.01)
    sigma = -torch.log1p(-(1 - 0.01) * t)
    assert torch.allclose(schedule.alpha(t), torch.exp(-sigma)) and schedule.ends == (1.0, 0.01)
    assert torch.isfinite(-torch.log(schedule.alpha(t))).all()


def test_linear_with_eps_is_lladas_masking_probability():
    t = torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64)
    assert torch.allclose(1 - Linear(eps=1e-3).alpha(t), (1 - 1e-3) * t + 1e-3)
    assert torch.equal(Linear().alpha(t), 1 - t) and Linear().ends == (1.0, 0.0)


def test_clipped_rates_are_uniform_between_beta_and_omega():
    schedule = ClippedUniform(0.3, 0.8)
    rate = 1 - schedule.alpha(torch.rand(20_000, generator=gen(1), dtype=torch.float64))
    assert float(rate.min()) >= 0.3 and float(rate.max()) <= 0.8
    counts = torch.histc(rate, bins=5, min=0.3, max=0.8)
    assert float(((counts - 4000) ** 2 / 4000).sum()) < 18.5  # 0.1 % of 4 degrees of freedom
    assert schedule.ends == pytest.approx((0.7, 0.2))


@pytest.mark.parametrize(
    "make",
    [lambda: LogLinear(1.0), lambda: Linear(-0.1), lambda: ClippedUniform(0.5, 0.5), lambda: ClippedUniform(0.2, 1.1)],
)
def test_impossible_fields(make):
    with pytest.raises(ValueError):
        make()


def cross_entropy(p):
    """A model that is worse the more is masked; its integral is p + p**3 / 3."""
    return 1 + p**2


def expected_loss(weighting, schedule, floor=0.0, n=200_000):
    """E over t of weight * p * CE(p), by the midpoint rule."""
    t = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    p = (1 - floor) * (1 - schedule.alpha(t)) + floor
    return float((weighting.weight(t, p, schedule) * p * cross_entropy(p)).mean())


SCHEDULES = [Linear(), Linear(1e-3), Cosine(), Polynomial(3.0), LogLinear(), LogLinear(0.1), ClippedUniform(0.3, 0.8)]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_elbo_weighted_loss_is_the_same_under_every_schedule(schedule):
    low, high = (1 - a for a in schedule.ends)
    expected = high + high**3 / 3 - low - low**3 / 3  # the part of the bound between the schedule's ends
    assert expected_loss(Elbo(min_prob=1e-9), schedule) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", NOISE.names())
def test_elbo_weight_with_a_floor_stays_unbiased(name):
    """For a model that ignores its context the loss is its cross-entropy, with the objective's floor too."""
    schedule = NOISE.build(name, "noise")
    floor, n = 0.05, 200_000
    t = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    p = (1 - floor) * (1 - schedule.alpha(t)) + floor
    reach = schedule.ends[0] - schedule.ends[1]
    assert float((Elbo().weight(t, p, schedule) * p).mean()) == pytest.approx(reach, rel=1e-4)
    assert float((InverseP().weight(t, p, schedule) * p).mean()) == pytest.approx(1.0)


def test_other_weights_do_depend_on_the_schedule():
    """The test above can fail: neither 1/p nor a constant weight has that property."""
    for weighting in (InverseP(), Uniform(), Clipped(3.0)):
        losses = [expected_loss(weighting, s, floor=1e-9) for s in (Linear(), Cosine(), Polynomial(3.0))]
        assert max(losses) - min(losses) > 0.05


@pytest.mark.parametrize("schedule", [Linear(), Cosine(), ClippedUniform(0.2, 1.0)], ids=str)
def test_elbo_on_corrupted_batches(schedule):
    """The same through `corrupt` and random draws: sum of weighted masks per maskable position."""
    batch = pack([[s] for s in random_streams(3, 20)])
    maskable = (batch.kind == Kind.AUDIO) & batch.noisable & batch.visible
    g, values = gen(5), []
    for _ in range(400):
        t, u = torch.rand(batch.n_docs, generator=g), torch.rand(batch.ids.shape, generator=g)
        noised = corrupt(batch, maskable, t, u, schedule, 1e-3)
        weight = Elbo().weight(noised.t, noised.p, schedule)
        values.append(float((noised.masked * weight[:, None]).sum() / maskable.sum()))
    error = np.std(values) / len(values) ** 0.5
    assert abs(np.mean(values) - (schedule.ends[0] - schedule.ends[1])) < 4 * error


# ----------------------------------------------------------------------------------------------- random_length


@pytest.fixture
def document(tokenizer):
    codes = np.arange(6, dtype=np.int32)[:, None]
    spans = (Span("text", "one two"), Span("audio", codes=codes), Span("text", "three"), Span("audio", codes=codes, style="last"))
    return encode_example(Example("d", (Turn("document", spans),)), tokenizer)


def test_lengths_are_uniform(document):
    n = len(document)
    lengths = [len(RandomLength(p=1.0).on_stream(document, np.random.default_rng(i))) for i in range(200 * n)]
    counts = np.bincount(lengths, minlength=n + 1)[1:]
    assert len(counts) == n and counts.min() > 0
    # chi-square: mean n - 1, standard deviation sqrt(2 (n - 1)); five of them
    assert ((counts - 200) ** 2 / 200).sum() < (n - 1) + 5 * (2 * (n - 1)) ** 0.5


def test_every_cut_is_a_consistent_prefix(document, vocab):
    for n in range(1, len(document) + 1):
        cut = first_tokens(document, n)
        assert len(cut) == n and np.array_equal(cut.ids, document.ids[:n])
        assert np.array_equal(cut.run_id, audio_runs(cut.kind))
        for s in cut.segments:
            closed = s.stop < n and int(cut.ids[s.stop]) in (vocab.eoa_id, vocab.eoa_last_id)
            assert closed == (not s.style.startswith("open")) and s.start <= s.stop <= n
            assert int(cut.ids[s.start - 1]) == vocab.opener(s.style)
    assert first_tokens(document, len(document)).segments == document.segments


def test_probability_and_chats(document):
    cut = [RandomLength(p=0.25).on_stream(document, np.random.default_rng(i)) is not document for i in range(800)]
    assert np.mean(cut) == pytest.approx(0.25, abs=0.06)
    assert RandomLength().p == 0.01, "LLaDA's"
    for chat in random_streams(0, 5):
        assert RandomLength(p=1.0).on_stream(chat, np.random.default_rng(0)) is chat
