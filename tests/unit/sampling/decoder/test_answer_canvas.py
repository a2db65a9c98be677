"""Samplers that write the whole answer, and every sampler through the decoder: cache, batch and padding change nothing."""

import copy
from dataclasses import fields

import numpy as np
import pytest
import torch

from tests.conftest import SENTENCES, audio, chat, gen, pack, text, tiny_hf, tiny_model, tiny_tokenizer
from ttt.data.encode import encode_example
from ttt.errors import ConfigError
from ttt.masks.library import Full, Hybrid
from ttt.model.lm import SpeechTextLM
from ttt.objective.losses import plan_terms
from ttt.registry.families import OBJECTIVE, SAMPLER
from ttt.sampling.decoder.decoder import Decoder, DecodeSettings
from ttt.sampling.samplers.length import Fixed, UntilEoa
from ttt.types import Example, Prompt

V = tiny_tokenizer().vocab
SMALL = {
    "block_length": 4, "gen_length": 12, "diffusion_steps": 6, "num_iterations": 3, "initial_length": 5,
    "length_increment": 3, "temperature": 0.0,
}  # fmt: skip
CANVAS = pytest.mark.parametrize("canvas", ["span", "answer"])
EVERY = pytest.mark.parametrize(
    "name", [n for n in SAMPLER.names() if not (SAMPLER.get(n).autoregressive or SAMPLER.get(n).arch)]
)


def prompt_of(example):
    stream = encode_example(Example(example.uid, example.turns[:-1]), tiny_tokenizer(), open_answer=True)
    return Prompt(example.uid, stream.ids.tolist(), stream.content.tolist())


def prompts(n=3):
    """Chats of different lengths; the second user speaks."""
    users = [[text(SENTENCES[i][: 6 * i + 3])] + [audio(np.arange(5), "user")] * (i == 1) for i in range(n)]
    return [prompt_of(chat(f"p{i}", user, [])) for i, user in enumerate(users)]


def talker():
    return tiny_model(bias={V.soa_id: 2.5, V.soa_last_id: 2.5, V.im_end_id: 2.0, V.eoa_id: 1.5, V.eoa_last_id: 1.5})


def decoder(name="blockwise", model=None, mask=None, s=None, **settings):
    known = {f.name for f in fields(SAMPLER.get(name))}
    made = {"canvas": "answer", **SMALL, **(s or {})}
    sampler = SAMPLER.build({"name": name, **{k: v for k, v in made.items() if k in known}}, "s")
    return Decoder(model or talker(), mask or Full(), sampler, DecodeSettings(**{"max_tokens": 20, **settings}))


def ids_of(d, some):
    return [g.ids for g in d.generate(some)]


@EVERY
@CANVAS
@pytest.mark.parametrize("mask", [Full(), Hybrid()], ids=["full", "hybrid"])
def test_cached_uncached_batched_and_alone_are_identical(name, canvas, mask):
    some = prompts()
    assert len({len(p.ids) for p in some}) == 3, "shorter prompts are padded in the batch"
    d = {c: decoder(name, mask=mask, s={"canvas": canvas}, cache=c) for c in ("exact", "none")}
    reference = [ids_of(d["none"], [p])[0] for p in some]
    assert all(reference) and ids_of(d["none"], some) == reference
    assert ids_of(d["exact"], some[::-1]) == reference[::-1] and ids_of(d["exact"], some[1:2]) == reference[1:2]


@EVERY
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_strict_answers_hold_what_an_answer_may_hold(name, temperature):
    may = {*range(V.audio_start), *range(V.code_start, V.code_stop), V.eoa_id, V.eoa_last_id}
    may -= {V.im_start_id, V.user_end_id, V.pad_id}
    for g in decoder(name, s={"temperature": temperature}).generate(prompts()):
        assert set(g.ids) <= may and V.im_end_id not in g.ids[:-1] and 1 <= len(g.ids) <= 12
        assert g.stopped == ("im_end" if g.ids[-1] == V.im_end_id else "length")
        assert g.calls["ar"] == 0 and g.calls["diffusion"] > 0 and g.first_block_s is not None
        codes = [i - V.code_start for i in g.ids if V.code_start <= i < V.code_stop]
        assert g.codes[:, 0].tolist() == codes, "the parsed spans lose no code, however they are delimited"


@EVERY
@pytest.mark.parametrize("max_tokens", [1, 5, 12, 40])
def test_answers_stop_at_the_shorter_limit(name, max_tokens):
    for g in decoder(name, tiny_model(bias={V.im_end_id: -50.0}), max_tokens=max_tokens).generate(prompts(2)):
        assert len(g.ids) == min(max_tokens, 12) and g.stopped == "length"


def test_first_hitting_states_its_calls():
    d = decoder("first_hitting", tiny_model(bias={V.im_end_id: -50.0}))
    answers = d.generate(prompts())
    assert d.calls == {"ar": 0, "diffusion": 12} and all(g.calls["diffusion"] == 12 for g in answers)


