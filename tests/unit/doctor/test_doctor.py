import copy
import dataclasses
import json
import math

import numpy as np
import pytest
import torch

from tests.conftest import audio, chat, pack, random_streams, text, tiny_model, tiny_tokenizer
from ttt.cli.main import main
from ttt.config.schema import TrainSection
from ttt.diffusion.schedules import Linear
from ttt.diffusion.strategies import Banom, Ppm
from ttt.diffusion.weightings import InverseP, Uniform
from ttt.doctor.bands import check_bands, make_bands, read_bands
from ttt.doctor.finding import CAUSAL, FAULT, FROZEN, LEAK, NO_INVERSE_P, PAD, SHIFTED, WRONG_MASK, faults
from ttt.doctor.log import check_log
from ttt.doctor.model import check_model, check_rows, check_start
from ttt.doctor.plans import check_plans
from ttt.masks.library import BlockCausal, Causal, DualStream, Full, Hybrid
from ttt.objective.dual_stream import DualStreamTtT
from ttt.objective.library import Ar, Nar, TtT
from ttt.train.learning_rate import lr_at
from ttt.types import Layout, PlanTerm

PARTS = {"noise": Linear(), "weighting": InverseP()}


def batches(seed=0, n=4):
    """Packed rows with padding at the end of some."""
    out = []
    for i in range(n):
        s = random_streams(seed + i, 8)
        out.append(pack([s[:2], s[2:3], s[3:5], s[5:]]))
    return out


def names(objective, **changes):
    """Faults of an objective's plans, and of an untrained network under them."""
    objective = dataclasses.replace(objective, **changes) if changes else objective
    return faults(check_plans(objective, batches(), tiny_tokenizer().vocab))


HEALTHY = {
    "ttt": TtT(mask=Hybrid(), strategies=(), **PARTS),
    "ttt_strategies": TtT(mask=Hybrid(), strategies=(Banom(), Ppm()), **PARTS),
    "ttt_token": TtT(mask=Hybrid(), strategies=(), audio_normalize="token", text_normalize="token", **PARTS),
    "ttt_uniform": TtT(mask=Hybrid(), strategies=(), noise=Linear(), weighting=Uniform()),
    "block_causal": TtT(mask=BlockCausal(block_length=4), strategies=(), **PARTS),
    "ar": Ar(mask=Causal(), strategies=()),
    "nar": Nar(mask=Full(), strategies=(), **PARTS),
    "dual_stream": DualStreamTtT(mask=DualStream(clean=BlockCausal(block_length=4)), strategies=(), **PARTS),
    "dual_stream_spans": DualStreamTtT(mask=DualStream(clean=Hybrid()), strategies=(), **PARTS),
}


@pytest.mark.parametrize("name", sorted(HEALTHY))
def test_healthy_objectives_have_no_fault(name):
    objective, vocab = HEALTHY[name], tiny_tokenizer().vocab
    found = check_plans(objective, batches(), vocab)
    assert faults(found) == [], [f.line() for f in found]
    assert sum(f.status == "ok" for f in found) >= 3
    model = tiny_model()
    again = check_model(model, objective, batches(n=2), vocab)
    assert faults(again) == [], [f.line() for f in again]


def tied_model():
    """A random network whose logits prefer the token it reads, as those of a tied embedding do."""
    model = tiny_model()
    whole = copy.deepcopy(model.hf)
    with torch.no_grad():
        whole.get_output_embeddings().weight.copy_(2.0 * whole.get_input_embeddings().weight)
        for layer in whole.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    return type(model)(whole, model.tokenizer).eval()


def test_an_untrained_tied_backbone_has_no_shifted_labels():
    """Only what a network has learnt speaks of its labels."""
    vocab, objective = tiny_tokenizer().vocab, HEALTHY["ar"]
    start = tied_model()
    assert SHIFTED in faults(check_model(start, objective, batches(n=2), vocab)), "this is what it looks like"
    found = check_model(start, objective, batches(n=2), vocab, initial=start)
    assert faults(found) == []
    assert any("too early to tell" in f.line() for f in found if f.name == "model/predicts/ar")
    learnt = check_model(start, objective, batches(n=2), vocab, initial=tiny_model())
    assert SHIFTED in faults(learnt), "it did not start that way"


