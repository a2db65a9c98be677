"""Foreign formats: what each row becomes, and which rows are refused with which words."""

import gzip
import json

import numpy as np
import pytest

from tests.conftest import tiny_tokenizer
from ttt.audio.codecs.toy import Toy
from ttt.audio.wav import read, write
from ttt.data.convert.core import Report, convert_row, inputs_of, results, units, write_records
from ttt.data.convert.corpus import write_corpus
from ttt.data.convert.encode import encode_records
from ttt.data.encode import encode_example
from ttt.data.manifest import read_manifest
from ttt.data.read.examples import example_of, example_to_json, official_record, read_examples
from ttt.data.read.records import RecordError, read_records
from ttt.errors import ConfigError, DataError
from ttt.registry.families import CONVERTER
from ttt.types import AudioCodes, Waveform


def build(name, **fields):
    return CONVERTER.build({"name": name, **fields}, "--from")


def turns(record):
    """(role, pieces) with texts, codes and wavs as they are."""
    return [
        (t["role"], [s.get("text", s.get("wav", (s.get("style"), s.get("audio")) if "audio" in s else None)) for s in t["spans"]])
        for t in record["turns"]
    ]  # fmt: skip


def one(name, row, where="dir/x.jsonl:1", **fields):
    return turns(build(name, **fields).convert(where, row))


def refused(name, row, pattern, where="dir/x.jsonl:1", **fields):
    with pytest.raises(RecordError, match=f"^dir/x.jsonl:1.*{pattern}"):
        build(name, **fields).convert(where, row)


def says(*pairs):
    return {"conversations": [{"from": who, "value": what} for who, what in pairs]}


def test_sharegpt():
    row = says(("gpt", "welcome"), ("human", "a"), ("gpt", "b"), ("human", "c"), ("chatgpt", "d"), ("human", "bye"))
    assert one("sharegpt", row) == [
        ("system", []),
        ("user", ["a"]),
        ("assistant", ["b"]),
        ("user", ["c"]),
        ("assistant", ["d"]),
    ]
    assert one("sharegpt", row, first_exchange=True, system="s") == [
        ("system", ["s"]),
        ("user", ["a"]),
        ("assistant", ["b"]),
    ]
    assert one("sharegpt", says(("system", "be"), ("user", "a"), ("assistant", "b")))[0] == ("system", ["be"])
    refused("sharegpt", says(("human", "a")), "no user turn that is answered")
    refused("sharegpt", says(("robot", "a")), "unknown sender 'robot'; known: human, user, gpt")
    refused("sharegpt", {"conversations": "a"}, "no list 'conversations'")


def test_alpaca():
    answered = [("user", ["add\n\n1 1"]), ("assistant", ["2"])]
    assert one("alpaca", {"instruction": "add", "input": "1 1", "output": "2"}) == [("system", []), *answered]
    row = {"instruction": "add", "input": "1 1", "output": "2", "history": [["hi", "ho"]], "system": "s"}
    assert one("alpaca", row) == [("system", ["s"]), ("user", ["hi"]), ("assistant", ["ho"]), *answered]
    assert one("alpaca", {**row, "input": " "})[3] == ("user", ["add"])
    refused("alpaca", {"instruction": "add", "output": ""}, "field 'output' must be text that is not empty")
    refused("alpaca", {"instruction": "a", "output": "b", "history": ["x"]}, "history must be pairs")


def test_slam_omni():
    row = {"question": "q", "answer": "one two three", "answer_cosyvoice_speech_token": ["5", "4095", "7"]}
    assert one("slam_omni", row) == [
        ("system", []),
        ("user", ["q"]),
        ("assistant", ["one two three", ("last", [5, 4095, 7])]),
    ]
    chunked = one("slam_omni", row, text_chunk=2, audio_chunk=1, text_unit="words")[2][1]
    assert chunked == ["one two", ("span", [5]), " three", ("last", [4095, 7])]
    refused("slam_omni", {**row, "answer_cosyvoice_speech_token": [4096]}, "unit 4096 is outside the codebook of 4096")
    refused("slam_omni", {**row, "answer_cosyvoice_speech_token": []}, "no speech units")
    refused("slam_omni", {**row, "answer_cosyvoice_speech_token": ["x"]}, "units are no whole numbers")
    refused("slam_omni", {**row, "answer": None}, "field 'answer' must be text")
    with pytest.raises(ConfigError, match="text_chunk: must be >= 0"):
        build("slam_omni", text_chunk=-1)


