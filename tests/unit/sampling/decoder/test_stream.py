"""Streams: put together, text, codes and sound are those of the whole answer; leaving early leaves nothing behind."""

import numpy as np
import pytest
import torch

from tests.conftest import SENTENCES, audio, chat, text, tiny_model, tiny_tokenizer
from ttt.audio.codecs.toy import Toy
from ttt.data.encode import encode_example
from ttt.errors import ConfigError
from ttt.masks.library import Causal, Full, Hybrid
from ttt.registry.families import SAMPLER
from ttt.sampling.decoder.decoder import Decoder, DecodeSettings
from ttt.sampling.decoder.stream import stream
from ttt.sampling.samplers.length import Fixed
from ttt.types import AudioCodes, Example, Prompt

V = tiny_tokenizer().vocab
SAMPLERS = {
    "blockwise": {"name": "blockwise", "block_length": 5, "gen_length": 20, "diffusion_steps": 12},
    "threshold": {"name": "threshold", "block_length": 5, "gen_length": 20, "threshold": 0.2},
    "entropy_bound": {"name": "entropy_bound", "block_length": 5, "gen_length": 20, "gamma": 1.0},
    "first_hitting": {"name": "first_hitting", "block_length": 4, "gen_length": 20},
    "fixed_length": {"name": "fixed_length", "gen_length": 12, "num_iterations": 4},
    "semi_ar_origin": {
        "name": "semi_ar_origin", "gen_length": 16, "initial_length": 4, "length_increment": 4, "num_iterations": 3,
    },
    "semi_ar_padding": {"name": "semi_ar_padding", "gen_length": 16, "initial_length": 4, "num_iterations": 3},
    "ar": {"name": "ar", "temperature": 1.0},
    "whole answer": {"name": "blockwise", "block_length": 8, "gen_length": 48, "diffusion_steps": 24, "canvas": "answer"},
}  # fmt: skip


def talker(seed=0, **bias):
    """A random model that likes to open spans, to close them and to end."""
    likes = {V.soa_id: 4.5, V.soa_last_id: 3.5, V.im_end_id: 0.5, V.eoa_id: 1.5, V.eoa_last_id: 1.5}
    return tiny_model(seed=seed, bias={**likes, **{getattr(V, k): b for k, b in bias.items()}})


def prompts(seed, n=3):
    rng = np.random.default_rng(seed)
    made = []
    for i in range(n):
        words = str(rng.choice(SENTENCES))
        user = [text(words[: rng.integers(1, len(words))]), audio(rng.integers(0, 32, size=rng.integers(1, 9)), "user")]
        example = chat(f"p{seed}_{i}", user[: 1 + i % 2], [])
        s = encode_example(Example(example.uid, example.turns[:-1]), tiny_tokenizer(), open_answer=True)
        made.append(Prompt(s.uid, s.ids.tolist(), s.content.tolist()))
    return made


def decoder(sampler="blockwise", model=None, **settings):
    mask = {"ar": Causal(), "whole answer": Full()}.get(sampler, Hybrid())
    drawn = {} if sampler == "whole answer" else {"temperature": 1.0}
    built = SAMPLER.build(SAMPLERS[sampler], "s")
    return Decoder(model or talker(), mask, built, DecodeSettings(**{"max_tokens": 40, **drawn, **settings}))


def collected(events, n):
    """What the events of each of n rows add up to; checks their order."""
    rows = [{"text": {}, "codes": {}, "sound": [], "sound_s": 0.0, "kinds": [], "end": None} for _ in range(n)]
    last_s, calls = 0.0, [0] * n
    for e in events:
        row = rows[e.row]
        assert row["end"] is None, "nothing follows the end"
        assert e.elapsed_s >= last_s and e.calls >= calls[e.row]
        last_s, calls[e.row] = e.elapsed_s, e.calls
        row["kinds"].append(e.kind)
        if e.kind == "text":
            assert e.text
            row["text"][e.span] = row["text"].get(e.span, "") + e.text
        elif e.kind == "block":
            row["codes"].setdefault(e.span, []).extend(e.codes.tolist())
        elif e.kind == "sound":
            assert len(e.samples) and e.rate_hz == 16_000 and e.start_s == pytest.approx(row["sound_s"])
            row["sound_s"] += len(e.samples) / e.rate_hz
            row["sound"].append(e.samples)
        else:
            row["end"] = e.generation
    return rows


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_pieces_add_up_to_the_answer(sampler, strict):
    d, codec, some = decoder(sampler, strict=strict), Toy(), prompts(3)
    expected = d.generate(some)
    rows = collected(stream(d, some, codec, (3, 8)), len(some))
    for e, row in zip(expected, rows, strict=True):
        made = row["end"]
        assert (made.uid, made.ids, made.stopped) == (e.uid, e.ids, e.stopped) and dict(made.calls) == dict(e.calls)
        assert row["text"] == {i: s.text for i, s in enumerate(e.spans) if s.kind == "text"}
        spans = {i: s.codes.tolist() for i, s in enumerate(e.spans) if s.kind == "audio" and len(s.codes)}
        assert row["codes"] == spans
        (whole,) = codec.decode([AudioCodes(e.codes, 50.0, "toy")])
        np.testing.assert_array_equal(np.concatenate([*row["sound"], np.zeros(0, np.float32)]), whole.samples)
        assert made.text == e.text and (made.first_block_s is None) == (not spans)
    if strict and sampler != "whole answer":
        assert sum(len(r["codes"]) for r in rows) > 1, "the comparison must see several spans"


