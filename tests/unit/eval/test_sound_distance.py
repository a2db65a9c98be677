"""Sound against sound: warping against a reference, speaker encoders, floors and forced statistics in the evaluator."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ttt.audio.signal import resample
from ttt.audio.wav import write
from ttt.data.manifest import Utterance, write_manifest
from ttt.errors import CheckpointError, ConfigError, DataError
from ttt.eval.evaluate import evaluate
from ttt.eval.generations import Generated, prompt_codes
from ttt.eval.listen import Instruments
from ttt.eval.metrics import METRIC
from ttt.eval.normalizers import Words
from ttt.eval.score import Bootstrap
from ttt.eval.sound_distance import compare, mel_distance, warp
from ttt.eval.speakers import SmallSpeaker, TransformersXVector, equal_error_rate
from ttt.eval.true_recordings import TrueRecordings
from ttt.interfaces import Codec
from ttt.types import AudioCodes, Example, Span, Turn, Waveform

RATE = 16_000


def voice(pitch_hz: float, formant_hz: float, seconds: float = 0.8, seed: int = 0) -> Waveform:
    """Harmonics of a pitch under one formant, with a little noise."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * RATE)) / RATE
    x = 0.02 * rng.normal(size=len(t))
    for k in range(1, 30):
        x += np.exp(-(((k * pitch_hz - formant_hz) / 400) ** 2)) * np.sin(
            2 * np.pi * k * pitch_hz * t + rng.uniform(0, 6)
        )
    return Waveform((0.3 * x / np.abs(x).max()).astype(np.float32), RATE)


def slow_warp(cost: np.ndarray) -> float:
    t, u = cost.shape
    best = np.full((t, u), np.inf)
    for i in range(t):
        for j in range(u):
            before = [best[a, b] for a, b in ((i - 1, j - 1), (i - 1, j), (i, j - 1)) if a >= 0 and b >= 0]
            best[i, j] = cost[i, j] + (min(before) if before else 0.0)
    return float(best[-1, -1])


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (4, 1), (6, 9), (12, 7)])
def test_warping_equals_a_loop_over_cells(shape):
    cost = np.random.default_rng(sum(shape)).random(shape)
    total, steps = warp(cost)
    assert total == pytest.approx(slow_warp(cost))
    assert max(shape) <= steps <= sum(shape) - 1


def test_distance_is_zero_for_itself_and_hardly_grows_with_tempo():
    a, b = voice(120, 700), voice(220, 1500, seed=1)
    slower = Waveform(np.repeat(a.samples.reshape(-1, 160), 2, axis=0).reshape(-1)[: len(a.samples)], RATE)
    assert mel_distance(a, a) == 0
    assert mel_distance(a, b) == pytest.approx(mel_distance(b, a))
    assert mel_distance(a, slower) < 0.6 * mel_distance(a, b)
    silence = Waveform(np.zeros(0, dtype=np.float32), RATE)
    assert mel_distance(silence, a) > mel_distance(a, b)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    torch.set_num_threads(1)
    pitches = {"ann": (210, 1700), "bob": (110, 600), "cat": (260, 900), "dan": (90, 1300)}
    made = [
        (name, voice(*pf, seconds=0.6 + 0.1 * (i % 3), seed=10 * i)) for name, pf in pitches.items() for i in range(12)
    ]
    encoder = SmallSpeaker(channels=24, dim=16, mels=24, epochs=12, batch_size=12, crop_s=(0.3, 0.5))
    dev = [(name, voice(*pf, seed=900 + i)) for name, pf in pitches.items() for i in range(3)]
    measured = encoder.fit([w for _, w in made], [n for n, _ in made], [w for _, w in dev], [n for n, _ in dev], seed=1)
    folder = tmp_path_factory.mktemp("speaker")
    encoder.save(folder)
    return encoder, measured, folder, dev


def test_the_small_encoder_tells_voices_apart_and_is_the_same_after_loading(fitted):
    encoder, measured, folder, dev = fitted
    assert measured["dev_accuracy"] == 1.0 and measured["dev_eer"] == 0.0
    again = SmallSpeaker(path=str(folder)).load()
    waves = [w for _, w in dev]
    found = again.embed(waves)
    assert again.speaker_id == encoder.speaker_id and np.array_equal(found, encoder.embed(waves))
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert np.allclose(found[:1], again.embed(waves[:1]), atol=1e-6)  # neighbours do not matter
    near = found @ found.T
    names = [n for n, _ in dev]
    assert min(near[i, j] for i in range(12) for j in range(12) if names[i] == names[j]) > max(
        near[i, j] for i in range(12) for j in range(12) if names[i] != names[j]
    )


def test_equal_error_rate_by_hand():
    e = np.array([[1, 0], [1, 0], [0, 1], [0, 1]], dtype=np.float32)
    assert equal_error_rate(e, list("aabb")) == 0
    assert equal_error_rate(e, list("abab")) == 0.75  # between thresholds: (1 + 0.5) / 2
    assert np.isnan(equal_error_rate(e, list("aaaa")))


