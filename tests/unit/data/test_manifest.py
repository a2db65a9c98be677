"""Manifests: what is written comes back, and a bad line is named by file and number."""

from __future__ import annotations

import json

import pytest

from ttt.data.manifest import Utterance, read_manifest, wav_path, write_manifest
from ttt.errors import DataError


def utterance(name: str, **changes) -> Utterance:
    base = {
        "id": name, "wav": f"wav/{name}.wav", "text": "one two", "duration_s": 1.5, "speaker": "f1", "split": "train",
        "meta": {"kind": "asr", "pair": None},
    }  # fmt: skip
    return Utterance(**(base | changes))


@pytest.fixture
def manifest(tmp_path):
    """A good manifest of two utterances whose wavs exist."""
    (tmp_path / "wav").mkdir()
    for name in ("a", "b"):
        (tmp_path / "wav" / f"{name}.wav").write_bytes(b"x")
    write_manifest(tmp_path / "train.jsonl", [utterance("a"), utterance("b", meta={})])
    return tmp_path / "train.jsonl"


def change(manifest, line, **changes):
    """Change fields of one line (counted from 1); None takes the field away."""
    records = [json.loads(text) for text in manifest.read_text().splitlines()]
    records[line - 1] |= changes
    records[line - 1] = {k: v for k, v in records[line - 1].items() if v is not None}
    manifest.write_text("".join(json.dumps(record) + "\n" for record in records))


def test_round_trip(manifest):
    assert read_manifest(manifest) == [utterance("a"), utterance("b", meta={})]
    assert wav_path(manifest, utterance("a")) == manifest.parent / "wav" / "a.wav"
    assert sorted(p.name for p in manifest.parent.iterdir()) == ["train.jsonl", "wav"]  # no temporary file


def test_text_may_be_unknown(manifest):
    """The line may leave it out; whoever reads it is told which utterance has none."""
    change(manifest, 1, text="")
    change(manifest, 2, text=None)
    items = read_manifest(manifest)
    assert [u.text for u in items] == ["", ""]
    with pytest.raises(DataError, match="utterance 'b' has no text, which the judge reads: write it into the manifest"):
        items[1].need_text("the judge")
    assert utterance("c").need_text("the judge") == "one two"


def test_a_manifest_can_move_with_its_folder(manifest, tmp_path_factory):
    new = tmp_path_factory.mktemp("elsewhere") / "corpus"
    manifest.parent.rename(new)
    assert len(read_manifest(new / "train.jsonl")) == 2


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"text": 3}, "'text' must be a string (empty: nobody knows), got 3"),
        ({"wav": None}, "missing field wav"),
        ({"id": "a"}, "id 'a' is used twice, first on line 1"),
        ({"wav": "wav/none.wav"}, "is missing: make it again or drop the line"),
        ({"duration_s": 0}, "'duration_s' must be seconds > 0, got 0"),
        ({"duration_s": "1.5"}, "'duration_s' must be seconds > 0, got '1.5'"),
        ({"duration_s": float("nan")}, "NaN is no JSON value"),
        ({"speaker": ""}, "'speaker' must be a non-empty string"),
        ({"meta": [1]}, "'meta' must be an object"),
        ({"txet": "x"}, "unknown field txet"),
    ],
)
def test_bad_field_names_file_and_line(manifest, changes, expected):
    change(manifest, 2, **changes)
    with pytest.raises(DataError) as caught:
        read_manifest(manifest)
    assert str(caught.value).startswith(f"{manifest}:2: ") and expected in str(caught.value)


@pytest.mark.parametrize(
    ("line", "expected"),
    [("{oops", ":3: not JSON"), ("", ":3: not JSON"), ("[1]", ":3: expected a JSON object, got list")],
)
def test_bad_json_names_file_and_line(manifest, line, expected):
    manifest.write_text(manifest.read_text() + line + "\n")
    with pytest.raises(DataError, match=expected):
        read_manifest(manifest)


def test_missing_wavs_pass_when_files_are_not_checked(manifest):
    (manifest.parent / "wav" / "a.wav").unlink()
    assert len(read_manifest(manifest, check_files=False)) == 2


def test_missing_empty_and_binary_manifests(tmp_path):
    with pytest.raises(DataError, match="no such manifest: make the data first"):
        read_manifest(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DataError, match="holds no utterances"):
        read_manifest(tmp_path / "empty.jsonl")
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="cannot be read as UTF-8"):
        read_manifest(tmp_path / "binary.jsonl")


def test_a_failed_write_keeps_the_old_file(manifest):
    before = manifest.read_bytes()
    with pytest.raises(DataError, match="id 'a' is to be written twice"):
        write_manifest(manifest, [utterance("a"), utterance("a")])
    assert manifest.read_bytes() == before
    assert sorted(p.name for p in manifest.parent.iterdir()) == ["train.jsonl", "wav"]
