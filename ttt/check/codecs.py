"""What a codec owes.  A codec that learns is fitted on a few seconds of coloured noise unless it has its weights."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import tempfile
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from ttt.audio.loading import load_plugin
from ttt.check.core import PREPARE, Broken, NotSaid, need, prop
from ttt.errors import ConfigError, DataError
from ttt.interfaces import Codec, TrainableCodec
from ttt.registry import name_of
from ttt.types import AudioCodes, Waveform


@lru_cache(maxsize=64)
def noise(rate_hz: int, duration_s: float, seed: int = 0) -> Waveform:
    """Noise whose colour changes every tenth of a second."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(round(rate_hz * duration_s))
    step = max(1, rate_hz // 10)
    for start in range(0, len(x), step):
        width = int(rng.integers(1, 20))
        part = x[start : start + step]
        part[:] = np.convolve(part, np.ones(width) / width, "same")[: len(part)]  # the last one may be shorter than ``width``
    return Waveform((0.1 * x).astype(np.float32), rate_hz)


def prepare(codec: Codec) -> Codec:
    """Weights loaded, or learnt on noise.  Raises the codec's own `CheckpointError`, `ConfigError` for one that does nothing."""
    if isinstance(codec, TrainableCodec) and not getattr(codec, "path", ""):
        codec.fit([noise(codec.encode_rate_hz, 0.7, seed) for seed in range(10)], seed=1)
        return codec
    codec = load_plugin(codec, "codec")
    if not _can(codec, "encode") and not _can(codec, "decode"):
        raise ConfigError(f"codec {name_of(codec)!r} cannot be checked: it neither encodes nor decodes")
    return codec


PREPARE["codec"] = prepare


def _can(codec: Codec, verb: str) -> bool:
    """Does it ``encode``, or ``decode``?  A codec of one direction refuses the other with a `ConfigError`."""
    try:
        getattr(codec, verb)([])
    except ConfigError:
        return False
    return True


def _must(codec: Codec, verb: str) -> None:
    if not _can(codec, verb):
        raise NotSaid(f"it does not {verb}")


def _frames(codec: Codec, wave: Waveform) -> int:
    return int(np.ceil(round(len(wave.samples) * codec.frame_rate_hz / codec.encode_rate_hz, 6)))


def _codes(codec: Codec, duration_s: float = 1.5, seed: int = 0) -> AudioCodes:
    """Codes of noise; of a codec that only decodes, any codes."""
    if _can(codec, "encode"):
        return codec.encode([noise(codec.encode_rate_hz, duration_s, seed)])[0]
    shape = (int(np.ceil(duration_s * codec.frame_rate_hz)), codec.num_codebooks)
    ids = np.random.default_rng(seed).integers(0, codec.num_codes, size=shape).astype(np.int32)
    return AudioCodes(ids, codec.frame_rate_hz, codec.codec_id)


@prop("codec", "facts", "rates and sizes are positive, codec_id begins with the registered name")
def _facts(codec: Codec) -> None:
    for name in ("rate_hz", "encode_rate_hz", "frame_rate_hz", "num_codes", "num_codebooks"):
        need(getattr(codec, name) > 0, f"{name} is {getattr(codec, name)}")
    name = name_of(codec)
    need(codec.codec_id.startswith(name), f"codec_id {codec.codec_id!r} does not begin with {name!r}")


@prop("codec", "codes", "encode gives int32 [F, Q] inside the codebook, frames enough to cover the sound")
def _encode(codec: Codec) -> None:
    _must(codec, "encode")
    for duration_s in (0.06, 0.5, 1.003):
        wave = noise(codec.encode_rate_hz, duration_s)
        (codes,) = codec.encode([wave])
        where, ids = f"{duration_s} s of noise: ", codes.ids
        good = ids.dtype == np.int32 and ids.shape[1] == codec.num_codebooks
        need(good, f"{where}codes are {ids.dtype} {list(ids.shape)}, not int32 [F, {codec.num_codebooks}]")
        need(codes.frames == _frames(codec, wave), f"{where}{codes.frames} frames, {_frames(codec, wave)} cover it")
        need(
            ids.min() >= 0 and ids.max() < codec.num_codes,
            f"{where}codes lie in [{ids.min()}, {ids.max()}], the codebook has {codec.num_codes}",
        )
        facts = (codes.frame_rate_hz, codes.codec)
        need(facts == (codec.frame_rate_hz, codec.codec_id), f"{where}codes say {facts}")


@prop("codec", "sound", "decode gives finite samples in [-1, 1], as many as the frames last")
def _decode(codec: Codec) -> None:
    _must(codec, "decode")
    rng = np.random.default_rng(0)
    for frames in (0, 1, 9, 40):
        ids = rng.integers(0, codec.num_codes, size=(frames, codec.num_codebooks)).astype(np.int32)
        lasts = None if codec.code_rate_hz else rng.integers(1, 5, size=frames).astype(np.int32)
        codes = AudioCodes(ids, codec.frame_rate_hz, codec.codec_id, lasts)
        (sound,) = codec.decode([codes])
        expected = round(codes.frames * codec.rate_hz / codec.frame_rate_hz)
        need(sound.rate_hz == codec.rate_hz, f"the sound's rate is {sound.rate_hz}, the codec's {codec.rate_hz}")
        given = len(sound.samples)
        need(given == expected, f"{codes.frames} frames give {given} samples instead of {expected}")
        (sound,) = codec.decode([AudioCodes(ids, codec.frame_rate_hz, codec.codec_id)])
        expected = round(codec.duration_s(ids) * codec.rate_hz)
        need(len(sound.samples) == expected, f"{frames} codes give {len(sound.samples)} samples, duration_s says {expected}")
        loud = float(np.abs(sound.samples).max(initial=0.0))
        need(np.isfinite(sound.samples).all() and loud <= 1, f"{frames} frames: the largest sample is {loud}")


@prop("codec", "deterministic", "encoding and decoding twice gives the same")
def _twice(codec: Codec) -> None:
    one, two = _codes(codec, 0.8), _codes(codec, 0.8)
    at = np.argwhere(one.ids != two.ids)[:, 0] if one.ids.shape == two.ids.shape else np.array([0])
    for frame in at.tolist()[:1]:
        raise Broken(f"the codes of one sound differ from frame {frame} on when it is encoded again")
    if _can(codec, "decode"):
        a, b = codec.decode([one])[0].samples, codec.decode([one])[0].samples
        need(a.shape == b.shape and np.allclose(a, b, atol=1e-5), "the same codes sound different when decoded again")


@prop("codec", "company", "a recording's codes and sound do not depend on the others of its batch")
def _batched(codec: Codec) -> None:
    durations_s = (0.3, 0.8, 0.5)
    alone = [_codes(codec, duration_s, seed) for seed, duration_s in enumerate(durations_s)]
    if any(not np.array_equal(a.ids, _codes(codec, d, i).ids) for i, (a, d) in enumerate(zip(alone, durations_s))):
        raise NotSaid("it is not deterministic, so recordings cannot be compared")
    if _can(codec, "encode"):
        together = codec.encode([noise(codec.encode_rate_hz, d, seed) for seed, d in enumerate(durations_s)])
        for number, (one, codes) in enumerate(zip(alone, together, strict=True)):
            need(np.array_equal(one.ids, codes.ids), f"recording {number} of 3 has other codes alone")
        need(codec.encode([]) == [], "nothing in does not give nothing out")
    if _can(codec, "decode"):
        for number, (codes, sound) in enumerate(zip(alone, codec.decode(alone), strict=True)):
            alone_sound = codec.decode([codes])[0].samples
            same = alone_sound.shape == sound.samples.shape and np.allclose(alone_sound, sound.samples, atol=1e-4)
            need(same, f"codes {number} of 3 sound different alone")  # batched transforms round differently
        need(codec.decode([]) == [], "nothing in does not give nothing out")


@prop("codec", "stream", "streaming gives as many samples as one shot, the same if `exact_stream`, however it is cut")
def _stream(codec: Codec) -> None:
    _must(codec, "decode")
    codes = dataclasses.replace(_codes(codec), durations=None)  # a stream gets none
    expected = codec.decode([codes])[0].samples
    for size in (1, 7, 1000):
        stream = codec.open_stream()
        parts = [stream.push(codes.ids[i : i + size]) for i in range(0, len(codes.ids), size)] + [stream.finish()]
        sound = np.concatenate(parts)
        where = f"pushed {size} frames at a time: "
        need(len(sound) == len(expected), f"{where}{len(sound)} samples, one shot {len(expected)}")
        need(sound.dtype == np.float32 and np.isfinite(sound).all(), f"{where}not finite float32")
        need(len(stream.finish()) == 0, f"{where}finish gives samples twice")
        if getattr(codec, "exact_stream", False):
            off = np.abs(sound - expected)
            for at in np.flatnonzero(off > 1e-4).tolist()[:1]:
                raise Broken(f"{where}sample {at} is off by {off[at]:.3g}")


@prop("codec", "refusals", "other sample rates, empty sounds and codes outside the codebook are refused with a DataError")
def _refusals(codec: Codec) -> None:
    bad: list[tuple[str, Callable[[], Any]]] = []
    if _can(codec, "encode"):
        wrong_rate, empty = noise(codec.encode_rate_hz + 1, 0.5), Waveform(np.zeros(0, np.float32), codec.encode_rate_hz)
        bad.append(("a recording at another rate", partial(codec.encode, [wrong_rate])))
        bad.append(("an empty recording", partial(codec.encode, [empty])))
    for code in (-1, codec.num_codes) if _can(codec, "decode") else ():
        ids = np.full((1, codec.num_codebooks), code, dtype=np.int32)
        codes = AudioCodes(ids, codec.frame_rate_hz, codec.codec_id)
        bad.append((f"code {code} of a codebook of {codec.num_codes}", partial(codec.decode, [codes])))
    for what, attempt in bad:
        try:
            attempt()
        except DataError:
            continue
        raise Broken(f"{what} is accepted")


@prop("codec", "precision", "half precision is refused with a ConfigError, or gives codes and sound of the same codec")
def _precision(codec: Codec) -> None:
    if "dtype" not in inspect.signature(codec.load).parameters:
        raise NotSaid("its load takes no dtype")
    half = copy.copy(codec)
    with tempfile.TemporaryDirectory() as folder:
        if isinstance(codec, TrainableCodec) and not getattr(codec, "path", ""):  # it was fitted here
            codec.save(Path(folder))
            half.path = folder  # type: ignore[attr-defined]
        try:
            half = half.load("cpu", "bfloat16")
        except ConfigError as error:
            raise NotSaid(f"it computes in float32 only ({error})") from error
    need(half.codec_id == codec.codec_id, f"codec_id is {half.codec_id!r} in bfloat16, {codec.codec_id!r} in float32")
    codes, wanted = _codes(half), _codes(codec)
    need(codes.frames == wanted.frames, f"codes last {codes.frames} frames, in float32 {wanted.frames}")
    if _can(codec, "decode"):
        (sound,), (exact,) = half.decode([wanted]), codec.decode([wanted])
        good = sound.samples.dtype == np.float32 and np.isfinite(sound.samples).all()
        need(good and sound.samples.shape == exact.samples.shape, "the sound is not finite float32, or of another length")


@prop("codec", "vectors", "code vectors are f32 [Q, C, E] with mean 0")
def _vectors(codec: Codec) -> None:
    vectors = codec.code_vectors()
    if vectors is None:
        raise NotSaid("it has no code vectors")
    shape = (codec.num_codebooks, codec.num_codes)
    need(vectors.dtype == np.float32 and vectors.shape[:2] == shape, f"they are {vectors.dtype} {list(vectors.shape)}")
    off = float(np.abs(vectors.mean(1)).max())
    need(off <= 1e-4, f"the mean of a dimension is {off:.3g}")
