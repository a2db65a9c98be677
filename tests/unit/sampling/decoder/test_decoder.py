"""The interleaving loop on tiny random models: caching, batching, padding and streaming change no token."""

import numpy as np
import pytest
import torch

from tests.conftest import (
    SENTENCES,
    audio,
    chat,
    gen,
    layout_of,
    random_batch,
    text,
    tiny_hf,
    tiny_model,
    tiny_tokenizer,
)
from ttt.data.encode import encode_example
from ttt.errors import ConfigError
from ttt.masks.library import Causal, Full, Hybrid
from ttt.registry.families import OBJECTIVE, SAMPLER
from ttt.sampling.decoder.decoder import Decoder, DecodeSettings, spans_of
from ttt.sampling.decoder.session import Session
from ttt.sampling.samplers.length import Fixed, UntilEoa
from ttt.types import Example, LogitsRequest, Prompt

V = tiny_tokenizer().vocab


def prompts(seed, n=4):
    """Chats of different lengths; some users speak."""
    rng = np.random.default_rng(seed)
    made = []
    for i in range(n):
        words = str(rng.choice(SENTENCES))
        user = [text(words[: rng.integers(1, len(words))])]
        if i % 2:
            user.append(audio(rng.integers(0, 32, size=rng.integers(1, 12)), "user"))
        example = chat(f"p{seed}_{i}", user, [])
        stream = encode_example(Example(example.uid, example.turns[:-1]), tiny_tokenizer(), open_answer=True)
        made.append(Prompt(stream.uid, stream.ids.tolist(), stream.content.tolist()))
    return made


def talker(kind="qwen2", seed=0):
    """A random model that likes to open spans, to close them and to end."""
    return tiny_model(
        kind, seed=seed, bias={V.soa_id: 2.5, V.soa_last_id: 2.5, V.im_end_id: 2.0, V.eoa_id: 1.5, V.eoa_last_id: 1.5}
    )


def decoder(model=None, mask=None, sampler="blockwise", s=None, **settings):
    fields = (
        {"block_length": 5, "gen_length": 20, "diffusion_steps": 12, **(s or {})}
        if sampler == "blockwise"
        else (s or {})
    )
    return Decoder(
        model or talker(), mask or Hybrid(), SAMPLER.build({"name": sampler, **fields}, "s"),
        DecodeSettings(**{"max_tokens": 24, **settings}),
    )  # fmt: skip


def ids_of(d, some):
    return [g.ids for g in d.generate(some)]


VARIANTS = [
    ("blockwise", Hybrid(), {}, {}), ("blockwise", Hybrid(), {"temperature": 0.8}, {"temperature": 0.9, "top_p": 0.95}),
    ("blockwise", Hybrid(bidirectional_prompt_audio=False), {"remask": "random"}, {}),
    ("ar", Causal(), {}, {}), ("ar", Causal(), {"temperature": 0.7, "top_k": 9}, {"temperature": 1.0}),
]  # fmt: skip


@pytest.mark.parametrize(
    "kind, seed, variant",
    [
        *((kind, seed, 0) for kind in ("qwen2", "llama") for seed in range(3)), *(("qwen2", seed, 1) for seed in range(3)),
        ("llama", 0, 2), ("qwen2", 1, 3), ("llama", 2, 4),
    ],
)  # fmt: skip
def test_cached_uncached_batched_and_alone_are_identical(kind, seed, variant):
    sampler, mask, fields, settings = VARIANTS[variant]
    model, some = talker(kind, seed), prompts(seed, 3)
    assert len({len(p.ids) for p in some}) == 3, "shorter prompts are padded in the batch"

    def run(some, cache):
        return ids_of(decoder(model, mask, sampler, fields, cache=cache, **settings), some)

    reference = [run([p], "none")[0] for p in some]
    assert any(set(i) & {V.soa_id, V.soa_last_id} for i in reference), "the comparison must see spans"
    assert run(some, "none") == reference
    assert run(some[::-1], "exact") == reference[::-1]
    assert run(some[1:2], "exact") == reference[1:2]


@pytest.mark.parametrize("strict", [True, False])
def test_official_mode_caches_exactly_too(strict):
    some = prompts(5)
    on, off = (ids_of(decoder(cache=c, strict=strict), some) for c in ("exact", "none"))
    assert on == off


def test_an_uncacheable_mask_goes_through_the_cache():
    some = prompts(1)
    on, off = (ids_of(decoder(mask=Full(), cache=c), some) for c in ("exact", "none"))
    assert on == off and any(on)


