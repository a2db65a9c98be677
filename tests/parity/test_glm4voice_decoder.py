"""GLM-4-Voice's decoder, stage by stage, against numbers of the official program (``pytest -s`` prints the deviations).

Its weights are tiny and random, and its numbers were made in eval mode, which the program itself forgets.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.parity.conftest import folder, need
from ttt.audio.codecs.glm4voice.decoder import SEED, Decoder, Voice
from ttt.audio.codecs.glm4voice.files import DecoderConfig
from ttt.audio.codecs.glm4voice.flow import Flow
from ttt.audio.codecs.glm4voice.hift import Hift
from ttt.audio.weights import give_weights, without_weight_norm

HOME = "glm4voice/decoder"
# Ten times what the official program and a second implementation of it differ by (README of the folder).
ATOL = {"velocity": 2e-5, "mel": 2e-5, "f0": 1e-3, "source": 3e-4, "sound": 4e-2, "sound_of_source": 3e-5}
STAGES = 2e-5


def arrays() -> dict[str, dict[str, np.ndarray]]:
    """Case -> array -> numbers; nothing where the folder is not there."""
    path = folder() / HOME / "golden.npz"
    cases: dict[str, dict[str, np.ndarray]] = {}
    if path.is_file():
        with np.load(path) as file:
            for key in file.files:
                case, _, name = key.partition("/")
                cases.setdefault(case, {})[name] = file[key]
    return cases


CASES = arrays()
MISSING = pytest.param(None, marks=pytest.mark.skip(reason=f"no {HOME} in {folder()} (set TTT_PARITY_DIR)"))
PLAIN = [name for name, case in CASES.items() if "tokens_per_chunk" not in case] or [MISSING]
STREAMS = [name for name, case in CASES.items() if "tokens_per_chunk" in case] or [MISSING]


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return Decoder.load(need(f"{HOME}/config.yaml").parent)


LARGEST: dict[str, dict[str, float]] = {}  # case -> array -> largest deviation


@pytest.fixture(scope="module", autouse=True)
def table():
    yield
    for name, deviations in sorted(LARGEST.items()):
        print(f"\n{name}: " + ", ".join(f"{array} {value:.1e}" for array, value in deviations.items()), end="")


def close(case: str, array: str, got: torch.Tensor | np.ndarray | list, want: np.ndarray, atol: float) -> None:
    got = np.asarray(got)
    np.testing.assert_allclose(got, want, rtol=0, atol=atol, err_msg=array)
    seen = LARGEST.setdefault(case, {})
    seen[array] = max(seen.get(array, 0.0), float(np.abs(got - want).max()))


def voice_of(case: dict[str, np.ndarray]) -> Voice:
    mel, speaker = case.get("prompt_mel"), case.get("embedding")
    tokens = case.get("prompt_tokens", np.zeros(0, np.int64)).reshape(-1)
    return Voice(
        tokens, None if mel is None else mel.reshape(-1, mel.shape[-1]), None if speaker is None else speaker[0]
    )


class Seen:
    """Outputs and inputs of modules while a case is decoded."""

    def __init__(self, decoder: Decoder) -> None:
        self.calls: dict[str, list] = {}
        modules = {
            "token_embedding": decoder.flow.input_embedding, "encoder_embed": decoder.flow.encoder.embed,
            "encoder_out": decoder.flow.encoder, "encoder_proj": decoder.flow.encoder_proj,
            "speaker": decoder.flow.spk_embed_affine_layer, "mu": decoder.flow.length_regulator,
            "velocity": decoder.flow.decoder["estimator"], "f0": decoder.hift.f0_predictor,
        }  # fmt: skip
        self.hooks = [m.register_forward_hook(self.taker(name)) for name, m in modules.items()]

    def taker(self, name: str):
        return lambda module, given, result: self.calls.setdefault(name, []).append((given, result))

    def __enter__(self) -> dict[str, list]:
        return self.calls

    def __exit__(self, *error) -> None:
        for hook in self.hooks:
            hook.remove()


@pytest.mark.parametrize("name", PLAIN)
def test_every_stage(decoder, name):
    case = CASES[name]
    with Seen(decoder) as seen:
        sound = decoder.decode(case["tokens"].reshape(-1), voice_of(case))
    for stage in ("token_embedding", "encoder_embed", "encoder_out", "encoder_proj", "speaker"):
        if stage in case:
            close(name, stage, seen[stage][0][1], case[stage], STAGES)
    if "mu" in case:
        close(name, "mu", seen["mu"][0][1].mT, case["mu"], STAGES)
    (x, _, _, _, cond, _), velocity = seen["velocity"][0]
    for key, got in (("noise", x[:1]), ("cond", cond[:1])):
        if key in case:
            close(name, key, got, case[key], 0)
    for key, got in (("velocity_first_cond", velocity[:1]), ("velocity_first_uncond", velocity[1:])):
        if key in case:
            close(name, key, got, case[key], ATOL["velocity"])
    times = [given[1] for given, _ in seen["velocity"]]
    if "times" in case:
        close(name, "times", times, case["times"], 1e-6)
    if "x_after_first_step" in case:
        close(name, "x_after_first_step", seen["velocity"][1][0][0][:1], case["x_after_first_step"], STAGES)
    (mel,), f0 = seen["f0"][0]
    if "mel" in case:
        close(name, "mel", mel, case["mel"], ATOL["mel"])
    if "f0" in case:
        close(name, "f0", f0, case["f0"], ATOL["f0"])
    assert len(sound) == decoder.samples(case["tokens"].size)
    spoken = case["speech"][0, : len(sound)]
    close(name, "speech", sound[: len(spoken)], spoken, ATOL["sound"])
    assert not sound[len(spoken) :].any()


@pytest.mark.parametrize("name", PLAIN)
def test_vocoder_from_the_official_mel(decoder, name):
    """Pitch, draws, source and sound, each from the numbers of the stage before."""
    case = {key: torch.from_numpy(value) for key, value in CASES[name].items()}
    if "mel" not in case:
        pytest.skip(f"no mel of {name}")
    mel, hift = case["mel"], decoder.hift
    frames = mel.shape[-1]
    generator = torch.Generator().manual_seed(SEED)
    prompt = case["prompt_mel"].shape[1] if "prompt_mel" in case else 0
    torch.randn(1, decoder.mels, prompt + frames, generator=generator)
    with torch.no_grad():
        phase, noise = hift.draws(frames, generator)
        f0 = hift.f0_predictor(mel)
        for key, got, atol in (
            ("f0", f0, ATOL["f0"]), ("source_phase_before_zeroing", phase, 1e-6), ("source_noise", noise, 0),
            ("source", hift.source(case.get("f0", f0), phase, noise), ATOL["source"]),
            ("speech", hift.sound(mel, case["source"]) if "source" in case else None, ATOL["sound_of_source"]),
        ):  # fmt: skip
            if key in case and got is not None:
                close(f"{name}, each stage from official numbers", key, got, case[key].numpy(), atol)


@pytest.mark.parametrize("name", STREAMS)
def test_stream_gives_what_the_official_one_gives_up_to_its_fault(decoder, name):
    """The official stream is one frame short at each joint from the third chunk on; this one is not."""
    case = CASES[name]
    voice = voice_of(case)
    tokens, stream = case["tokens"].reshape(-1, 1), decoder.open_stream(voice)
    lengths, official, at, start = [], case["speech"][0], 0, 0
    counts = case["tokens_per_chunk"].tolist()
    for i, (count, samples) in enumerate(zip(counts, case["samples_per_chunk"].tolist())):
        sound = stream.push(tokens[at : at + count])
        at += count
        lengths.append(len(sound))
        if i < min(2, len(counts) - 1):
            assert len(sound) == samples
            close(name, "speech before the fault", sound, official[start : start + samples], ATOL["sound"])
        start += samples
    rest = stream.finish()
    known = 0 if voice.mel is None else len(voice.mel)
    totals = [decoder.frames(len(voice.tokens) + sum(counts[: i + 1])) - known for i in range(len(counts))]
    frames = [total - decoder.frames(5) - 1 for total in totals]  # five tokens to be faded, one frame to be repeated
    assert np.cumsum(lengths).tolist() == [max(0, n) * decoder.samples_per_frame for n in frames]
    assert sum(lengths) + len(rest) == decoder.samples(len(tokens))


@pytest.mark.parametrize("name", STREAMS)
def test_stream_with_the_fault_put_in_equals_the_official_one(decoder, name):
    """The official program counts the cached frame, which goes through the vocoder twice, as a new one each time."""
    case = CASES[name]
    tokens, sounds, at = case["tokens"].reshape(-1), [], 0
    stream = decoder.open_stream(voice_of(case), past_tokens=tokens.size)
    counts = case["tokens_per_chunk"].tolist()
    for i, count in enumerate(counts):
        edge = stream._edge
        known = stream._given.shape[1]
        stream._tokens, stream._new = torch.cat([stream._tokens, decoder.checked(tokens[at : at + count])]), True
        sounds.append(stream.advance(last=i == len(counts) - 1))
        stream._given = torch.cat([stream._given[:, :known], edge, stream._given[:, known:]], 1)
        at += count
    assert [len(sound) for sound in sounds] == case["samples_per_chunk"].tolist()
    close(name, "speech with the fault", np.concatenate(sounds), case["speech"][0], ATOL["sound"])
    if "mel" in case:
        close(name, "mel with the fault", stream._given[None], case["mel"], 1e-4)


@pytest.mark.parametrize(("file", "make"), [("flow.pt", lambda c: Flow(c.flow)), ("hift.pt", lambda c: Hift(c.hift))])
def test_published_names_and_shapes_fit(file, make):
    published = json.loads(need("glm4voice/published_names.json").read_text())[f"decoder {file}"]
    with torch.device("meta"):
        module = make(DecoderConfig())
        arrays = {name: torch.empty(shape) for name, shape in published.items()}
        give_weights(module, without_weight_norm(arrays, Path(file), ""), file, "")
