"""Records from outside: every fault is one line with the place, through every verb that reads data; --skip-bad counts it."""

import json
import logging

import pytest

from tests.conftest import tiny_tokenizer
from ttt.cli.main import main

GOOD = {"uid": "good", "turns": [{"role": "user", "spans": [{"text": "hi"}]}, {"role": "assistant", "spans": [{"text": "ho"}]}]}
IDS = {"uid": "ids", "input_ids": [1, 2, 3], "prompt_length": 1}


def own(**fields):
    return json.dumps({**GOOD, "uid": "bad", **fields})


def ids(**fields):
    return json.dumps({**IDS, "uid": "bad", **fields})


def chat(*messages, key="messages", **fields):
    return json.dumps({"id": "bad", key: messages, **fields})


def one_turn(**turn):
    return own(turns=[{"role": "assistant", "spans": [{"text": "ho"}], **turn}])


def one_span(**span):
    return own(turns=[{"role": "assistant", "spans": [span]}])


SYSTEM = {"role": "system", "content": "s"}
USER, ANSWER = {"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}
FAULTS = {  # name: (line, expected words)
    "deep": ('{"text": ' + "[" * 500 + "]" * 500 + "}", "nested too deeply"),
    "very deep": ('{"text": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deeply"),
    "huge integer": ('{"input_ids": [' + "9" * 5000 + "]}", "a number of 5000 digits"),
    "large integer": ('{"input_ids": [' + "9" * 40 + "]}", "must be a list of whole numbers"),
    "NaN": (own(meta={"x": float("nan")}), "NaN is no JSON value"),
    "infinity": (own(meta={"x": float("inf")}), "Infinity is no JSON value"),
    "half a pair": (own(uid="\ud83d"), "half a surrogate pair"),
    "key twice": ('{"text": "a", "text": "b"}', "key 'text' comes twice"),
    "list": ("[1]", "expected an object, got list"),
    "text": ('"text"', "expected an object, got str"),
    "number": ("3", "expected an object, got int"),
    "null": ("null", "expected an object, got NoneType"),
    "task": (own(task=["x"]), "task must be text, got list"),
    "task of ids": (ids(task=["x"]), "task must be text"),
    "meta": (own(meta=[1]), "meta must be an object, got list"),
    "meta number": (own(meta=5), "meta must be an object, got int"),
    "text_ref": (own(meta={"text_ref": 5}), "meta.text_ref must be text, got int 5"),
    "uid": (own(uid=["x"]), "uid must be text or a whole number, got list"),
    "uid true": (own(uid=True), "uid must be text or a whole number, got bool"),
    "turns": (own(turns=5), "expected a list of turns, got int"),
    "turn": (own(turns=[5]), "expected a list of turns"),
    "no turns": (own(turns=[]), "has no turns"),
    "role list": (one_turn(role=["user"]), "unknown role"),
    "role case": (one_turn(role="Assistant"), "turn 0: unknown role 'Assistant'. Did you mean 'assistant'?"),
    "role unknown": (one_turn(role="developer"), "turn 0: unknown role 'developer'"),
    "history": (one_turn(history="yes"), "history of turn 0 must be true or false"),
    "spans": (one_turn(spans="ho"), "spans of turn 0 must be a list, got str ho"),
    "span": (one_turn(spans=["ho"]), "turn 0, span 0 must be an object, got str ho"),
    "span text": (one_span(text=5), "turn 0, span 0: expected text, got int"),
    "span style": (one_span(audio=[1], style=["last"]), "unknown style"),
    "span codes": (one_span(audio=[[1], [1, 2]]), "no list of codes"),
    "span fraction": (one_span(audio=[1.5]), "no list of codes"),
    "span negative": (one_span(audio=[-1]), "no list of codes"),
    "span true": (one_span(audio=[True]), "no list of codes"),
    "span number": (one_span(audio=5), "no list of codes"),
    "span range": (one_span(audio=[99]), "99"),
    "first role": (chat({"role": "developer", "content": "s"}, USER, ANSWER), "message 0: unknown role 'developer'"),
    "first role case": (chat({"role": "System", "content": "s"}, USER, ANSWER), "'System'. Did you mean 'system'?"),
    "first user case": (chat({"role": "User", "content": "s"}, ANSWER), "message 0: unknown role 'User'. Did you mean 'user'?"),
    "role counted": (chat(SYSTEM, USER, {"role": "Assistant", "content": "a"}), "message 2: unknown role"),
    "system later": (chat(USER, ANSWER, SYSTEM), "message 2 has role 'system'"),
    "content counted": (chat(SYSTEM, {"role": "user", "content": 5}), "message 1: expected text, got int"),
    "role missing": (chat({"content": "u"}), "message 0: unknown role ''"),
    "from list": (chat({"from": ["x"], "value": "u"}, key="conversations"), "turn 0: unknown sender ['x']"),
    "from case": (chat({"from": "Human", "value": "u"}, key="conversations"), "unknown sender 'Human'. Did you mean 'human'?"),
    "messages": (chat("u"), "expected a list of turns"),
    "messages text": (json.dumps({"messages": "[[["}), "turns are a string"),
    "prompt": (json.dumps({"prompt": ["u"], "response": "a"}), "expected text, got list"),
    "document": (json.dumps({"text": {"a": 1}}), "expected text, got dict"),
    "ids ragged": (ids(input_ids=[[1], [1, 2]]), "must be a list of whole numbers"),
    "ids text": (ids(input_ids="1 2"), "must be a list of whole numbers"),
    "ids object": (ids(input_ids={"a": 1}), "must be a list of whole numbers"),
    "ids prompt": (ids(prompt_length="x"), "prompt_length must be a list of whole numbers"),
    "ids prompt object": (ids(prompt_length={"a": 1}), "prompt_length must be a list of whole numbers"),
    "ids prompt range": (ids(prompt_length=9), "prompt_length 9 is not in"),
    "ids labels": (ids(labels=[1]), "labels has 1 entries"),
    "ids labels ragged": (ids(labels=[[1], [1, 2]]), "labels must be a list"),
    "ids mask": (ids(attention_mask="x"), "attention_mask must be a list"),
    "ids data_type": (ids(data_type=["tts"]), "data_type ['tts'] is none of"),
    "ids sender": (chat({"from": ["x"], "input_ids": [1]}, key="conversations"), "unknown sender ['x']"),
    "ids turn": (chat({"from": "human", "input_ids": [1]}, 5, key="conversations"), "turn 1 must be an object, got int"),
    "ids range": (ids(input_ids=[10**9]), "outside the vocabulary"),
    "ids negative": (ids(input_ids=[-1]), "outside the vocabulary"),
}  # fmt: skip
BYTES = {  # name: (bytes of a line, expected words)
    "latin-1": ('{"text": "caf\xe9"}'.encode("latin-1"), "not UTF-8 at byte 13 (perhaps Latin-1)"),
    "gbk": ('{"text": "对楼市成交"}'.encode("gbk"), "(perhaps GBK)"),
    "cut": (b'{"text": "a', "not JSON"),
    "zeros": (b"\0\0\0\0", "zero bytes"),
}
VERBS = {
    "check": lambda data, tok, out: ["data", "check", data, "--tokenizer", tok],
    "stats": lambda data, tok, out: ["data", "stats", data, "--tokenizer", tok],
    "pack": lambda data, tok, out: ["data", "pack", data, "--tokenizer", tok, "--out", out / "store"],
    "show": lambda data, tok, out: ["data", "show", data, "--tokenizer", tok, "--limit", "9"],
}


@pytest.fixture(scope="module")
def tok(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tok")
    tiny_tokenizer().save(folder)
    return folder


def call(words, capsys):
    code = main([str(w) for w in words])
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    return code, printed.out, printed.err.strip()


def lines_of(fault):
    return [json.dumps(GOOD).encode(), fault if isinstance(fault, bytes) else fault.encode(), json.dumps(IDS).encode()]


@pytest.mark.parametrize(("fault", "words"), (FAULTS | BYTES).values(), ids=(FAULTS | BYTES).keys())
def test_one_line_from_every_verb(tmp_path, tok, capsys, caplog, fault, words):
    data = tmp_path / "x.jsonl"
    data.write_bytes(b"\n".join(lines_of(fault)) + b"\n")
    for verb, words_of in VERBS.items():
        caplog.clear()
        code, out, err = call(words_of(data, tok, tmp_path), capsys)
        if verb == "check":
            assert code == 1 and words in out and f"{data}:2: " in out, out
        elif verb == "stats":
            assert code == 0 and words in caplog.text and f"{data}:2: " in caplog.text
        else:
            assert code == 2 and "\n" not in err and words in err and f"{data}:2: " in err, err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.jsonl"], "nothing half-written stays"
    caplog.set_level(logging.INFO)
    code, _, _ = call([*VERBS["pack"](data, tok, tmp_path), "--skip-bad"], capsys)
    assert code == 0 and "2 examples" in caplog.text and "1 skipped: " in caplog.text


@pytest.mark.parametrize("name", [n for n in FAULTS if n != "very deep"])
def test_the_same_in_a_list(tmp_path, tok, capsys, name):
    fault, words = FAULTS[name]
    data = tmp_path / "x.json"
    data.write_bytes(b"[" + b",\n".join(lines_of(fault)) + b"]")
    code, out, _ = call(VERBS["check"](data, tok, tmp_path), capsys)
    assert code == 1 and words in out and "3 records, 2 usable" in out, out


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"a": 1}', "expected a list of records, got an object"),
        (b'"a"', "expected a list of records"),
        (b"", "expected a list of records, got an empty file"),
        ("[]".encode("utf-16"), "not UTF-8 but UTF-16"),
        (json.dumps([GOOD]).encode("utf-32"), "not UTF-8 but UTF-16 or UTF-32"),
        ('[\n{"text": "caf\xe9"}]'.encode("latin-1"), "x.json:2: not UTF-8 at byte 13 (perhaps Latin-1)"),
        ('[\n{"text": "对楼市成交"}]'.encode("gbk"), "x.json:2: not UTF-8 at byte 10 (perhaps GBK)"),
        (b"[" * 100_000, "nested too deeply"),
        (b'[{"text": "a"} {"text": "b"}]', "expected ',' or ']'"),
    ],
)
def test_whole_files(tmp_path, tok, capsys, content, words):
    data = tmp_path / "x.json"
    data.write_bytes(content)
    for verb, words_of in VERBS.items():
        code, out, err = call(words_of(data, tok, tmp_path), capsys)
        assert code == (1 if verb == "check" and not err else 2), verb
        assert words in (err or out) and "\n" not in err