def test_session_equals_one_plain_forward():
    """Logits after any history of appends equal a forward over the whole row with the dense mask."""
    from ttt.masks.materialize import materialize
    from ttt.types import ModelInputs

    model = tiny_model()
    g, some = gen(3), prompts(2, 2)
    with torch.no_grad():
        session = Session(model, Hybrid(), some, "exact", room=8)
        for step in range(8):
            tail = torch.randint(V.code_start, V.code_stop, (2, 3), generator=g)
            (got,) = session.run([LogitsRequest(torch.arange(2), tail, torch.arange(3).expand(2, 3), 3)])
            for row in range(2):
                ids = torch.tensor([session.row(row) + tail[row].tolist()])
                n = ids.shape[1]
                layout = layout_of(ids[0].tolist(), V.audio_start, len(some[row].ids))
                mask = materialize(Hybrid(), layout, "sdpa", torch.float32)
                whole = model(ModelInputs(ids, torch.arange(n)[None], mask, torch.arange(n - 3, n)))
                assert torch.allclose(got[row], whole, atol=1e-4)  # float32, other order of sums
            for row in range(2 if step % 2 else 1):  # rows drift apart
                new = torch.randint(0, V.audio_start, (1 + step % 3,), generator=g) if step % 3 else tail[row, :2]
                session.append(row, new)


def test_streaming_events_concatenate_to_generate():
    some = prompts(3)
    got = {i: [] for i in range(len(some))}
    ended = set()
    for event in decoder().events(some):
        assert event.row not in ended, "nothing comes after the end"
        got[event.row] += event.ids
        if event.kind == "end":
            ended.add(event.row)
    assert [tuple(i) for i in got.values()] == ids_of(decoder(), some) and ended == set(got)


def test_strict_answers_are_well_formed():
    for seed in range(3):
        for ids in ids_of(decoder(talker(seed=seed), temperature=1.0, s={"temperature": 1.0}), prompts(seed)):
            opener = None
            for token in ids:
                assert token not in (V.mask_id, V.audio_start, V.pad_id, V.im_start_id, V.user_end_id)
                if opener is None:
                    assert not V.is_audio(token)
                    opener = token if token in (V.soa_id, V.soa_last_id) else None
                else:
                    assert V.is_audio(token)
                    if token in (V.eoa_id, V.eoa_last_id):
                        assert token == (V.eoa_last_id if opener == V.soa_last_id else V.eoa_id)
                        opener = None
            assert V.im_end_id not in ids[:-1]


@pytest.mark.parametrize("sampler", ["blockwise", "ar"])
@pytest.mark.parametrize("length", [UntilEoa(), UntilEoa(3), Fixed(6)], ids=str)
@pytest.mark.parametrize("max_tokens", [1, 2, 3, 7, 20])
def test_max_tokens_is_never_exceeded_in_strict_mode(sampler, length, max_tokens):
    model = tiny_model(bias={V.soa_id: 6.0, V.im_end_id: -50.0, V.eoa_id: -3.0})
    for g in decoder(model, sampler=sampler, max_tokens=max_tokens, length=length).generate(prompts(4, 2)):
        assert len(g.ids) == max_tokens and g.stopped == "length"


def test_length_rules():
    model = tiny_model(bias={V.soa_id: 6.0, V.im_end_id: -50.0})
    for sampler in ("blockwise", "ar"):
        for ids in ids_of(decoder(model, sampler=sampler, max_tokens=60, length=Fixed(6)), prompts(4)):
            spans = [s for s in spans_of(ids, tiny_tokenizer()) if s.kind == "audio"]
            assert len(spans) > 2 and all(len(s.codes) == 6 for s in spans[:-1]), "max_tokens may cut the last one"


def test_stop_reasons_and_counts():
    model = tiny_model(bias={V.im_end_id: 50.0})
    (g,) = decoder(model).generate(prompts(1, 1))
    assert g.ids == (V.im_end_id,) and g.stopped == "im_end" and g.calls == {"ar": 1, "diffusion": 0}
    assert g.text == "" and g.codes.shape == (0, 1) and g.first_block_s is None


@pytest.mark.parametrize("owed", [0, 2])
def test_text_tokens_after_audio(owed):
    """A model that wants nothing but a span first and the end afterwards still owes ``owed`` text tokens."""
    model = tiny_model()
    head, texts = model.head, []

    def biased(hidden, ids):
        logits = head(hidden, ids)
        if ids.start <= V.soa_id < ids.stop:
            logits[..., (V.soa_id if not texts else V.im_end_id) - ids.start] += 100.0
            texts.append(1)
        return logits

    model.head = biased
    ids = list(
        ids_of(decoder(model, min_text_tokens_after_audio=owed, max_tokens=60, length=Fixed(3)), prompts(0, 1))[0]
    )
    assert ids[0] == V.soa_id and ids[4] == V.eoa_id and ids[-1] == V.im_end_id and len(ids) == 5 + owed + 1


