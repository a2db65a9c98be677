"""One update: sums over global counts, terms without a count, failures before the update."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_training import TinyLM, Toy, batch

from ttt.config.schema import TrainSection
from ttt.errors import DataError, TttError
from ttt.train.engines import LocalEngine
from ttt.train.step import NonFiniteError, train_step, validation_losses
from ttt.types import LossTerm, LossTerms, PackedBatch


def engine(**train) -> LocalEngine:
    made = LocalEngine(TinyLM(), TrainSection(steps=10, **train), "cpu")
    made.model.eval()  # no dropout: windows are compared that are cut differently
    return made


def joined(batches: list[PackedBatch]) -> PackedBatch:
    """One big batch of the same rows."""
    names = ("ids", "kind", "run_id", "doc", "position", "target", "noisable", "visible")
    tensors = {n: torch.cat([getattr(b, n) for b in batches]) for n in names}
    return PackedBatch(**tensors, n_docs=sum(b.n_docs for b in batches), mask_id=0)


def gradients(batches: list[PackedBatch]) -> tuple[dict[str, torch.Tensor], float, object]:
    """The gradient that reaches the optimiser, and the report."""
    made = engine(clip_norm=0.0)
    seen: dict[str, torch.Tensor] = {}
    made.optimizer.step = lambda: seen.update({n: p.grad.clone() for n, p in made.model.named_parameters()})  # type: ignore[method-assign]
    report = train_step(made, Toy(noise=False), batches, update=0, seed=1, lr=0.1)
    return seen, report.grad_norm, report


def test_four_uneven_micro_batches_equal_one_big_batch():
    parts = [batch(1, 1), batch(2, 3, audio=False), batch(3, 4), batch(4, 2)]
    many, norm_many, report_many = gradients(parts)
    one, norm_one, report_one = gradients([joined(parts)])
    for name in one:
        torch.testing.assert_close(many[name], one[name], atol=1e-6, rtol=0)
    assert norm_many == pytest.approx(norm_one, abs=1e-6)
    assert report_many.loss == pytest.approx(report_one.loss, abs=1e-6)
    assert report_many.terms == pytest.approx(report_one.terms, abs=1e-6)
    assert report_many.stats["nll/nar"][1] == report_one.stats["nll/nar"][1]
    assert report_many.tokens == sum(b.n_tokens for b in parts)


def test_a_mean_of_means_would_be_wrong():
    parts = [batch(1, 1), batch(2, 6)]
    one, _, _ = gradients([joined(parts)])
    each = [gradients([p])[0]["mix.weight"] for p in parts]
    wrong = (each[0] + each[1]) / 2
    assert float((wrong - one["mix.weight"]).norm() / one["mix.weight"].norm()) > 0.01


def test_a_term_nobody_counts_is_left_out():
    report = train_step(engine(), Toy(), [batch(1, 2, audio=False)], update=0, seed=1, lr=0.1)
    assert set(report.terms) == {"ar"} and math.isfinite(report.loss)
    assert report.loss == report.terms["ar"]


def test_scale_weighs_the_term_in_the_loss_but_not_in_its_mean():
    one, _, plain = gradients([batch(1)])
    half = engine(clip_norm=0.0)
    report = train_step(half, Toy(noise=False, scale=0.25), [batch(1)], update=0, seed=1, lr=0.1)
    assert report.terms == pytest.approx(plain.terms)
    assert report.loss == pytest.approx(report.terms["ar"] + 0.25 * report.terms["nar"])


def test_noise_depends_on_the_update_and_nothing_else():
    def loss(update: int) -> float:
        made = engine()
        made.model.train()
        torch.rand(3)  # the global generator does not matter, dropout included
        return train_step(made, Toy(), [batch(1, 4)], update=update, seed=1, lr=0.1).loss

    assert loss(3) == loss(3) != loss(4)


def test_nothing_to_predict_is_an_error_that_names_the_examples():
    import dataclasses

    empty = dataclasses.replace(batch(5), target=torch.zeros(2, 6, dtype=torch.bool))
    with pytest.raises(DataError, match=r"step 3: no loss term has anything to predict in examples 5-0, 5-1"):
        train_step(engine(), Toy(), [empty], update=2, seed=1, lr=0.1)


class Broken(Toy):
    """``nan`` loss for batches whose plan holds the given number of targets."""

    def terms(self, model, plan):
        found = super().terms(model, plan)
        if plan.input_ids.shape[0] == 3:
            found = LossTerms({**found.terms, "nar": LossTerm(found.terms["nar"].sum * float("nan"), 1.0)})
        return found


def test_a_loss_that_is_not_finite_stops_before_the_update():
    made = engine()
    before = {n: p.detach().clone() for n, p in made.model.named_parameters()}
    with pytest.raises(NonFiniteError, match=r"step 8: loss term 'nar' is not finite in examples 2-0, 2-1, 2-2; no"):
        train_step(made, Broken(), [batch(1, 1), batch(2, 3)], update=7, seed=1, lr=0.1)
    for name, parameter in made.model.named_parameters():
        assert torch.equal(parameter, before[name])


def test_a_gradient_that_is_not_finite_stops_before_the_update():
    made = engine()
    before = made.model.mix.weight.detach().clone()
    made.model.mix.weight.register_hook(lambda g: g * float("inf"))
    with pytest.raises(NonFiniteError, match=r"step 1: the gradient's norm is (inf|nan)"):
        train_step(made, Toy(), [batch(1)], update=0, seed=1, lr=0.1)
    assert torch.equal(made.model.mix.weight, before)


def test_a_term_that_was_not_planned_is_refused():
    class Surprising(Toy):
        def terms(self, model, plan):
            return LossTerms({"new": LossTerm(super().terms(model, plan).terms["ar"].sum, 1.0)})

    with pytest.raises(TttError, match=r"terms\(\) returned 'new', which plan\(\) did not list"):
        train_step(engine(), Surprising(), [batch(1)], update=0, seed=1, lr=0.1)


def test_clipping_bounds_the_gradient_and_reports_the_norm_before():
    made = engine(clip_norm=0.01)
    seen = []
    made.optimizer.step = lambda: seen.append(torch.cat([p.grad.flatten() for p in made.parameters]).norm())  # type: ignore[method-assign]
    report = train_step(made, Toy(), [batch(1)], update=0, seed=1, lr=0.1)
    assert report.grad_norm > 0.01
    assert float(seen[0]) == pytest.approx(0.01, rel=1e-3)


def test_validation_is_the_same_every_time_and_leaves_no_gradient():
    made = engine()
    batches = [batch(1, 2), batch(2, 3)]
    first = validation_losses(made, Toy(), batches, 1)
    assert first == validation_losses(made, Toy(), batches, 1)
    assert first != validation_losses(made, Toy(), batches, 2)
    assert all(p.grad is None for p in made.parameters)
    assert first[0] == pytest.approx(first[1]["ar"] + 0.5 * first[1]["nar"])


def test_bfloat16_autocast_changes_the_loss_a_little():
    plain = train_step(engine(), Toy(), [batch(1)], update=0, seed=1, lr=0.1).loss
    cast = train_step(engine(autocast="bfloat16"), Toy(), [batch(1)], update=0, seed=1, lr=0.1).loss
    assert plain != cast and cast == pytest.approx(plain, rel=0.02)
