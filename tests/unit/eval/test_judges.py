"""Judges: the fitted one learns a tiny language of sounds, tones are read exactly, a local recogniser is wrapped."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
import torch

from ttt.audio.codecs.toy import Toy
from ttt.audio.wav import write
from ttt.data.manifest import Utterance
from ttt.errors import CheckpointError, ConfigError, DataError
from ttt.eval.judges import Ctc, ToyTones, TransformersAsr, _word_error_rate
from ttt.eval.metrics import word_edits
from ttt.registry.families import JUDGE
from ttt.types import AudioCodes, Waveform

RATE_HZ = 16_000
WORDS = {"low": 300.0, "mid": 900.0, "high": 2700.0}
SMALL = {
    "channels": 32,
    "blocks": 1,
    "mels": 24,
    "max_epochs": 6,
    "batch_size": 8,
    "learning_rate": 0.01,
    "dropout": 0.0,
    "target_wer": 0.0,
}


def say(text: str, seed: int = 0) -> Waveform:
    rng = np.random.default_rng(seed)
    pieces = [np.zeros(1600)]
    for word in text.split():
        t = np.arange(round(RATE_HZ * rng.uniform(0.12, 0.2))) / RATE_HZ
        pieces += [0.2 * np.sin(2 * np.pi * WORDS[word] * rng.uniform(0.97, 1.03) * t), np.zeros(1600)]
    x = np.concatenate(pieces)
    return Waveform((x + 0.002 * rng.standard_normal(len(x))).astype(np.float32), RATE_HZ)


def corpus(number: int, seed: int) -> tuple[list[Waveform], list[str]]:
    rng = np.random.default_rng(seed)
    texts = [" ".join(rng.choice(list(WORDS), size=rng.integers(1, 5))) for _ in range(number)]
    return [say(t, 1000 * seed + i) for i, t in enumerate(texts)], texts


@pytest.fixture(scope="module")
def fitted() -> Ctc:
    torch.set_num_threads(1)
    judge = Ctc(**SMALL)
    judge.measured = judge.fit(*corpus(160, 1), *corpus(30, 2), seed=1)
    return judge


def test_learns_and_hears_unseen_sentences(fitted):
    waves, texts = corpus(40, 3)
    assert fitted.measured["dev_wer"] < 0.1
    assert _word_error_rate(texts, fitted.transcribe(waves)) < 0.1


def test_transcripts_do_not_depend_on_neighbours_level_or_rate(fitted):
    waves, _ = corpus(9, 4)
    together = fitted.transcribe(waves)
    assert together == [fitted.transcribe([w])[0] for w in waves]
    quiet = [Waveform(0.3 * w.samples, w.rate_hz) for w in waves]
    assert fitted.transcribe(quiet) == together
    from ttt.audio.signal import resample

    assert fitted.transcribe([resample(waves[0], 24_000)]) == together[:1]
    assert fitted.transcribe([]) == []


def test_nothing_is_heard_in_next_to_nothing(fitted):
    assert fitted.transcribe([Waveform(np.zeros(n, dtype=np.float32), RATE_HZ) for n in (0, 100, 639)]) == ["", "", ""]
    assert isinstance(fitted.transcribe([Waveform(np.zeros(8000, dtype=np.float32), RATE_HZ)])[0], str)


def test_save_and_load_give_the_same_transcripts_and_id(fitted, tmp_path):
    fitted.save(tmp_path / "judge")
    loaded = Ctc(path=str(tmp_path / "judge")).load()
    waves, _ = corpus(5, 5)
    assert loaded.transcribe(waves) == fitted.transcribe(waves)
    assert loaded.judge_id == fitted.judge_id and loaded.judge_id.startswith("ctc-")
    record = json.loads((tmp_path / "judge" / "judge.json").read_text())
    assert record["words"] == sorted(WORDS) and record["dev_wer"] == fitted.measured["dev_wer"]


def test_fit_is_deterministic_and_leaves_the_global_generator_alone():
    state = torch.random.get_rng_state()
    ids = []
    for seed in (1, 1, 2):
        judge = Ctc(**{**SMALL, "max_epochs": 0.2})
        judge.fit(*corpus(20, 1), *corpus(4, 2), seed=seed)
        ids.append(judge.judge_id)
    assert ids[0] == ids[1] != ids[2]
    assert torch.equal(torch.random.get_rng_state(), state)


def test_fit_manifests_reads_the_wavs(tmp_path):
    waves, texts = corpus(12, 1)
    utterances = []
    for i, (w, t) in enumerate(zip(waves, texts)):
        write(tmp_path / f"{i}.wav", w)
        utterances.append(Utterance(f"u{i}", f"{i}.wav", t, w.duration_s, "out", "train"))
    judge = Ctc(**{**SMALL, "max_epochs": 0.1})
    measured = judge.fit_manifests(utterances[:8], utterances[8:], tmp_path, 1)
    assert set(measured) == {"dev_wer", "epochs", "seconds"} and measured["dev_wer"] <= 1.5


def test_texts_longer_than_their_sound_are_counted_and_left_out(caplog):
    waves, texts = corpus(20, 1)
    judge = Ctc(**{**SMALL, "max_epochs": 0.1})
    with caplog.at_level(logging.WARNING):
        judge.fit([*waves, say("low")], [*texts, " ".join(["low"] * 40)], [], [], seed=1)
    assert "1 of 21 utterances are too short for their text and are left out" in caplog.text
    with pytest.raises(DataError, match="every utterance is too short"):
        judge.fit([say("low")], [" ".join(["low"] * 40)], [], [], seed=1)
    with pytest.raises(DataError, match="1 waveforms and 2 texts"):
        judge.fit([say("low")], ["low", "mid"], [], [], seed=1)


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda f: (f / "judge.safetensors").unlink(), "judge.safetensors is missing"),
        (lambda f: (f / "judge.safetensors").write_bytes((f / "judge.safetensors").read_bytes()[:-9]), "damaged or cut short"),
        (lambda f: (f / "judge.json").write_text("no"), "judge.json:1: not JSON"),
        (lambda f: _edit(f, words=["one"]), "do not fit judge.json"),
        (lambda f: _edit(f, channels="many"), "do not fit judge.json"),
    ],
    ids=["missing", "cut", "json", "words", "channels"],
)  # fmt: skip
def test_bad_folder_is_refused_with_its_name_and_a_mend(fitted, tmp_path, spoil, expected):
    fitted.save(tmp_path / "judge")
    spoil(tmp_path / "judge")
    with pytest.raises(CheckpointError) as caught:
        Ctc(path=str(tmp_path / "judge")).load()
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'judge'}") and expected in message
    assert "ttt fit judge" in message and "\n" not in message


def _edit(folder, **values):
    record = json.loads((folder / "judge.json").read_text())
    (folder / "judge.json").write_text(json.dumps({**record, **values}))


def test_refusals(tmp_path):
    with pytest.raises(CheckpointError, match="judge.path: not set"):
        Ctc().load()
    with pytest.raises(CheckpointError, match="before load"):
        Ctc().transcribe([])
    with pytest.raises(CheckpointError, match="before fit"):
        Ctc().save(tmp_path / "j")
    with pytest.raises(ConfigError, match="judge.channels: must be >= 1"):
        JUDGE.build({"name": "ctc", "channels": 0}, "judge")
    with pytest.raises(CheckpointError, match="judge.path: not set for judge 'transformers_asr'"):
        TransformersAsr().load()
    with pytest.raises(CheckpointError, match="no transformers model here"):
        TransformersAsr(path=str(tmp_path)).load()


def test_bad_sound_is_refused(fitted):
    with pytest.raises(DataError, match="NaN or infinite"):
        fitted.transcribe([Waveform(np.full(8000, np.nan, dtype=np.float32), RATE_HZ)])


# -- toy


def test_toy_reads_runs_of_tones():
    codec, judge = Toy(), ToyTones().load()
    rows = [[3, 3, 3, 31, 3, 3, 7], [0], [31, 31], []]
    codes = [AudioCodes(np.asarray(r, dtype=np.int32).reshape(-1, 1), 50.0, codec.codec_id) for r in rows]
    assert judge.transcribe(codec.decode(codes)) == ["w3 w3 w7", "w0", "", ""]
    gap = np.concatenate([codec.tone(np.array([5, 5])), np.zeros(320, dtype=np.float32), codec.tone(np.array([5]))])
    assert judge.transcribe([Waveform(gap, 16_000)]) == ["w5 w5"]


# -- transformers


@pytest.fixture(scope="module")
def ctc_folder(tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("wav2vec2")
    letters = ["<pad>", "<s>", "</s>", "<unk>", "|", *"abcdefgh"]
    (folder / "vocab.json").write_text(json.dumps({x: i for i, x in enumerate(letters)}))
    tokenizer = transformers.Wav2Vec2CTCTokenizer(str(folder / "vocab.json"))
    extractor = transformers.Wav2Vec2FeatureExtractor(sampling_rate=RATE_HZ)
    transformers.Wav2Vec2Processor(feature_extractor=extractor, tokenizer=tokenizer).save_pretrained(folder)
    config = transformers.Wav2Vec2Config(
        vocab_size=len(letters), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        conv_dim=(8, 8, 8), conv_stride=(5, 8, 8), conv_kernel=(10, 8, 8), num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2, pad_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.Wav2Vec2ForCTC(config).save_pretrained(folder)
    return folder


def test_a_local_ctc_recogniser(ctc_folder):
    judge = JUDGE.build({"name": "transformers_asr", "path": str(ctc_folder)}, "judge").load()
    waves = [say("low mid"), say("high"), Waveform(np.zeros(10, dtype=np.float32), RATE_HZ)]
    texts = judge.transcribe(waves)
    assert len(texts) == 3 and texts[2] == "" and all(set(t) <= set("abcdefgh ") | set("<unk>s/p") for t in texts)
    assert texts[:1] == judge.transcribe(waves[:1])
    assert judge.judge_id.startswith("wav2vec2-")


def test_a_local_whisper(tmp_path):
    transformers = pytest.importorskip("transformers")
    tokens = [
        "<|endoftext|>",
        "<|startoftranscript|>",
        "<|transcribe|>",
        "<|notimestamps|>",
        *"abcdefghijklmnopqrstuvwxyz",
    ]
    (tmp_path / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.WhisperTokenizer(
        str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"), unk_token="<|endoftext|>"
    )
    extractor = transformers.WhisperFeatureExtractor(feature_size=16, chunk_length=2, sampling_rate=RATE_HZ)
    transformers.WhisperProcessor(extractor, tokenizer).save_pretrained(tmp_path)
    config = transformers.WhisperConfig(
        vocab_size=len(tokens), num_mel_bins=16, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, max_source_positions=100, max_target_positions=40,
        decoder_start_token_id=1, pad_token_id=0, bos_token_id=0, eos_token_id=0, suppress_tokens=[], begin_suppress_tokens=[],
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.WhisperForConditionalGeneration(config).save_pretrained(tmp_path)
    judge = TransformersAsr(path=str(tmp_path), max_new_tokens=5).load()
    texts = judge.transcribe([say("low mid"), say("high")])
    assert len(texts) == 2 and all(isinstance(t, str) for t in texts) and judge.judge_id.startswith("whisper-")
    with pytest.raises(DataError, match="3.0 s, this recogniser takes 2 s: cut it"):
        judge.transcribe([Waveform(np.zeros(48_000, dtype=np.float32), RATE_HZ)])


# -- pieces


def levenshtein(a: list[str], b: list[str]) -> int:
    """The edit distance by its definition."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        last, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (x != y))
    return row[-1]


