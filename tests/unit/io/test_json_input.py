"""Every fault of a JSON file is one line with file, line, reason and mend."""

import pytest

from ttt.errors import CheckpointError, DataError
from ttt.io import json_input

FILES = [
    (b'{"a": 1}', None, {"a": 1}),
    (b"[1]", list, [1]),
    (b"3", None, 3),
    (b'\xef\xbb\xbf {"a": 1}\n', None, {"a": 1}),
    (rb'{"a": "\ud83d\ude00"}', None, {"a": "\U0001f600"}),
    (b"[" * 100 + b"]" * 100, None, eval("[" * 100 + "]" * 100)),
    (b'["' + b"[" * 300 + b'"]', None, ["[" * 300]),
    (b"[" + b"[[1]]," * 300 + b"[]]", None, [[[1]]] * 300 + [[]]),
]
FAULTS = [
    (None, "x.json: no such file; make it"),
    (b"", "x.json:1: not JSON: Expecting value (column 1); make it"),
    (b'{"a": \n 1,}', "x.json:2: not JSON: "),
    (b"[1]", "x.json: expected an object, got list; make it"),
    (b'{"a": "\xff"}', "x.json: not UTF-8 at byte 7 (perhaps Latin-1); make it"),
    ('{"a": "对楼市成交"}'.encode("gbk"), "x.json: not UTF-8 at byte 7 (perhaps GBK); make it"),
    ('{"a": 1}'.encode("utf-16"), "x.json: not UTF-8 but UTF-16 or UTF-32"),
    ('{"a": 1}'.encode("utf-16-be"), "x.json: not UTF-8 but UTF-16 or UTF-32"),
    (b"[" * 200_000, "x.json: nested too deeply; make it"),
    (b'{"a": ' * 101 + b"1" + b"}" * 101, "x.json: nested too deeply (more than 100 levels); make it"),
    (b'{"a": ' + b"9" * 5000 + b"}", "x.json: a number of 5000 digits; make it"),
    (b'{"a": -' + b"9" * 5000 + b"}", "x.json: a number of 5000 digits; make it"),
    (b'{"a": NaN}', "x.json: NaN is no JSON value; make it"),
    (b'{"a": [-Infinity]}', "x.json: -Infinity is no JSON value; make it"),
    (b'{"a": 1e999}', "x.json: number 1e999 is too large; make it"),
    (rb'{"a": "x\ud83d"}', "x.json: half a surrogate pair in a text"),
    (rb'{"\udc00": 1}', "x.json: half a surrogate pair in a text"),
    (b'{"a": 1, "b": {"c": 1, "c": 2}}', "x.json: key 'c' comes twice in one object; make it"),
    (b'{"a": 1} 2', "x.json:1: not JSON: Extra data"),
]


@pytest.mark.parametrize(("content", "kind", "value"), FILES)
def test_values(tmp_path, content, kind, value):
    (tmp_path / "x.json").write_bytes(content)
    assert json_input.read_json(tmp_path / "x.json", "make it", kind) == value


@pytest.mark.parametrize("error", [DataError, CheckpointError])
@pytest.mark.parametrize(("content", "message"), FAULTS)
def test_faults(tmp_path, content, message, error):
    path = tmp_path / "x.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(error) as caught:
        json_input.read_json(path, "make it", error=error)
    text = str(caught.value)
    assert text.startswith(f"{tmp_path}/{message}") and text.endswith("; make it") and "\n" not in text


LINES = [
    (b"", []),
    (b'{"a": 1}\n\n{"a": 2}', [(1, {"a": 1}), (3, {"a": 2})]),
]
BROKEN = [  # (content, lines before the fault, message)
    (b'{"a": 1}\n{"a"', 1, "x.jsonl:2: not JSON: "),
    (b'{"a": 1}\n[1]\n', 1, "x.jsonl:2: expected an object, got list; make it"),
    (b'{"a": "\xff"}\n', 0, "x.jsonl:1: not UTF-8 at byte 7 (perhaps Latin-1); make it"),
]


@pytest.mark.parametrize(("content", "records"), LINES)
def test_lines(tmp_path, content, records):
    (tmp_path / "x.jsonl").write_bytes(content)
    assert list(json_input.read_json_lines(tmp_path / "x.jsonl", "make it")) == records


@pytest.mark.parametrize(("content", "before", "message"), BROKEN)
def test_faults_of_lines(tmp_path, content, before, message):
    path = tmp_path / "x.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        list(json_input.read_json_lines(path, "make it"))
    assert str(caught.value).startswith(f"{tmp_path}/{message}")
    assert len(list(json_input.read_json_lines(path, "make it", may_end_early=True))) == before
    path.write_bytes(content.rstrip(b"\n") + b'\n{"a": 3}\n')
    with pytest.raises(DataError):
        list(json_input.read_json_lines(path, "make it", may_end_early=True))


def test_no_file(tmp_path):
    with pytest.raises(DataError, match="x.jsonl: no such file; make it"):
        list(json_input.read_json_lines(tmp_path / "x.jsonl", "make it"))
