"""Corpora as they are published: tiny imitations of each layout, read without unpacking anything.

Layouts and sources: docstrings of `ttt.data.convert.listed`, `long_recordings`, `sound_tables`, `archives`, `sound_folder`.
"""

import io
import json
import logging
import tarfile

import numpy as np
import pytest
import soundfile

from ttt.audio.codecs.toy import Toy
from ttt.audio.wav import read
from ttt.cli.main import main
from ttt.data.convert.core import Report
from ttt.data.convert.encode import encode_records
from ttt.data.manifest import read_manifest

RATE = 16000


def tone(path, seconds=1.0, rate=RATE, channels=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(sound(path.suffix, seconds, rate, channels))
    return path


def sound(suffix, seconds=1.0, rate=RATE, channels=1):
    samples = 0.3 * np.sin(np.arange(round(seconds * rate)) / 7)
    kind = {".opus": ("OGG", "OPUS"), ".ogg": ("OGG", "VORBIS")}.get(suffix, (suffix[1:].upper(), None))
    out = io.BytesIO()
    soundfile.write(out, np.stack([samples] * channels, axis=1), rate, format=kind[0], subtype=kind[1])
    return out.getvalue()


def lines(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{row}\n" for row in rows))
    return path


def make_tar(path, *members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def convert(kind, source, out, *words, tasks=("asr",)):
    return main(["data", "convert", "--from", kind, str(source), str(out), *map(str, words), "--tasks", *tasks])


def found(out):
    """(id, text, speaker, language) of the manifest; every sound is read."""
    utterances = read_manifest(out / "train.jsonl")
    for u in utterances:
        assert abs(read(u.wav, mono=True).duration_s - u.duration_s) < 1e-4, u
    return [(u.id, u.text, u.speaker, u.meta.get("language", "")) for u in utterances]


# ---- published layouts: each makes its tree and gives (converter, input, settings, what is found, what is skipped) ----


def commonvoice(root):
    """cv-corpus-17.0/en: train.tsv and clips."""
    folder = root / "cv-corpus-17.0" / "en"
    for name in ("common_voice_en_1", "common_voice_en_2"):
        tone(folder / "clips" / f"{name}.mp3", rate=32000)
    names = "client_id path sentence_id sentence sentence_domain up_votes down_votes age gender accents variant locale segment"
    head = names.replace(" ", "\t")
    for part, rows in (("train", (1, 2)), ("dev", ())):
        lines(folder / f"{part}.tsv", head, *(f'9f\tcommon_voice_en_{n}.mp3\tx\tSay "{n}".\t\t2\t0\t\t\t\t\ten\t' for n in rows))
    lines(folder / "validated.tsv", head)
    expected = [(f"common_voice_en_{n}", f'Say "{n}".', "9f", "en") for n in (1, 2)]
    return "commonvoice", folder, [], expected, {}


def mls(root):
    """mls_polish_opus/train: transcripts.txt, segments.txt, audio/SPEAKER/BOOK/ID.opus."""
    folder = root / "mls_polish_opus" / "train"
    for name in ("10_20_000000", "10_20_000001"):
        tone(folder / "audio" / "10" / "20" / f"{name}.opus")
    lines(folder / "transcripts.txt", "10_20_000000\tjeden dwa", "10_20_000001\ttrzy")
    lines(folder / "segments.txt", "10_20_000000\thttp://x/y.mp3\t1.0\t2.0")
    return "mls", folder, [], [("10_20_000000", "jeden dwa", "10", "polish"), ("10_20_000001", "trzy", "10", "polish")], {}


def nemo(root):
    """A manifest called .json with one object a line; one line is a stretch."""
    tone(root / "audio" / "a.wav", 2.0)
    rows = [
        {"audio_filepath": "audio/a.wav", "duration": 2.0, "text": "yes no", "lang": "en"},
        {"audio_filepath": str(root / "audio/a.wav"), "offset": 0.5, "duration": 0.25, "text": "no", "speaker": 7, "id": "b"},
    ]
    table = lines(root / "train_manifest.json", *map(json.dumps, rows))
    return "nemo", table, [], [("audio/a", "yes no", "unknown", "en"), ("b", "no", "7", "")], {}


def emilia_lines(root):
    """OpenXLab's Emilia: EN/EN_B00000.jsonl and EN/EN_B00000/SPEAKER/mp3."""
    rows = []
    for n in range(2):
        name = f"EN_B00000_S00000_W00000{n}"
        tone(root / "EN" / f"EN_B00000/EN_B00000_S00000/mp3/{name}.mp3", rate=24000)
        rows.append({"id": name, "wav": f"EN_B00000/EN_B00000_S00000/mp3/{name}.mp3", "text": f" Word {n}", "duration": 1.0,
                     "speaker": "EN_B00000_S00000", "language": "en", "dnsmos": 3.3})  # fmt: skip
        lines(root / "EN" / f"EN_B0000{n}.jsonl", json.dumps(rows[-1]))
    expected = [(r["id"], r["text"].strip(), r["speaker"], "en") for r in rows]
    return "nemo", root / "EN" / "*.jsonl", [], expected, {}


def emilia(root):
    """Emilia on the Hub: EN/EN-B000000.tar of mp3 and json; the second as Emilia-YODAS."""
    for n, key in enumerate(("id", "_id")):
        name = f"EN_B00000_S0000{n}_W000000"
        about = {key: name, "text": f" Word {n}", "duration": 1.0, "speaker": name[:-8], "language": "en", "dnsmos": 3.3}
        pair = (f"{name}.json", json.dumps(about, indent=1).encode()), (f"{name}.mp3", sound(".mp3", rate=24000))
        make_tar(root / "EN" / f"EN-B00000{n}.tar", *pair)
    expected = [(f"EN_B00000_S0000{n}_W000000", f"Word {n}", f"EN_B00000_S0000{n}", "en") for n in range(2)]
    return "tar", root / "EN", [], expected, {}


def webdataset(root):
    """Members in folders with .txt beside; what is neither sound nor text is counted."""
    members = [
        ("./a/1.txt", b"\xef\xbb\xbfone\n"), ("./a/1.flac", sound(".flac")), ("./a/1.original.txt", b"x"),
        ("a/2.original.txt", b"Two"), ("a/2.normalized.txt", b"two"), ("a/2.ogg", sound(".ogg", channels=2)),
        ("a/3.txt", b"three"), ("README", b""), ("a/4.wav.png", b""),
    ]  # fmt: skip
    skipped = {"transcript without recording": 1, ". member": 1, ".wav.png member": 1, ".original.txt member": 2}
    expected = [("shard-000/a/1", "one", "unknown", ""), ("shard-000/a/2", "two", "unknown", "")]
    return "tar", make_tar(root / "shard-000.tar", *members), [], expected, skipped


def gigaspeech(root):
    """GigaSpeech.json and audio/podcast/P0000/POD0000000001.opus."""
    tone(root / "audio/podcast/P0000/POD0000000001.opus", 3.0)
    texts = ["HELLO <COMMA> WORLD <PERIOD>", "<MUSIC>", "<COMMA> IS IT <QUESTIONMARK>"]
    segments = [
        {"sid": f"POD0000000001_S000000{i}", "speaker": "N/A", "begin_time": float(i), "end_time": i + 0.75, "text_tn": text,
         "subsets": ["{XL}"] if i else ["{XL}", "{S}"]} for i, text in enumerate(texts)
    ]  # fmt: skip
    recording = {"title": "t", "path": "audio/podcast/P0000/POD0000000001.opus", "aid": "POD0000000001", "duration": 3.0,
                 "speaker": "N/A", "segments": segments}  # fmt: skip
    data = {"dataset": "GigaSpeech", "language": "EN", "version": {"v": [1, "audios"]}, "audios": [recording], "more": 1}
    (root / "GigaSpeech.json").write_text(json.dumps(data))
    said = {"POD0000000001_S0000000": "HELLO, WORLD.", "POD0000000001_S0000002": ", IS IT?"}
    expected = [(sid, text, "unknown", "en") for sid, text in said.items()]
    return "gigaspeech", root, ["part=XL"], expected, {"no speech (<MUSIC>)": 1}


def wenetspeech(root):
    """WenetSpeech.json and audio/train/youtube/B00000/ID.opus."""
    path = "audio/train/youtube/B00000/Y0000000000_x.opus"
    tone(root / path, 2.0)
    segments = [
        {"sid": f"Y0000000000_x_S0000{i}", "begin_time": i, "end_time": i + 0.5, "confidence": 0.95, "subsets": part, "text": text}
        for i, (part, text) in enumerate([(["L", "M"], "怎么样"), (["L"], "不")])
    ]
    recording = {"aid": "Y0000000000_x", "duration": 2.0, "md5": "0", "path": path, "segments": segments}
    (root / "WenetSpeech.json").write_text(json.dumps({"audios": [recording]}, ensure_ascii=False))
    return "wenetspeech", root, ["part=M"], [("Y0000000000_x_S00000", "怎么样", "unknown", "zh")], {"not in the part 'M'": 1}


def aishell2(root):
    """AISHELL-2/iOS/data: wav.scp, trans.txt, wav/C0001/IC0001W0001.wav."""
    folder = root / "AISHELL-2" / "iOS" / "data"
    tone(folder / "wav" / "C0001" / "IC0001W0001.wav")
    lines(folder / "wav.scp", "IC0001W0001\twav/C0001/IC0001W0001.wav")
    lines(folder / "trans.txt", "IC0001W0001\t厨房 用品", "IC0001W0002\t没有")
    return "folder", folder, [], [("wav/C0001/IC0001W0001", "厨房用品", "C0001", "")], {"transcript without recording": 1}


def parquet_shards(root, splits=("train",)):
    """LibriSpeech and others on the Hub: data/train-00000-of-00002.parquet, feature Audio, not decoded."""
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    for split in splits:
        for shard in range(2):
            rows = [
                {"file": "x", "audio": {"bytes": sound(".flac"), "path": f"{shard}-{n}.flac"}, "text": f"WORD {n}",
                 "speaker_id": 84 + shard, "id": f"84-{shard}-{n}", "locale": "en"} for n in range(3)
            ]  # fmt: skip
            path = root / "data" / f"{split}-0000{shard}-of-00002.parquet"
            path.parent.mkdir(exist_ok=True)
            pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)
    expected = [(f"84-{shard}-{n}", f"WORD {n}", str(84 + shard), "en") for shard in range(2) for n in range(3)]
    return "hf", root / "data", [], expected, {}


def saved_dataset(root):
    """What DatasetDict.save_to_disk writes; one sound is a path beside the table."""
    pa = pytest.importorskip("pyarrow")
    folder = root / "saved" / "test"
    tone(folder / "b.ogg")
    cells = [{"bytes": sound(".mp3"), "path": "a.mp3"}, {"bytes": None, "path": "b.ogg"}]
    table = pa.table({"sound": cells, "sentence": ["a", "b"], "other": [1, 2]})
    with pa.OSFile(str(folder / "data-00000-of-00001.arrow"), "wb") as out, pa.ipc.new_stream(out, table.schema) as writer:
        writer.write_table(table)
    lines(folder / "state.json", json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))
    lines(folder / "dataset_info.json", "{}")
    lines(root / "saved" / "dataset_dict.json", json.dumps({"splits": ["test"]}))
    name = "data-00000-of-00001.arrow"
    return "hf", root / "saved", ["part=test"], [(f"{name}[0]", "a", "unknown", ""), (f"{name}[1]", "b", "unknown", "")], {}


def audio_folder(root):
    """A Hugging Face folder: metadata.csv with file_name."""
    tone(root / "f" / "data" / "a.wav")
    lines(root / "f" / "metadata.csv", "file_name,transcription", 'data/a.wav,"yes, it is"')
    return "hf", root / "f", [], [("metadata.csv:2", "yes, it is", "unknown", "")], {}


LAYOUTS = [commonvoice, mls, nemo, emilia_lines, emilia, webdataset, gigaspeech, wenetspeech, aishell2, parquet_shards,
           saved_dataset, audio_folder]  # fmt: skip


@pytest.mark.parametrize("made", LAYOUTS, ids=lambda f: f.__name__)
def test_published_layouts(tmp_path, made, caplog):
    caplog.set_level(logging.INFO)
    kind, source, settings, expected, skipped = made(tmp_path)
    before = {p for p in tmp_path.rglob("*") if p.is_file()}
    assert convert(kind, source, tmp_path / "out", *settings) == 0
    assert found(tmp_path / "out") == expected
    made_files = {p.name for p in tmp_path.rglob("*") if p.is_file()} - {p.name for p in before}
    assert made_files == {"train.jsonl", "train.items.jsonl", "train.convert.done.json"}, "no sound is unpacked"
    done = json.loads((tmp_path / "out" / "train.convert.done.json").read_text())["result"]
    assert done["skipped"] == skipped and done["written"] == len(expected) and sum(done["rates"].values()) == len(expected)
    assert f"{len(expected)} written" in caplog.text and " hours in " in caplog.text


def test_a_corpus_in_tars_and_tables_is_tokenized(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    rows = []
    for number, made in enumerate((emilia, gigaspeech, saved_dataset)):
        root = tmp_path / str(number)
        root.mkdir()
        kind, source, settings, expected, _ = made(root)
        assert convert(kind, source, root / "corpus", *settings) == 0
        words = ["codec={name: toy, rate_hz: 16000, num_codes: 32}", f"data.corpus={root}/corpus", f"data.dir={root}/data"]
        assert main(["tokenize", *words, "data.splits=[train]"]) == 0
        rows = [json.loads(line) for line in (root / "data" / "codes" / "train.jsonl").read_text().splitlines()[1:]]
        assert [row["id"] for row in rows] == [e[0] for e in expected] and all(row["codes"] for row in rows)
    assert "of 2 recordings 2 were resampled from 24000 Hz to 16000 Hz" in caplog.text


def test_voice_assistant(tmp_path):
    """Parquet of gpt-omni/VoiceAssistant-400K; the question stays in its row until it is encoded."""
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    frames = [[1, 2, 3, 4, 5, 6, 7], [8, 9, 10, 11, 12, 13, 4095]]
    snac = " ".join("# " + " ".join(map(str, frame)) for frame in frames)
    row = {"split_name": "qa", "index": "5", "round": "0", "question": "why", "answer": "so it is", "answer_snac": snac,
           "question_audio": {"bytes": sound(".wav", rate=22050), "path": "q.wav"}}  # fmt: skip
    bad = [{**row, "answer_snac": snac + " # 1 2"}, {**row, "answer_snac": "# 1 2 3 4 5 6 4096"}, {**row, "answer": ""}]
    pq.write_table(pa.Table.from_pylist([row, *bad]), tmp_path / "train-00000-of-00001.parquet")
    call = ["data", "convert", "--from", "voice_assistant", str(tmp_path / "*.parquet"), str(tmp_path / "out.jsonl")]
    assert main(call) == 2
    assert main([*call, "--skip-bad", "user=both"]) == 0
    (record,) = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    (_, user, assistant) = record["turns"]
    assert user["spans"][0] == {"text": "why"} and read(user["spans"][1]["wav"]).rate_hz == 22050
    assert assistant["spans"] == [{"text": "so it is"}, {"audio": frames, "style": "last"}]
    assert record["meta"]["split_name"] == "qa"
    (encoded,) = encode_records(tmp_path / "out.jsonl", Toy(num_codes=32).load(), Report())
    spans = [span for turn in encoded["turns"] for span in turn["spans"]]
    assert not any("wav" in span for span in spans) and len(spans[1]["audio"]) > 1 and spans[3]["audio"] == frames
    done = json.loads((tmp_path / "out.convert.done.json").read_text())["result"]["skipped"]
    assert done == {"not codes": 1, "code out of range": 1, "no answer": 1}


# ---- what is broken ------------------------------------------------------------------------------------------


def cut(path, keep):
    path.write_bytes(path.read_bytes()[: round(keep * path.stat().st_size)])
    return path


def cut_tar(root, keep=0.8):
    tar = make_tar(root / "a.tar", *((f"{n}.{kind}", content) for n in range(3) for kind, content in
                                     (("txt", b"yes"), ("wav", sound(".wav")))))  # fmt: skip
    return "tar", cut(tar, keep)


def table_of(root, **columns):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    pq.write_table(pa.table(columns), root / "t.parquet")
    return "hf", root / "t.parquet"


def cell(content, path=None):
    return {"bytes": content, "path": path}


def giga(root, **changes):
    kind, folder, *_ = gigaspeech(root)
    data = json.loads((root / "GigaSpeech.json").read_text())
    data["audios"][0]["segments"][0].update(changes)
    (root / "GigaSpeech.json").write_text(json.dumps(data))
    return kind, folder


def changed(make, path, old, new):
    def build(root):
        kind, source, *_ = make(root)
        file = next(root.rglob(path))
        file.write_bytes(file.read_bytes().replace(old.encode(), new.encode()))
        return kind, source

    return build


BROKEN = {  # name -> (maker, words of the error, rows that are left with --skip-bad)
    "tar cut off in a member": (cut_tar, "a.tar: ends too early (unexpected end of data); copy it again", 2),
    "tar cut off before a text": (  # Emilia's order
        lambda root: ("tar", cut(make_tar(root / "a.tar", ("a.wav", sound(".wav")), ("a.txt", b"x"), ("b.wav", sound(".wav")),
                                          ("b.txt", b"x")), 0.7)), "a.tar: ends too early", 1),
    "tar without its end": (lambda root: cut_tar(root, 0.0) and cut_end(root), "the mark of its end is missing", 3),
    "member that is no sound": (
        lambda root: ("tar", make_tar(root / "a.tar", ("a.txt", b"x"), ("a.mp3", b"junk" * 300), ("b.txt", b"x"),
                                      ("b.wav", sound(".wav")))), "not a readable sound file", 1),
    "member without text": (
        lambda root: ("tar", make_tar(root / "a.tar", ("a.wav", sound(".wav")), ("b.wav", sound(".wav")), ("b.lab", b"x"))),
        "'a/a' has no text (neither a .json with a text nor a .txt stands beside it)", 1),
    "broken json in a tar": (
        lambda root: ("tar", make_tar(root / "a.tar", ("a.json", b'{"text": '), ("a.wav", sound(".wav")), ("b.txt", b"x"),
                                      ("b.wav", sound(".wav")))), "a.tar:a: not JSON", 1),
    "text of a tar in another encoding": (
        lambda root: ("tar", make_tar(root / "a.tar", ("a.txt", "é".encode("latin-1")), ("a.wav", sound(".wav")), ("b.txt", b"x"),
                                      ("b.wav", sound(".wav")))), "the text of 'a': not UTF-8", 1),
    "two sounds of a name": (
        lambda root: ("tar", make_tar(root / "a.tar", ("a.txt", b"x"), ("a.wav", sound(".wav")), ("a.flac", sound(".flac")),
                                      ("b.txt", b"x"), ("b.wav", sound(".wav")))), "a.wav, a.flac share their name", 1),
    "row that is no sound": (
        lambda root: table_of(root, audio=[cell(b"junk" * 99), cell(sound(".wav"))], text=["x", "y"]),
        "t.parquet[0]: 't.parquet[0]': ", 1),
    "row without sound": (
        lambda root: table_of(root, audio=[cell(None, "gone.wav"), cell(sound(".wav"))], text=["x", "y"]),
        "its path gone.wav is no file here", 1),
    "row without text": (
        lambda root: table_of(root, audio=[cell(sound(".wav"))] * 2, text=[None, "y"]), "its column of text is empty", 1),
    "clip that is missing": (
        changed(commonvoice, "train.tsv", "common_voice_en_2", "common_voice_en_3"), "common_voice_en_3.mp3: no such sound", 1),
    "line of another length": (changed(commonvoice, "train.tsv", "\tx\tSay \"2", "\tSay \"2"), "train.tsv:3: 12 fields", 1),
    "name of another form": (changed(mls, "transcripts.txt", "10_20_000001", "10_20"), "expected SPEAKER_BOOK_NUMBER", 1),
    "recording that is missing": (changed(mls, "transcripts.txt", "10_20_000001", "10_20_9"), "10_20_9.flac: no such sound", 1),
    "declared duration": (changed(nemo, "train_manifest.json", '"duration": 2.0', '"duration": 2.5'), "2.5 s are declared", 1),
    "beyond the recording": (changed(nemo, "train_manifest.json", '"offset": 0.5', '"offset": 1.9'), "ends at 2.15 s", 1),
    "segment beyond": (lambda root: giga(root, end_time=9.0), "ends at 9 s", 1),
    "segment backwards": (lambda root: giga(root, begin_time=0.9), "ends before it starts: 0.9 to 0.75", 1),
    "segment without time": (lambda root: giga(root, begin_time=None), "expected seconds >= 0, got None", 1),
    "segment without name": (lambda root: giga(root, sid=""), "field 'sid' must be text", 1),
}  # fmt: skip


def cut_end(root):
    kind, tar = cut_tar(root, 1.0)
    with tarfile.open(tar) as file:
        last = file.getmembers()[-1]
    tar.write_bytes(tar.read_bytes()[: last.offset_data + -(-last.size // 512) * 512])
    return kind, tar


@pytest.mark.parametrize(("make", "words", "left"), BROKEN.values(), ids=BROKEN.keys())
def test_broken_parts_stop_or_are_counted(tmp_path, capsys, caplog, make, words, left):
    caplog.set_level(logging.INFO)
    kind, source = make(tmp_path)
    assert convert(kind, source, tmp_path / "out") == 2
    error = capsys.readouterr().err.strip()
    assert words in error and "\n" not in error and "Traceback" not in error, error
    assert not list((tmp_path / "out").glob("train.*jsonl"))
    assert convert(kind, source, tmp_path / "out", "--skip-bad") == 0
    assert f"{left} written" in caplog.text and "1 skipped: " in caplog.text
    assert len(read_manifest(tmp_path / "out" / "train.jsonl")) == left


def gzipped(root):
    path = root / "a.tar.gz"
    with tarfile.open(path, "w:gz"):
        pass
    return "tar", path


UNUSABLE = {  # name -> (maker, words of the error): what as a whole cannot be read
    "compressed tar": (gzipped, "a.tar.gz: not a plain tar"),
    "folder without tars": (lambda root: ("tar", root), "no tar in it"),
    "tar that is gone": (lambda root: ("tar", root / "gone.tar"), "name the data to convert"),
    "ids that come twice": (
        lambda root: table_of(root, audio=[cell(sound(".wav"))] * 2, text=["x", "y"], id=[1, 1]),
        "utterances 1 and 2 are both called '1'; ids must differ"),
    "two columns of sound": (
        lambda root: table_of(root, a=[cell(sound(".wav"))], b=[cell(sound(".wav"))]), "several columns hold sound: a, b"),
    "column that cannot be named": (lambda root: table_of(root, **{"a#b": [cell(sound(".wav"))]}), "may not have '#' in its name"),
    "no column of sound": (lambda root: table_of(root, a=["x"]), "no column holds bytes of sound; name one in 'audio'; columns: a"),
    "damaged parquet": (lambda root: ("hf", lines(root / "t.parquet", "junk")), "t.parquet: not readable as parquet"),
    "splits to choose from": (
        lambda root: ("hf", parquet_shards(root, ("train", "test"))[1]), "several splits; splits: test, train; choose 'part'"),
    "folder without tables": (lambda root: ("hf", root), "no parquet file and no saved dataset"),
    "part that is not there": (lambda root: ("commonvoice", lines(root / "dev.tsv", "x").parent), "those that are there: dev"),
    "table without a column": (lambda root: ("commonvoice", lines(root / "train.tsv", "path\ttext").parent), "no column 'client"),
    "folder without its json": (lambda root: ("wenetspeech", root), "WenetSpeech.json: no such file"),
    "json of another corpus": (
        lambda root: ("wenetspeech", lines(root / "WenetSpeech.json", '{"a": [1], "b": 2}').parent), "has no list 'audios'"),
    "json that is cut off": (
        lambda root: ("gigaspeech", lines(root / "GigaSpeech.json", '{"audios": [{"aid": "x"').parent), "not JSON"),
    "json of a list": (lambda root: ("gigaspeech", lines(root / "GigaSpeech.json", "[1]").parent), "expected an object"),
    "table of another tool": (
        lambda root: ("folder", lines(root / "metadata.csv", "file_name,text", "a.wav,yes").parent), "use --from hf"),
    "part of a tree": (lambda root: ("mls", root), "transcripts.txt: no such file; name the folder of one part"),
}  # fmt: skip


@pytest.mark.parametrize(("make", "words"), UNUSABLE.values(), ids=UNUSABLE.keys())
def test_what_as_a_whole_cannot_be_read(tmp_path, capsys, make, words):
    kind, source = make(tmp_path)
    for extra in ([], ["--skip-bad"]):
        assert convert(kind, source, tmp_path / "out", *extra) == 2
        error = capsys.readouterr().err.strip()
        assert words in error and "\n" not in error and "Traceback" not in error, error


def test_a_table_without_pyarrow_names_the_extra(tmp_path, monkeypatch, capsys):
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    assert convert("hf", tmp_path / "t.parquet", tmp_path / "out") == 2
    assert "pip install 'ttt-speech[parquet]'" in capsys.readouterr().err
