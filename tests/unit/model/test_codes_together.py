"""Several codes at one position of the network: what is trained is what is decoded and scored, and patterns are learnt exactly."""

from __future__ import annotations

import dataclasses
from functools import cache

import numpy as np
import pytest
import torch

from tests.conftest import SENTENCES, gen
from ttt.config.schema import ModelSection
from ttt.data.batches.rows import collate
from ttt.data.encode import encode_example
from ttt.errors import ConfigError
from ttt.inspection.attention_report import plan_of
from ttt.likelihood import Draws, likelihoods
from ttt.masks.library import Hybrid
from ttt.model.backbone import build_backbone
from ttt.model.joined import embedded, fold
from ttt.model.lm import SpeechTextLM
from ttt.objective.losses import folded, plan_terms
from ttt.registry.families import INITIALIZER, LENGTH, OBJECTIVE, PATTERN, SAMPLER
from ttt.sampling.decoder.decoder import Decoder, DecodeSettings
from ttt.sampling.decoder.session import Session, next_token
from ttt.sampling.decoder.stream import stream
from ttt.text.tokenizer import train_bpe
from ttt.types import Example, Kind, LogitsRequest, Prompt, Span, Turn

CODES = 5
TOGETHER = ["parallel", "delay", {"name": "parallel", "frames": 3}]


@cache
def tokenizer(pattern: str, frames: int = 1, codebooks: int = 3, form: str = "interleaved"):
    spec = {"name": pattern, **({"frames": frames} if frames > 1 else {})}
    return train_bpe(SENTENCES * 3, 300, CODES, codebooks, form, PATTERN.build(spec, "data.pattern"))


def made(spec, form: str = "interleaved"):
    """A tokenizer: of three codebooks, or of one whose codes are grouped by three."""
    return tokenizer(spec, form=form) if isinstance(spec, str) else tokenizer("parallel", spec["frames"], 1, form)


def network(tok, attention: str = "sdpa", **shape) -> SpeechTextLM:
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, **shape}
    section = ModelSection(preset="mini", attention=attention, overrides=shape, init=INITIALIZER.build("normal", "init"))
    return SpeechTextLM(build_backbone(section, tok.vocab, seed=0), tok).eval()


def examples(tok, n: int = 3, frames: int = 4) -> list[Example]:
    rng = np.random.default_rng(0)
    out = []
    for i, word in enumerate(("the", "big", "dog", "one")[:n]):
        codes = rng.integers(0, CODES, (frames + i % 2, tok.vocab.num_codebooks)).astype(np.int32)
        answer = (Span("text", f"{word} a"), Span("audio", codes=codes, style="last"))
        out.append(Example(f"e{i}", (Turn("user", (Span("text", word),)), Turn("assistant", answer)), "tts"))
    return out


def prompts(some, tok) -> list[Prompt]:
    return [Prompt.of(encode_example(dataclasses.replace(e, turns=e.turns[:1]), tok, open_answer=True)) for e in some]


def batch_of(some, tok, together: int = 2):
    streams, v = [encode_example(e, tok) for e in some], tok.vocab
    rows = [streams[i : i + together] for i in range(0, len(streams), together)]
    return collate(rows, sum(map(len, streams)), v.pad_id, v.mask_id, v.code_space)


def nll_by_target(model, plan, name) -> torch.Tensor:
    """-log p of each target of one term: the slope of the loss by its weight."""
    weight = torch.ones(len(plan.terms[name].source), requires_grad=True)
    term = dataclasses.replace(plan.terms[name], weight=weight)
    (slope,) = torch.autograd.grad(plan_terms(model, dataclasses.replace(plan, terms={name: term})).terms[name].sum, weight)
    return slope


def test_ids_side_by_side():
    tok = made("parallel")
    batch = batch_of(examples(tok), tok)
    ids, positions, layout, step = fold(batch.ids, batch.position, batch.layout(), batch.joined)
    for b in range(len(batch.ids)):
        kept = ids[b][layout.visible[b]]
        assert kept[kept >= 0].tolist() == batch.ids[b][batch.visible[b]].tolist()
        assert ((kept >= 0).sum(1) == 3).sum() == sum(4 + int(d) % 2 for d in set(batch.doc[b].tolist()) - {-1})
        for d in set(layout.doc[b].tolist()) - {-1}:
            n = int((layout.doc[b] == d).sum())
            assert positions[b][layout.doc[b] == d].tolist() == list(range(n))
    table = torch.nn.Embedding(400, 4)
    torch.testing.assert_close(embedded(table, torch.tensor([[7, 9, -1]]))[0], (table.weight[7] + table.weight[9]) / 2)