ROUNDS = [
    {"split_name": "qa", "index": 1, "round": 1, "source_text": "<USER>: hi", "target_text": "ho", "target_token": [1]},
    {"split_name": "qa", "index": 2, "round": 1, "source_text": "<USER>: hi", "target_text": "ho", "target_token": [2]},
    {"split_name": "qa", "index": 2, "round": 2, "source_text": "USER: hi ASSISTANT: ho <USER>: so", "target_text": "yes",
     "target_token": [3, 4]},
    {"split_name": "qa", "index": 2, "round": 4, "source_text": "USER: so ASSISTANT: yes <USER>: end", "target_text": "bye",
     "target_token": [5]},
]  # fmt: skip


def test_rounds_of_slam_llm_become_one_conversation(tmp_path):
    path = tmp_path / "rounds.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in ROUNDS))
    found = list(results(build("slam_omni"), path, Report(), skip_bad=False))
    assert [turns(r)[1:] for r in found] == [
        [("user", ["hi"]), ("assistant", ["ho", ("last", [1])])],
        [("user", ["hi"]), ("assistant", ["ho", ("last", [2])]), ("user", ["so"]), ("assistant", ["yes", ("last", [3, 4])])],
        [("user", ["so"]), ("assistant", ["yes"]), ("user", ["end"]), ("assistant", ["bye", ("last", [5])])],
    ]
    learned = [[t.is_target for t in example_of("x:1", r).turns] for r in found]
    assert learned == [[False, False, True], [False, False, True, False, True], [False, False, False, False, True]]
    # a round that cannot be used spoils its own dialogue only, and is named
    path.write_text("".join(json.dumps({**r, "target_token": []} if n == 2 else r) + "\n" for n, r in enumerate(ROUNDS)))
    report = Report()
    assert len(list(results(build("slam_omni"), path, report, skip_bad=True))) == 2
    assert f"{path}:3: the answer has no speech units" in report.first_skipped["no codes"]


def test_slam_llm_lines_with_recordings(tmp_path):
    for name in ("q.wav", "a.wav"):
        write(tmp_path / name, Waveform(np.zeros(1600, dtype=np.float32), 16000))
    row = {"key": "k7", "source_wav": "q.wav", "source_text": "q", "target_wav": "a.wav", "target_text": "one"}
    found = build("slam_omni", user="both").convert(f"{tmp_path}/x.jsonl:1", row)
    assert found["uid"] == "k7" and found["task"] == "chat"
    assert turns(found)[1:] == [("user", ["q", f"{tmp_path}/q.wav"]), ("assistant", ["one", f"{tmp_path}/a.wav"])]
    refused("slam_omni", {**row, "source_wav": "no.wav"}, "no.wav: no such sound file", user="audio")


def test_questions_in_slam_omnis_tables_are_heard(tmp_path):
    """Published tables hold a recording as numbers with their rate, not as the bytes of a file."""
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    heard = {"array": [0.0, 0.5, -0.25, 0.125] * 200, "path": "x.wav", "sampling_rate": 16000}
    table = {"question": ["q"], "question_audio": [heard], "answer": ["a"], "answer_cosyvoice_speech_token": [[1]]}
    pq.write_table(pa.table(table), tmp_path / "train-00000-of-00001.parquet")
    (made,) = results(build("slam_omni", user="audio"), tmp_path, Report(), skip_bad=False)
    wave = read(turns(made)[1][1][0])
    assert wave.rate_hz == 16000 and np.allclose(wave.samples, heard["array"])


