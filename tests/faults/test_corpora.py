"""Corpora of recordings: nothing is cut, dropped or believed without a word; trees as distributed are read."""

import json
import logging

import numpy as np
import pytest
import soundfile

from ttt.audio.wav import read, write
from ttt.cli.main import main
from ttt.data.manifest import read_manifest
from ttt.types import Waveform


def tone(path, seconds=1.0, rate=8000, channels=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = 0.3 * np.sin(np.arange(round(seconds * rate)) / 7)
    kind = {".opus": {"format": "OGG", "subtype": "OPUS"}, ".ogg": {"format": "OGG", "subtype": "VORBIS"}}.get(path.suffix, {})
    soundfile.write(path, np.stack([samples] * channels, axis=1), rate, **kind)
    return path


def convert(kind, source, out, *words, tasks=("asr",)):
    return main(["data", "convert", "--from", kind, str(source), str(out), *map(str, words), "--tasks", *tasks])


def lines(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{row}\n" for row in rows))


def kaldi(folder, **files):
    for name, rows in files.items():
        lines(folder / name.replace("_", ".") if name == "wav_scp" else folder / name, *rows)
    return folder


def cut(wav, duration=1.0, start=0.0, recorded=1.0, **changes):
    recording = {
        "id": "r", "sources": [{"type": "file", "channels": [0], "source": str(wav)}], "sampling_rate": 8000, "duration": recorded,
        **changes,
    }  # fmt: skip
    return {
        "id": "c", "type": "MonoCut", "start": start, "duration": duration, "channel": 0, "recording": recording,
        "supervisions": [{"start": 0.0, "text": "yes"}],
    }  # fmt: skip


def one(**fields):
    return {"wav_scp": ["a {wav}"], "text": ["a yes"], **fields}


CUTS = {
    "speed": ({"transforms": [{"name": "Speed", "kwargs": {"factor": 1.1}}]}, "changes its recording when it reads it (Speed)"),
    "tempo": ({"transforms": [{"name": "Tempo", "kwargs": {"factor": 1.1}}]}, "(Tempo)"),
    "volume": ({"transforms": [{"name": "Volume", "kwargs": {"factor": 2.0}}]}, "(Volume)"),
    "strange transform": ({"transforms": ["x"]}, "(x)"),
    "declared": ({"duration": 5.0, "recorded": 5.0}, "5 s are declared"),
    "part of a declared": ({"duration": 0.5, "recorded": 5.0}, "5 s are declared"),
    "beyond": ({"start": 0.5, "duration": 0.9}, "ends at 1.4 s"),
    "behind": ({"start": 2.0, "duration": 0.9}, "ends at 2.9 s"),
    "NaN": ({"recorded": float("nan")}, "NaN is no JSON value"),
    "negative": ({"duration": -1}, "expected seconds >= 0, got -1"),
}  # fmt: skip
FOLDERS = {
    "utt2dur": (one(utt2dur=["a 5.0"]), "5 s are declared"),
    "utt2dur text": (one(utt2dur=["a long"]), "expected seconds >= 0, got 'long'"),
    "reco2dur": (one(segments=["a a 0 0.5"], reco2dur=["a 9"]), "9 s are declared"),
    "utt2dur of a segment": (one(segments=["a a 0 0.5"], utt2dur=["a 0.8"]), "utt2dur says 0.8 s, segments 0.5 s"),
    "beyond": (one(segments=["a a 0.5 1.5"]), "ends at 1.5 s"),
    "command": (one(wav_scp=["a sox {wav} -t wav - speed 1.1 |"]), "wav.scp entry is a command"),
    "two programs": (one(wav_scp=["a flac -dc {wav} | sox - -t wav - |"]), "wav.scp entry is a command"),
    "two files": (one(wav_scp=["a cat {wav} {wav} |"]), "wav.scp entry is a command"),
    "skip": (one(wav_scp=["a flac -dc --skip=800 {wav} |"]), "wav.scp entry is a command"),
    "shell": (one(wav_scp=["a cat $(touch x) |"]), "wav.scp entry is a command"),
    "open quote": (one(wav_scp=["a flac -dc '{wav} |"]), "wav.scp entry is a command"),
    "gone": (one(wav_scp=["a flac -dc /no/x.flac |"]), "/no/x.flac: no such sound file; set 'root'"),
}


@pytest.fixture(scope="module")
def wav(tmp_path_factory):
    return tone(tmp_path_factory.mktemp("rec") / "r.wav")


def refused_and_counted(tmp_path, capsys, caplog, kind, source, words):
    assert convert(kind, source, tmp_path / "out") == 2
    err = capsys.readouterr().err.strip()
    assert words in err and "\n" not in err and "Traceback" not in err, err
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())
    assert convert(kind, source, tmp_path / "out", "--skip-bad") == 2, "nothing else is in it"
    assert "1 skipped: " in capsys.readouterr().err


@pytest.mark.parametrize(("changes", "words"), CUTS.values(), ids=CUTS.keys())
def test_cuts(tmp_path, wav, capsys, caplog, changes, words):
    (tmp_path / "c.jsonl").write_text(json.dumps(cut(wav, **changes)) + "\n")
    refused_and_counted(tmp_path, capsys, caplog, "lhotse", tmp_path / "c.jsonl", words)


@pytest.mark.parametrize(("files", "words"), FOLDERS.values(), ids=FOLDERS.keys())
def test_kaldi_folders(tmp_path, wav, capsys, caplog, files, words):
    folder = kaldi(tmp_path / "k", **{n: [row.replace("{wav}", str(wav)) for row in rows] for n, rows in files.items()})
    refused_and_counted(tmp_path, capsys, caplog, "kaldi", folder, words)
    assert not (tmp_path / "x").exists()


def test_harmless_transform_and_rounded_times(tmp_path, wav):
    rows = [cut(wav, transforms=[{"name": "Resample", "kwargs": {}}]), {**cut(wav, duration=0.51, start=0.5), "id": "d"}]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert convert("lhotse", tmp_path / "c.jsonl", tmp_path / "out") == 0
    assert [u.duration_s for u in read_manifest(tmp_path / "out" / "train.jsonl")] == [1.0, 0.5]


@pytest.mark.parametrize("command", ["flac -c -d -s {} |", "/usr/bin/flac -dc '{}'|", "cat {} |", "sph2pipe -f wav -p {} |", "{}"])
def test_entries_of_kaldi_that_name_one_file(tmp_path, command, monkeypatch):
    monkeypatch.setattr("subprocess.Popen", None)
    flac = tone(tmp_path / "x.flac")
    folder = kaldi(tmp_path / "k", wav_scp=["a " + command.format(flac)], text=["\ufeffa yes"])
    assert convert("kaldi", folder, tmp_path / "out") == 0
    (found,) = read_manifest(tmp_path / "out" / "train.jsonl")
    assert (found.wav, found.text, found.duration_s) == (str(flac), "yes", 1.0)


def test_transcripts_without_recording_are_counted(tmp_path, wav, caplog):
    caplog.set_level(logging.INFO)
    texts = ["a yes", "b no", "c yes", "d no", "e no"]
    folder = kaldi(tmp_path / "k", wav_scp=[f"b {wav}", f"d {wav}"], text=texts)
    assert convert("kaldi", folder, tmp_path / "out") == 0
    assert "2 rows, 2 written" in caplog.text and "3 skipped: transcript without recording" in caplog.text
    assert "k/text:1: utterance 'a' has a transcript and no recording" in caplog.text
    caplog.clear()
    segments = kaldi(tmp_path / "s", wav_scp=[f"r {wav}"], text=texts, segments=["b r 0 0.5", "c r 0.5 1.0"])
    assert convert("kaldi", segments, tmp_path / "out2") == 0
    assert "2 rows, 2 written" in caplog.text and "3 skipped: transcript without recording" in caplog.text


def test_a_stretch_of_a_stereo_recording_is_mixed_down_and_counted(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    stereo = tone(tmp_path / "r.wav", channels=2)
    folder = kaldi(tmp_path / "k", wav_scp=[f"r {stereo}"], text=["a yes"], segments=["a r 0 0.5"])
    assert convert("kaldi", folder, tmp_path / "out") == 0 and "1 of several channels, mixed down when read" in caplog.text
    (found,) = read_manifest(tmp_path / "out" / "train.jsonl")
    assert found.wav == f"{stereo}#t=0,0.5" and read(found.wav, mono=True).samples.shape == (4000,)


# ---- trees as distributed ------------------------------------------------------------------------------------


def ljspeech(root):
    for name in ("LJ001-0001", "LJ001-0002", "LJ001-0003"):
        tone(root / "wavs" / f"{name}.wav", rate=22050)
    (root / "README").write_text("LJSpeech\n")
    lines(root / "metadata.csv", "\ufeffLJ001-0001|Mr. X|Mister X", 'LJ001-0002|"so"|', "LJ001-0003|only")
    return [("LJ001-0001", "Mister X", "unknown"), ("LJ001-0002", '"so"', "unknown"), ("LJ001-0003", "only", "unknown")]


def libritts(root):
    for name in ("84_121123_000007_000001", "84_121123_000008_000002"):
        tone(root / "dev-clean" / "84" / "121123" / f"{name}.wav", rate=24000)
        lines(root / "dev-clean" / "84" / "121123" / f"{name}.normalized.txt", f"Text of {name[-1]}.")
        lines(root / "dev-clean" / "84" / "121123" / f"{name}.original.txt", "Original.")
    lines(root / "dev-clean" / "84" / "121123" / "84_121123.trans.tsv", "x\ty\tz")
    lines(root / "dev-clean" / "84" / "121123" / "84_121123.book.tsv", "x\ty\tz")
    lines(root / "LICENSE.txt", "text")
    at = "dev-clean/84/121123/84_121123_00000"
    return [(f"{at}7_000001", "Text of 1.", "84"), (f"{at}8_000002", "Text of 2.", "84")]


def librispeech(root):
    for speaker, chapter in (("1272", "128104"), ("84", "121123")):
        folder = root / "dev-clean" / speaker / chapter
        for number in range(2):
            tone(folder / f"{speaker}-{chapter}-{number:04d}.flac", rate=16000)
        lines(folder / f"{speaker}-{chapter}.trans.txt", *(f"{speaker}-{chapter}-{n:04d} TEXT {n}" for n in range(2)))
    for name in ("README.TXT", "SPEAKERS.TXT", "LICENSE.TXT"):
        lines(root / name, "text")
    return [
        (f"dev-clean/{s}/{c}/{s}-{c}-{n:04d}", f"TEXT {n}", s)
        for s, c in (("1272", "128104"), ("84", "121123")) for n in range(2)
    ]  # fmt: skip


def aishell(root):
    for speaker, number in (("S0002", 1), ("S0002", 2), ("S0003", 1)):
        tone(root / "wav" / "train" / speaker / f"BAC009{speaker}W{number:04d}.wav", rate=16000)
    lines(
        root / "transcript" / "aishell_transcript_v0.8.txt", "BAC009S0002W0001 而 对 楼市 成交", "BAC009S0002W0002 一 九 九 六年",
        "BAC009S0003W0001 我 用 ABC 说",
    )  # fmt: skip
    lines(root / "resource_aishell" / "speaker.info", "0002 F")
    return [
        ("wav/train/S0002/BAC009S0002W0001", "而对楼市成交", "S0002"), ("wav/train/S0002/BAC009S0002W0002", "一九九六年", "S0002"),
        ("wav/train/S0003/BAC009S0003W0001", "我用 ABC 说", "S0003"),
    ]  # fmt: skip


def aishell3(root):
    tone(root / "train" / "wav" / "SSB0005" / "SSB00050001.wav", rate=44100)
    lines(root / "train" / "content.txt", "SSB00050001.wav\t广 guang3 州 zhou1")
    return [("train/wav/SSB0005/SSB00050001", "广州", "SSB0005")]


@pytest.mark.parametrize("made", [ljspeech, libritts, librispeech, aishell])
def test_trees_as_distributed(tmp_path, made, caplog):
    caplog.set_level(logging.INFO)
    expected = made(tmp_path / "tree")
    assert convert("folder", tmp_path / "tree", tmp_path / "out", tasks=("asr", "tts")) == 0
    found = read_manifest(tmp_path / "out" / "train.jsonl")
    assert [(u.id, u.text, u.speaker) for u in found] == expected
    assert "skipped" not in caplog.text


def test_a_part_of_a_tree(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    aishell(tmp_path / "a")
    tone(tmp_path / "a" / "wav" / "train" / "S0002" / "BAC009S0002W0009.wav")
    assert convert("folder", tmp_path / "a" / "wav" / "train" / "S0002", tmp_path / "out") == 0
    found = read_manifest(tmp_path / "out" / "train.jsonl")
    assert [(u.text, u.speaker) for u in found] == [("而对楼市成交", "S0002"), ("一九九六年", "S0002")]
    assert "1 skipped: recording without transcript" in caplog.text and "transcript without" not in caplog.text
    aishell3(tmp_path / "b")
    assert convert("folder", tmp_path / "b" / "train", tmp_path / "out3") == 0
    assert [(u.text, u.speaker) for u in read_manifest(tmp_path / "out3" / "train.jsonl")] == [("广州", "SSB0005")]


def test_sound_of_every_kind_and_what_is_left_out(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    kinds = ("flac", "mp3", "ogg", "opus", "wav")
    for kind in kinds:
        tone(tmp_path / "f" / f"{kind}.{kind}", rate=16000)
        (tmp_path / "f" / f"{kind}.txt").write_text(f"\ufeffyes {kind}", encoding="utf-8")
    for name in ("x.m4a", "y.m4a", "z.AAC", "all.zip"):
        (tmp_path / "f" / name).write_bytes(b"")
    lines(tmp_path / "f" / "gone.txt", "no")
    assert convert("folder", tmp_path / "f", tmp_path / "out") == 0
    found = read_manifest(tmp_path / "out" / "train.jsonl")
    assert [u.text for u in found] == [f"yes {kind}" for kind in kinds] and all(abs(u.duration_s - 1) < 0.1 for u in found)
    for words in ("2 skipped: .m4a file", "1 skipped: .aac file", "1 skipped: .zip file", "an archive; unpack it first",
                  "1 skipped: transcript without recording", "name its ending in 'suffixes'"):  # fmt: skip
        assert words in caplog.text
    assert "5 rows, 5 written" in caplog.text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("caf\xe9".encode("latin-1"), "a.txt:1: not UTF-8 at byte 3 (perhaps Latin-1); convert the file to UTF-8"),
        ("对楼市成交".encode("gbk"), "a.txt:1: not UTF-8 at byte 0 (perhaps GBK)"),
        ("yes".encode("utf-16"), "a.txt:1: not UTF-8 but UTF-16"),
        (b"yes\nno\xff", "a.txt:2: not UTF-8"),
    ],
)
def test_transcripts_in_other_encodings(tmp_path, wav, capsys, caplog, text, words):
    folder = tmp_path / "f"
    folder.mkdir()
    write(folder / "a.wav", read(wav))
    (folder / "a.txt").write_bytes(text)
    refused_and_counted(tmp_path, capsys, caplog, "folder", folder, words)
    (folder / "a.txt").unlink()
    (folder / "wavs").mkdir()
    (folder / "a.wav").rename(folder / "wavs" / "a.wav")
    (folder / "metadata.csv").write_bytes(b"a|" + text.replace(b"\n", b" ") + b"\n")
    refused_and_counted(tmp_path, capsys, caplog, "folder", folder, "metadata.csv:1: not UTF-8")
    assert convert("kaldi", kaldi(tmp_path / "k", wav_scp=[f"a {wav}"]), tmp_path / "out") == 2
    capsys.readouterr()
    (tmp_path / "k" / "text").write_bytes(b"a " + text.replace(b"\n", b" ") + b"\n")
    assert convert("kaldi", tmp_path / "k", tmp_path / "out") == 2
    assert "k/text:1: not UTF-8" in capsys.readouterr().err


def test_advice_of_the_folder_converter(tmp_path, capsys):
    (tmp_path / "f").mkdir()
    lines(tmp_path / "f" / "metadata.csv", "a|yes|yes")
    assert convert("folder", tmp_path / "f", tmp_path / "out") == 2
    err = capsys.readouterr().err
    assert "a.wav: no such sound file" in err and "root" not in err.replace(str(tmp_path), "")


def test_a_mark_at_the_start_of_a_transcript_in_json(tmp_path, wav):
    (tmp_path / "c.jsonl").write_text(json.dumps({**cut(wav), "supervisions": [{"text": "\ufeffyes"}]}) + "\n")
    assert convert("lhotse", tmp_path / "c.jsonl", tmp_path / "out") == 0
    assert read_manifest(tmp_path / "out" / "train.jsonl")[0].text == "yes"


# ---- at another rate, or in stereo ---------------------------------------------------------------------------


@pytest.mark.parametrize("jobs", [1, 2])
def test_tokenize_converts_and_says_so(tmp_path, caplog, jobs):
    caplog.set_level(logging.INFO)
    tone(tmp_path / "f" / "a.wav", rate=16000)
    tone(tmp_path / "f" / "b.wav", rate=44100)
    tone(tmp_path / "f" / "c.wav", rate=44100, channels=2)
    for name in "abc":
        lines(tmp_path / "f" / f"{name}.txt", "yes")
    assert convert("folder", tmp_path / "f", tmp_path / "corpus") == 0
    words = ["codec={name: toy, rate_hz: 16000, num_codes: 32}", f"data.corpus={tmp_path}/corpus", f"data.dir={tmp_path}/data"]
    assert main(["tokenize", *words, "data.splits=[train]", f"data.jobs={jobs}"]) == 0
    said = "of 3 recordings 2 were resampled from 44100 Hz to 16000 Hz, 1 mixed down to one channel"
    assert caplog.text.count(said) == 1
    rows = [json.loads(line) for line in (tmp_path / "data" / "codes" / "train.jsonl").read_text().splitlines()[1:]]
    assert len({len(row["codes"]) for row in rows}) == 1


def test_fit_codec_converts_and_says_so(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    rng = np.random.default_rng(0)
    for name, rate in (("a", 16000), ("b", 44100)):
        write(tmp_path / "f" / f"{name}.wav", Waveform(rng.uniform(-0.3, 0.3, 2 * rate).astype(np.float32), rate))
    assert convert("folder", tmp_path / "f", tmp_path / "corpus", tasks=("continuation",)) == 0
    words = [f"codec={{name: mel_kmeans, path: {tmp_path}/codec, num_codes: 4, pca_dim: 4}}", f"data.corpus={tmp_path}/corpus"]
    assert main(["fit", "codec", *words]) == 0
    assert caplog.text.count("of 2 recordings 1 were resampled from 44100 Hz to 16000 Hz") == 1