def edited(base, edit):
    """``base`` with plans that ``edit(plan, batch)`` changed, from whichever door they come."""

    @dataclasses.dataclass(frozen=True)
    class Broken(type(base)):
        def plan(self, batch, gen):
            return edit(super().plan(batch, gen), batch)

    return Broken(**{f.name: getattr(base, f.name) for f in dataclasses.fields(base)})


def with_term(plan, name, **changes):
    return dataclasses.replace(plan, terms={**plan.terms, name: dataclasses.replace(plan.terms[name], **changes)})


def kept(term, ok):
    return tuple(dataclasses.replace(p, index=p.index[ok]) for p in term.partitions)


def shifted_nar(plan, batch):
    term, ids = plan.terms["nar"], batch.ids.flatten()
    ok = (term.source + 1 < len(ids)) & (batch.doc.flatten()[term.source] == batch.doc.flatten()[(term.source + 1) % len(ids)])
    source, weight = term.source[ok], term.weight[ok]
    return with_term(plan, "nar", source=source, weight=weight, target=ids[source + 1], partitions=kept(term, ok))


def unshifted_ar(plan, batch):
    return with_term(plan, "ar", target=batch.ids.flatten()[plan.terms["ar"].source])


def with_pads(plan, batch):
    term, pad = plan.terms["ar"], (~batch.visible).flatten().nonzero().flatten()
    assert len(pad)
    return with_term(
        plan, "ar", source=torch.cat([term.source, pad - 1]), target=torch.cat([term.target, batch.ids.flatten()[pad]]),
        weight=torch.cat([term.weight, torch.ones(len(pad))]),
    )  # fmt: skip


def noised_pads(plan, batch):
    term, pad = plan.terms["nar"], (~batch.visible).flatten().nonzero().flatten()
    return with_term(
        plan, "nar", source=torch.cat([term.source, pad]), target=torch.cat([term.target, batch.ids.flatten()[pad]]),
        weight=torch.cat([term.weight, torch.ones(len(pad))]), partitions=(),
    )  # fmt: skip


def no_weights(plan, batch):
    """1/N without 1/p, in training only."""
    term = plan.terms["nar"]
    size = torch.zeros(batch.n_docs).index_add_(
        0, batch.doc[batch.doc >= 0], ((batch.kind == 2) & batch.noisable)[batch.doc >= 0].float()
    )
    return with_term(plan, "nar", weight=1 / size[batch.doc.flatten()[term.source]])


def prompt_too(plan, batch):
    inside = (batch.doc >= 0) & (batch.kind == 1)
    inside[:, 0] = False
    inside[:, 1:] &= batch.doc[:, 1:] == batch.doc[:, :-1]
    at = inside.flatten().nonzero().flatten()
    return with_term(plan, "ar", source=at - 1, target=batch.ids.flatten()[at], weight=torch.ones(len(at)))


@pytest.mark.parametrize(
    "edit, fault",
    [
        (shifted_nar, SHIFTED), (unshifted_ar, SHIFTED), (with_pads, PAD), (noised_pads, PAD), (no_weights, NO_INVERSE_P),
        (prompt_too, "prompt in the loss"),
    ],
    ids=["shifted_nar", "unshifted_ar", "pads", "noised_pads", "no_weights", "prompt"],
)  # fmt: skip
@pytest.mark.parametrize("base", ["ttt", "ttt_strategies"])
def test_planted_faults_of_plans_are_named(base, edit, fault):
    found = check_plans(edited(HEALTHY[base], edit), batches(20, 12), tiny_tokenizer().vocab)
    assert faults(found) == [fault], [f.line() for f in found]


@pytest.mark.parametrize("base", ["ttt", "nar", "dual_stream"])
def test_wrong_mask_id_is_named(base):
    wrong = [dataclasses.replace(b, mask_id=7) for b in batches()]
    found = check_plans(HEALTHY[base], wrong, tiny_tokenizer().vocab)
    assert faults(found) == [WRONG_MASK]
    assert "carry id 7" in next(f.text for f in found if f.status == FAULT)


def test_missing_inverse_p_is_named_where_the_weighting_lies():
    class Ones(InverseP):
        def weight(self, t, p, schedule):
            return torch.ones_like(p)

    assert names(HEALTHY["ttt"], weighting=Ones()) == [NO_INVERSE_P]
    assert names(HEALTHY["dual_stream"], weighting=Ones()) == [NO_INVERSE_P]
    assert names(HEALTHY["ttt_token"], weighting=Ones()) == [NO_INVERSE_P]


