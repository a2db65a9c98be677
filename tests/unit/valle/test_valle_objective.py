"""The losses: what is counted, which book an update draws, what the log says."""

import collections
import math

import pytest
import torch

from tests.conftest import gen
from tests.unit.valle.small_valle import batch, network
from ttt.errors import ConfigError
from ttt.registry.families import OBJECTIVE
from ttt.train.tracking import means


def build(name="valle", **fields):
    return OBJECTIVE.build({"name": name, **fields}, "objective")


def test_every_upper_book_is_drawn_alike_and_by_the_generator_alone():
    drawn = collections.Counter(build().plan(batch(), gen(s)).stages for s in range(300))
    assert set(drawn) == {(1,), (2,)} and abs(drawn[(1,)] - 150) < 40
    assert build().plan(batch(), gen(7)).stages == build().plan(batch(), gen(7)).stages
    assert build().clean_plan(batch(), gen(7)).stages == (1, 2)


@pytest.mark.parametrize("stage, terms", [(0, {"ar": 0.5, "nar": 0.5}), (1, {"ar": 1.0}), (2, {"nar": 1.0})])
def test_stages_of_training(stage, terms):
    plan = build(stage=stage).plan(batch(), gen(1))
    assert {n: t.scale for n, t in plan.terms.items()} == terms
    assert {t.count for t in plan.terms.values()} == {19.0}
    net = network()
    found = build(stage=stage).terms(net, plan)
    sum(t.sum for t in found.terms.values()).backward()
    touched = {n.split("_")[0] for n, p in net.named_parameters() if p.grad is not None}
    assert touched == set(terms)


def test_one_book_has_the_first_decoder_alone_and_is_not_halved():
    plan = build().plan(batch(books=1), gen(1))
    assert {n: t.scale for n, t in plan.terms.items()} == {"ar": 1.0}
    assert set(build().terms(network(books=1), plan).terms) == {"ar"}


def test_loss_is_nats_per_target_frame_and_the_log_tells_books_apart():
    objective, net = build(), network()
    with torch.no_grad():
        found = objective.terms(net, objective.clean_plan(batch(), gen(1)))
    frames = 19
    assert found.terms["ar"].count == frames and found.terms["nar"].count == 2 * frames
    total, n = found.stats["nll/ar"]
    assert math.isclose(total, float(found.terms["ar"].sum), rel_tol=1e-5) and n == frames + 3
    assert found.stats["nll/ar/end"][1] == 3 and found.stats["top10/ar"][1] == frames
    values = means({f"dev/{k}": v for k, v in found.stats.items()})
    for book, term in ((0, "ar"), (1, "nar"), (2, "nar")):
        assert math.isclose(values[f"dev/ppl/book{book}"], math.exp(values[f"dev/nll/{term}/book{book}"]), rel_tol=1e-6)
        assert 0 <= values[f"dev/top10/{term}/book{book}"] <= 1


def test_padding_rule_of_the_fork_weighs_padding():
    net = network()
    sums = [
        float(build(eos=e).terms(net, build(eos=e).plan(batch(), gen(1))).terms["ar"].sum.detach())
        for e in ("first", "padding")
    ]
    assert sums[1] > sums[0] + 1


def test_prompts_can_be_drawn_anew_for_each_batch_or_row():
    lens = lambda plan: (plan.frames.prompt_lens.tolist(), plan.frames.target_lens.tolist())  # noqa: E731
    assert lens(build().plan(batch(), gen(1))) == ([5, 4, 6], [7, 3, 9])
    cut = {"mode": "uniform", "low": 0.2, "high": 0.8}
    seen = {tuple(lens(build(cut=cut).plan(batch(), gen(s)))[0]) for s in range(20)}
    assert len(seen) > 2 and all(len(set(p)) == 1 for p in seen)
    rows = {tuple(lens(build(cut={**cut, "by": "row"}).plan(batch(), gen(s)))[0]) for s in range(20)}
    assert any(len(set(p)) > 1 for p in rows)
    assert lens(build(cut={"mode": "fixed", "least": 1}).plan(batch(), gen(1)))[0] == [2, 2, 2]


@pytest.mark.parametrize("books, nar", [("upper", "masked"), ("all", "masked_all")])
def test_masked_form(books, nar):
    objective, net = build("valle_masked", books=books), network(nar=nar)
    plan = objective.plan(batch(), gen(3))
    assert ("ar" in plan.terms) == (books == "upper")
    hidden = plan.hidden
    assert bool(hidden[..., 0].any()) == (books == "all") and hidden[..., 1:].any()
    assert not (hidden & ~(torch.arange(9) < plan.frames.target_lens[:, None])[..., None]).any()
    found = objective.terms(net, plan)
    assert torch.isfinite(found.terms["nar"].sum) and found.stats["nll/nar"][1] == float(hidden.sum())
    assert plan.terms["nar"].count == 19 * (2 if books == "upper" else 3)
    heavy = build("valle_masked", books=books, book_weights=[0, 0, 0])
    assert float(heavy.terms(net, heavy.plan(batch(), gen(3))).terms["nar"].sum.detach()) == 0.0


def test_forms_must_fit():
    with pytest.raises(ConfigError, match="use the objective valle_masked"):
        build().terms(network(nar="masked"), build().plan(batch(), gen(1)))
    masked = build("valle_masked")
    with pytest.raises(ConfigError, match="trains model.arch.nar=masked, the model has 'stages'"):
        masked.terms(network(), masked.plan(batch(), gen(1)))
    with pytest.raises(ConfigError, match="2 weights for 3 books"):
        build("valle_masked", book_weights=[1, 1]).plan(batch(), gen(1))
