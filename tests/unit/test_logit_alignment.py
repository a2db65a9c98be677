"""``objective.logit_alignment=next``: the position before a masked token predicts it, in loss, samplers, likelihood and benchmarks.

Each is held to a slow twin that runs whole rows and shifts their logits by hand.
"""

import dataclasses

import numpy as np
import pytest
import torch

from tests.conftest import chat, gen, pack, random_batch, text, tiny_model
from ttt.data.encode import encode_example
from ttt.doctor.plans import check_plans
from ttt.errors import ConfigError
from ttt.likelihood import factorise, masked_nll
from ttt.masks.library import Full
from ttt.masks.materialize import materialize
from ttt.registry.families import OBJECTIVE, SAMPLER
from ttt.sampling.decoder.decoder import Decoder, DecodeSettings
from ttt.textbench.bound import bound_scores, greedy_matches
from ttt.textbench.chain import stream_of
from ttt.textbench.scorer import MC_DRAWS, ScorerSettings, TextScorer
from ttt.textbench.texts import Pair, encode
from ttt.types import ModelInputs, Prompt

EXAMPLE = chat("e", [text("read this")], [text("a cat sat on the mat")])


@pytest.fixture(scope="module")
def model():
    return tiny_model(seed=3).eval()


def nar(alignment="next", **fields):
    return OBJECTIVE.build({"name": "nar", "logit_alignment": alignment, **fields}, "objective")


def shifted(model, ids):
    """log q f64 [n, V] at every position of a row, from the logits of the position before it (the first: its own)."""
    stream = encode_example(EXAMPLE, model.tokenizer)
    n = len(ids)
    cut = {f.name: getattr(stream, f.name)[:1].repeat(n) for f in dataclasses.fields(stream) if f.name in ("kind", "run_id")}
    row = dataclasses.replace(stream, ids=np.asarray(ids), target=np.zeros(n, bool), noisable=np.zeros(n, bool), **cut)
    batch = pack([[row]])
    allowed = materialize(Full(), batch.layout(), "sdpa", torch.float32)
    with torch.no_grad():
        logits = model(ModelInputs(batch.ids, batch.position, allowed, torch.arange(n))).double()
    return torch.cat([logits[:1], logits[:-1]]).log_softmax(-1)


def test_the_loss_reads_the_position_before_and_drops_what_nothing_precedes():
    batch = random_batch(1)
    same, following = (nar(a).plan(batch, gen(2)) for a in ("same", "next"))
    assert torch.equal(same.input_ids, following.input_ids)
    term, other = same.terms["nar"], following.terms["nar"]
    doc = batch.doc.flatten()
    inside = torch.tensor([bool(s and doc[s - 1] == doc[s]) for s in term.source.tolist()])
    assert torch.equal(other.source, term.source[inside] - 1) and torch.equal(other.target, term.target[inside])
    assert torch.equal(other.weight, term.weight[inside]) and other.count == term.count
    with pytest.raises(ConfigError, match="logit_alignment: nothing stands before a copy"):
        OBJECTIVE.build({"name": "dual_stream", "logit_alignment": "next"}, "objective")


@pytest.mark.parametrize("cache", ["exact", "none"])
def test_a_sampler_writes_what_a_slow_loop_over_shifted_logits_writes(model, cache):
    vocab, prompt = model.tokenizer.vocab, encode(model.tokenizer, "a cat sat on")
    shape = {"name": "blockwise", "canvas": "answer", "block_length": 8, "gen_length": 8, "diffusion_steps": 8}
    sampler = SAMPLER.build({**shape, "whole_canvas": True, "temperature": 0.0, "remask": "low_confidence"}, "sampler")
    wanted = list(prompt) + [vocab.mask_id] * 8
    while vocab.mask_id in wanted:
        q = shifted(model, wanted)
        q[:, [vocab.mask_id, vocab.im_start_id, vocab.pad_id]] = -torch.inf
        open_ = [i for i, token in enumerate(wanted) if token == vocab.mask_id]
        best = max(open_, key=lambda i: float(q[i].max()))
        wanted[best] = int(q[best].argmax())
    found = {}
    for alignment in ("next", "same"):
        settings = DecodeSettings(max_tokens=8, cache=cache, strict=False, logit_alignment=alignment)
        (made,) = Decoder(model, Full(), sampler, settings).generate([Prompt("a", tuple(prompt))])
        found[alignment] = list(made.ids)
    assert found["next"] == wanted[len(prompt) :][: len(found["next"])] and len(found["next"]) > 2
    assert found["same"] != found["next"]


def test_the_likelihood_and_the_benchmark_bound_read_the_position_before(model):
    objective = nar()
    (part,) = factorise(objective, encode_example(EXAMPLE, model.tokenizer)).parts
    hide = np.zeros((1, len(part.at)), dtype=bool)
    hide[0, [0, 2]] = True
    ids = part.stream.ids.copy()
    ids[part.at[[0, 2]]] = model.tokenizer.vocab.mask_id
    q = shifted(model, ids)
    wanted = -sum(float(q[p, part.stream.ids[p]]) for p in part.at[[0, 2]]) * len(part.at) / 2
    (values,) = masked_nll(model, Full(), [part], [hide], 100)
    assert values.sum() == pytest.approx(wanted, rel=1e-5)
    allowed = torch.ones(model.num_ids, dtype=torch.bool)
    pair = Pair(tuple(encode(model.tokenizer, "a cat")), tuple(encode(model.tokenizer, " sat"))[:1])
    (score,) = bound_scores(model, Full(), [pair], allowed, 100, MC_DRAWS, 1, logit_alignment="next")
    row = [*pair.context, model.tokenizer.vocab.mask_id]
    assert score.logprob == pytest.approx(float(shifted(model, row)[-1, pair.target[0]]), rel=1e-5)
    best = Pair(pair.context, (int(shifted(model, row)[-1].argmax()),))
    part = dataclasses.replace(part, stream=stream_of(best, model.tokenizer.vocab), at=np.array([len(pair.context)]), tokens=1)
    assert greedy_matches(model, Full(), [part], allowed, 100) == [True]
    assert greedy_matches(model, Full(), [dataclasses.replace(part, before=False)], allowed, 100) == [False]


def test_the_scorer_takes_the_alignment_of_the_objective(model):
    answers = []
    shape = {"canvas": "answer", "gen_length": 8, "block_length": 8, "diffusion_steps": 8, "temperature": 0.0}
    for alignment in ("same", "next"):
        sampler = SAMPLER.build({"name": "blockwise", **shape}, "sampler")
        scorer = TextScorer(model, nar(alignment), sampler, ScorerSettings(max_tokens=8))
        answers.append((scorer.generate([("a cat sat on", {})]), scorer.loglikelihood([("a cat", " sat on")])[0].logprob))
    assert answers[0][0] != answers[1][0] and answers[0][1] != answers[1][1]


@pytest.mark.parametrize("alignment", ["same", "next"])
def test_the_doctor_knows_which_position_predicts(model, alignment):
    batches = [random_batch(i) for i in range(3)]
    found = check_plans(nar(alignment), batches, model.tokenizer.vocab, 1)
    assert not [f.line() for f in found if f.status == "FAULT"]
    what = {f.name: f.text for f in found}["batch/targets/nar"]
    assert ("the next position" if alignment == "next" else "the position itself") in what
