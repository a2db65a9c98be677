"""Chats to records of ids (LLaDA's converters), and files of a given number of records."""

import json

import pytest

from tests.conftest import SENTENCES
from ttt.cli.main import main
from ttt.data.convert.core import Report, results, write_records
from ttt.data.encode import encode_example
from ttt.data.read.records import RecordError
from ttt.data.sources.mix import open_streams
from ttt.errors import DataError
from ttt.registry.families import CONVERTER
from ttt.text.tokenizer import train_bpe

CHAT = [{"from": "human", "value": "a cat"}, {"from": "gpt", "value": "the mat"}]
MORE = [*CHAT, {"from": "human", "value": "read this"}, {"from": "gpt", "value": "what you hear"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("tok")
    train_bpe([*SENTENCES] * 3, 300, 8, form="roles").save(made)
    return made


@pytest.fixture(scope="module")
def tokenizer(folder):
    from ttt.text.tokenizer import TextTokenizer

    return TextTokenizer.load(folder)


def convert(tmp_path, rows, name, skip_bad=False, **fields):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    report = Report()
    converter = CONVERTER.build({"name": name, **fields}, "--from")
    return list(results(converter, path, report, skip_bad=skip_bad)), report


def test_a_chat_as_ids(tmp_path, folder, tokenizer):
    (made,), _ = convert(tmp_path, [{"id": "q", "conversations": CHAT}], "sharegpt", tokenizer=str(folder))
    assert made["full_text"] == "<|user|>\na cat<|endoftext|><|assistant|>\nthe mat<|endoftext|>"
    assert made["prompt_text"] == "<|user|>\na cat<|endoftext|><|assistant|>\n"
    n = made["prompt_length"]
    assert made["input_ids"][n:] == [*tokenizer.encode("the mat"), tokenizer.vocab.im_end_id]
    assert made["input_ids"][:n] == tokenizer.encode(made["prompt_text"]) and "cut" not in made


def test_training_reads_the_same_stream_either_way(tmp_path, folder, tokenizer):
    rows = [{"id": f"q{i}", "conversations": MORE, "system": "be brief"} for i in range(2)]
    streams = []
    for fields in ({}, {"tokenizer": str(folder)}):
        made, _ = convert(tmp_path, rows, "sharegpt", per_answer=True, **fields)
        (tmp_path / "made.jsonl").write_text("".join(json.dumps(m) + "\n" for m in made))
        streams.append(list(open_streams(tmp_path / "made.jsonl", tokenizer)))
    assert len(streams[0]) == 4 == len(streams[1])
    for a, b in zip(*streams, strict=True):
        assert a.ids.tolist() == b.ids.tolist() and a.target.tolist() == b.target.tolist() and a.uid == b.uid


def test_several_answers_are_not_one(tmp_path, folder):
    with pytest.raises(RecordError, match="2 answers to learn.*set per_answer=true or first_exchange=true"):
        convert(tmp_path, [{"conversations": MORE}], "sharegpt", tokenizer=str(folder))
    (first,), _ = convert(tmp_path, [{"conversations": MORE}], "sharegpt", tokenizer=str(folder), first_exchange=True)
    assert first["full_text"].endswith("the mat<|endoftext|>")


def test_instructions_with_input_history_and_system(tmp_path, folder):
    row = {"instruction": "add", "input": "1 1", "output": "2", "system": "be brief", "history": [["hi", "ho"]]}
    (made, bare), _ = convert(tmp_path, [row, {"instruction": "hi", "output": "ho"}], "alpaca", tokenizer=str(folder))
    assert made["prompt_text"] == (
        "<|system|>\nbe brief<|endoftext|><|user|>\nhi<|endoftext|><|assistant|>\nho<|endoftext|>"
        "<|user|>\nadd\n\n1 1<|endoftext|><|assistant|>\n"
    )
    assert made["full_text"].removeprefix(made["prompt_text"]) == "2<|endoftext|>"
    assert bare["prompt_text"] == "<|user|>\nhi<|endoftext|><|assistant|>\n"


def test_bad_and_long_rows_are_counted(tmp_path, folder):
    long = {"conversations": [CHAT[0], {"from": "gpt", "value": "the mat " * 40}]}
    asked = {"conversations": [{"from": "human", "value": "a cat " * 40}, CHAT[1]]}
    rows = [{"conversations": CHAT}, "{no json", long, asked, {"conversations": []}]
    made, report = convert(tmp_path, rows, "sharegpt", skip_bad=True, tokenizer=str(folder), max_tokens=20)
    assert [len(m["input_ids"]) <= 20 for m in made] == [True, True] and len(made[1]["input_ids"]) == 20
    assert made[1]["cut"] > 0 and made[1]["prompt_length"] < 20
    assert report.cut == 1 and "; 1 cut at max_tokens" in report.summary()
    assert dict(report.skipped) == {"not JSON": 1, "prompt too long": 1, "no answer": 1}


def test_ids_are_the_templates_of_any_form(tmp_path):
    made = train_bpe(SENTENCES * 3, 300, 8)
    made.save(tmp_path / "chatml")
    (found,), _ = convert(tmp_path, [{"conversations": CHAT}], "sharegpt", tokenizer=str(tmp_path / "chatml"))
    assert found["prompt_text"].endswith("<|im_start|>assistant\n") and found["full_text"].endswith(
        "the mat<|im_end|>\n"
    )
    from ttt.data.read.examples import example_from_json

    (turns,), _ = convert(tmp_path, [{"conversations": CHAT}], "sharegpt")
    assert found["input_ids"] == encode_example(example_from_json(turns, "x"), made).ids.tolist()


@pytest.mark.parametrize("shard, sizes", [(3, [3, 3, 1]), (7, [7]), (10, [7])])
def test_files_of_so_many_records(tmp_path, tokenizer, shard, sizes):
    rows = [{"uid": f"u{n}", "input_ids": [5, 6, 7 + n], "data_type": "text"} for n in range(7)]
    write_records(iter(rows), tmp_path / "all.jsonl", shard)
    names = [f"all.{n:04d}.jsonl" for n in range(len(sizes))]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*names, "all.json"])
    assert [len((tmp_path / n).read_text().splitlines()) for n in names] == sizes
    read = open_streams(tmp_path / "all.json", tokenizer)
    assert sorted(s.ids.tolist() for s in read) == [r["input_ids"] for r in rows]


