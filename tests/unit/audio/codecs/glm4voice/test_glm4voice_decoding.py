"""Decoding in one go and as a stream: lengths, repeatability, the voice, and none of the official program's faults."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.glm4voice_folders import make_decoder_folder
from ttt.audio.codecs.glm4voice.decoder import Decoder, Voice
from ttt.errors import ConfigError, DataError

RNG = np.random.default_rng(0)
TOKENS = RNG.integers(0, 64, 40)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return make_decoder_folder(tmp_path_factory.mktemp("glm4voice"))


@pytest.fixture(scope="module")
def decoder(home) -> Decoder:
    return Decoder.load(home)


def streamed(decoder: Decoder, tokens: np.ndarray, sizes, **options) -> list[np.ndarray]:
    """What each push gives, and the rest."""
    stream, out, at = decoder.open_stream(steps=1, **options), [], 0
    for size in sizes:
        out.append(stream.push(tokens[at : at + size, None].astype(np.int32)))
        at += size
    assert at == len(tokens)
    return [*out, stream.finish()]


def test_rates(decoder):
    assert (decoder.rate_hz, decoder.frame_rate_hz, decoder.num_codes) == (22050, 12.5, 64)
    for tokens in (1, 5, 6, 7, 33, 3392, 20_000):
        assert decoder.frames(tokens) == tokens * 441 // 64
        assert decoder.samples(tokens) == 1764 * tokens


def test_sound_is_as_long_as_its_tokens(decoder):
    for tokens in (1, 2, 7):
        sound = decoder.decode(TOKENS[:tokens], steps=1)
        spoken = decoder.frames(tokens) * 256
        assert sound.dtype == np.float32 and sound.shape == (1764 * tokens,)
        assert sound[:spoken].all() and not sound[spoken:].any()
    assert decoder.decode(TOKENS[:0]).shape == (0,)


def test_the_same_tokens_sound_the_same(decoder):
    """The official program leaves dropout on while it decodes."""
    first = decoder.decode(TOKENS[:7], steps=2)
    torch.manual_seed(5)
    np.testing.assert_array_equal(decoder.decode(TOKENS[:7], steps=2), first)
    np.testing.assert_array_equal(streamed(decoder, TOKENS[:7], (7,))[0], streamed(decoder, TOKENS[:7], (7,))[0])
    assert not any(module.training for model in (decoder.flow, decoder.hift) for module in model.modules())


def test_global_generators_are_left_alone(decoder):
    """The official program seeds torch's with 42 in every call."""
    torch.manual_seed(7)
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()
    decoder.decode(TOKENS[:3], steps=1)
    streamed(decoder, TOKENS[:8], (8,))
    assert torch.equal(torch.get_rng_state(), torch_state)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state[1])


@pytest.mark.parametrize("sizes", [(10, 10, 10, 10), (25, 15), (3, 3, 4, 1, 29), (40,), (7,) + (1,) * 13 + (20,)])
def test_a_stream_loses_nothing(decoder, sizes):
    """The official program loses a mel frame at each joint from the third chunk on."""
    *pushes, rest = streamed(decoder, TOKENS, sizes)
    given = np.cumsum([len(sound) for sound in pushes])
    for total, samples in zip(np.cumsum(sizes), given):  # five tokens wait to be faded, one frame to be repeated
        assert samples == max(0, decoder.frames(total) - 34 - 1) * 256
    assert given[-1] + len(rest) == 1764 * len(TOKENS)
    assert np.isfinite(np.concatenate([*pushes, rest])).all()


def test_a_stream_too_short_to_be_faded_equals_one_go(decoder):
    empty, sound = streamed(decoder, TOKENS[:5], (5,))
    assert not len(empty)
    np.testing.assert_array_equal(sound, decoder.decode(TOKENS[:5], steps=1))
    assert len(decoder.open_stream().finish()) == 0


def test_a_finished_stream_has_nothing_left(decoder):
    stream = decoder.open_stream(steps=1)
    stream.push(TOKENS[:7, None])
    assert len(stream.finish()) and not len(stream.finish())