def test_encoders_say_what_is_wrong(tmp_path, fitted):
    with pytest.raises(CheckpointError, match="no fitted speaker here .*run 'ttt fit speaker'"):
        SmallSpeaker(path=str(tmp_path)).load()
    with pytest.raises(DataError, match="at least two voices"):
        SmallSpeaker().fit([voice(100, 500)], ["ann"], [], [], 1)
    with pytest.raises(CheckpointError, match="speaker.path: not set for 'transformers_xvector'"):
        TransformersXVector().load()
    with pytest.raises(CheckpointError, match="no transformers model here"):
        TransformersXVector(path=str(tmp_path)).load()


def test_a_published_encoder_from_a_folder(tmp_path):
    """A tiny WavLM with random weights, saved and read as a real one would be."""
    from transformers import Wav2Vec2FeatureExtractor, WavLMConfig, WavLMForXVector

    torch.manual_seed(0)
    config = WavLMConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, conv_dim=(8,) * 3, conv_stride=(5, 4, 4),
        conv_kernel=(10, 8, 4), num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2, tdnn_dim=(8, 8, 16),
        tdnn_kernel=(3, 3, 1), tdnn_dilation=(1, 2, 1), xvector_output_dim=12, num_feat_extract_layers=3,
    )  # fmt: skip
    WavLMForXVector(config).save_pretrained(tmp_path)
    Wav2Vec2FeatureExtractor().save_pretrained(tmp_path)
    encoder = TransformersXVector(path=str(tmp_path)).load()
    found = encoder.embed([voice(100, 500), Waveform(np.zeros(800, dtype=np.float32), RATE)])
    assert found.shape == (2, 12) and np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-4)
    assert encoder.speaker_id.startswith("wavlm-")