@pytest.mark.parametrize("attention", ["sdpa", "packed"])
@pytest.mark.parametrize("spec", TOGETHER, ids=str)
def test_trained_and_decoded_token_by_token_alike(spec, attention):
    """-log p of every code in training is what a session gives that is handed the answer code by code, from its cache."""
    tok = made(spec)
    model, v = network(tok, attention), tok.vocab
    (example,) = examples(tok, 1)
    plan = OBJECTIVE.build("ar", "objective").plan(batch_of([example], tok), gen())
    expected = nll_by_target(model, plan, "ar").tolist()
    whole = encode_example(example, tok)
    begin = int(whole.target.argmax())
    session = Session(model, plan.mask, [Prompt("p", whole.ids[:begin].tolist())])
    found, logits = [], torch.empty(0)
    for token in whole.ids[begin:].tolist():
        column = next((k for k, (a, b) in enumerate(v.code_space.codebooks) if a <= token < b), 0)
        if not column:  # the first of a position: over all ids, by a network call
            logits = session.run([next_token([0])])[0][0, 0]
            found.append((logits.logsumexp(0) - logits[token]).item())
        else:
            start, stop = v.code_space.codebooks[column]
            found.append((logits[start:stop].logsumexp(0) - logits[token]).item())
        session.append(0, torch.tensor([token]))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert session.row(0) == whole.ids.tolist()


