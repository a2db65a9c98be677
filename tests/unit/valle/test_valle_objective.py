"""The losses: what is counted, which codebook an update draws, what the log says."""

import collections
import math

import pytest
import torch

from tests.conftest import gen
from tests.unit.valle.small_valle import batch, network
from ttt.data.batches.codec_frames import frames_of, resplit
from ttt.errors import ConfigError
from ttt.registry.families import OBJECTIVE
from ttt.train.progress import means


def build(name="valle", **fields):
    return OBJECTIVE.build({"name": name, **fields}, "objective")


def test_every_upper_book_is_drawn_alike_and_by_the_generator_alone():
    drawn = collections.Counter(build().plan(batch(), gen(s)).stages for s in range(300))
    assert set(drawn) == {(1,), (2,)} and abs(drawn[(1,)] - 150) < 40
    assert build().plan(batch(), gen(7)).stages == build().plan(batch(), gen(7)).stages
    assert build().clean_plan(batch(), gen(7)).stages == (1, 2)
    four = collections.Counter(build().plan(batch(codebooks=4), gen(s)).stages for s in range(300))
    assert set(four) == {(1,), (2,), (3,)} and all(
        abs(n - 100) < 35 for n in four.values()
    )  # specification, section 16


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
    plan = build().plan(batch(codebooks=1), gen(1))
    assert {n: t.scale for n, t in plan.terms.items()} == {"ar": 1.0}
    assert set(build().terms(network(codebooks=1), plan).terms) == {"ar"}


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
    for codebook, term in ((0, "ar"), (1, "nar"), (2, "nar")):
        assert math.isclose(values[f"dev/ppl/book{codebook}"],
        math.exp(values[f"dev/nll/{term}/book{codebook}"]), rel_tol=1e-6)
        assert 0 <= values[f"dev/top10/{term}/book{codebook}"] <= 1


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


LONG = ((5, 17), (4, 12), (6, 9))


def nar_by_hand(net, frames, stage, learned=None, stretch=0):
    """Sum of -log p of one codebook of the learned target frames bool [D, T], recording by recording."""
    total = 0.0
    for d in range(len(frames.doc)):
        s, t = int(frames.prompt_lens[d]), int(frames.target_lens[d])
        prompt, target = frames.prompt[d : d + 1, :s], frames.target[d : d + 1, :t]
        hidden = net.nar_hidden(prompt, torch.tensor([s]), target, torch.tensor([t]), stage, stretch=stretch)[0]
        nll = -net.nar_logits(hidden, stage).log_softmax(-1).gather(1, target[0, :, stage, None])[:, 0]
        total += float(nll.sum() if learned is None else nll[learned[d, :t]].sum())
    return total


@torch.no_grad()
def test_first_frames_as_prefix_are_given_and_not_learned():
    objective, net, lengths = build(nar_prefix="first"), network(), set()
    frames = frames_of(batch(sizes=LONG))
    for seed in range(20):
        plan = objective.plan(batch(sizes=LONG), gen(seed))
        prefix = (plan.nar_frames.prompt_lens - frames.prompt_lens).tolist()
        assert len(set(prefix)) == 1 and torch.equal(plan.frames.target, frames.target)  # the AR decoder's stay
        lengths.add(prefix[0])
    assert lengths == {2, 3}  # a quarter of 9 frames to just under a half
    assert plan.terms["ar"].count == 38 and plan.terms["nar"].count == 38 - 3 * prefix[0]
    found = objective.terms(net, plan)
    cut = resplit(frames, frames.prompt_lens + prefix[0])
    assert float(found.terms["nar"].sum) == pytest.approx(nar_by_hand(net, cut, plan.stages[0]), rel=1e-4)
    plain = build().terms(net, build().plan(batch(sizes=LONG), gen(seed)))
    assert torch.equal(found.terms["ar"].sum, plain.terms["ar"].sum)
    short = build(nar_prefix="first", nar_prefix_frames=1).plan(batch(sizes=LONG), gen(1))
    assert (short.nar_frames.prompt_lens - frames.prompt_lens).tolist() == [1, 1, 1]


