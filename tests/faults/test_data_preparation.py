"""From codes and items to examples, ids with and without end tokens, thoughts in data, tables and lines."""

import json

import numpy as np
import pytest

from tests.conftest import SENTENCES, audio, chat, text, tiny_tokenizer
from ttt.cli.main import main
from ttt.data.encode import encode_example
from ttt.data.read.examples import example_to_json, read_examples
from ttt.text.tokenizer import train_bpe

HEAD = {"codec": "toy-32x320@16000", "frame_rate_hz": 50.0, "num_codebooks": 1}
ITEM = {"id": "i", "task": "asr", "split": "train", "input": "u", "output": "u", "text_in": "yes", "text_out": "yes"}
CODES = {
    "outside": ({"id": "u", "codes": [1, 99]}, "code 99 is outside the codebook of 32"),
    "negative": ({"id": "u", "codes": [1, -1]}, "no list of codes (whole numbers >= 0): [1, -1]"),
    "fraction": ({"id": "u", "codes": [1, 1.7]}, "no list of codes (whole numbers >= 0): [1, 1.7]"),
    "text": ({"id": "u", "codes": "12"}, "no list of codes"),
    "ragged": ({"id": "u", "codes": [[1], [1, 2]]}, "no list of codes"),
    "true": ({"id": "u", "codes": [True]}, "no list of codes"),
    "large": ({"id": "u", "codes": [10**30]}, "no list of codes"),
    "codebooks": ({"id": "u", "codes": [[1, 2]]}, "2 codes a frame, the codec has 1 codebooks"),
    "none": ({"id": "u", "codes": []}, "has no codes"),
    "no codes": ({"id": "u"}, "a line holds 'id' (text) and 'codes'"),
    "id": ({"id": ["u"], "codes": [1]}, "a line holds 'id' (text) and 'codes'"),
    "list": ([1], "expected an object, got list"),
}
ITEMS = {
    "text": ({**ITEM, "text_out": 5}, "field 'text_out' must be text, got 5"),
    "task": ({**ITEM, "task": ["asr"]}, "field 'task' must be text"),
    "input": ({**ITEM, "input": ["u"]}, "field 'input' must be text"),
    "id": ({k: v for k, v in ITEM.items() if k != "id"}, "item lacks the field 'id'"),
    "null": ({**ITEM, "text_out": None}, "item lacks the field 'text_out'"),
    "list": ([1], "expected an object, got list"),
}  # fmt: skip


def examples(tmp_path, codes, item):
    for name, rows in (("data/codes/train.jsonl", [HEAD, codes]), ("corpus/train.items.jsonl", [item])):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["codec={name: toy, rate_hz: 16000, num_codes: 32}", f"data.corpus={tmp_path}/corpus", f"data.dir={tmp_path}/data"]
    return main(["examples", *words, "data.splits=[train]", "tasks=[{name: asr}]", "data.bpe_size=300"])


@pytest.mark.parametrize(("codes", "words"), CODES.values(), ids=CODES.keys())
def test_codes(tmp_path, capsys, codes, words):
    assert examples(tmp_path, codes, ITEM) == 2
    err = capsys.readouterr().err.strip()
    assert "codes/train.jsonl:2: " in err and words in err and "\n" not in err
    assert not (tmp_path / "data" / "train.jsonl").exists()


@pytest.mark.parametrize(("item", "words"), ITEMS.values(), ids=ITEMS.keys())
def test_items(tmp_path, capsys, item, words):
    assert examples(tmp_path, {"id": "u", "codes": [1, 2]}, item) == 2
    err = capsys.readouterr().err.strip()
    assert "train.items.jsonl:1: " in err and words in err and "\n" not in err


def test_good_ones(tmp_path):
    assert examples(tmp_path, {"id": "u", "codes": [1, 31]}, ITEM) == 0


# ---- ids without end tokens ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tok(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tok")
    tiny_tokenizer().save(folder)
    return folder