def test_a_weighting_chosen_on_purpose_is_only_noted():
    (weights,) = [
        f for f in check_plans(HEALTHY["ttt_uniform"], batches(), tiny_tokenizer().vocab) if f.name == "batch/weights"
    ]
    assert weights.status == "note" and "no bound" in weights.text


def test_wrong_normaliser_is_not_called_missing_inverse_p():
    @dataclasses.dataclass(frozen=True)
    class Twice(TtT):
        def diffusion_term(self, batch, noised):
            term = super().diffusion_term(batch, noised)
            return dataclasses.replace(term, weight=2 * term.weight)

    assert names(Twice(mask=Hybrid(), strategies=(), **PARTS)) == ["wrong loss weights"]


@pytest.mark.parametrize("base", ["ttt", "nar"])
def test_causal_mask_is_named_by_plans_and_by_the_network(base):
    objective, vocab = dataclasses.replace(HEALTHY[base], mask=Causal()), tiny_tokenizer().vocab
    assert faults(check_plans(objective, batches(), vocab)) == [CAUSAL]
    assert faults(check_model(tiny_model(), objective, batches(n=2), vocab)) == [CAUSAL]


def test_network_that_ignores_its_mask_is_found():
    """The plan is right; the model quietly attends causally."""

    class Deaf(type(tiny_model())):
        def hidden(self, input_ids, position_ids, attention_mask):
            return super().hidden(input_ids, position_ids, None)

    whole = tiny_model()
    model = Deaf(whole.hf, whole.tokenizer).eval()
    assert CAUSAL in faults(check_model(model, HEALTHY["ttt"], batches(n=2), tiny_tokenizer().vocab))


def test_visible_answers_are_named():
    vocab = tiny_tokenizer().vocab
    everything = Ar(mask=Full(), strategies=())
    assert faults(check_plans(everything, batches(), vocab)) == [LEAK]
    assert LEAK in faults(check_model(tiny_model(), everything, batches(n=1), vocab))
    unmasked = edited(HEALTHY["ttt"], lambda plan, batch: dataclasses.replace(plan, input_ids=batch.ids))
    assert faults(check_plans(unmasked, batches(), vocab)) == [LEAK]


def test_copies_that_see_their_original_are_named():
    @dataclasses.dataclass(frozen=True)
    class Peeking(DualStream):
        def allow(self, layout: Layout):
            inner, noisy, doc = super().allow(layout), layout.stream == 1, layout.doc
            return lambda b, h, q, k: inner(b, h, q, k) | (noisy[b, q] & ~noisy[b, k] & (doc[b, q] == doc[b, k]))

    assert names(HEALTHY["dual_stream"], mask=Peeking(clean=BlockCausal(block_length=4))) == [LEAK]


def test_documents_that_see_each_other_are_named():
    @dataclasses.dataclass(frozen=True)
    class Open(Hybrid):
        def allow(self, layout: Layout):
            inner = super().allow(dataclasses.replace(layout, doc=torch.zeros_like(layout.doc)))
            return inner

    assert "documents see each other" in names(HEALTHY["ttt"], mask=Open())


def test_terms_of_plug_ins_are_not_judged():
    def rename(plan, batch):
        term: PlanTerm = plan.terms["nar"]
        return dataclasses.replace(plan, terms={"ar": plan.terms["ar"], "mine": term})

    found = check_plans(edited(Ar(mask=Causal(), strategies=()), lambda p, b: p), batches(), tiny_tokenizer().vocab)
    assert faults(found) == []
    found = check_plans(edited(HEALTHY["ttt"], rename), batches(), tiny_tokenizer().vocab)
    assert [f.status for f in found if f.name == "batch/targets/mine"] == ["skip"]


# --- logs


def log_rows(steps=100, every=10, **changed):
    train = TrainSection(steps=steps, lr=1.0, schedule="linear", warmup_steps=5)
    rows = []
    for s in range(every, steps + 1, every):
        x = s / steps
        rows.append({
            "step": s, "train/loss": 5 - 3 * x, "train/nll/ar": 5 - 3 * x, "train/nll/nar": 5.5 - 2 * x,
            "train/nll/nar/p00_25": 5 - 3 * x, "train/nll/nar/p75_100": 5.8 - 2 * x, "train/grad_norm": 1.0,
            "train/lr": lr_at(train, s - 1), "train/tokens": 10 * s, "train/tokens_per_s": 100.0, "train/epoch": x,
            "train/seconds": x, **{k: v(s) for k, v in changed.items()},
        })  # fmt: skip
    return rows, train