@torch.no_grad()
def test_a_stretch_as_prefix_stands_before_the_target_and_is_not_learned():
    objective, net, begins = build(nar_prefix="stretch"), network(), set()
    frames = frames_of(batch(sizes=LONG))
    for seed in range(20):
        plan = objective.plan(batch(sizes=LONG), gen(seed))
        assert torch.equal(plan.nar_frames.target, frames.target)
        for d in range(3):
            s, (begin, last) = int(frames.prompt_lens[d]), _hidden(plan.learned[d, : frames.target_lens[d]])
            assert last - begin == 1  # two frames, a quarter of 9
            assert torch.equal(plan.nar_frames.prompt[d, :s], frames.prompt[d, :s])
            assert torch.equal(plan.nar_frames.prompt[d, s : s + 2], frames.target[d, begin : begin + 2])
            assert int(plan.nar_frames.prompt_lens[d]) == s + 2
            begins.add((d, begin))
    assert len(begins) > 20
    assert not plan.learned[1, 12:].any()  # padding
    found = objective.terms(net, plan)
    by_hand = nar_by_hand(net, plan.nar_frames, plan.stages[0], plan.learned)
    assert found.terms["nar"].count == 38 - 6 and float(found.terms["nar"].sum) == pytest.approx(by_hand, rel=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("positions", ["sines", "rotary"])
@pytest.mark.parametrize("mode, counted", [("stretch", 0), ("first", 1)])
def test_positions_that_go_on_count_the_prompt_and_no_copies(mode, counted, positions):
    """As decoding does: the target's first frame stands one behind the prompt's last, whatever training adds to the prompt."""
    objective = build(nar_prefix=mode)
    net = network(continuous_positions=True, positions=positions)
    seen = []
    kept = net.target_positions
    net.target_positions = lambda lens, at: seen.append(kept(lens, at)) or seen[-1]
    plan = objective.plan(batch(sizes=LONG), gen(2))
    found = objective.terms(net, plan)
    ar, nar = seen
    frames = plan.frames
    more = plan.nar_frames.prompt_lens - frames.prompt_lens
    assert (more > 0).all() and ar[:, 0].tolist() == frames.prompt_lens.tolist()
    assert nar[:, 0].tolist() == (frames.prompt_lens + counted * more).tolist()
    by_hand = nar_by_hand(net, plan.nar_frames, plan.stages[0], plan.learned, 0 if counted else int(more[0]))
    assert float(found.terms["nar"].sum) == pytest.approx(by_hand, rel=1e-4)


def _hidden(learned: torch.Tensor) -> tuple[int, int]:
    at = (~learned).nonzero().flatten().tolist()
    return at[0], at[-1]


@pytest.mark.parametrize("mode", ["first", "stretch"])
def test_prefixes_are_for_training_of_the_nar_decoder_on_targets_that_are_long_enough(mode):
    assert build(nar_prefix=mode).clean_plan(batch(sizes=LONG), gen(1)).nar_frames is None
    assert build(nar_prefix=mode).plan(batch(), gen(1)).nar_frames is None  # a target of three frames has no quarter
    alone = build(nar_prefix=mode, stage=1).plan(batch(sizes=LONG), gen(1))
    assert alone.nar_frames is None and set(alone.terms) == {"ar"}
    with torch.no_grad():
        found = build(nar_prefix=mode, stage=2).terms(
            network(), build(nar_prefix=mode, stage=2).plan(batch(sizes=LONG), gen(1))
        )
    assert set(found.terms) == {"nar"}
    with pytest.raises(ConfigError, match="nar_prefix: no '1'. Choices: none, first, stretch"):
        build(nar_prefix="1")


@pytest.mark.parametrize("codebooks, nar", [("upper", "masked"), ("all", "masked_all")])
def test_masked_form(codebooks, nar):
    objective, net = build("valle_masked", codebooks=codebooks), network(nar=nar)
    plan = objective.plan(batch(), gen(3))
    assert ("ar" in plan.terms) == (codebooks == "upper")
    hidden = plan.hidden
    assert bool(hidden[..., 0].any()) == (codebooks == "all") and hidden[..., 1:].any()
    assert not (hidden & ~(torch.arange(9) < plan.frames.target_lens[:, None])[..., None]).any()
    found = objective.terms(net, plan)
    assert torch.isfinite(found.terms["nar"].sum) and found.stats["nll/nar"][1] == float(hidden.sum())
    assert plan.terms["nar"].count == 19 * (2 if codebooks == "upper" else 3)
    heavy = build("valle_masked", codebooks=codebooks, codebook_weights=[0, 0, 0])
    assert float(heavy.terms(net, heavy.plan(batch(), gen(3))).terms["nar"].sum.detach()) == 0.0


@torch.no_grad()
@pytest.mark.parametrize("codebooks, nar, asked", [("upper", "masked", (1, 2)), ("all", "masked_all", (0, 1, 2))])
def test_masked_books_are_validated_as_stages_are(codebooks, nar, asked):
    objective, net = build("valle_masked", codebooks=codebooks, codebook_weights=[1, 5, 9], weighting="inverse_p"), network(nar=nar)
    plan = objective.clean_plan(batch(), gen(3))
    found = objective.terms(net, plan)
    f = plan.frames
    total, hits = {}, {}
    for codebook in asked:  # recording by recording, without padding
        total[codebook] = hits[codebook] = 0.0
        for d in range(3):
            s, t = int(f.prompt_lens[d]), int(f.target_lens[d])
            known = f.target[d : d + 1, :t].clone()
            masked = torch.zeros(1, t, 3, dtype=torch.bool)
            masked[..., codebook:] = True
            known[masked] = 0
            hidden = net.nar_hidden(f.prompt[d : d + 1, :s], torch.tensor([s]), known, torch.tensor([t]), 0, masked)[0]
            logp = net.nar_logits(hidden, codebook).log_softmax(-1)
            wanted = f.target[d, :t, codebook]
            total[codebook] -= float(logp.gather(1, wanted[:, None]).sum())
            hits[codebook] += float((logp.topk(10).indices == wanted[:, None]).sum())
    assert set(found.stats) == set(build().terms(network(), build().clean_plan(batch(), gen(3))).stats) - (
        set() if codebooks == "upper" else {"nll/ar", "nll/ar/book0", "nll/ar/end", "top10/ar", "top10/ar/book0"}
    ) | (set() if codebooks == "upper" else {"nll/nar/book0", "top10/nar/book0"})
    for codebook in asked:
        assert found.stats[f"top10/nar/book{codebook}"] == (hits[codebook], 19.0)
        assert found.stats[f"nll/nar/book{codebook}"] == found.stats[f"ppl/book{codebook}"]
        assert found.stats[f"nll/nar/book{codebook}"] == (pytest.approx(total[codebook], rel=1e-4), 19.0)
    assert found.stats["top10/nar"] == (sum(hits.values()), 19.0 * len(asked))
    assert float(found.terms["nar"].sum) == pytest.approx(sum(total.values()), rel=1e-4)  # without weights
    assert plan.terms["nar"].count == 19 * len(asked) == len(plan.terms["nar"].source)
    other = objective.terms(net, objective.clean_plan(batch(), gen(4)))
    assert other.stats == found.stats  # no draws


def test_stages_of_training_hold_for_validation_of_masked_books():
    net = network(nar="masked")
    for stage, terms in ((0, {"ar", "nar"}), (1, {"ar"}), (2, {"nar"})):
        objective = build("valle_masked", stage=stage)
        plan = objective.clean_plan(batch(), gen(1))
        assert set(plan.terms) == set(objective.terms(net, plan).terms) == terms


def test_forms_must_fit():
    with pytest.raises(ConfigError, match="use the objective valle_masked"):
        build().terms(network(nar="masked"), build().plan(batch(), gen(1)))
    masked = build("valle_masked")
    with pytest.raises(ConfigError, match="trains model.arch.nar=masked, the model has 'stages'"):
        masked.terms(network(), masked.plan(batch(), gen(1)))
    with pytest.raises(ConfigError, match="2 weights for 3 codebooks"):
        build("valle_masked", codebook_weights=[1, 1]).plan(batch(), gen(1))