def test_slam_omni_parquet(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    n = 700
    table = pa.table({
        "question": [f"q{i}" for i in range(n)], "answer": ["a"] * n, "question_audio": [b"x"] * n,
        "answer_cosyvoice_speech_token": [[i, 1] for i in range(n)],
    })  # fmt: skip
    pq.write_table(table, tmp_path / "train-00000-of-00001.parquet", row_group_size=300)
    report = Report()
    found = list(results(build("slam_omni"), tmp_path / "train-00000-of-00001.parquet", report, skip_bad=False))
    assert report.rows == report.written == n and turns(found[650])[1:] == [
        ("user", ["q650"]),
        ("assistant", ["a", ("last", [650, 1])]),
    ]
    assert found[650]["uid"] == "train-00000-of-00001.parquet[650]"


def test_slamkit():
    row = {
        "user_text": "hi",
        "user_audio": {"units": [1]},
        "assistant_text": "ho",
        "assistant_audio": {"units": [2, 2]},
    }
    for user, spans in (("audio", [("user", [1])]), ("text", ["hi"]), ("both", ["hi", ("user", [1])])):
        assert one("slamkit", row, user=user) == [
            ("system", []),
            ("user", spans),
            ("assistant", ["ho", ("last", [2, 2])]),
        ]
    refused("slamkit", {"user_text": "hi", "user_audio": {"units": []}, "assistant_text": "ho"}, "no speech units")


def test_llama_omni(tmp_path):
    (tmp_path / "q.wav").write_bytes(b"")
    where = f"{tmp_path}/x.json[0]"
    question = {"from": "human", "value": "<speech>\nAnswer the speech."}
    row = {
        "id": "r",
        "speech": "q.wav",
        "conversations": [question, {"from": "gpt", "value": "yes", "units": "<7> <7>"}],
    }
    wav = str(tmp_path / "q.wav")
    assert one("llama_omni", row, where)[1:] == [
        ("user", [wav, "Answer the speech."]),
        ("assistant", ["yes", ("last", [7, 7])]),
    ]
    two = {
        "conversation": [{"from": "human", "speech": "q.wav", "text": "hello"}, {"from": "gpt", "text": "yes"}],
        "tgt_units": [3],
    }
    assert one("llama_omni", two, where)[1:] == [("user", [wav]), ("assistant", ["yes", ("last", [3])])], (
        "a transcript is no prompt"
    )
    answer = {"question_id": "h_1", "prediction": "yes", "prediction_units": "3 4"}
    assert one("llama_omni", answer, prompt="p")[1:] == [("user", ["p"]), ("assistant", ["yes", ("last", [3, 4])])]
    refused("llama_omni", {**row, "conversations": [question]}, "no such sound file; set 'root'")
    with pytest.raises(RecordError, match="question files hold nothing to train on"):
        build("llama_omni").convert(where, {**row, "conversations": [question]})
    refused("llama_omni", {"prediction": "yes", "prediction_units": ""}, "no speech units")
    (tmp_path / "answer.json").write_text(
        json.dumps(answer) + "\n" + json.dumps({**answer, "question_id": "h_2"}) + "\n"
    )
    found = list(results(build("llama_omni"), tmp_path / "answer.json", Report(), skip_bad=False))
    assert [r["uid"] for r in found] == ["h_1", "h_2"], "their .json answer files hold one object a line"


def test_vita_audio(tmp_path):
    for name in "qrs":
        (tmp_path / f"{name}.wav").write_bytes(b"")
    row = {
        "messages": [{"role": "user", "content": "<|audio|>"}, {"role": "assistant", "content": "yes\n<|audio|>\nand\n<|audio|>"}],
        "audios": ["q.wav", "r.wav", "s.wav"],
    }  # fmt: skip
    made = build("vita_audio", root=str(tmp_path)).convert("dir/x.jsonl:1", row)
    q, r, s = (str(tmp_path / f"{n}.wav") for n in "qrs")
    assert turns(made) == [("system", []), ("user", [q]), ("assistant", ["yes", r, "and", s])]
    assert [x["style"] for t in made["turns"] for x in t["spans"] if "wav" in x] == ["user", "span", "last"]
    refused("vita_audio", {**row, "audios": ["q.wav"]}, r"3 <\|audio\|> in the messages, 1 audios")
    refused("vita_audio", {"messages": [{"role": "tool", "content": ""}]}, "message 0 has role 'tool'")
    refused("vita_audio", {"messages": [{"role": "user", "content": "a"}]}, "the last message is not the assistant's")


def test_units_in_every_spelling():
    for value in ([1, 2], ["1", "2"], "1 2", "<1><2>", "1, 2"):
        assert units(value, 3, "f:1")[:, 0].tolist() == [1, 2]
    with pytest.raises(RecordError, match="one code a frame"):
        units([[1, 2], [3, 4]], 0, "f:1")
    with pytest.raises(RecordError, match="whole numbers"):
        units([1.5], 0, "f:1")


# ---- recordings with transcripts ---------------------------------------------------------------------------


@pytest.fixture
def recording(tmp_path):
    """One second of rising values at 8 kHz."""
    path = tmp_path / "rec" / "r.wav"
    write(path, Waveform(np.linspace(-0.5, 0.5, 8000, dtype=np.float32), 8000))
    return path


def kaldi(folder, recording, cut=True, **files):
    folder.mkdir()
    text = "a ONE\nb TWO THREE\n"
    plain = {"wav.scp": f"r {recording}\n", "text": text, "utt2spk": "a s1\nb s2\n"}
    plain["segments"] = "a r 0.0 0.25\nb r 0.5 1.0\n"
    if not cut:
        plain = {"wav.scp": f"a {recording}\nb {recording}\n", "text": text, "utt2dur": "a 1.0\nb 1.0\n"}
    for name, content in {**plain, **files}.items():
        if content:
            (folder / name).write_text(content)
    return folder


def test_kaldi_segments_stay_in_their_recording(tmp_path, recording):
    folder = kaldi(tmp_path / "k", recording)
    report = write_corpus(build("kaldi"), folder, tmp_path / "out", "train", ["asr", "tts"])
    a, b = read_manifest(tmp_path / "out" / "train.jsonl")
    assert (a.id, a.text, a.speaker, a.duration_s, b.duration_s, report.written) == ("a", "ONE", "s1", 0.25, 0.5, 2)
    whole = read(recording).samples
    assert np.array_equal(read(tmp_path / "out" / b.wav).samples, whole[4000:])
    items = [r for _, r in read_records(tmp_path / "out" / "train.items.jsonl")]
    assert [(i["id"], i["task"], i["input"], i["text_out"]) for i in items[:2]] == [
        ("a-asr", "asr", "a", "ONE"),
        ("a-tts", "tts", "a", "ONE"),
    ]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["train.items.jsonl", "train.jsonl"]
    assert (report.files, report.sound_s, report.rates) == (1, 0.75, {8000: 2})
    assert "2 written" in report.summary() and "hours in 1 files (2 at 8000 Hz)" in report.summary()


def test_kaldi_whole_files_stay_where_they_are(tmp_path, recording):
    write_corpus(build("kaldi"), kaldi(tmp_path / "k", recording, cut=False), tmp_path / "out", "dev", ["asr"])
    a, b = read_manifest(tmp_path / "out" / "dev.jsonl")
    assert a.wav == b.wav == str(recording) and a.speaker == "unknown"


@pytest.mark.parametrize(
    "files, message",
    [
        ({"wav.scp": "r sox in.mp3 -t wav - |\n"}, r"segments:1: utterance 'a': wav.scp entry is a command"),
        ({"wav.scp": "q x.wav\n"}, "'a': no wav.scp entry"),
        ({"wav.scp": "r /no/r.wav\n"}, "/no/r.wav: no such sound file"),
        ({"text": "a ONE\n"}, "segments:2: utterance 'b' has no text"),
        ({"text": ""}, r"'a' has no text \(file 'text', sorted\), which task 'asr' reads; .*--tasks continuation"),
        ({"wav.scp": ""}, "wav.scp: missing; a Kaldi data folder holds wav.scp"),
        ({"text": "a ONE\na TWO\n"}, "text:2: key 'a' after 'a': sort"),
        ({"segments": "b r 0.3 0.5\na r 0.0 0.5\n"}, "segments:2: key 'a' after 'b': sort"),
        ({"segments": "a r 0.3 0.1\n"}, "segment ends before it starts"),
        ({"segments": "a r 0.0 0.01\n"}, "10 ms of sound"),
        ({"segments": "a r zero 1\n"}, "expected seconds >= 0, got 'zero'"),
        ({"segments": "a r\n"}, "a line of 'segments' is"),
    ],
)
def test_wrong_kaldi_folders(tmp_path, recording, files, message):
    with pytest.raises(DataError, match=message):
        write_corpus(build("kaldi"), kaldi(tmp_path / "k", recording, **files), tmp_path / "out", "train", ["asr"])
    assert not any((tmp_path / "out").iterdir())


def cut(wav, **changes):
    sources = [{"type": "file", "channels": [0], "source": str(wav)}]
    said = [{"start": 0.3, "text": "world", "speaker": "s"}, {"start": 0.0, "text": "hello", "language": "en"}]
    recorded = {"id": "r", "sources": sources, "sampling_rate": 8000, "num_samples": 8000, "duration": 1.0}
    whole = {"id": "c", "start": 0.25, "duration": 0.5, "channel": 0, "type": "MonoCut", "recording": recorded}
    return {**whole, "supervisions": said, **changes}


def test_lhotse(tmp_path, recording):
    with gzip.open(tmp_path / "cuts.jsonl.gz", "wt") as out:
        out.write(json.dumps(cut(recording)) + "\n" + json.dumps(cut(recording, id="w", start=0, duration=1.0)) + "\n")
    write_corpus(build("lhotse"), tmp_path / "cuts.jsonl.gz", tmp_path / "out", "train", ["asr"])
    c, w = read_manifest(tmp_path / "out" / "train.jsonl")
    assert (c.text, c.speaker, c.duration_s, c.meta) == ("hello world", "s", 0.5, {"language": "en"})
    assert np.array_equal(read(tmp_path / "out" / c.wav).samples, read(recording).samples[2000:6000])
    assert w.wav == str(recording)
    for row, message in (
        ({"type": "MixedCut"}, "expected a MonoCut with a recording, got 'MixedCut'"),
        ({"recording": {"sources": [{"type": "command", "source": "x"}]}}, "not one sound file of one channel"),
        ({"recording": {"sources": [{"type": "file", "channels": [0, 1], "source": "x"}]}}, "one channel"),
    ):
        refused("lhotse", cut(recording, **row), message)


def test_folder(tmp_path, recording):
    for name in ("s1/b", "s1/a", "s2/c"):
        write(tmp_path / "f" / f"{name}.wav", read(recording))
        (tmp_path / "f" / f"{name}.normalized.txt").write_text(f"text of\n{name}\n")
    converter = build("folder", text_suffix=".normalized.txt", speaker_level=1)
    write_corpus(converter, tmp_path / "f", tmp_path / "out", "train", ["asr"])
    found = read_manifest(tmp_path / "out" / "train.jsonl")
    assert [(u.id, u.speaker, u.text, u.duration_s) for u in found] == [
        ("s1/a", "s1", "text of s1/a", 1.0), ("s1/b", "s1", "text of s1/b", 1.0), ("s2/c", "s2", "text of s2/c", 1.0),
    ]  # fmt: skip
    with pytest.raises(DataError, match=r"s1/a.wav: utterance 's1/a' has no text \(a.lab is missing\), which task"):
        write_corpus(build("folder", text_suffix=".lab"), tmp_path / "f", tmp_path / "out", "train", ["asr"])


def test_folder_with_metadata(tmp_path, recording):
    write(tmp_path / "lj" / "wavs" / "LJ1.wav", read(recording))
    (tmp_path / "lj" / "metadata.csv").write_text("LJ1|Mr. X|Mister X\nLJ2|gone|gone\n")
    report = write_corpus(build("folder"), tmp_path / "lj", tmp_path / "out", "train", ["tts"], skip_bad=True)
    assert [u.text for u in read_manifest(tmp_path / "out" / "train.jsonl")] == ["Mister X"]
    assert (
        dict(report.skipped) == {"sound file missing": 1}
        and "metadata.csv:2" in report.first_skipped["sound file missing"]
    )


def test_recordings_without_text(tmp_path, recording):
    """They are a corpus of tasks that read none; other tasks refuse them, or leave them out."""
    made = tmp_path / "out" / "train.jsonl"
    write(tmp_path / "f" / "a.wav", read(recording))
    write(tmp_path / "f" / "b.wav", read(recording))
    (tmp_path / "f" / "b.txt").write_text("words\n")
    (tmp_path / "c.jsonl").write_text(json.dumps(cut(recording, supervisions=[])) + "\n")
    sources = (
        ("folder", tmp_path / "f", ["", "words"]), ("lhotse", tmp_path / "c.jsonl", [""]),
        ("kaldi", kaldi(tmp_path / "k", recording, text="", utt2spk=""), ["", ""]),
    )  # fmt: skip
    for name, path, texts in sources:
        report = write_corpus(build(name), path, tmp_path / "out", "train", ["continuation"], reads_text=())
        assert [u.text for u in read_manifest(made)] == texts and report.without_text == texts.count("")
        assert f"{texts.count('')} without text" in report.summary()
    before = made.read_bytes()
    both = ["continuation", "asr"]
    with pytest.raises(RecordError, match="c.jsonl:1: utterance 'c' has no text .a supervision with text.*task 'asr'"):
        write_corpus(build("lhotse"), tmp_path / "c.jsonl", tmp_path / "out", "train", both, reads_text=["asr"])
    with pytest.raises(DataError, match="no usable row; nothing was written .2 rows, 0 written.*2 skipped: no text"):
        write_corpus(build("kaldi"), tmp_path / "k", tmp_path / "out", "train", ["asr"], skip_bad=True)
    assert made.read_bytes() == before
    report = write_corpus(build("folder"), tmp_path / "f", tmp_path / "out", "train", ["asr"], skip_bad=True)
    assert report.skipped == {"no text": 1} and [u.id for u in read_manifest(made)] == ["b"]


def test_limits_of_duration_hold_for_every_corpus(tmp_path, recording):
    for name in ("s", "l"):
        write(tmp_path / "f" / f"{name}.wav", Waveform(read(recording).samples[: 8000 if name == "l" else 2000], 8000))
    converter = build("folder", min_duration_s=0.5, max_duration_s=1)
    report = write_corpus(converter, tmp_path / "f", tmp_path / "out", "train", ["continuation"], reads_text=())
    assert [u.id for u in read_manifest(tmp_path / "out/train.jsonl")] == ["l"]
    assert report.skipped == {"shorter than 0.5 s": 1}
    with pytest.raises(ConfigError, match="0 <= min_duration_s <= max_duration_s"):
        build("kaldi", min_duration_s=2, max_duration_s=1)


# ---- the loop ------------------------------------------------------------------------------------------------


def test_bad_rows_stop_or_are_counted(tmp_path):
    rows = [
        {"instruction": "a", "output": "b"},
        {"instruction": "a"},
        {"instruction": "", "output": "b"},
        {"instruction": "c", "output": "d"},
    ]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows) + "{\n")
    with pytest.raises(RecordError, match=r"x.jsonl:2: field 'output' .*--skip-bad leaves such rows out"):
        write_records(results(build("alpaca"), tmp_path / "x.jsonl", Report(), skip_bad=False), tmp_path / "out.jsonl")
    assert [p.name for p in tmp_path.iterdir()] == ["x.jsonl"], "nothing half-written"
    report = Report()
    write_records(results(build("alpaca"), tmp_path / "x.jsonl", report, skip_bad=True), tmp_path / "out.jsonl")
    assert [e.uid for e in read_examples(tmp_path / "out.jsonl")] == ["x.jsonl:1", "x.jsonl:4"]
    assert dict(report.skipped) == {"no output": 1, "no instruction": 1, "not JSON": 1} and (
        report.rows,
        report.written,
    ) == (5, 2)
    assert "5 rows, 2 written" in report.summary() and "1 skipped: not JSON" in report.summary()
    limited = Report()
    assert (
        len(list(results(build("alpaca"), tmp_path / "x.jsonl", limited, skip_bad=True, limit=1))) == limited.rows == 1
    )