class Tone(Codec):
    """Code k is a stretch of voice k."""

    codec_id, rate_hz, frame_rate_hz, num_codes, num_codebooks = "tone-1", RATE, 10.0, 4, 1
    load = encode = open_stream = None  # not used here

    def decode(self, codes):
        voices = [voice(210, 1700), voice(110, 600), voice(260, 900), voice(90, 1300)]
        made = []
        for c in codes:
            assert isinstance(c, AudioCodes)
            parts = [voices[int(k)].samples[: RATE // 10] for k in c.ids[:, 0]]
            made.append(Waveform(np.concatenate(parts) if parts else np.zeros(0, dtype=np.float32), RATE))
        return made


def example(uid: str, prompt: list[int], answer: list[int]) -> Example:
    def span(codes, style):
        return Span("audio", codes=np.array(codes, dtype=np.int32)[:, None], style=style)

    turns = (Turn("user", (span(prompt, "user"),)), Turn("assistant", (span(answer, "last"),)))
    return Example(uid, turns, "continuation", {"split": "test", "speech_ref": "w1 w1"})


def generated(uid: str, codes: list[int], **more) -> Generated:
    return Generated(uid, "continuation", "test", "", np.array(codes, dtype=np.int32).reshape(-1, 1), **more)


METRICS = {
    "continuation": {
        "mel": "mel_distance", "speaker": "speaker_similarity", "wer": "judged_wer",
        "hits": {"name": "forced", "stat": "top10/ar"}, "empty": "empty_rate",
    }
}  # fmt: skip


def test_continuations_are_compared_with_the_true_one_and_with_their_prompt(tmp_path, fitted):
    judge = SimpleNamespace(
        judge_id="loud-1", transcribe=lambda waves: ["w1 w1" if len(w.samples) >= RATE // 2 else "w1" for w in waves]
    )
    examples = [example(f"e{i}", [1] * 6, [1] * 6) for i in range(3)]
    records = [
        generated("e0", [1] * 6, forced={"top10/ar": (5, 6)}), generated("e1", [0] * 4, forced={"top10/ar": (1, 6)}),
        generated("e2", []),
    ]  # fmt: skip
    instruments = Instruments(judge, Tone(), Words(), fitted[0])
    result = evaluate(records, examples, METRICS, instruments, tmp_path, floor=True, samples=0, intervals=Bootstrap(10)).result
    values = {k.partition("/")[2]: v for k, v in result["metrics"].items()}
    assert len((tmp_path / "items.jsonl").read_text().splitlines()) == 3
    assert values["mel"]["metric_id"] == "mel_distance[dtw,codec]"  # there is no corpus
    assert values["floor_mel"]["value"] == 0 and values["mel"]["value"] > 5 and values["mel"]["n"] == 3
    assert values["floor_speaker"]["value"] > 0.9 > values["speaker"]["value"]
    assert values["floor_wer"]["value"] == 0 and values["wer"]["value"] == pytest.approx(
        0.5
    )  # right, one word, nothing
    assert values["hits"]["value"] == pytest.approx(0.5) and values["hits"]["unit"] == "rate"
    assert values["hits"]["metric_id"] == "forced[top10/ar]"
    assert values["speaker"]["metric_id"] == f"speaker_similarity[{fitted[0].speaker_id}]"
    assert "floor_hits" not in values and "floor_empty" not in values


def corpus(folder, **waves: Waveform) -> TrueRecordings:
    for name, wave in waves.items():
        write(folder / f"wav/{name}.wav", wave)
    write_manifest(
        folder / "test.jsonl",
        [Utterance(n, f"wav/{n}.wav", "w1 w1", w.duration_s, "v", "test") for n, w in waves.items()],
    )
    return TrueRecordings(folder)


def recorded(uid: str, prompt: list[int], answer: list[int]) -> Example:
    made = example(uid, prompt, answer)
    return dataclasses.replace(made, meta={**made.meta, "utterance": f"u_{uid}"})


def mel_only(examples, tmp_path, recordings):
    """Scores of the true answers."""
    records = [generated(e.uid, e.turns[-1].spans[0].codes[:, 0].tolist()) for e in examples]
    instruments = Instruments(None, Tone(), Words(), recordings=recordings)
    metrics = {"continuation": {"mel": "mel_distance"}}
    result = evaluate(
        records, examples, metrics, instruments, tmp_path / "out", floor=True, samples=0, intervals=Bootstrap(10)
    ).result
    return {k.rpartition("/")[2]: v for k, v in result["metrics"].items()}


def test_the_true_sound_is_the_recording_cut_where_the_prompt_ends(tmp_path):
    said, spoken = voice(110, 600, 0.5).samples, voice(200, 1500, 0.6)
    wave = Waveform(np.concatenate([said, spoken.samples]), RATE)
    examples = [recorded("e0", [1] * 5, [1] * 6)]
    found = mel_only(examples, tmp_path, corpus(tmp_path, u_e0=wave))
    (true,) = Tone().decode([AudioCodes(np.ones((6, 1), dtype=np.int32), 10.0, "tone-1")])
    by_hand = mel_distance(true, spoken)
    assert found["mel"]["value"] == found["floor_mel"]["value"] == pytest.approx(by_hand, abs=0.05)  # 16-bit wav
    assert by_hand > 3  # the codec's own distance is no 0
    assert found["mel"]["metric_id"] == found["floor_mel"]["metric_id"] == "mel_distance[dtw,recording]"
    other_rate = corpus(tmp_path / "slow", u_e0=resample(wave, 24_000))
    assert mel_only(examples, tmp_path, other_rate)["mel"]["value"] == pytest.approx(by_hand, abs=1.0)


@pytest.mark.parametrize("missing", ["recording", "utterance", "file", "manifest", "corpus"])
def test_one_answer_without_a_recording_compares_its_group_with_codes(tmp_path, missing):
    wave = voice(110, 600, 1.1)
    examples = [recorded("e0", [1] * 5, [1] * 6), recorded("e1", [1] * 5, [1] * 6)]
    recordings = corpus(tmp_path, u_e0=wave) if missing == "recording" else corpus(tmp_path, u_e0=wave, u_e1=wave)
    if missing == "utterance":
        examples[1] = example("e1", [1] * 5, [1] * 6)
    elif missing in ("file", "manifest"):
        (tmp_path / ("wav/u_e1.wav" if missing == "file" else "test.jsonl")).unlink()
    elif missing == "corpus":
        recordings = TrueRecordings()
    found = mel_only(examples, tmp_path, recordings)
    assert found["mel"]["metric_id"] == "mel_distance[dtw,codec]"
    assert found["mel"]["value"] == found["floor_mel"]["value"] == 0 and found["mel"]["n"] == 2


def test_recordings_of_another_corpus_are_refused(tmp_path):
    recordings = corpus(tmp_path, u_e0=voice(110, 600, 2.0))
    with pytest.raises(
        DataError, match=r"u_e0.wav: recording 'u_e0' is 2.00 s long, the codes of example 'e0' are 1.10 s"
    ):
        mel_only([recorded("e0", [1] * 5, [1] * 6)], tmp_path, recordings)


def test_a_metric_of_voices_needs_an_encoder(tmp_path):
    with pytest.raises(ConfigError, match="speaker: missing; metric 'speaker' of task 'continuation' needs one"):
        evaluate(
            [generated("e", [1])], [example("e", [1], [1])], {"continuation": {"speaker": "speaker_similarity"}},
            Instruments(None, Tone(), Words()), tmp_path,
        )  # fmt: skip


def test_an_answer_without_sound_is_no_voice(fitted):
    silence, wave = Waveform(np.zeros(0, dtype=np.float32), RATE), voice(110, 600)
    (found,) = compare([silence], [wave], [wave], fitted[0])
    assert found.speaker_similarity == 0 and found.mel_distance_db and found.mel_distance_db > 10
    (found,) = compare([wave], [None], [None], fitted[0])
    assert found.speaker_similarity is None and found.mel_distance_db is None
    assert prompt_codes(example("e", [1, 2], [3]))[:, 0].tolist() == [1, 2]


def test_statistics_of_the_true_answer_need_their_name():
    metric = METRIC.build({"name": "forced", "stat": "nll/nar/book1"}, "m")
    assert metric.unit == "score" and not metric.higher_is_better
    assert metric.item({"forced": {}}) is None and metric.item({"forced": {"nll/nar/book1": (4.0, 8.0)}}).tolist() == [
        4,
        8,
    ]
