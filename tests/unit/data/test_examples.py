import json
import os
import re
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import audio, chat, text
from ttt.data.read.examples import (
    example_from_json,
    example_to_json,
    official_record,
    parse_content,
    read_examples,
    read_records,
    write_examples,
)  # fmt: skip
from ttt.errors import DataError
from ttt.types import Example, Turn

ROOT = Path(__file__).resolve().parents[3]
SAMPLES = Path(os.environ.get("TTT_SHARED", ROOT.parent / "shared")) / "official_samples"


def shape(spans):
    return [s.text if s.kind == "text" else (s.style, s.codes[:, 0].tolist()) for s in spans]


def test_parse_content():
    got = parse_content(
        "hi <|begin_of_audio|><|audio_3|><|audio_16383|><|end_of_audio_new|> you"
        "<|begin_of_quad|><|audio_0|><|end_of_audio_span_last|>", "x",
    )  # fmt: skip
    assert shape(got) == ["hi ", ("span", [3, 16383]), " you", ("last", [0])]
    assert shape(parse_content("<|begin_of_audio|><|audio_1|><|end_of_audio|>", "x")) == [("user", [1])]
    assert parse_content("", "x") == ()


def test_the_largest_code_is_read():
    (span,) = parse_content("<|begin_of_audio|><|audio_2147483647|><|audio_00000000000001|><|end_of_audio_new|>", "x")
    assert span.codes.tolist() == [[2**31 - 1], [1]]


def test_empty_and_neighbouring_spans_are_legal():
    got = parse_content("<|begin_of_audio|><|end_of_audio_new|>" * 2, "x")
    assert shape(got) == [("span", []), ("span", [])] and got[0].codes.shape == (0, 1)


@pytest.mark.parametrize(
    "content, pattern",
    [
        (
            "<|begin_of_audio|><|audio_3|>",
            r"opened by '<\|begin_of_audio\|>' has no end token; found 'the end of the text'",
        ),
        ("<|begin_of_audio|><|audio_3|> oh <|end_of_audio_new|>", "has no end token; found ' oh "),
        ("<|begin_of_audio|><|begin_of_audio|>", "has no end token"),
        ("<|begin_of_audio|><|audio_3|><|end_of_audio_span_last|>", "is closed by '<|end_of_audio_span_last|>'"),
        ("<|begin_of_quad|><|audio_3|><|end_of_audio_new|>", "is closed by '<|end_of_audio_new|>'"),
        ("so <|audio_3|>", "'<|audio_3|>' outside a span"),
        ("so <|end_of_audio_new|>", "'<|end_of_audio_new|>' outside a span"),
        ("<|begin_of_audio|><|audio_2147483648|><|end_of_audio_new|>", "audio token <|audio_2147483648|> is no code"),
        (f"<|begin_of_audio|><|audio_{'9' * 5000}|><|end_of_audio_new|>", f"<|audio_{'9' * 20}...|> is no code"),
    ],
)
def test_wrong_spans(content, pattern):
    pattern = pattern if pattern.startswith("opened") else re.escape(pattern)
    with pytest.raises(DataError, match=f"^file:3: .*{pattern}"):
        parse_content(content, "file:3")


def roles(example):
    return [(t.role, "".join(s.text for s in t.spans)) for t in example.turns]


MESSAGES = [
    {"role": "system", "content": "s"},
    {"role": "user", "content": "u", "text_content": "?"},
    {"role": "assistant", "content": "a"},
]


@pytest.mark.parametrize(
    "record",
    [
        {"messages": MESSAGES},
        {
            "conversations": [
                {"from": "system", "value": "s"},
                {"from": "human", "value": "u"},
                {"from": "gpt", "value": "a"},
            ]
        },
        {"conversations": MESSAGES},
    ],
)
def test_official_chats(record):
    assert roles(official_record(record, "u")) == [("system", "s"), ("user", "u"), ("assistant", "a")]


def test_official_prompt_response_and_text():
    assert roles(official_record({"prompt": "u", "response": "a"}, "u")) == [
        ("system", ""),
        ("user", "u"),
        ("assistant", "a"),
    ]
    assert roles(official_record({"text": "once"}, "u")) == [("document", "once")]


def test_first_turn_that_is_not_the_users_is_dropped():
    turns = [
        {"role": "assistant", "content": "hello"},
        {"role": "user", "content": "u"},
        {"role": "assistant", "content": "a"},
    ]
    assert roles(official_record({"messages": turns}, "u")) == [("system", ""), ("user", "u"), ("assistant", "a")]


@pytest.mark.parametrize(
    "record, pattern",
    [
        ({"messages": [{"role": "user", "content": "u"}, {"role": "asistant", "content": "a"}]}, "role 'asistant'"),
        ({"conversations": [{"from": "robot", "value": "u"}]}, r"turn 0: unknown sender 'robot'\. Known: human, user, gpt"),
        ({"messages": [{"role": "user", "content": None}]}, "expected text, got NoneType"),
        ({"prompt": "x"}, r"no 'messages', .*keys: \['prompt'\]"),
        ({"text": 3}, "expected text, got int"),
    ],
)
def test_wrong_official_records(record, pattern):
    with pytest.raises(DataError, match=f"^d.jsonl:7: .*{pattern}|^d.jsonl:7.*{pattern}"):
        official_record(record, "u", "d.jsonl:7")


