"""`ttt data show | stats | check` on rows of another format: counts and columns first, then rows; bytes are not read."""

from __future__ import annotations

import json

import pytest

from ttt.cli.main import main

ROW = {"question": "say it", "answer": "it is", "answer_cosyvoice_speech_token": [7, 4095, 9]}


@pytest.fixture
def shard(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    rows = [{**ROW, "question_audio": {"bytes": b"RIFF", "path": "x"}} for _ in range(3)]
    rows[2] |= {"answer": None, "answer_cosyvoice_speech_token": []}
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "train-00000-of-00002.parquet")
    return tmp_path / "train-00000-of-00002.parquet"


def said(capsys, *words):
    capsys.readouterr()
    code = main(["data", *map(str, words)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_rows_of_a_table(shard, capsys):
    code, out, _ = said(capsys, "show", shard, "--limit", 2)
    lines = out.splitlines()
    assert code == 0 and lines[0] == f"{shard}: 3 rows in 1 file(s), 4 columns"
    assert "  answer_cosyvoice_speech_token: list<" in out.partition("row ")[0]
    assert "  question_audio: struct<bytes: binary, path: string> (not read)" in lines
    assert lines[5:] == ["", "row train-00000-of-00002.parquet[0]", "  question: say it", "  answer: it is",
                         "  answer_cosyvoice_speech_token: [7, 4095, 9]", "", "row train-00000-of-00002.parquet[1]",
                         *lines[7:10]]  # fmt: skip


def test_columns_of_a_table(shard, capsys):
    code, out, _ = said(capsys, "stats", shard)
    assert code == 0 and "answer                         1 without a value, characters 5 to 5, mean 5.0" in out
    assert "1 empty, items 0 to 3, mean 2.0, values 7 to 4095" in out and "question_audio                 not read" in out
    code, out, _ = said(capsys, "check", shard)
    assert code == 1 and "1 rows lack a value" in out
    code, out, _ = said(capsys, "check", shard, "--from", "slam_omni")
    assert code == 1 and out.startswith("3 rows, 2 usable; 1 skipped: no answer\n") and f"{shard}[2]: field 'answer'" in out


def test_lines_and_folders_of_shards(shard, tmp_path, capsys):
    lines = tmp_path / "x.jsonl"
    lines.write_text(json.dumps({"source_text": "a" * 200, "target_token": ["5", "6"]}) + "\n")
    code, out, _ = said(capsys, "show", lines)
    assert code == 0 and "2 fields in its first row" in out and f"source_text: {'a' * 100}... (200 characters)" in out
    assert "items 2 to 2, mean 2.0, values 5 to 6" in said(capsys, "stats", lines)[1]
    (tmp_path / "train-00001-of-00002.parquet").write_bytes(shard.read_bytes())
    for name in (tmp_path, tmp_path / "train-*.parquet"):
        assert said(capsys, "stats", name)[1].count("3 rows") == (4 if "*" in name.name else 0)
    assert f"{tmp_path}: 6 rows in 2 file(s)" in said(capsys, "show", tmp_path)[1]


def test_examples_are_not_taken_for_raw_rows(tmp_path, capsys):
    path = tmp_path / "x.jsonl"
    path.write_text('{"uid": "a", "turns": [{"role": "document", "spans": [{"text": "hi"}]}]}\n')
    assert "no errors" in said(capsys, "check", path)[1]
    code, _, err = said(capsys, "stats", path)
    assert code == 2 and "--tokenizer" in err
    assert "row x.jsonl:1" in said(capsys, "show", path)[1]