@pytest.mark.parametrize("spec", TOGETHER, ids=str)
def test_trained_and_denoised_alike(spec):
    """Logits of masked codes in training are those a sampler gets for the same canvas; the softmax is that of the column."""
    tok = made(spec)
    model, v = network(tok, "packed"), tok.vocab
    (example,) = examples(tok, 1)
    objective = OBJECTIVE.build({"name": "ttt", "strategies": []}, "objective")
    batch = batch_of([example], tok)
    at = (batch.kind[0] == Kind.AUDIO).nonzero().flatten()
    u = torch.ones(batch.ids.shape)
    u[0, at[[0, 2, 4, 5, -1]]] = 0.0  # masked at any time, the end token too
    plan = objective.plan_from(batch, objective.maskable(batch), torch.tensor([0.5]), u)
    assert len(plan.terms["nar"].source) == 5
    expected = nll_by_target(model, plan, "nar")
    session = Session(model, Hybrid(), [Prompt("p", batch.ids[0, : at[0]].tolist(), noisable=batch.noisable[0, : at[0]].tolist())])
    tail = plan.input_ids[:, at[0] : at[-1] + 1]
    places = (tail[0] == v.mask_id).nonzero().flatten()
    (logits,) = session.run([LogitsRequest(torch.tensor([0]), tail, places[None], tail.shape[1])])
    found = []
    for place, row in zip(places.tolist(), logits[0], strict=True):
        allowed = [range(*v.code_space.codebooks[place % v.columns])] + [v.code_space.ends] * (place % v.columns == 0)
        own = torch.tensor([i for part in allowed for i in part])
        found.append(row[own].logsumexp(0) - row[batch.ids[0, at[place]]])
    torch.testing.assert_close(torch.stack(found), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("spec", TOGETHER, ids=str)
def test_scores_are_those_of_training(spec):
    tok = made(spec)
    model = network(tok)
    some = examples(tok)
    objective = OBJECTIVE.build("ar", "objective")
    plan = objective.plan(batch_of(some, tok), gen())
    values = likelihoods(model, objective, some, Draws(1), seed=1, budget=200)
    total = sum(e.nats for v in values for e in v.by.values())
    assert total == pytest.approx(float(nll_by_target(model, plan, "ar").sum()), rel=1e-4)
    assert sum(e.tokens for v in values for e in v.by.values()) == len(plan.terms["ar"].source)
    masked = likelihoods(model, OBJECTIVE.build({"name": "ttt", "strategies": []}, "o"), some, Draws(2), seed=1, budget=200)
    assert all(np.isfinite(e.nats) for v in masked for e in v.by.values())


@cache
def learnt(name: str, spec: str, updates: int, n: int):
    """(Tokenizer, model that has learnt its examples by heart, examples, objective)."""
    tok = made(next(s for s in TOGETHER if str(s) == spec))
    model, some = network(tok, "packed", hidden_size=32, num_hidden_layers=2), examples(tok, n, frames=3)
    strategies = {} if name == "ar" else {"strategies": [], "audio_normalize": "token"}
    objective, batch = OBJECTIVE.build({"name": name, **strategies}, "objective"), batch_of(some, tok)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    model.train()
    for update in range(updates):
        loss = sum(t.sum / t.count for t in objective.terms(model, objective.plan(batch, gen(update))).terms.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return tok, model.eval(), some, objective


@pytest.mark.parametrize("cache", ["exact", "none"])
@pytest.mark.parametrize("spec", TOGETHER, ids=str)
def test_ar_learns_codes_and_gives_them_back(spec, cache):
    tok, model, some, objective = learnt("ar", str(spec), 60, 2)
    decoder = Decoder(model, objective.mask, SAMPLER.build("ar", "s"), DecodeSettings(max_tokens=60, cache=cache))
    found = decoder.generate(prompts(some, tok))
    for example, answer in zip(some, found, strict=True):
        np.testing.assert_array_equal(answer.codes, example.turns[1].spans[1].codes)
        rows = len(tok.vocab.pattern.index(*answer.codes.shape))
        assert answer.calls["ar"] == rows + len(answer.ids) - tok.vocab.places(len(answer.codes)), "one call a position"
    blocks = [e for e in stream(decoder, prompts(some, tok)[1:]) if e.kind == "block"]
    np.testing.assert_array_equal(np.concatenate([e.codes for e in blocks]), found[1].codes)
    assert len(blocks) > 1, "frames come as they are complete"


@pytest.mark.parametrize("sampler", [
    {"name": "blockwise", "block_length": 30, "gen_length": 30, "diffusion_steps": 10}, {"name": "fixed_length", "gen_length": 30,
     "num_iterations": 3, "temperature": 0.0}, {"name": "threshold", "block_length": 30, "gen_length": 30, "cfg_scale": 0.0},
], ids=lambda s: s["name"])  # fmt: skip
@pytest.mark.parametrize("spec", TOGETHER, ids=str)
def test_nar_learns_codes_and_gives_them_back(spec, sampler):
    tok, model, some, objective = learnt("ttt", str(spec), 80, 1)
    places = tok.vocab.places(3)
    length = LENGTH.build({"name": "fixed", "codes": places, "last_codes": places}, "length")
    decoder = Decoder(model, objective.mask, SAMPLER.build(sampler, "s"), DecodeSettings(max_tokens=60, length=length))
    for example, answer in zip(some, decoder.generate(prompts(some, tok)), strict=True):
        np.testing.assert_array_equal(answer.codes, example.turns[1].spans[1].codes)


def test_what_cannot_write_codes_together_is_refused():
    tok = made("delay")
    model, batch = network(tok), batch_of(examples(tok), tok)
    for name, message in (("nar", "objective.noised: answer .* use speech or by_kind"), ("dual_stream", "one id at a position")):
        with pytest.raises(ConfigError, match=message):
            OBJECTIVE.build(name, "objective").plan(batch, gen())
    for sampler, settings, message in (
        ({"name": "blockwise", "block_length": 26}, {}, "block_length: 26 ends inside a position of pattern 'delay'.* of 3"),
        ({"name": "threshold", "canvas": "answer", "block_length": 3, "gen_length": 30}, {}, "canvas: .*span or speech"),
        ("ar", {"strict": False}, "eval.strict"),
    ):
        with pytest.raises(ConfigError, match=message):
            Decoder(model, Hybrid(), SAMPLER.build(sampler, "s"), DecodeSettings(**settings))


def test_maps_are_of_positions_and_attention_by_token_is_refused():
    tok = made("parallel")
    some = examples(tok, 1)
    plan = OBJECTIVE.build("ar", "objective").plan(batch_of(some, tok), gen())
    narrow = folded(plan)
    assert narrow.layout.shape == (1, plan.input_ids.shape[1] - 2 * 4) and narrow.input_ids.shape[2] == 3, "four frames of three"
    assert folded(narrow) is narrow
    with pytest.raises(ConfigError, match="3 codes stand at a position, and attention is shown by token"):
        plan_of(network(tok), None, some[0], None)