def log_findings(rows, train, **more):
    return check_log(rows, train.steps, 400, lambda u, s: lr_at(train, u, s), **more)


def test_healthy_log():
    found = log_findings(*log_rows())
    assert {f.status for f in found} == {"ok"}, [f.line() for f in found]


@pytest.mark.parametrize(
    "key, value, fault",
    [
        ("train/nll/ar", lambda s: None if s == 50 else 3.0 - s / 100, "divergence"),
        ("train/nll/ar", lambda s: -5e-5 * s, LEAK),
        ("train/nll/nar", lambda s: 5.9 + s / 1000, "nothing learns"),
        ("train/nll/nar/p00_25", lambda s: 5.0, "the context of a span is not used"),
        ("train/lr", lambda s: 1.0, "another learning rate than configured"),
        ("train/grad_norm", lambda s: 0.0, "nothing learns"),
    ],
)
def test_faults_of_logs(key, value, fault):
    assert faults(log_findings(*log_rows(**{key: value}))) == [fault]


def test_loss_by_place_in_the_span():
    places = {f"train/nll/nar/span_q{q}": lambda s, q=q: q - s / 200 for q in (1, 2, 3, 4)}
    (found,) = [f for f in log_findings(*log_rows(**places)) if f.name == "log/place_in_span/nar"]
    assert (found.status, found.text) == ("ok", "loss by quarter of the audio span: 0.55, 1.55, 2.55, 3.55 nats")
    del places["train/nll/nar/span_q4"]
    (found,) = [f for f in log_findings(*log_rows(**places)) if f.name == "log/place_in_span/nar"]
    assert found.status == "warn" and "quarter 4" in found.text


def test_what_is_odd_but_no_fault_is_a_warning():
    rows, train = log_rows(**{"train/tokens_per_s": lambda s: 100.0 if s < 50 else 30.0})
    assert [f.name for f in log_findings(rows, train) if f.status == "warn"] == ["log/tokens_per_s"]
    rows, train = log_rows(**{"train/lr": lambda s: 1.0})
    assert faults(log_findings(rows, train, restarts=1)) == []
    rows, train = log_rows(**{"train/nll/ar": lambda s: 9.0 - s / 50})
    assert [f.name for f in log_findings(rows, train) if f.status == "warn"] == ["log/first_loss"]
    rows, train = log_rows(**{"train/nll/ar": lambda s: 1e-3 / s})
    assert [f.name for f in log_findings(rows, train) if f.status == "warn"] == ["log/ar"]
    assert faults(check_log([], 10, 400, lambda u, s: 0.0)) == ["log/progress"]


def test_schedules_by_the_clock_are_followed():
    train = TrainSection(steps=1000, lr=1.0, schedule="linear", schedule_by="seconds", max_seconds=10.0)
    rows = [{"step": s, "train/seconds": s / 10, "train/lr": lr_at(train, s - 1, (s - 1) / 10)} for s in range(10, 91, 10)]
    found = check_log(rows, 1000, 400, lambda u, s: lr_at(train, u, s))
    assert [f.status for f in found if f.name == "log/learning_rate"] == ["ok"]


def test_bands():
    rows, _ = log_rows()
    other, _ = log_rows(**{"train/nll/ar": lambda s: 5.2 - 3 * s / 100})
    bands = make_bands([rows, other], 0.1)
    assert set(bands) == {k for k in rows[0] if k.startswith(("train/loss", "train/nll"))}
    low, high = bands["train/nll/ar"][50]
    assert low == pytest.approx(3.5 * 0.9) and high == pytest.approx(3.7 * 1.1)
    assert [f.status for f in check_bands(rows, bands)] == ["ok"]
    near_zero, _ = log_rows(**{"train/nll/ar": lambda s: 0.01})
    assert make_bands([near_zero], 0.1)["train/nll/ar"][50] == pytest.approx([-0.09, 0.11])
    worse, _ = log_rows(**{"train/nll/ar": lambda s: 6.0})
    (fault,) = [f for f in check_bands(worse, bands) if f.status == FAULT]
    assert fault.name == "bands/train/nll/ar" and faults([fault]) == ["outside the reference band"]
    once, _ = log_rows(**{"train/nll/ar": lambda s: 9.0 if s == 20 else 5 - 3 * s / 100})
    assert [f.status for f in check_bands(once, bands)] == ["ok", "warn"]
    better, _ = log_rows(**{"train/nll/ar": lambda s: 0.5})
    assert [f.status for f in check_bands(better, bands)] == ["ok", "warn"]
    assert [f.status for f in check_bands([{"step": 3, "train/loss": 1.0}], bands)] == ["note"]


