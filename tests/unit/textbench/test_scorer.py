"""Log-likelihoods and answers for text benchmarks, against slow and obvious twins; no benchmark library needed."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from tests.conftest import chat, pack, text, tiny_model, tiny_tokenizer
from ttt.data.encode import encode_example
from ttt.errors import ConfigError, DataError
from ttt.likelihood import Draws, Part
from ttt.masks.library import Causal, Full, Hybrid, Prefix
from ttt.masks.materialize import materialize
from ttt.objective.library import Ar, Nar, TtT
from ttt.sampling.samplers.blocks import Blockwise
from ttt.sampling.samplers.remask import LowConfidence
from ttt.textbench.bound import greedy_matches
from ttt.textbench.chain import stream_of
from ttt.textbench.scorer import ScorerSettings, TextScorer
from ttt.textbench.texts import Pair, chat_text, encode, encode_pair, vocabulary, windows
from ttt.textbench.writing import cut
from ttt.types import ModelInputs, Span, Turn

CONTEXTS = ("what is the capital of france", "a cat sat on", "one two three four five six seven eight nine ten is")
CHOICES = (" the mat", " the lazy dog", " a", " jumps over the brown fox")
REQUESTS = [(c, t) for c in CONTEXTS for t in CHOICES]
WRITER = Blockwise(block_length=4, gen_length=12, diffusion_steps=12, canvas="answer", whole_canvas=True, remask=LowConfidence())


@pytest.fixture(scope="module")
def model():
    return tiny_model(seed=3).eval()


def scorer(model, objective=None, **settings):
    sampler = WRITER if isinstance(objective, Nar) else None
    return TextScorer(model, objective or TtT(mask=Hybrid()), sampler, ScorerSettings(**settings))


def slow_logits(model, mask, stream, ids=None):
    """Logits f64 [n, V] of one row by itself."""
    batch = pack([[stream if ids is None else dataclasses.replace(stream, ids=np.asarray(ids))]])
    allowed = materialize(mask, batch.layout(), "sdpa", torch.float32)
    with torch.no_grad():
        return model(ModelInputs(batch.ids, batch.position, allowed, torch.arange(len(stream)))).double()


def slow_chain(model, mask, pair, allowed):
    """Token by token, one network call each."""
    total, greedy = 0.0, True
    for k, token in enumerate(pair.target):
        seen = Pair(pair.context, pair.target[:k] or pair.target[:1])
        stream = stream_of(seen, model.tokenizer.vocab, last=k > 0)
        logits = slow_logits(model, mask, stream)[-1].masked_fill(~allowed, -torch.inf)
        total += float(logits.log_softmax(-1)[token])
        greedy &= int(logits.argmax()) == token
    return total, greedy


# ---------------------------------------------------------------------------------------------------------- tokens


@pytest.mark.parametrize("system", ["", "be brief"])
def test_chats_are_tokenized_as_in_training(tokenizer, system):
    example = chat("e", [text("\nread this ")], [text("a cat")], system)
    example = dataclasses.replace(example, turns=(*example.turns, Turn("user", (Span("text", "one\n\n two"),))))
    stream = encode_example(example, tokenizer, open_answer=True)
    history = [{"role": t.role, "content": t.spans[0].text} for t in example.turns if t.spans]
    if not system:
        history = history[1:]  # the template puts an empty system block in
    assert encode(tokenizer, chat_text(tokenizer, history, "ttt")) == stream.ids.tolist()


def test_qwen3_template_ends_with_an_empty_thought(tokenizer):
    shown = chat_text(tokenizer, [{"role": "user", "content": "hi"}], "qwen3")
    assert shown == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    pair = encode_pair(tokenizer, shown, "A", 100)
    assert list(pair.target) == tokenizer.encode("A")  # the line feeds belong to the template, not to the answer
    prefilled = chat_text(tokenizer, [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "I"}], "ttt", False)
    assert prefilled.endswith("<|im_start|>assistant\nI")


def test_white_space_moves_to_the_continuation(tokenizer):
    spaced, joined = (encode_pair(tokenizer, c, t, 50) for c, t in (("a cat ", "sat"), ("a cat", " sat")))
    assert spaced == joined and tokenizer.decode(spaced.target) == " sat"
    empty = encode_pair(tokenizer, "", "a cat", 50)
    assert empty.context == (tokenizer.vocab.pad_id,) and tokenizer.decode(empty.target) == "a cat"


def test_long_contexts_lose_their_left_end(tokenizer):
    whole = encode_pair(tokenizer, CONTEXTS[2], " a cat", 200)
    short = encode_pair(tokenizer, CONTEXTS[2], " a cat", 6)
    assert len(short.context) + len(short.target) == 7 and short.cut == len(whole.context) - len(short.context) > 0
    assert short.context == whole.context[-len(short.context) :] and short.target == whole.target
    with pytest.raises(DataError, match="a continuation has 5 tokens, the longest row 3"):
        encode_pair(tokenizer, "a", "!?!?!", 3)
    with pytest.raises(DataError, match="a continuation is empty"):
        encode_pair(tokenizer, "a cat", "", 3)


@pytest.mark.parametrize("n, most", list(itertools.product((1, 4, 9, 10), (1, 3, 4, 20))))
def test_windows_predict_every_token_once_with_full_context(n, most):
    ids = list(range(1, n + 1))
    found = windows(ids, 0, most)
    assert [t for p in found for t in p.target] == ids
    for p in found:
        row = (*p.context, *p.target)
        assert row == tuple(range(row[0], row[0] + len(row))) and len(row) - 1 <= most
        assert row[0] == 0 or len(row) - 1 == most  # nothing that would fit is left out


def test_text_vocabulary_has_no_speech(tokenizer, vocab):
    allowed = vocabulary(tokenizer, vocab.size, "text")
    for token in ("soa_id", "soa_last_id", "user_end_id", "mask_id", "eoa_id", "code_start"):
        assert not allowed[getattr(vocab, token)], token
    assert allowed[list(tokenizer.encode("a cat!"))].all() and allowed[[vocab.im_end_id, vocab.pad_id]].all()
    assert vocabulary(tokenizer, vocab.size, "full").all()
    with pytest.raises(ConfigError, match="'texts' is none of text, full. Did you mean 'text'"):
        ScorerSettings(vocabulary="texts")


# ------------------------------------------------------------------------------------------------ left to right


@pytest.mark.parametrize("which", ["text", "full"])
@pytest.mark.parametrize("mask", [Causal(), Hybrid(), Prefix(), Full()], ids=["causal", "hybrid", "prefix", "full"])
def test_chain_equals_one_token_at_a_time(model, mask, which):
    asked = scorer(model, Ar(mask=mask), vocabulary=which)
    found = asked.loglikelihood(REQUESTS)
    for (context, target), one in zip(REQUESTS, found):
        pair = encode_pair(model.tokenizer, context, target, 1000)
        if isinstance(mask, Full):  # what stands before sees what follows: only the whole row has a meaning
            logits = slow_logits(model, mask, stream_of(pair, model.tokenizer.vocab, last=False))
            logs = logits.masked_fill(~asked.allowed, -torch.inf).log_softmax(-1)[len(pair.context) - 1 :]
            total = sum(float(row[t]) for row, t in zip(logs, pair.target))
        else:
            total, greedy = slow_chain(model, mask, pair, asked.allowed)
            assert one.greedy == greedy
        assert one.logprob == pytest.approx(total, abs=2e-4) and one.tokens == len(pair.target)


def test_choices_share_their_context(model, monkeypatch):
    asked, rows = scorer(model), []
    original = type(model).hidden
    monkeypatch.setattr(type(model), "hidden", lambda self, ids, *a, **k: rows.append(len(ids)) or original(self, ids, *a, **k))
    asked.loglikelihood(REQUESTS)
    assert sum(rows) == len(CONTEXTS)  # not one row per choice
    rows.clear()
    asked.loglikelihood(REQUESTS * 3)
    assert sum(rows) == len(CONTEXTS)  # equal requests are computed once


@pytest.mark.parametrize("budget", [1, 40, 10_000])
def test_results_do_not_depend_on_batches_or_order(model, budget):
    base = scorer(model, batch_tokens=500).loglikelihood(REQUESTS)
    other = scorer(model, batch_tokens=budget).loglikelihood(REQUESTS[::-1])[::-1]
    assert [x.greedy for x in base] == [x.greedy for x in other]
    assert np.allclose([x.logprob for x in base], [x.logprob for x in other], atol=1e-4)


def test_greedy_is_what_is_written(model):
    asked = scorer(model)
    (written,) = asked.generate([(CONTEXTS[0], {"max_gen_toks": 1})])
    if written and model.tokenizer.encode(written) == [model.tokenizer.encode(CONTEXTS[0] + written)[-1]]:
        assert asked.loglikelihood([(CONTEXTS[0], written)])[0].greedy
    ids = model.tokenizer.encode(CONTEXTS[0])
    stream = stream_of(Pair(tuple(ids), tuple(ids[:1])), model.tokenizer.vocab, last=False)
    best = int(slow_logits(model, Hybrid(), stream)[-1].masked_fill(~asked.allowed, -torch.inf).argmax())
    pairs = [Pair(tuple(ids), (best,)), Pair(tuple(ids), ((best + 1) % 200,))]
    assert [s.greedy for s in asked.score(pairs)] == [True, False]


def test_text_probabilities_sum_to_one_and_the_rest_is_told(model):
    v = model.tokenizer.vocab
    leaky = tiny_model(seed=3, bias={v.code_start: 3.0}).eval()
    context = tuple(leaky.tokenizer.encode(CONTEXTS[0]))
    restricted, full = scorer(leaky), scorer(leaky, vocabulary="full")
    ids = restricted.allowed.nonzero().flatten().tolist()
    found = restricted.score([Pair(context, (i,)) for i in ids])
    assert sum(np.exp(s.logprob) for s in found) == pytest.approx(1, abs=1e-4)
    leak = 1 - sum(np.exp(s.logprob) for s in full.score([Pair(context, (i,)) for i in ids]))
    assert leak > 0.05 and found[0].elsewhere == pytest.approx(leak, abs=1e-4)
    mass = restricted.speech_mass()
    assert mass[:, 0].sum() / mass[:, 1].sum() == pytest.approx(leak, abs=1e-4)
    assert full.speech_mass()[:, 0].sum() == pytest.approx(0, abs=1e-4)


def test_speech_in_a_continuation_is_refused(model):
    with pytest.raises(DataError, match=r"holds '<\|audio_3\|>', which the vocabulary 'text' leaves out"):
        scorer(model).loglikelihood([("a", "<|audio_3|>")])
    assert scorer(model, vocabulary="full").loglikelihood([("a", "<|audio_3|>")])[0].tokens == 1


def test_rolling_is_the_sum_over_windows(model):
    asked = scorer(model, max_length=7)
    words = " ".join(CONTEXTS)
    ids = model.tokenizer.encode(words)
    total = sum(slow_chain(model, Hybrid(), p, asked.allowed)[0] for p in windows(ids, model.tokenizer.vocab.pad_id, 7))
    assert len(ids) > 14 and asked.rolling([words, ""]) == [pytest.approx(total, abs=1e-3), 0]


# ---------------------------------------------------------------------------------------------------- diffusion


def slow_bound(model, pair, allowed):
    """Mean over all orders of -log p, one token at a time (exact)."""
    v = model.tokenizer.vocab
    stream, n = stream_of(pair, v), len(pair.context)
    totals = []
    for order in itertools.permutations(range(len(pair.target))):
        ids = stream.ids.copy()
        ids[n:] = v.mask_id
        total = 0.0
        for i in order:
            logits = slow_logits(model, Full(), stream, ids)[n + i].masked_fill(~allowed, -torch.inf)
            total += float(logits.log_softmax(-1)[pair.target[i]])
            ids[n + i] = pair.target[i]
        totals.append(total)
    return np.mean(totals)


def test_bound_is_the_mean_over_orders(model):
    asked = scorer(model, Nar(mask=Full()), draws=Draws(1, "exact"))
    (one,) = asked.score([pair := encode_pair(model.tokenizer, "a cat sat", " on", 100)])
    pair = Pair(pair.context, tuple(model.tokenizer.encode(" the"))[:1] + pair.target[:2])
    (found,) = asked.score([pair])
    assert found.logprob == pytest.approx(slow_bound(model, pair, asked.allowed), abs=1e-4)
    assert one.logprob < 0


def test_bound_does_not_depend_on_batches_or_order_but_on_the_seed(model):
    requests = REQUESTS[:5]
    base = [s.logprob for s in scorer(model, Nar(mask=Full()), draws=Draws(8)).loglikelihood(requests)]
    other = [s.logprob for s in scorer(model, Nar(mask=Full()), draws=Draws(8), batch_tokens=1).loglikelihood(requests[::-1])]
    assert np.allclose(base, other[::-1], atol=1e-4)
    drawn_anew = scorer(model, Nar(mask=Full()), draws=Draws(8), seed=2).loglikelihood(requests)
    assert not np.allclose(base, [s.logprob for s in drawn_anew])


@pytest.mark.parametrize("cfg", [0.0, 1.5])
def test_greedy_check_follows_the_surest_place(model, cfg):
    """A target made by the slow loop is greedy, and no longer with one token changed."""
    from ttt.likelihood.scoring import without_context

    v = model.tokenizer.vocab
    allowed = vocabulary(model.tokenizer, v.size, "text")
    pair = Pair(tuple(model.tokenizer.encode(CONTEXTS[1])), (5,) * 4)
    stream, at = stream_of(pair, v), np.arange(4) + len(model.tokenizer.encode(CONTEXTS[1]))
    ids = stream.ids.copy()
    ids[at] = v.mask_id
    while (ids == v.mask_id).any():
        logits = slow_logits(model, Full(), stream, ids)
        if cfg:
            empty = without_context(dataclasses.replace(stream, ids=ids), at, v.mask_id)
            free = slow_logits(model, Full(), empty)
            logits = free + (cfg + 1) * (logits - free)
        probs = logits.masked_fill(~allowed, -torch.inf).softmax(-1)
        places = np.flatnonzero(ids == v.mask_id)
        best = places[int(probs[places].max(-1).values.argmax())]
        ids[best] = int(probs[best].argmax())
    targets = [ids[at].copy() for _ in range(5)]
    for k in range(4):
        targets[k + 1][k] = 7 if targets[0][k] != 7 else 8
    parts = [Part(stream_of(Pair(pair.context, tuple(map(int, t))), v), at, 4) for t in targets]
    assert greedy_matches(model, Full(), parts, allowed, 60, cfg) == [True, False, False, False, False]


def test_greedy_check_can_be_left_out(model):
    found = scorer(model, Nar(mask=Full()), draws=Draws(2), check_greedy=False).loglikelihood(REQUESTS[:3])
    assert not any(s.greedy for s in found) and all(np.isnan(s.elsewhere) for s in found)


# ------------------------------------------------------------------------------------------------------ answers


def slow_answer(model, allowed, context, most, until=()):
    """Greedy, one whole row a token, no cache."""
    v = model.tokenizer.vocab
    ids, new = model.tokenizer.encode(context), []
    while len(new) < most:
        stream = stream_of(Pair(tuple(ids), tuple(new or ids[:1])), v, last=bool(new))
        logits = slow_logits(model, Hybrid(), stream)[-1].masked_fill(~allowed, -torch.inf)
        logits[v.im_start_id] = -torch.inf
        token = int(logits.argmax())
        if token in (v.im_end_id, v.pad_id):
            break
        new.append(token)
        written, stopped = cut(model.tokenizer.decode(new), until)
        if stopped:
            return written
    return model.tokenizer.decode(new)


def test_answers_equal_the_slow_loop_in_any_batch(model):
    asks = [(c, {"max_gen_toks": m, "until": ["zz"]}) for c, m in zip(CONTEXTS, (3, 9, 6))]
    wanted = [slow_answer(model, scorer(model).allowed, c, how["max_gen_toks"]) for c, how in asks]
    assert len(set(wanted)) == 3
    for size in (1, 2, 16):
        assert scorer(model, batch_size=size).generate(asks) == wanted


def test_answers_end_before_a_stop_string(model):
    whole = slow_answer(model, scorer(model).allowed, CONTEXTS[0], 12)
    stop = whole[4:6]
    (short,) = scorer(model).generate([(CONTEXTS[0], {"max_gen_toks": 12, "until": [stop]})])
    assert short == whole[: whole.index(stop)] and stop not in short
    assert scorer(model).generate([(CONTEXTS[0], {"max_gen_toks": 12, "until": stop})]) == [short]


def test_nothing_but_text_is_written(model):
    v = model.tokenizer.vocab
    loud = tiny_model(seed=3, bias={v.code_start: 9.0, v.soa_id: 9.0}).eval()
    (answer,) = scorer(loud).generate([(CONTEXTS[0], {"max_gen_toks": 6})])
    assert answer == slow_answer(loud, scorer(loud).allowed, CONTEXTS[0], 6) != ""
    assert scorer(loud, vocabulary="full").generate([(CONTEXTS[0], {"max_gen_toks": 6})]) == [""]  # six codes, no text


def test_samples_repeat_with_the_seed_and_differ_between_repeats(model):
    ask = (CONTEXTS[0], {"max_gen_toks": 8, "do_sample": True, "temperature": 1.0})
    one, two = scorer(model).generate([ask, ask])
    assert one != two and scorer(model, batch_size=1).generate([ask, ask]) == [one, two]
    assert scorer(model, seed=5).generate([ask]) != [one]


@pytest.mark.parametrize("how", [
    {"do_sample": True, "temperature": 0}, {"do_sample": True, "temperature": 0.0, "top_k": 5, "top_p": 0.9},
    {"do_sample": False, "temperature": 0.7}, {"top_k": 5}, {"temperature": None, "top_p": None},
])  # fmt: skip
def test_temperature_0_is_greedy(model, how):
    greedy = scorer(model).generate([(c, {"max_gen_toks": 8}) for c in CONTEXTS])
    assert scorer(model).generate([(c, {"max_gen_toks": 8, **how}) for c in CONTEXTS]) == greedy


def test_sampling_without_a_temperature_draws_at_1(model):
    asks = [scorer(model)._ask("a", {"do_sample": True, **how}, "key") for how in ({}, {"temperature": 1.0})]
    assert asks[0] == asks[1] and asks[0].temperature == 1.0


def test_temperature_0_of_a_request_wins_over_the_samplers_own(model):
    warm = dataclasses.replace(WRITER, temperature=1.0)
    ask = (CONTEXTS[0], {"max_gen_toks": 12, "do_sample": True, "temperature": 0})
    (greedy,) = scorer(model, Nar(mask=Full())).generate([(CONTEXTS[0], {"max_gen_toks": 12})])
    own = TextScorer(model, Nar(mask=Full()), warm, ScorerSettings())
    assert own.generate([ask]) == [greedy] != own.generate([(CONTEXTS[0], {"max_gen_toks": 12})])


def test_diffusion_answers_equal_the_decoder(model):
    from ttt.sampling.decoder.decoder import Decoder, DecodeSettings
    from ttt.types import Prompt

    # codes are never likely here, so the decoder's wider vocabulary writes the same
    v = model.tokenizer.vocab
    quiet = tiny_model(seed=3, bias=dict.fromkeys((*range(v.audio_start - 19, v.size), v.pad_id), -50.0)).eval()
    decoder = Decoder(quiet, Full(), WRITER, DecodeSettings(max_tokens=12))
    prompts = [Prompt(c, quiet.tokenizer.encode(c)) for c in CONTEXTS]
    wanted = [g.text for g in decoder.generate(prompts)]
    found = scorer(quiet, Nar(mask=Full()), batch_size=2).generate([(c, {"max_gen_toks": 12}) for c in CONTEXTS])
    assert [f.strip() for f in found] == wanted and len(set(wanted)) > 1


def test_guidance_of_the_sampler_is_used(model):
    plain = scorer(model, Nar(mask=Full())).generate([(CONTEXTS[0], {"max_gen_toks": 12})])
    guided = TextScorer(model, Nar(mask=Full()), dataclasses.replace(WRITER, cfg_scale=4.0), ScorerSettings())
    assert guided.generate([(CONTEXTS[0], {"max_gen_toks": 12})]) != plain


@pytest.mark.parametrize(
    "how, message",
    [
        ({"max_gen_toks": 2, "beams": 3}, "'beams' is not supported"),
        ({"max_gen_toks": 5000}, "5000 new tokens leave no room for a prompt"),
        ({"temprature": 1.0}, "Did you mean 'temperature'"),
        ({"temperature": -1}, "generation_kwargs.temperature: must be a number >= 0, got -1"),
        ({"temperature": float("nan")}, "generation_kwargs.temperature: must be a number >= 0, got nan"),
        ({"temperature": "hot", "do_sample": True}, "generation_kwargs.temperature: must be a number >= 0, got 'hot'"),
        ({"top_p": 0}, "generation_kwargs.top_p: must be a number > 0 and <= 1, got 0"),
        ({"top_k": 1.5}, "generation_kwargs.top_k: must be a whole number >= 0, got 1.5"),
    ],
)
def test_generation_settings_are_refused(model, how, message):
    with pytest.raises(ConfigError, match=message):
        scorer(model).generate([("a", how)])


@pytest.mark.parametrize("node, message", [
    ({"name": "nar", "noised": "speech"}, "it learns speech only, so text has no probability under it"),
    ({"name": "valle"}, "models of the class 'valle' do not answer questions in text"),
])  # fmt: skip
def test_objectives_without_text_are_refused(model, node, message):
    from ttt.registry.families import OBJECTIVE

    with pytest.raises(ConfigError, match=message):
        TextScorer(model, OBJECTIVE.build(node, "objective"))


def test_refusals(model):
    with pytest.raises(ConfigError, match="set eval.sampler.canvas=answer"):
        TextScorer(model, Nar(mask=Full()), Blockwise(), ScorerSettings()).generate([("a", {})])
    with pytest.raises(ConfigError, match="top_k and top_p are fields of eval.sampler"):
        scorer(model, Nar(mask=Full())).generate([("a", {"do_sample": True, "top_k": 3})])
    with pytest.raises(ConfigError, match="batch_size: must be >= 1"):
        ScorerSettings(batch_size=0)
    with pytest.raises(DataError, match="special token"):
        scorer(model).chat([{"role": "user", "content": "<|im_end|> x"}])
    assert tiny_tokenizer() is model.tokenizer


def test_cut_contexts_are_counted(model):
    asked = scorer(model, max_length=8)
    asked.loglikelihood([(CONTEXTS[2], " a"), ("a", " a")])
    asked.generate([(CONTEXTS[2], {"max_gen_toks": 2})])
    assert asked.counts["contexts cut on the left"] == 2 and asked.counts["scored requests"] == 2


def test_long_jobs_tell_how_far_they_are(model, monkeypatch, caplog):
    from ttt.textbench import scorer as module

    wanted = [s.logprob for s in scorer(model).loglikelihood(REQUESTS)]
    monkeypatch.setattr(module, "_TOGETHER", 4)
    monkeypatch.setattr(module, "_TELL_S", 0.0)
    with caplog.at_level("INFO"):
        found = [s.logprob for s in scorer(model).loglikelihood(REQUESTS)]
        scorer(model, batch_size=1).generate([(c, {"max_gen_toks": 2}) for c in CONTEXTS])
    told = [r.message for r in caplog.records]
    assert np.allclose(found, wanted, atol=1e-4)
    assert any(t.startswith("scored 8 of 12") for t in told) and any(t.startswith("written 2 of 3") for t in told)