@pytest.mark.parametrize("mode", ["mask_all", "mask_prompt_content"])
def test_guidance_runs_and_batches(mode):
    model, some = talker(), prompts(2, 2)
    d = decoder(model, s={"cfg_scale": 1.5, "cfg_mode": mode}, cache="exact", max_tokens=20)
    together = ids_of(d, some)
    assert together == [ids_of(d, [p])[0] for p in some]
    assert together == ids_of(decoder(model, s={"cfg_scale": 1.5, "cfg_mode": mode}, cache="none", max_tokens=20), some)


def test_guidance_without_weight_is_no_guidance():
    assert ids_of(decoder(s={"cfg_scale": 0.0}), prompts(1)) == ids_of(decoder(), prompts(1))
    strong = [
        ids_of(decoder(s={"cfg_scale": 4.0, "cfg_mode": m}), prompts(1)) for m in ("mask_all", "mask_prompt_content")
    ]
    assert strong[0] != ids_of(decoder(), prompts(1))


def test_training_after_generating():
    import copy

    from ttt.model.lm import SpeechTextLM

    model = SpeechTextLM(copy.deepcopy(tiny_hf()), tiny_tokenizer()).train()
    decoder(model).generate(prompts(0))
    assert model.training
    objective = OBJECTIVE.build({"name": "ttt", "strategies": []}, "o")
    result = objective.terms(model, objective.plan(random_batch(), gen()))
    sum(t.scale * t.sum / t.count for t in result.terms.values()).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_nothing_to_do_and_impossible_settings():
    assert decoder().generate([]) == []
    with pytest.raises(ConfigError, match="^max_tokens: must be >= 1"):
        decoder(max_tokens=0)
    with pytest.raises(ConfigError, match="^cache: no 'prompts'. Choices: exact, block, dual, none"):
        decoder(cache="prompts")


@pytest.mark.parametrize("attention", ["eager", "flex_attention"])
def test_the_attention_of_training_does_not_matter(attention):
    """Rows are attended by the decoder's own attention; the model's stays what it was."""
    some, model = prompts(0, 2), talker()
    expected = ids_of(decoder(model), some)
    config = model.hf.config
    config._attn_implementation, before = attention, config._attn_implementation
    try:
        assert ids_of(decoder(model), some) == expected and model.attention == attention
    finally:
        config._attn_implementation = before


def test_seed_and_uid_decide_the_draws():
    some = prompts(1)
    drawn = [ids_of(decoder(temperature=1.0, seed=s), some) for s in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize("sampler, mask", [("blockwise", Hybrid()), ("ar", Causal())])
def test_temperature_0_is_greedy_whatever_top_k_and_top_p_say(sampler, mask):
    some, model = prompts(1), talker()
    greedy = ids_of(decoder(model, mask, sampler), some)
    for cut in ({"top_k": 5}, {"top_p": 0.9}, {"top_k": 5, "top_p": 0.9}):
        assert ids_of(decoder(model, mask, sampler, cut if sampler == "ar" else {}, **cut), some) == greedy


def test_the_official_program_draws_text_at_temperature_0_with_top_k():
    # inference_TtT.py: sampling is on if temperature > 0 or top-k or top-p is set; then softmax(logits / (temperature or 1))
    some, model = prompts(1, 8), talker(seed=2)
    official = ids_of(decoder(model, strict=False, top_k=20), some)
    assert official == ids_of(decoder(model, strict=False, top_k=20, temperature=1.0), some)
    assert official != ids_of(decoder(model, strict=False), some)


def test_spans_of():
    t = tiny_tokenizer()
    c = V.code_start
    ids = [
        *t.encode("hi"),
        V.soa_id,
        c + 1,
        c + 2,
        V.eoa_id,
        *t.encode(" so"),
        V.soa_last_id,
        c + 3,
        V.eoa_last_id,
        V.im_end_id,
    ]
    got = [(s.text if s.kind == "text" else (s.style, s.codes[:, 0].tolist())) for s in spans_of(ids, t)]
    assert got == ["hi", ("span", [1, 2]), " so", ("last", [3])]
    cut = [(s.style, s.codes[:, 0].tolist()) for s in spans_of([V.soa_last_id, c + 4], t)]
    assert cut == [("open_last", [4])]