def test_frozen_rows_are_told_from_decayed_ones():
    before, after = tiny_model(), tiny_model(seed=1)
    vocab = tiny_tokenizer().vocab
    used = torch.arange(vocab.size)
    import copy

    trained = copy.deepcopy(before.hf)
    with torch.no_grad():
        for table in (trained.get_input_embeddings().weight, trained.get_output_embeddings().weight):
            table += 0.01 * torch.randn(table.shape, generator=torch.Generator().manual_seed(1))
    model = type(after)(trained, before.tokenizer)
    assert faults(check_rows(model, before, used, vocab)) == []
    with torch.no_grad():
        start = before.hf.get_input_embeddings().weight[vocab.audio_start :]
        trained.get_input_embeddings().weight[vocab.audio_start :] = 0.9 * start  # weight decay alone
    found = check_rows(model, before, used, vocab)
    assert faults(found) == [FROZEN] and [f.status for f in found] == [FAULT, "ok"]
    assert faults(check_rows(before, before, used, vocab)) == ["nothing learns"]


def test_untrained_losses_are_near_chance():
    small = tiny_model()
    with torch.no_grad():
        found = check_start(small, HEALTHY["ttt"], batches(n=1), tiny_tokenizer().vocab)
    assert {f.name for f in found} == {"start/ar", "start/nar"} and faults(found) == []
    vocab = tiny_tokenizer().vocab
    knows = tiny_model(bias=dict.fromkeys(range(vocab.audio_start, vocab.audio_start + 3), 30.0))
    assert {f.status for f in check_start(knows, HEALTHY["ttt"], batches(n=1), vocab)} <= {"warn", FAULT}