def test_unknown_role_suggests():
    with pytest.raises(DataError, match="unknown role 'asistant'. Did you mean 'assistant'"):
        Turn("asistant", ())


def equal(a: Example, b: Example):
    same = (a.uid, a.task, dict(a.meta), len(a.turns)) == (b.uid, b.task, dict(b.meta), len(b.turns))
    return same and all(
        s.role == t.role and len(s.spans) == len(t.spans) and all(
            (x.kind, x.text, x.style) == (y.kind, y.text, y.style)
            and (x.codes is y.codes is None or np.array_equal(x.codes, y.codes)) for x, y in zip(s.spans, t.spans)
        ) for s, t in zip(a.turns, b.turns)
    )  # fmt: skip


def test_own_format_round_trip(tmp_path):
    two_codebooks = Example(
        "q", (Turn("document", (type(audio([1]))("audio", codes=np.array([[1, 2], [3, 4]], np.int32)),)),)
    )
    examples = [
        chat("a", [text("hi"), audio([1, 2], "user")], [text("é\n"), audio([], "span"), audio([5], "last")]), two_codebooks,
    ]  # fmt: skip
    write_examples(tmp_path / "sub" / "x.jsonl", examples)
    again = read_examples(tmp_path / "sub" / "x.jsonl")
    assert all(equal(a, b) for a, b in zip(examples, again, strict=True))
    assert [p.name for p in (tmp_path / "sub").iterdir()] == ["x.jsonl"], "no temporary file stays behind"


@pytest.mark.parametrize(
    "record, pattern",
    [
        ({"turns": [{"role": "user"}], "uid": "a"}, "spans of turn 0 must be a list, got nothing"),
        ({"turns": []}, "no 'uid'; give the record one"),
        ({"turns": [], "uid": "a"}, "has no turns"),
        ({"turns": [{"role": "usr", "spans": []}], "uid": "a"}, "unknown role 'usr'"),
        ({"turns": [{"role": "user", "spans": [{"audoi": []}]}], "uid": "a"}, "a span needs 'text' or 'audio'"),
        ({"turns": [{"role": "user", "spans": [{"audio": [1], "style": "x"}]}], "uid": "a"}, "span 0: unknown style"),
        ({"turns": [{"role": "user", "spans": [{"audio": ["x"]}]}], "uid": "a"}, "no list of codes"),
    ],
)
def test_wrong_own_records(record, pattern):
    with pytest.raises(DataError, match=f"^d:1: .*{pattern}"):
        example_from_json(record, "d:1")


def test_duplicate_uid_names_both_lines(tmp_path):
    line = json.dumps(example_to_json(chat("same", [text("a")], [text("b")])))
    (tmp_path / "x.jsonl").write_text(f"{line}\n\n{line}\n")
    with pytest.raises(DataError, match=r"x\.jsonl:3: uid 'same' was already used at .*x\.jsonl:1"):
        read_examples(tmp_path / "x.jsonl")


def test_broken_json_names_its_line(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"text": "a"}\n\n{"text": \n')
    with pytest.raises(DataError, match=r"x\.jsonl:3: not JSON"):
        list(read_records(tmp_path / "x.jsonl"))
    (tmp_path / "x.json").write_text('[\n{"text": "a"},\n{"text" 1}\n]')
    with pytest.raises(DataError, match=r"x\.json:3: not JSON"):
        list(read_records(tmp_path / "x.json"))
    (tmp_path / "y.json").write_text("{}")
    with pytest.raises(DataError, match="expected a list of records"):
        list(read_records(tmp_path / "y.json"))
    (tmp_path / "z.jsonl").write_text("3\n")
    with pytest.raises(DataError, match=r"z\.jsonl:1: expected an object, got int"):
        read_examples(tmp_path / "z.jsonl")


def test_absent_and_unknown_files(tmp_path):
    with pytest.raises(DataError, match="no such file; run the stage that makes it"):
        list(read_records(tmp_path / "gone.jsonl"))
    (tmp_path / "x.csv").write_text("a")
    with pytest.raises(DataError, match="unknown file kind '.csv'"):
        list(read_records(tmp_path / "x.csv"))


FILES = sorted(SAMPLES.glob("*.json")) or [
    pytest.param(None, marks=pytest.mark.skip(reason=f"no official samples at {SAMPLES} (set TTT_SHARED)"))
]


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem if p else "absent")
def test_official_samples_convert(path):
    examples = read_examples(path)
    assert len(examples) == len(json.loads(path.read_text()))
    for example in examples:
        styles = [s.style for t in example.turns for s in t.spans if s.kind == "audio" and t.is_target]
        if example.task == "document":  # every span closed; the last audio span of the document is the quad span
            assert styles.count("last") <= 1 and ("last" not in styles or styles[-1] == "last")
            continue
        assert [t.role for t in example.turns] == ["system", "user", "assistant"]
        answer = example.turns[2].spans
        assert all(s.style == "user" for s in example.turns[1].spans if s.kind == "audio")
        if "text_chat" in path.stem:
            assert not styles
        else:  # TtT (arXiv 2509.20072): text, 26 codes, text, 26 codes, ..., rest of the text, rest of the codes in a quad span
            assert styles == ["span"] * (len(styles) - 1) + ["last"] and answer[-1].style == "last"
            assert all(len(s.codes) == 26 for s in answer if s.kind == "audio" and s.style == "span")
        assert equal(example, example_from_json(json.loads(json.dumps(example_to_json(example))), "again"))
