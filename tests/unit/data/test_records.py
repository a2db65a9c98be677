"""Reading data files piece by piece gives what reading them at once gives; broken ones name their place."""

import gzip
import json
import pickle
import re

import numpy as np
import pytest

from tests.saved_dataset import save_to_disk
from ttt.data.read import records
from ttt.data.read.examples import official_record, read_examples
from ttt.data.read.records import RecordError, decode, raw_records, read_records
from ttt.errors import DataError, MissingExtraError

ITEMS = [{"id": i, "text": 'é\n"[{' * i, "n": [1, {"a": None}]} for i in range(30)] + [12, "x", None, [], 3.5]


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 64, 1 << 20])
@pytest.mark.parametrize("indent", [None, 2])
def test_a_list_is_decoded_in_pieces_of_any_size(tmp_path, monkeypatch, chunk, indent):
    monkeypatch.setattr(records, "CHUNK_CHARS", chunk)
    (tmp_path / "x.json").write_text(json.dumps(ITEMS, indent=indent) + "\n", encoding="utf-8")
    found = list(read_records(tmp_path / "x.json"))
    assert [r for _, r in found] == ITEMS
    assert found[3][0] == f"{tmp_path}/x.json[3]"


@pytest.mark.parametrize("chunk", [2, 1 << 20])
@pytest.mark.parametrize(
    "text, line, message",
    [
        ("", None, "expected a list"), ("{}", None, "expected a list"), ('[{"a": 1}\n{"b": 2}]', 2, "expected ',' or ']'"),
        ('[\n{"a": 1},\n{"a" 1}]', 3, "Expecting ':'"), ('[{"a": 1},\n\n', 3, "Expecting value"), ('[{"a": "b', 1, "Unterminated"),
        ("[1, 2,\n tru]", 2, "Expecting value"), ("[1", 1, "expected ','"),
    ],
)  # fmt: skip
def test_broken_lists_name_the_line(tmp_path, monkeypatch, text, line, message, chunk):
    monkeypatch.setattr(records, "CHUNK_CHARS", chunk)
    (tmp_path / "x.json").write_text(text)
    place = f"x.json:{line}: not JSON: " if line else "x.json: "
    with pytest.raises(DataError, match=re.escape(place) + ".*" + re.escape(message)):
        list(read_records(tmp_path / "x.json"))


def test_a_broken_record_in_front_does_not_read_the_whole_file(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "CHUNK_CHARS", 64)
    (tmp_path / "x.json").write_text('[{"a" 1},' + '{"b": 2},' * 100_000)
    buffer = records._Buffer(tmp_path / "x.json")
    with pytest.raises(RecordError, match="x.json:1: not JSON"):
        list(records._decode_list(tmp_path / "x.json", buffer))
    assert buffer.file.buffer.tell() < 100_000


def test_gz_files(tmp_path):
    with gzip.open(tmp_path / "x.jsonl.gz", "wt") as out:
        out.write('{"text": "a"}\n\n{"text": "b"}\n')
    with gzip.open(tmp_path / "y.json.gz", "wt") as out:
        json.dump([{"text": "c"}], out)
    assert [e.uid for e in read_examples(tmp_path / "x.jsonl.gz")] == ["x.jsonl.gz:1", "x.jsonl.gz:3"]
    assert [r for _, r in read_records(tmp_path / "y.json.gz")] == [{"text": "c"}]
    (tmp_path / "z.jsonl.gz").write_bytes(b"no gzip")
    with pytest.raises(DataError, match="z.jsonl.gz: cannot be read"):
        list(read_records(tmp_path / "z.jsonl.gz"))