# --- whole runs


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A task a small network learns at once: a word is three codes in a row."""
    from ttt.data.read.examples import write_examples

    folder = tmp_path_factory.mktemp("world")
    tiny_tokenizer().save(folder / "tokenizer")
    rng = np.random.default_rng(0)
    words = ("cat", "mat", "fox", "dog", "one", "two")
    examples = []
    for i in range(120):
        row = rng.integers(0, len(words), size=rng.integers(2, 5))
        said = " ".join(words[w] for w in row)
        examples.append(chat(f"x{i}", [text(said)], [text(said), audio((3 * row[:, None] + np.arange(3)).ravel(), "last")]))
    write_examples(folder / "train.jsonl", examples)
    (folder / "broken.py").write_text(PLUGIN)
    return folder


def train(world, folder, *settings):
    return main([
        "train", f"run.dir={folder}", f"data.train={world}/train.jsonl", f"data.tokenizer={world}/tokenizer", "model.preset=toy",
        "run.threads=1", "data.row_tokens=128", "data.batch_tokens=512", "data.pack=false", "train.steps=60", "train.lr=5e-3",
        "train.log_every_steps=10", "train.warmup_steps=5", "train.tensorboard=false", "train.betas=[0.9, 0.98]", *settings,
    ])  # fmt: skip


PLUGIN = '''
from dataclasses import dataclass, replace

import torch

from ttt.objective.library import TtT
from ttt.registry.families import OBJECTIVE
from ttt.objective.losses import plan_terms


@OBJECTIVE.register("broken_shift")
@dataclass(frozen=True)
class Shift(TtT):
    """Masked positions learn their right neighbour."""

    def plan_from(self, batch, maskable, t, u):
        plan = super().plan_from(batch, maskable, t, u)
        term, ids = plan.terms["nar"], batch.ids.flatten()
        after = (term.source + 1).clamp(max=len(ids) - 1)
        ok = (batch.doc.flatten()[after] == batch.doc.flatten()[term.source]) & (after > term.source)
        term = replace(
            term, source=term.source[ok], target=ids[after[ok]], weight=term.weight[ok], partitions=()
        )
        return replace(plan, terms={**plan.terms, "nar": term})


@OBJECTIVE.register("broken_freeze")
@dataclass(frozen=True)
class Freeze(TtT):
    """The rows of added tokens get no gradient."""

    def terms(self, model, plan):
        table = model.hf.get_input_embeddings().weight
        vocab = model.tokenizer.vocab
        if not hasattr(table, "frozen"):
            keep = torch.ones(len(table), 1)
            keep[vocab.audio_start :] = 0
            table.register_hook(lambda g: g * keep)
            table.frozen = True
        return plan_terms(model, plan)
'''


def test_a_healthy_run_has_no_fault(world, tmp_path, capsys):
    assert train(world, tmp_path / "run") == 0
    capsys.readouterr()
    assert main(["doctor", str(tmp_path / "run")]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[-1].endswith("no fault found") and "FAULT" not in out
    for name in ("batch/targets/nar", "batch/weights", "batch/mask", "model/new_rows", "start/nar", "data/digest"):
        assert any(line.startswith("ok") and f" {name} " in line for line in out.splitlines()), name
    # bands of this run hold it, and one that learnt less is outside
    bands = tmp_path / "bands.yaml"
    assert main(["doctor", str(tmp_path / "run"), "--write-bands", str(bands), "--recipe", "tiny", "--slack", "0.1"]) == 0
    told = ["--bands", str(bands), "--recipe", "tiny"]
    assert main(["doctor", str(tmp_path / "run"), "--no-probes", *told]) == 0
    assert train(world, tmp_path / "slow", "train.lr=1e-5") == 0
    capsys.readouterr()
    assert main(["doctor", str(tmp_path / "slow"), "--no-probes", "--json", *told]) == 1
    report = json.loads(capsys.readouterr().out)
    assert "outside the reference band" in report["faults"]
    assert main(["doctor", str(tmp_path / "run"), "--bands", str(bands), "--recipe", "tinny"]) == 2
    assert "Did you mean 'tiny'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "settings, fault",
    [
        (["objective=broken_shift", "train.steps=150", "train.lr=1e-2"], SHIFTED), (["objective=broken_freeze"], FROZEN),
        (["objective={name: ttt, mask: causal}"], CAUSAL),
    ],
    ids=["shift", "freeze", "causal"],
)  # fmt: skip
def test_broken_runs_are_named(world, tmp_path, capsys, settings, fault):
    assert train(world, tmp_path / "run", f"plugins=[{world}/broken.py]", *settings) == 0
    capsys.readouterr()
    assert main(["doctor", str(tmp_path / "run"), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert fault in report["faults"], [f for f in report["findings"] if f["status"] == FAULT]
    if fault == SHIFTED:  # the checkpoint itself gives the mistake away, not only today's code
        assert "model/predicts/nar" in [f["name"] for f in report["findings"] if f["fault"] == SHIFTED], report


def test_mendable_errors(tmp_path, capsys):
    assert main(["doctor", str(tmp_path)]) == 2
    assert "metrics.jsonl: no such training log" in capsys.readouterr().err
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "train/loss": 2.0}\n{"step": 2, "tra')
    assert main(["doctor", str(tmp_path)]) == 2
    assert "no config.yaml here" in capsys.readouterr().err
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\nnonsense\n{"step": 2}\n')
    assert main(["doctor", str(tmp_path)]) == 2
    assert "metrics.jsonl:2: not JSON: Expecting value (column 1); not a line of a training log" in capsys.readouterr().err
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "train/loss": 2.0}\n')
    assert main(["doctor", str(tmp_path), "--write-bands", str(tmp_path / "b.yaml")]) == 2
    assert "name one with --recipe" in capsys.readouterr().err
    (tmp_path / "b.yaml").write_text("ttt: {train/loss: {10: [3, 1]}}\n")
    assert main(["doctor", str(tmp_path), "--write-bands", str(tmp_path / "b.yaml"), "--recipe", "x"]) == 2
    assert "expected a step and [low, high], got [3, 1]" in capsys.readouterr().err


def test_shipped_bands_are_readable():
    from pathlib import Path

    root = Path(__file__).resolve().parents[3]
    bands = read_bands(root / "egs/toy/conf/bands.yaml")
    assert set(bands) == {"ttt", "ar"} and {"train/nll/ar", "train/nll/nar", "dev/loss"} <= set(bands["ttt"])


def test_numbers_of_the_page_are_those_of_the_code():
    from ttt.cli.main import module_of, parser_of

    path = ["ttt", "doctor"]
    assert math.isclose(0.15, parser_of(path, module_of(path)).parse_args(["x"]).slack)