def test_double_names_and_nothing_usable(tmp_path):
    rows = [{"id": i, "instruction": "a", "output": "b"} for i in (1, 2, 3, 2)]
    (tmp_path / "x.json").write_text(json.dumps(rows))
    with pytest.raises(DataError, match="records 2 and 4 are both called '2'"):
        write_records(results(build("alpaca"), tmp_path / "x.json", Report(), skip_bad=False), tmp_path / "out.jsonl")
    (tmp_path / "y.json").write_text("[{}]")
    with pytest.raises(DataError, match="no usable row"):
        write_records(results(build("alpaca"), tmp_path / "y.json", Report(), skip_bad=True), tmp_path / "out.jsonl")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.json", "y.json"]


def test_sound_files_become_codes(tmp_path):
    codec = Toy().load()
    said = [np.array([[3], [5], [5], [8]], np.int32), np.array([[1], [2], [9], [4], [4], [6]], np.int32)]
    for number, codes in enumerate(said):
        write(tmp_path / f"{number}.wav", codec.decode([AudioCodes(codes, codec.frame_rate_hz, codec.codec_id)])[0])
    messages = [{"role": "user", "content": "<|audio|>"}, {"role": "assistant", "content": "ok <|audio|>"}]
    rows = [
        {"messages": messages, "audios": ["0.wav", "1.wav"]},
        {"messages": [messages[0], {"role": "assistant", "content": "no"}], "audios": ["1.wav"]},
    ]
    (tmp_path / "v.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    write_records(results(build("vita_audio"), tmp_path / "v.jsonl", Report(), skip_bad=False), tmp_path / "w.jsonl")
    with pytest.raises(RecordError, match="w.jsonl:1: uid .*is still a sound file .*run 'ttt data encode'"):
        read_examples(tmp_path / "w.jsonl")
    for batch in (1, 32):
        report = Report()
        write_records(encode_records(tmp_path / "w.jsonl", codec, report, batch=batch), tmp_path / "codes.jsonl")
        found = read_examples(tmp_path / "codes.jsonl")
        spans = [s for e in found for t in e.turns for s in t.spans if s.codes is not None]
        assert [s.style for s in spans] == ["user", "last", "user"] and report.written == 2
        assert all(np.array_equal(s.codes, said[i]) for s, i in zip(spans, (0, 1, 1), strict=True))
    (tmp_path / "1.wav").write_bytes(b"RIFF")
    with pytest.raises(RecordError, match="w.jsonl:1: .*1.wav: not a readable sound file"):
        list(encode_records(tmp_path / "w.jsonl", codec, Report()))


def mutations(value):
    """``value`` with every field, at any depth, replaced by things of other types."""
    yield from (None, 3, -1.5, "x", [], {}, [3], [[1, 2], [3]], [None], True)
    if isinstance(value, dict):
        for key in value:
            yield {k: v for k, v in value.items() if k != key}
            yield from ({**value, key: changed} for changed in mutations(value[key]))
    elif isinstance(value, list | tuple):
        for i in range(min(len(value), 2)):
            yield from (type(value)([*value[:i], changed, *value[i + 1 :]]) for changed in mutations(value[i]))


@pytest.mark.parametrize("name", CONVERTER.names())
def test_rows_of_any_other_form_are_refused_by_name(tmp_path, name):
    converter = build(name)
    where, row = next(iter(converter.rows(converter.sample(tmp_path))))
    row = json.loads(row) if isinstance(row, bytes) else row
    tried = 0
    for changed in mutations(row):
        tried += 1
        try:
            convert_row(converter, where, changed)
        except RecordError as error:
            assert error.reason and str(error).startswith(str(tmp_path)), (changed, error)
        except Exception as error:
            pytest.fail(f"{changed!r}: {type(error).__name__}: {error}")
    assert tried > 20


@pytest.mark.parametrize("form", ["own", "messages", "conversations", "text"])
def test_examples_of_any_other_form_are_refused_by_name(form):
    """What training, checking and packing read."""
    spoken = "yes<|begin_of_quad|><|audio_3|><|end_of_audio_span_last|>"
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": spoken}]
    row = {
        "own": example_to_json(official_record({"messages": turns}, "u")), "messages": {"messages": turns},
        "conversations": {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": spoken}]},
        "text": {"text": spoken},
    }[form]  # fmt: skip
    assert example_of("d/f:1", row).turns
    for changed in mutations(row):
        try:
            encode_example(example_of("d/f:1", changed), tiny_tokenizer())
        except RecordError as error:
            assert error.reason and str(error).startswith("d/f:1"), (changed, error)
        except DataError:
            pass  # refused by the tokenizer's side, which names the example
        except Exception as error:
            pytest.fail(f"{changed!r}: {type(error).__name__}: {error}")


SLAM = {"question": "q", "answer": "a", "answer_cosyvoice_speech_token": [1]}


@pytest.mark.parametrize(
    "change, reason, pattern",
    [
        ({"question": None}, "no question", "field 'question' must be text that is not empty, got nothing"),
        ({"answer": "  "}, "no answer", "field 'answer' must be text"),
        ({"answer_cosyvoice_speech_token": None}, "no codes", "has no speech units; drop the row"),
        ({"answer_cosyvoice_speech_token": []}, "no codes", "has no speech units; drop the row"),
        ({"answer_cosyvoice_speech_token": [4096]}, "code out of range", "unit 4096 is outside the codebook of 4096"),
        ({"answer_cosyvoice_speech_token": ["4096"]}, "code out of range", "unit 4096 is outside the codebook"),
        ({"answer_cosyvoice_speech_token": [3, -1]}, "not codes", r"whole numbers >= 0\): \[ *3 +-1\]|\[3, -1\]"),
        ({"answer_cosyvoice_speech_token": ["1.5"]}, "not codes", "units are no whole numbers"),
        ({"answer_cosyvoice_speech_token": ["1", None]}, "not codes", "units are no whole numbers"),
        (
            {"question": "x <|im_start|> y"},
            "special token in text",
            r"field 'question' spells '<\|im_start\|>' literally",
        ),
        ({"answer": "use </speech>"}, "special token in text", "field 'answer' spells '</speech>' literally"),
    ],
)
def test_slam_omni_rows_that_are_left_out(tmp_path, change, reason, pattern):
    refused("slam_omni", {**SLAM, **change}, pattern)
    (tmp_path / "x.jsonl").write_text(json.dumps({**SLAM, **change}) + "\n" + json.dumps(SLAM) + "\n")
    report = Report()
    assert len(list(results(build("slam_omni"), tmp_path / "x.jsonl", report, skip_bad=True))) == 1
    assert report.skipped == {reason: 1} and f"skipped: {reason}" in report.summary()


@pytest.mark.parametrize("codes", [["7", "4095"], [7, "4095"], "7 4095", "<7><4095>"])
def test_slam_omni_spellings_of_codes(codes):
    assert one("slam_omni", {**SLAM, "answer_cosyvoice_speech_token": codes})[2][1][1] == ("last", [7, 4095])


def test_slam_omni_examples_are_of_the_task():
    from ttt.registry.families import TASK

    example = example_of("x.jsonl:1", build("slam_omni").convert("x.jsonl:1", SLAM))
    task = TASK.build({"name": "text_then_speech"}, "tasks[0]")
    assert example.task == task.label and example.meta == {"text_ref": "a", "speech_ref": "a"}
    built = task.build({"id": "x.jsonl:1", "text_in": "q", "text_out": "a", "output": "o"}, {"o": np.array([[1]])})
    assert example_to_json(built)["turns"][1:] == example_to_json(example)["turns"][1:]
    assert task.prompt(example).turns[-1].role == "user"
    with pytest.raises(ConfigError, match="all text, then all speech"):
        TASK.build({"name": "text_then_speech", "text_chunk": 3}, "tasks[0]")


def test_parquet_without_a_column(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"question": ["q"], "answers": ["a"]}), tmp_path / "t.parquet")
    with pytest.raises(
        DataError, match=r"t.parquet: no column 'answer'. Did you mean 'answers'\? Columns: question, answers"
    ):
        list(results(build("slam_omni"), tmp_path / "t.parquet", Report(), skip_bad=True))


