"""Preference pairs: the loss is DPO's, the bound is the likelihood's, reference and policy see the same copies."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from tests.conftest import audio, chat, gen, pack, text, tiny_model, tiny_tokenizer
from ttt.check import world
from ttt.cli.main import main
from ttt.config.schema import RunConfig, RunSection, TrainSection
from ttt.data.batches.loader import Loader
from ttt.data.encode import encode_example
from ttt.data.read.examples import example_from_json, example_to_json
from ttt.data.sources.store import StoreWriter, pack_streams
from ttt.errors import ConfigError, DataError
from ttt.likelihood import Draws, likelihoods
from ttt.objective.preference import draw_masks, sets_of
from ttt.registry.families import LR_SCHEDULE, OBJECTIVE
from ttt.train.step import draw_plan
from ttt.train.trainer import Trainer
from ttt.types import Turn

BOTH = ("dpo", "dpo_nar", "dpo_ttt")


def build(name, **fields):
    return OBJECTIVE.build({"name": name, "reference": "none", **fields}, "objective")


def pair(uid, answer, other):
    return dataclasses.replace(chat(uid, [text("a cat")], answer), rejected=Turn("assistant", tuple(other)))


def some_pairs():
    return [
        pair("a", [text("one two"), audio([1, 2, 3, 4], "last")], [text("three"), audio([5, 6], "last")]),
        pair("b", [text("the lazy dog")], [text("a mat")]),
        pair("c", [text("on"), audio([7], "span"), text("a"), audio([9, 8], "last")], [text("sat")]),
    ]


def batch_of(examples):
    return pack([[encode_example(e, tiny_tokenizer())] for e in examples])


def each_answer(examples):
    """Chosen and rejected answers as examples of their own, in turn."""
    for e in examples:
        yield dataclasses.replace(e, rejected=None)
        yield dataclasses.replace(e, turns=(*e.turns[:-1], e.rejected), rejected=None)


def bits(objective, examples, model, draws=None):
    """-log p of both answers by `ttt likelihood`, summed over modalities: f64 [pairs, 2]."""
    draws = draws or Draws()
    singles = [dataclasses.replace(e, uid=f"{i}") for i, e in enumerate(each_answer(examples))]
    found = likelihoods(model, objective, singles, draws, seed=1, budget=4096)
    return np.array([sum(e.nats for e in item.by.values()) for item in found]).reshape(-1, 2)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reference")
    tiny_model(seed=5).save(folder)
    return str(folder)


@pytest.mark.parametrize("length", ["sum", "token"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_ar_loss_is_dpo_of_independent_likelihoods(reference, length, smoothing):
    examples = some_pairs()
    objective = build("dpo", reference=reference, beta=0.3, label_smoothing=smoothing, length=length)
    found = objective.terms(tiny_model(), objective.plan(batch_of(examples), gen()))
    policy, frozen = (-bits(build("dpo"), examples, tiny_model(seed=s)) for s in (0, 5))
    ratio = policy - frozen
    if length == "token":
        ratio /= np.array([encode_example(e, tiny_tokenizer()).target.sum() for e in each_answer(examples)]).reshape(-1, 2)
    margin = 0.3 * (ratio[:, 0] - ratio[:, 1])
    wanted = (1 - smoothing) * np.log1p(np.exp(-margin)) + smoothing * np.log1p(np.exp(margin))
    term = found.terms["dpo"]
    assert float(term.sum.detach()) == pytest.approx(wanted.sum(), rel=1e-4) and term.count == 3
    assert found.stats["reward/margin"] == (pytest.approx(margin.sum(), abs=1e-3), 3)
    assert found.stats["reward/accuracy"] == ((margin > 0).sum(), 3)
    assert found.stats["logp/chosen"][0] == pytest.approx(policy[:, 0].sum(), rel=1e-4)


@pytest.mark.parametrize("name", BOTH)
def test_a_model_that_is_its_own_reference_has_loss_log_2(reference, name):
    objective = build(name, reference=reference)
    plan = objective.plan(batch_of(some_pairs()), gen(3))
    term = objective.terms(tiny_model(seed=5), plan).terms["dpo"]  # another draw of masks would move it
    assert float(term.sum.detach()) / term.count == pytest.approx(np.log(2), abs=1e-6)


@pytest.mark.parametrize("name", ["dpo_nar", "dpo_ttt"])
def test_the_bound_is_exact_for_sets_of_one_token_and_unbiased_for_others(name):
    objective = build(name, draws=64)
    # speech only is a set of one; `dpo_nar` fills the end of the turn too, so it gets sets of more tokens
    examples = [pair("a", [audio([3], "open_last")], [audio([4], "open_last")]), pair("b", [audio([1, 2], "last")], [text("on")])]
    batch = batch_of(examples)
    wanted = -bits(objective, examples, tiny_model(), Draws(estimator="exact"))
    with torch.no_grad():
        found = np.array([
            [objective.terms(tiny_model(), objective.plan(batch, gen(s))).stats[f"logp/{k}"][0] for k in ("chosen", "rejected")]
            for s in range(6)
        ])  # fmt: skip
    spread = found.std(0, ddof=1) / np.sqrt(len(found))
    assert (np.abs(found.mean(0) - wanted.sum(0)) < 4 * spread + 1e-3).all()
    if name == "dpo_ttt":
        one = batch_of(examples[:1])
        stats = build(name, draws=1).terms(tiny_model(), build(name, draws=1).plan(one, gen())).stats
        assert stats["logp/chosen"][0] == pytest.approx(wanted[0, 0], rel=1e-5)


def test_the_sets_of_ttt_are_its_spans_and_blocks():
    batch = batch_of(some_pairs())
    audio_targets = build("dpo_ttt").maskable(batch) & batch.target
    sets, sizes, place = sets_of(batch, audio_targets, spans=True)
    assert sizes.tolist() == [5, 3, 2, 3] and place.tolist() == [0, 0, 0, 1]  # codes and the end of each span
    assert (sets >= 0).equal(audio_targets)
    _, sizes, place = sets_of(batch, audio_targets, spans=True, block=2)
    assert sizes.tolist() == [2, 2, 1, 2, 1, 2, 2, 1] and place.tolist() == [0, 1, 2, 0, 1, 0, 1, 2]


def test_numbers_of_masked_tokens_are_uniform_and_evenly_spread():
    sets = torch.arange(3).repeat_interleave(4)[None]
    sizes = torch.tensor([4, 4, 4])
    seen = torch.zeros(5)
    for seed in range(40):
        masked, k = draw_masks(sets, sizes, 4, gen(seed))
        assert all(sorted(k[:, g].tolist()) == [1, 2, 3, 4] for g in range(3))
        assert torch.equal(masked.view(4, 3, 4).sum(2), k)
        _, one = draw_masks(sets, sizes, 1, gen(seed))
        seen += torch.bincount(one.flatten(), minlength=5)
    assert (seen[1:] > 15).all() and seen[0] == 0  # 30 each are expected


@pytest.mark.parametrize("name", BOTH)
def test_a_step_along_the_gradient_favours_the_chosen_answer(name):
    model = world.network()
    objective = build(name)
    plan = objective.plan(world.pairs(2), gen())
    before = objective.terms(model, plan)
    (before.terms["dpo"].sum / 4).backward()
    with torch.no_grad():
        for p in model.parameters():
            p -= 1e-3 * p.grad
        after = objective.terms(model, plan)
    assert after.terms["dpo"].sum < before.terms["dpo"].sum
    assert after.stats["reward/margin"][0] > before.stats["reward/margin"][0]


def test_training_raises_the_chosen_answer_and_resumes_to_the_same_weights(tmp_path, reference):
    streams = [encode_example(dataclasses.replace(e, uid=f"{e.uid}{i}"), tiny_tokenizer()) for i in range(4) for e in some_pairs()]
    v = tiny_tokenizer().vocab
    objective = build("dpo", reference=reference)

    def run(folder, steps):
        from ttt.model.causal_lm import load_lm

        torch.manual_seed(0)
        model = load_lm(reference)
        train = TrainSection(
            steps=steps, lr=1e-2, schedule=LR_SCHEDULE.build("constant", "schedule"), tensorboard=False, log_every_steps=1,
            save_every_steps=4,
        )  # fmt: skip
        loader = Loader(streams, v, row_tokens=128, batch_tokens=256, seed=1)
        Trainer(RunConfig(run=RunSection(dir=str(folder), device="cpu"), train=train), model, objective, loader).run()
        return model.state_dict()

    whole = run(tmp_path / "whole", 8)
    lines = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["train/loss"] == pytest.approx(np.log(2), abs=1e-5)
    assert lines[-1]["train/reward/margin"] > 0.5 and lines[-1]["train/reward/accuracy"] == 1
    assert lines[-1]["train/reward/chosen"] > 0.1 > -0.1 > lines[-1]["train/reward/rejected"]
    run(tmp_path / "parts", 4)
    again = run(tmp_path / "parts", 8)
    assert all(torch.equal(whole[k], again[k]) for k in whole)


def test_pairs_come_through_json_and_stores(tmp_path):
    for example in some_pairs():
        again = example_from_json(json.loads(json.dumps(example_to_json(example))), "here")
        a, b = (encode_example(e, tiny_tokenizer()) for e in (example, again))
        assert a.rejected == b.rejected > 0 and np.array_equal(a.ids, b.ids) and np.array_equal(a.target, b.target)
        single = dataclasses.replace(example, rejected=None)
        prompts = [encode_example(e, tiny_tokenizer(), open_answer=True) for e in (again, single)]
        assert prompts[0].ids.tolist() == prompts[1].ids.tolist()
    streams = [encode_example(e, tiny_tokenizer()) for e in some_pairs()]
    with StoreWriter(tmp_path / "store") as writer:
        writer.add(pack_streams(streams))
        store = writer.finish({"sources": [], "skipped": {}})
    assert [s.rejected for s in store] == [s.rejected for s in streams]
    batch = pack([streams])
    assert batch.pairs == ((0, 1), (2, 3), (4, 5)) and batch.n_docs == 6
    assert batch.position[0, streams[0].rejected] == 0


FORMS = [
    {"prompt": "a cat", "chosen": "on", "rejected": "sat"},
    {"prompt": [{"role": "user", "content": "a cat"}], "chosen": [{"role": "assistant", "content": "on"}],
     "rejected": [{"role": "assistant", "content": "sat"}]},
    {"chosen": [{"role": "user", "content": "a cat"}, {"role": "assistant", "content": "on"}],
     "rejected": [{"role": "user", "content": "a cat"}, {"role": "assistant", "content": "sat"}]},
]  # fmt: skip


@pytest.mark.parametrize("record", FORMS)
def test_published_forms_of_pairs(record):
    found = example_from_json(record, "here", "u")
    wanted = pair("u", [text("on")], [text("sat")])
    a, b = (encode_example(e, tiny_tokenizer()) for e in (found, wanted))
    assert a.ids.tolist() == b.ids.tolist() and a.rejected == b.rejected


def test_slamkit_features():
    units = {"prompt": "<Un1><Un2>", "chosen": "<Un3>", "rejected": "<Un4><Un5>"}
    found = example_from_json({k: {"audio_repr": v} for k, v in units.items()}, "here", "u")
    assert [t.spans[0].codes[:, 0].tolist() for t in (*found.turns, found.rejected)] == [[1, 2], [3], [4, 5]]


@pytest.mark.parametrize("record, reason", [
    ({"prompt": "a", "chosen": "b", "rejected": 3}, "'rejected' must be text"),
    ({"chosen": "b", "rejected": "c"}, "no 'prompt'"),
    ({"prompt": "a", "chosen": "b"}, "'chosen' without 'rejected'"),
    ({"prompt": {"audio_repr": "1 2"}, "chosen": {}, "rejected": {}}, "features of slamkit"),
    ({"chosen": FORMS[2]["chosen"], "rejected": [{"role": "assistant", "content": "x"}]}, "different prompts"),
    ({"uid": "u", "turns": [], "chosen": [{"text": "a"}]}, "spans of rejected"),
])  # fmt: skip
def test_broken_pairs_are_refused_in_one_line(record, reason):
    with pytest.raises(DataError, match=reason):
        example_from_json(record, "here", "u")


def test_pairs_and_objectives_that_do_not_fit_are_refused():
    batch = batch_of(some_pairs())
    with pytest.raises(DataError, match="preference pairs"):
        draw_plan(OBJECTIVE.build("ar", "objective"), batch, 1, 0, 0)
    with pytest.raises(DataError, match="needs 'chosen' and 'rejected'"):
        build("dpo").plan(batch_of([chat("a", [text("a")], [text("on")])]), gen())
    with pytest.raises(ConfigError, match="reference"):
        build("dpo", reference="").terms(tiny_model(), build("dpo").plan(batch, gen()))
    with pytest.raises(DataError, match="neither cut"):
        encode_example(some_pairs()[0], tiny_tokenizer()).first(3)
    for fields in ({"strategies": ["sst"]}, {"text_scale": 2.0}, {"label_smoothing": 0.5}):
        with pytest.raises(ConfigError):
            build("dpo_ttt", **fields)


def test_an_example_that_is_no_pair_is_named_before_training(tmp_path, capsys):
    tiny_tokenizer().save(tmp_path / "tokenizer")
    records = [example_to_json(some_pairs()[0]), example_to_json(chat("alone", [text("a")], [text("b")]))]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    settings = [
        f"data.train={tmp_path / 'train.jsonl'}", f"data.tokenizer={tmp_path / 'tokenizer'}", f"run.dir={tmp_path / 'run'}",
        "model.preset=toy", "train.steps=1", "objective={name: dpo, reference: none}", "data.row_tokens=128",
        "data.batch_tokens=256",
    ]  # fmt: skip
    assert main(["train", *settings]) == 2
    assert "example 'alone' is no preference pair" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_the_reference_of_a_run_is_found_and_checked_before_training(reference, tmp_path):
    from ttt.api import with_reference
    from ttt.errors import CheckpointError
    from ttt.text.tokenizer import train_bpe

    def config(name):
        return RunConfig(objective=build("dpo", reference=name))

    assert with_reference(config(reference), tiny_tokenizer()).objective.reference == reference
    assert with_reference(config("none"), tiny_tokenizer()).objective.reference == "none"
    with pytest.raises(ConfigError, match=r"objective\.reference"):
        with_reference(config(""), tiny_tokenizer())
    with pytest.raises(CheckpointError):
        with_reference(config(reference), train_bpe(["a b c"] * 3, 280, 16))