@pytest.mark.parametrize("sampler", ["blockwise", "ar"])
def test_sound_comes_before_the_answer_is_over(sampler):
    """Of a span of thirty codes the first four are heard while most are not written yet."""
    model = talker(soa_id=8.0, im_end_id=-50.0, eoa_id=-9.0)
    d = decoder(sampler, model, max_tokens=64, length=Fixed(18))
    kinds = [e.kind for e in stream(d, prompts(1, 1), Toy(), (4, 8, 16))]
    first = kinds.index("sound")
    assert kinds[:first].count("block") == (4 if sampler == "ar" else 1)
    assert kinds.count("sound") > 3 and "block" in kinds[first + 1 :] and kinds[-1] == "end"


def test_the_first_sound_takes_only_the_calls_it_needs():
    """Latency is counted in network calls here, which no machine changes: a smaller first chunk, an earlier sound."""
    d = decoder("ar", talker(soa_id=8.0, im_end_id=-50.0), max_tokens=60, length=Fixed(40))
    calls = {}
    for first in (2, 10, 30):
        event = next(e for e in stream(d, prompts(1, 1), Toy(), (first, 50)) if e.kind == "sound")
        calls[first] = event.calls
    assert calls == {2: calls[2], 10: calls[2] + 8, 30: calls[2] + 28}


def test_an_answer_without_audio():
    d = decoder(model=talker(soa_id=-50.0, soa_last_id=-50.0))
    (row,) = collected(stream(d, prompts(1, 1), Toy()), 1)
    assert set(row["kinds"]) == {"text", "end"} and not row["sound"] and row["end"].first_block_s is None


def test_without_a_codec_there_is_no_sound():
    kinds = {e.kind for e in stream(decoder(), prompts(1), None)}
    assert kinds == {"text", "block", "end"}


def test_nothing_asked():
    assert list(stream(decoder(), [], Toy())) == []


@pytest.mark.parametrize("sampler", ["blockwise", "ar"])
@pytest.mark.parametrize("leave_after", ["text", "block", "sound"])
def test_leaving_early(sampler, leave_after):
    """The model is back in its mode, gradients are on, and the next answer is what it would have been."""
    model = talker(soa_id=5.0, im_end_id=-9.0)
    d = decoder(sampler, model, max_tokens=60)
    some = prompts(2, 1)
    expected = d.generate(some)[0].ids
    model.train()
    try:
        events = stream(d, some, Toy(), (2,))
        for event in events:
            assert not model.training
            if event.kind == leave_after:
                break
        else:
            pytest.fail(f"no {leave_after} came")
        events.close()
        assert model.training and torch.is_grad_enabled() and torch.ones(1, requires_grad=True).mul(2).requires_grad
        assert next(events, None) is None
        abandoned = stream(d, some, Toy(), (2,))
        next(abandoned)
        del abandoned
        assert model.training
        never_begun = stream(d, some, Toy())
        del never_begun
    finally:
        model.eval()
    assert d.generate(some)[0].ids == expected


def test_gradients_are_as_they_were_between_events():
    events = stream(decoder(), prompts(1, 1), Toy())
    next(events)
    assert torch.is_grad_enabled()
    events.close()


def test_another_codec_is_refused_before_anything_runs():
    with pytest.raises(
        ConfigError, match=r"codec: 'toy-16x320@16000' has 1 codebook\(s\) of 16 codes, the model's vocabulary 1 of 32"
    ):
        stream(decoder(), prompts(1, 1), Toy(num_codes=16))
    with pytest.raises(ConfigError, match="chunk sizes"):
        stream(decoder(), prompts(1, 1), Toy(), (0,))


@pytest.mark.parametrize("size", [1, 2, 3, 50])
def test_frames_of_several_books_come_whole(size):
    """Ids that arrive in any pieces give the spans of `spans_of`: a frame when its last codebook is there, half frames never."""
    import dataclasses
    from types import SimpleNamespace

    from ttt.sampling.decoder.decoder import DecodeEvent, spans_of

    vocab = dataclasses.replace(V, num_codebooks=2, num_codes=16)
    tokenizer = SimpleNamespace(vocab=vocab, decode=tiny_tokenizer().decode)
    c, hi = V.code_start, tiny_tokenizer().encode("hi")
    ids = [*hi, V.soa_id, c, c + 17, c + 3, c + 18, c + 5, V.eoa_id, *hi, V.soa_last_id, c + 2, c + 16, V.eoa_last_id]

    def events(prompts):
        for at in range(0, len(ids), size):
            yield DecodeEvent(0, "block", tuple(ids[at : at + size]))
        yield DecodeEvent(0, "end", (), "im_end")

    fake = SimpleNamespace(model=SimpleNamespace(tokenizer=tokenizer), events=events, calls_of=lambda row: {})
    (row,) = collected(stream(fake, [Prompt("p", [])]), 1)
    spans = spans_of(ids, tokenizer)
    assert row["codes"] == {1: [[0, 1], [3, 2]], 3: [[2, 0]]}
    assert row["codes"] == {i: s.codes.tolist() for i, s in enumerate(spans) if s.kind == "audio"}
    assert row["text"] == {0: "hi", 2: "hi"} and row["end"].spans[1].codes.shape == (2, 2)