@pytest.mark.parametrize("kind", ["jsonl", "json"])
def test_a_byte_order_mark_is_no_fault(tmp_path, tok, capsys, kind):
    text = json.dumps([GOOD]) if kind == "json" else json.dumps(GOOD) + "\n"
    (tmp_path / f"x.{kind}").write_text(text, encoding="utf-8-sig")
    code, out, _ = call(VERBS["check"](tmp_path / f"x.{kind}", tok, tmp_path), capsys)
    assert code == 0 and "1 records, 1 usable" in out


ENCODE = {
    "turn": own(turns=[5]),
    "spans": one_turn(spans="ho"),
    "no spans": own(turns=[{"role": "user"}]),
    "span": one_turn(spans=[5]),
    "wav number": one_span(wav=5),
    "wav list": one_span(wav=["a.wav"]),
    "wav empty": one_span(wav=""),
    "wav gone": one_span(wav="/no/a.wav"),
    "style": one_span(wav="/no/a.wav", style=5),
    "meta": own(meta=5),
    "not JSON": "{",
    "NaN": own(meta={"x": float("nan")}),
}


@pytest.mark.parametrize("fault", ENCODE.values(), ids=ENCODE.keys())
def test_sound_files_of_records(tmp_path, capsys, caplog, fault):
    caplog.set_level(logging.INFO)
    data = tmp_path / "x.jsonl"
    data.write_text("\n".join([json.dumps(GOOD), fault]) + "\n")
    words = ["data", "encode", data, tmp_path / "out.jsonl", "codec={name: toy, num_codes: 32}"]
    code, _, err = call(words, capsys)
    assert code == 2 and f"{data}:2: " in err and "\n" not in err
    code, _, _ = call([*words, "--skip-bad"], capsys)
    assert code == 0 and "2 rows, 1 written" in caplog.text and "1 skipped: " in caplog.text