def test_one_broken_line_spoils_only_itself(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(b'{"text": "a"}\n{"text"\n\xff\n{"text": "b"}\n')
    good, reasons = [], []
    for where, raw in raw_records(tmp_path / "x.jsonl"):
        try:
            good.append(decode(where, raw)["text"])
        except RecordError as error:
            reasons.append((error.where.rpartition("/")[2], error.reason))
    assert good == ["a", "b"] and reasons == [("x.jsonl:2", "not JSON"), ("x.jsonl:3", "not UTF-8")]


def test_errors_survive_the_way_between_processes():
    error = pickle.loads(pickle.dumps(RecordError("f:3", "no text", "has no text; drop it")))
    assert (error.where, error.reason, str(error)) == ("f:3", "no text", "f:3: has no text; drop it")


def test_parquet(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    turns = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]
    table = pa.table(
        {"messages": [turns, None, json.dumps(turns) and turns], "text": [None, "once", None], "junk": [b"x"] * 3}
    )
    pq.write_table(table, tmp_path / "x.parquet")
    found = list(raw_records(tmp_path / "x.parquet", ("messages", "text")))
    assert [sorted(r) for _, r in found] == [["messages"], ["text"], ["messages"]], (
        "no value, no field; other columns unread"
    )
    examples = read_examples(tmp_path / "x.parquet")
    assert [[t.role for t in e.turns] for e in examples] == [
        ["system", "user", "assistant"],
        ["document"],
        ["system", "user", "assistant"],
    ]
    assert examples[1].uid == "x.parquet[1]"
    (tmp_path / "y.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(DataError, match="y.parquet: not readable as parquet"):
        list(raw_records(tmp_path / "y.parquet"))


def test_parquet_without_its_package_names_the_extra(tmp_path, monkeypatch):
    import sys

    (tmp_path / "x.parquet").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'ttt-speech\[parquet\]'"):
        list(raw_records(tmp_path / "x.parquet"))


def test_turns_may_be_arrays_or_json_in_a_string():
    turns = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]
    for form in (turns, np.array(turns, dtype=object), json.dumps(turns)):
        assert [t.role for t in official_record({"messages": form}, "u").turns] == ["system", "user", "assistant"]
    with pytest.raises(RecordError, match="f:1: turns are a string: not JSON"):
        official_record({"messages": "hello"}, "u", "f:1")
    with pytest.raises(RecordError, match="f:1: expected a list of turns, got int"):
        official_record({"messages": 3}, "u", "f:1")


def test_memory_is_that_of_a_record_not_of_the_file(tmp_path, monkeypatch):
    import tracemalloc

    monkeypatch.setattr(records, "CHUNK_CHARS", 1 << 14)
    record = json.dumps({"text": "word " * 40})
    (tmp_path / "x.json").write_text("[" + ",\n".join([record] * 20_000) + "]")
    (tmp_path / "x.jsonl").write_text((record + "\n") * 20_000)
    for name in ("x.json", "x.jsonl"):
        tracemalloc.start()
        assert sum(1 for _ in read_records(tmp_path / name)) == 20_000
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < (tmp_path / name).stat().st_size / 10, f"{name}: {peak} bytes"


def test_saved_datasets(tmp_path):
    pytest.importorskip("pyarrow")
    rows = [{"input_ids": list(range(i)), "data_type": "tts" if i % 2 else None} for i in range(1, 6)]
    folder = save_to_disk(tmp_path / "set", rows)
    found = list(raw_records(folder))
    assert [w for w, _ in found] == [f"{folder}[{i}]" for i in range(5)]
    assert [r["input_ids"].tolist() for _, r in found] == [r["input_ids"] for r in rows]
    assert "data_type" not in found[1][1] and found[0][1]["data_type"] == "tts"
    assert list(raw_records(folder, ("data_type",)))[0][1] == {"data_type": "tts"}

    splits = tmp_path / "splits"
    save_to_disk(splits / "train", rows[:2])
    save_to_disk(splits / "dev", rows[2:])
    (splits / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "dev"]}))
    assert len(list(raw_records(splits))) == 2 and len(list(raw_records(splits / "dev"))) == 3
    (splits / "dataset_dict.json").write_text(json.dumps({"splits": ["dev"]}))
    with pytest.raises(DataError, match="without the split 'train'; name one of .*splits/dev"):
        list(raw_records(splits))


def test_damaged_saved_datasets(tmp_path):
    pytest.importorskip("pyarrow")
    folder = save_to_disk(tmp_path / "set", [{"text": "a"}, {"text": "b"}])
    first = folder / "data-00000-of-00002.arrow"
    first.write_bytes(first.read_bytes()[:40])
    with pytest.raises(DataError, match="data-00000-of-00002.arrow: not readable as Arrow"):
        list(raw_records(folder))
    first.unlink()
    with pytest.raises(DataError, match="data-00000-of-00002.arrow: missing, but .*state.json names it"):
        list(raw_records(folder))
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps({**state, "_indices_data_files": [{"filename": "indices.arrow"}]}))
    with pytest.raises(DataError, match="flatten_indices"):
        list(raw_records(folder))