def test_several_files_by_a_glob(tmp_path):
    for name in ("b.jsonl", "a.jsonl"):
        (tmp_path / name).write_text(2 * (json.dumps(SLAM) + "\n"))
    files = inputs_of(tmp_path / "*.jsonl")
    assert [f.name for f in files] == ["a.jsonl", "b.jsonl"] and inputs_of(files[0]) == files[:1]
    report = Report()
    found = list(results(build("slam_omni"), files, report, skip_bad=False, limit=3))
    assert [r["uid"] for r in found] == ["a.jsonl:1", "a.jsonl:2", "b.jsonl:1"] and report.rows == 3
    with pytest.raises(DataError, match="no file fits; mend the pattern"):
        inputs_of(tmp_path / "*.parquet")


def test_slam_omni_parquet_of_strings(tmp_path):
    """Tokens as lists of strings, rows without any, null within a list; the row's number stays its name."""
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    tokens = [["7", "4095"], None, [], ["1", None], ["12"]]
    table = pa.table({
        "question": ["q"] * 5, "answer": ["a"] * 5,
        "answer_cosyvoice_speech_token": pa.array(tokens, pa.list_(pa.string())),
    })  # fmt: skip
    pq.write_table(table, tmp_path / "t.parquet")
    report = Report()
    found = list(results(build("slam_omni"), tmp_path / "t.parquet", report, skip_bad=True))
    assert [r["uid"] for r in found] == ["t.parquet[0]", "t.parquet[4]"]
    assert turns(found[0])[2] == ("assistant", ["a", ("last", [7, 4095])])
    assert report.skipped == {"no codes": 2, "not codes": 1}