@pytest.mark.parametrize(
    ("fields", "behind", "code", "words"),
    [
        ({}, 99, 0, "no errors"),
        ({}, 0, 1, "ERROR 1 x speech without an end token"),
        ({}, 1, 0, "warning 1 x answer without its end token"),
        ({"cut": 5}, 0, 0, "no errors"),
    ],
)
def test_speech_in_ids_ends(tmp_path, tok, capsys, fields, behind, code, words):
    ids = encode_example(chat("a", [text("hi")], [audio([1, 2, 3], "last")]), tiny_tokenizer()).ids.tolist()
    last = max(i for i, one in enumerate(ids) if one in range(tiny_tokenizer().vocab.code_start, tiny_tokenizer().vocab.code_stop))
    record = {"uid": "a", "input_ids": ids[: last + 1 + behind], "data_type": "tts", **fields}
    (tmp_path / "x.jsonl").write_text(json.dumps(record) + "\n")
    assert main(["data", "check", str(tmp_path / "x.jsonl"), "--tokenizer", str(tok)]) == code
    assert words in capsys.readouterr().out
    assert main(["data", "show", str(tmp_path / "x.jsonl"), "--tokenizer", str(tok)]) == 0


# ---- thoughts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["text_then_speech", "text_then_speech_tags"])
def test_a_thought_in_the_data_gets_no_second_one(form):
    tokenizer = train_bpe(SENTENCES * 3, 300, 32, 1, form)
    think = tokenizer.thought_ids[0]
    for answer, n in (("<think>\nso\n</think>\n\nho", 1), ("ho", 1), ("\n<think>x</think>ho", 1)):
        stream = encode_example(chat("a", [text("hi")], [text(answer), audio([1], "last")]), tokenizer)
        assert stream.ids.tolist().count(think) == n, answer


# ---- tables and lines ----------------------------------------------------------------------------------------

TABLES = {
    "own": [example_to_json(chat("a", [text("hi")], [text("ho"), audio([1, 2], "last")])),
            {**example_to_json(chat("b", [audio([3], "user")], [text("ho")])), "task": "asr", "meta": {"text_ref": "ho"}}],
    "messages": [{"id": "a", "messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "x"}]},
                 {"id": "b", "conversations": [{"from": "human", "value": "u"}, {"from": "gpt", "value": "x"}]}],
    "instruction": [{"uid": "a", "instruction": "u", "response": "x"}, {"uid": "b", "prompt": "u", "response": "x"}],
    "document": [{"uid": "a", "text": "once"}, {"id": "b", "messages": [{"role": "user", "content": "u"}]}],
}  # fmt: skip


@pytest.mark.parametrize("rows", TABLES.values(), ids=TABLES.keys())
def test_parquet_jsonl_and_lists_give_the_same(tmp_path, tok, rows, capsys):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "x.json").write_text(json.dumps(rows), encoding="utf-8-sig")
    pq.write_table(pa.Table.from_pylist([{k: r.get(k) for k in {**rows[0], **rows[1]}} for r in rows]), tmp_path / "x.parquet")
    found = [read_examples(tmp_path / f"x.{kind}") for kind in ("jsonl", "json", "parquet")]
    streams = [[encode_example(e, tiny_tokenizer()) for e in one] for one in found]
    for other, ids in zip(found[1:], streams[1:], strict=True):
        assert [(e.uid, e.task, e.meta) for e in other] == [(e.uid, e.task, e.meta) for e in found[0]]
        assert all(np.array_equal(a.ids, b.ids) for a, b in zip(ids, streams[0], strict=True))
    if "turns" not in rows[0]:
        made = []
        for kind in ("jsonl", "parquet"):
            out = tmp_path / f"{kind}.out.jsonl"
            assert main(["data", "convert", "--from", "official", str(tmp_path / f"x.{kind}"), str(out)]) == 0
            made.append(out.read_text())
        assert made[0] == made[1]


@pytest.mark.parametrize("size", ["auto", "auto:4", "auto:0.5", None, ""])
def test_batch_size_of_the_harness(size):
    from ttt.errors import TttError
    from ttt.textbench.harness import load_scorer

    with pytest.raises(TttError) as caught:
        load_scorer(pretrained="/nowhere", batch_size=size)
    assert "batch_size" not in str(caught.value)