def test_streams_work_in_and_out_of_inference_mode(decoder):
    """The official program fails on the CPU outside `torch.inference_mode`."""
    plain = streamed(decoder, TOKENS[:24], (8, 8, 8))
    stream = decoder.open_stream(steps=1)
    with torch.inference_mode():
        mixed = [stream.push(TOKENS[:8, None])]
    mixed.append(stream.push(TOKENS[8:16, None]))
    with torch.inference_mode():
        mixed.append(stream.push(TOKENS[16:24, None]))
    mixed.append(stream.finish())
    for got, want in zip(mixed, plain):
        np.testing.assert_array_equal(got, want)


def test_mel_already_given_guides_what_follows(decoder):
    """The flow is told exactly the frames that were given, and goes on behind them."""
    stream, seen = decoder.open_stream(steps=1), []
    hook = decoder.flow.register_forward_hook(lambda module, given, out: seen.append((given[0][0], given[2], out[0])))
    stream.push(TOKENS[:10, None])
    stream.push(TOKENS[10:20, None])
    stream.push(TOKENS[20:30, None])
    hook.remove()
    frames = [decoder.frames(n) - 34 for n in (0, 10, 20)]
    assert [known.shape[1] for _, known, _ in seen] == [0, *frames[1:]]
    assert [len(tokens) for tokens, _, _ in seen] == [10, 20, 30]
    assert torch.equal(seen[2][1][:, : frames[1]], seen[1][1])
    # of the second call, frames behind the faded ones are kept as they are
    assert torch.equal(seen[2][1][:, frames[1] + 34 :], seen[1][2][:, 34 : frames[2] - frames[1]])
    held = seen[0][2][:, -34:]
    fade = torch.hamming_window(68, periodic=False)
    plain = decoder.flow(
        [seen[1][0]], [noise_of(decoder, 20)], seen[1][1], torch.zeros(192), 1, decoder.guidance
    )[0][:, :34]  # fmt: skip
    torch.testing.assert_close(
        seen[2][1][:, frames[1] : frames[1] + 34], plain * fade[:34] + held * fade[34:], rtol=0, atol=1e-5
    )


def test_a_frame_goes_through_the_vocoder_twice(decoder):
    """With the same source, so that sines go on where they were."""
    stream, seen = decoder.open_stream(steps=1), []
    hook = decoder.hift.register_forward_hook(lambda module, given, out: seen.append((given[0], given[2], out[1])))
    for start in (0, 10):
        stream.push(TOKENS[start : start + 10, None])
    stream.finish()
    hook.remove()
    assert seen[0][1].shape == (1, 0)
    for (mel, _, source), (next_mel, start, _) in zip(seen, seen[1:]):
        assert torch.equal(next_mel[..., :1], mel[..., -1:]) and torch.equal(start, source[:, -256:])


def noise_of(decoder: Decoder, tokens: int) -> torch.Tensor:
    return torch.randn(1, 80, decoder.frames(tokens), generator=torch.Generator().manual_seed(42))[0]


def test_long_streams_forget_what_lies_far_back(decoder):
    tokens, seen = np.resize(TOKENS, 96), []
    hook = decoder.flow.register_forward_hook(
        lambda module, given, out: seen.append((len(given[0][0]), given[2].shape[1]))
    )
    *pushes, rest = streamed(decoder, tokens, (12,) * 8, past_tokens=20)
    hook.remove()
    assert max(tokens for tokens, _ in seen) <= 20 + 9 + 12 and max(frames for _, frames in seen) < decoder.frames(30)
    assert sum(map(len, pushes)) + len(rest) == 1764 * 96
    assert sum(map(len, pushes)) == (decoder.frames(96) - 35) * 256