def test_edits_are_the_edit_distance():
    rng = np.random.default_rng(1)
    pairs = [("", ""), ("a b", ""), ("", "a"), ("a b c", "a x c d")]
    pairs += [tuple(" ".join(rng.choice(list("abc"), rng.integers(0, 9))) for _ in range(2)) for _ in range(200)]
    for reference, transcript in pairs:
        *edits, words = word_edits(reference, transcript)
        assert sum(edits) == levenshtein(reference.split(), transcript.split()) and words == len(reference.split())


def test_word_error_rate_sums_before_it_divides():
    assert _word_error_rate(["a b c", "d"], ["a b c", "x"]) == pytest.approx(0.25)


def test_silence_behind_a_recording_can_be_learnt():
    """What a codec with long frames appends: a judge that never met it hears words in it."""
    torch.set_num_threads(1)
    judge = Ctc(**SMALL, max_silence_s=0.3)
    judge.fit(*corpus(160, 1), *corpus(30, 2), seed=1)
    waves, texts = corpus(40, 3)
    longer = [Waveform(np.pad(w.samples, (0, 3200)), RATE_HZ) for w in waves]
    assert _word_error_rate(texts, judge.transcribe(longer)) < 0.1
    with pytest.raises(ConfigError, match="max_silence_s: must be >= 0"):
        JUDGE.build({"name": "ctc", "max_silence_s": -1.0}, "judge")