def test_a_guided_call_counts_once():
    plain, guided = (decoder(model=tiny_model(bias={V.im_end_id: -50.0}), s={"cfg_scale": w}) for w in (0.0, 1.0))
    plain.generate(prompts()), guided.generate(prompts())
    assert plain.calls == guided.calls == {"ar": 0, "diffusion": 6}


def test_the_prompt_is_never_written():
    from ttt.sampling.decoder import session

    made = []

    class Watched(session.Session):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            made.append(self)

    some = prompts()
    before, session.Session = session.Session, Watched
    try:
        ids_of(decoder(), some)
    finally:
        session.Session = before
    assert [made[0].row(i)[: len(p.ids)] for i, p in enumerate(some)] == [list(p.ids) for p in some]


def test_streaming_blocks_concatenate_to_generate():
    some, got, ended = prompts(), [[], [], []], set()
    for event in decoder().events(some):
        assert event.row not in ended
        got[event.row] += event.ids
        if event.kind == "end":
            ended.add(event.row)
    assert [tuple(i) for i in got] == ids_of(decoder(), some) and ended == {0, 1, 2}


def test_official_answers_are_cut_at_the_end_only():
    """Nothing is excluded: the padding id may be written; the answer still stops at the end token."""
    model = tiny_model(bias={V.pad_id: 30.0})
    (g,) = decoder(model=model, strict=False).generate(prompts(1))
    assert set(g.ids) == {V.pad_id} and g.stopped == "length"
    model = tiny_model(bias={V.im_end_id: 30.0})
    for name in ("blockwise", "fixed_length"):
        s = {"official": True} if name == "fixed_length" else {}
        (g,) = decoder(name, model, s=s, strict=False).generate(prompts(1))
        assert g.ids == (V.im_end_id,) and g.stopped == "im_end"


@pytest.mark.parametrize(
    "name, value",
    [
        ("temperature", 0.5), ("top_k", 3), ("top_p", 0.9), ("min_text_tokens_after_audio", 2), ("length", Fixed(5)),
        ("length", UntilEoa(7)),
    ],
)  # fmt: skip
def test_settings_of_the_text_mode_are_refused(name, value):
    with pytest.raises(ConfigError, match=f"^eval.{name}: has no meaning when eval.sampler.canvas is 'answer'"):
        decoder(**{name: value})


@pytest.mark.parametrize("whole_canvas", [True, False], ids=["whole", "growing"])
def test_objective_nar_learns_and_answers(nar_model, whole_canvas):
    """Text, delimiters, codes and the end token of both answers come back."""
    model, examples = nar_model
    length = len(answer_of(examples[0]))
    assert length == len(answer_of(examples[1]))
    block = length if whole_canvas else -(-length // 2)
    objective = OBJECTIVE.build("nar", "objective")
    d = decoder(
        model=model, mask=objective.mask, max_tokens=length,
        s={"block_length": block, "gen_length": 2 * block, "diffusion_steps": 2 * block, "whole_canvas": whole_canvas},
    )  # fmt: skip
    made = d.generate([prompt_of(e) for e in examples])
    for g, example in zip(made, examples, strict=True):
        said, spoken = example.turns[-1].spans
        assert g.stopped == "im_end" and list(g.ids) == answer_of(example)
        assert g.text == said.text and np.array_equal(g.codes, spoken.codes)


def answer_of(example):
    """Ids of the answer up to its end token."""
    stream = encode_example(example, tiny_tokenizer())
    ids = stream.ids[stream.target].tolist()
    return ids[: ids.index(V.im_end_id) + 1]


@pytest.fixture(scope="module")
def nar_model():
    """A tiny model that has learned two chats by heart with the objective ``nar``."""
    examples = [
        chat("a", [text("one two")], [text("a cat"), audio([1, 2, 3, 4], "last")]),
        chat("b", [text("three four")], [text("a mat"), audio([9, 8, 7, 6], "last")]),
    ]
    model = SpeechTextLM(copy.deepcopy(tiny_hf(spread=0.05)), tiny_tokenizer()).train()
    objective = OBJECTIVE.build("nar", "objective")
    batch = pack([[encode_example(e, tiny_tokenizer())] for e in examples])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    g = gen()
    for _ in range(150):
        result = plan_terms(model, objective.plan(batch, g))
        loss = sum(t.scale * t.sum / t.count for t in result.terms.values())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model.eval(), examples


def test_a_span_sampler_is_refused_for_a_model_of_whole_answers():
    from ttt.api import decode_settings
    from ttt.config.load import load_config

    for sampler in ("blockwise", "ar"):
        with pytest.raises(ConfigError, match="^eval.sampler.canvas: objective 'nar' diffuses whole answers"):
            decode_settings(load_config([], ["objective=nar", f"eval.sampler={sampler}"]))
    config = load_config([], ["objective=nar", "eval.sampler={name: threshold, canvas: answer}"])
    assert decode_settings(config).max_tokens == config.eval.max_tokens