def test_rows_of_a_batch_sound_as_alone(decoder):
    rows = [TOKENS[:7], TOKENS[7:9], TOKENS[:0], TOKENS[9:14]]
    together = decoder.decode_batch(rows, steps=2)
    assert [len(sound) for sound in together] == [1764 * len(row) for row in rows]
    for row, sound in zip(rows, together):
        np.testing.assert_allclose(sound, decoder.decode(row, steps=2), rtol=0, atol=1e-2)  # phases add up


def test_big_batches_go_through_the_flow_in_parts(decoder, monkeypatch):
    sizes = []
    hook = decoder.flow.register_forward_hook(lambda module, given, out: sizes.append([n.shape[1] for n in given[1]]))
    monkeypatch.setattr("ttt.audio.codecs.glm4voice.decoder.BATCH_FRAMES", 30)
    decoder.decode_batch([TOKENS[:n] for n in (2, 8, 1, 2)], steps=1)
    hook.remove()
    assert sizes == [[6, 13], [13], [55]]  # rows of similar length together


@pytest.fixture(scope="module")
def voice(decoder) -> Voice:
    return Voice(TOKENS[:8], RNG.normal(size=(decoder.frames(8), 80)).astype(np.float32), RNG.normal(size=192))


def test_a_voice_goes_first_and_is_not_heard(decoder, voice):
    seen = []
    hook = decoder.flow.register_forward_hook(lambda module, given, out: seen.append(given))
    sound = decoder.decode(TOKENS[8:13], voice, steps=1)
    hook.remove()
    tokens, noise, mel, speaker, *_ = seen[0]
    assert tokens[0].tolist() == TOKENS[:13].tolist()
    assert noise[0].shape == (80, decoder.frames(13))
    np.testing.assert_array_equal(mel.T, voice.mel)
    np.testing.assert_allclose(speaker, voice.speaker, rtol=1e-6)
    assert len(sound) == 1764 * 5
    assert np.abs(sound - decoder.decode(TOKENS[8:13], steps=1)).max() > 0.01
    parts = streamed(decoder, TOKENS[8:], (6, 6, 20), voice=voice, past_tokens=10)
    assert sum(map(len, parts)) == 1764 * 32


def test_voices_that_do_not_fit(decoder, voice):
    for change, message in (
        ({"mel": np.zeros((99, 80))}, "mel of the voice: 99 frames, but its 8 tokens last 55"),
        ({"mel": np.zeros((5, 79))}, "mel of the voice: expected finite numbers"),
        ({"speaker": np.zeros(3)}, "speaker of the voice"),
        ({"speaker": np.full(192, np.nan)}, "speaker of the voice"),
        ({"tokens": np.array([64])}, "code 64 is outside the codebook"),
    ):
        with pytest.raises(DataError, match=message):
            decoder.decode(TOKENS[:1], Voice(**{**vars(voice), **change}))


def test_bad_input(decoder):
    for tokens in ([64], [-1]):
        with pytest.raises(DataError, match="outside the codebook of 64"):
            decoder.decode(np.array(tokens))
        with pytest.raises(DataError, match="outside the codebook of 64"):
            decoder.open_stream().push(np.array([tokens]))
    for options in ({"steps": 0}, {"guidance": -0.1}, {"guidance": float("nan")}):
        with pytest.raises(ConfigError, match="steps must be >= 1 and guidance >= 0"):
            decoder.decode(TOKENS[:1], **options)


def test_half_precision_is_that_of_the_unet_alone(home, decoder):
    half = Decoder.load(home, dtype=torch.bfloat16)
    assert {p.dtype for p in half.flow.decoder.parameters()} == {torch.bfloat16}
    assert {p.dtype for m in (half.hift, half.flow.encoder) for p in m.parameters()} == {torch.float32}
    mels = [
        d.flow([torch.tensor(TOKENS[:6])], [noise_of(d, 6)], torch.zeros(80, 0), torch.zeros(192), 4, 0.7)[0]
        for d in (decoder, half)
    ]
    assert 0 < (mels[0] - mels[1]).abs().max() < 0.2
    assert np.isfinite(half.decode(TOKENS[:6], steps=2)).all()