def test_a_name_that_comes_twice_leaves_nothing(tmp_path):
    rows = [{"uid": f"u{n % 4}", "input_ids": [5]} for n in range(6)]
    with pytest.raises(DataError, match=r"records (\d) and (\d) are both called 'u\d'"):
        write_records(iter(rows), tmp_path / "all.jsonl", 2)
    with pytest.raises(DataError, match="no usable row"):
        write_records(iter([]), tmp_path / "all.jsonl", 2)
    assert not list(tmp_path.iterdir())


def test_verb(tmp_path, folder, capsys):
    (tmp_path / "a.txt").write_text("one two three four five\n" * 60)
    names = [str(tmp_path / "a.txt"), str(tmp_path / "ids.jsonl")]
    call = ["data", "convert", "--from", "text", *names, f"tokenizer={folder}", "max_tokens=64", "--shard"]
    assert main([*call, "4"]) == 0
    first = [json.loads(line) for line in (tmp_path / "ids.0000.jsonl").read_text().splitlines()]
    assert len(first) == 4 and all(len(r["input_ids"]) == 64 for r in first) and (tmp_path / "ids.json").is_file()
    assert main([*call, "4"]) == 0  # up to date
    assert main([*call, "5"]) == 2 and "setting shard" in capsys.readouterr().err
    assert main([*call, "-1"]) == 2
    assert "--shard: -1; a number of examples" in capsys.readouterr().err
