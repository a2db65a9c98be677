"""LLaDA's data: one example per answer, ids back to turns, plain text to ids."""

import json

import numpy as np
import pytest

from tests.conftest import SENTENCES
from ttt.cli.main import main
from ttt.data.convert.core import Report, results
from ttt.data.encode import encode_example
from ttt.data.read.examples import example_from_json, example_to_json, read_examples
from ttt.data.read.records import RecordError
from ttt.data.read.token_ids import stream_of_ids
from ttt.data.sources.mix import open_streams
from ttt.errors import ConfigError, DataError
from ttt.registry.families import CONVERTER
from ttt.text.tokenizer import TextTokenizer, train_bpe
from ttt.types import Example, Span, Turn


def build(name, **fields):
    return CONVERTER.build({"name": name, **fields}, "--from")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    made = train_bpe(SENTENCES * 3, 300, 5, 3, "llada_tts")
    made.save(tmp_path_factory.mktemp("tok"))
    return made


def test_an_example_per_answer(tmp_path, tokenizer):
    says = [("gpt", "x"), ("human", "a"), ("gpt", "b"), ("human", "c"), ("gpt", "d"), ("human", "bye")]
    rows = [{"id": "q", "conversations": [{"from": w, "value": s} for w, s in says]},
            {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}]  # fmt: skip
    (tmp_path / "x.json").write_text(json.dumps(rows))
    report = Report()
    made = list(results(build("sharegpt", per_answer=True), tmp_path / "x.json", report, skip_bad=False))
    assert [m["uid"] for m in made] == ["q#1", "q#2", "x.json[1]#1"] and report.written == 3
    assert [[s["text"] for t in m["turns"] for s in t["spans"]] for m in made] == [
        ["a", "b"],
        ["a", "b", "c", "d"],
        ["a", "b"],
    ]
    second = example_from_json(made[1], "x:1")
    assert [t.is_target for t in second.turns] == [False, False, False, False, True]
    assert example_to_json(second)["turns"] == made[1]["turns"]
    stream = encode_example(second, tokenizer)
    answer = encode_example(Example("a", (Turn("assistant", (Span("text", "d"),)),)), tokenizer)
    assert stream.target.sum() == answer.target.sum() and stream.target[-int(answer.target.sum()) :].all()


@pytest.mark.parametrize("row, reason", [
    ([1], "not an object"), ({"conversations": 3}, "no conversations"), ({"conversations": []}, "no answer"),
    ({"conversations": [{"from": "me", "value": "a"}]}, "unknown sender"),
    ({"conversations": [{"from": "human", "value": "a"}]}, "no answer"),
])  # fmt: skip
def test_rows_without_answers_are_refused_once(tmp_path, row, reason):
    (tmp_path / "x.json").write_text(json.dumps([row]))
    report = Report()
    assert list(results(build("sharegpt", per_answer=True), tmp_path / "x.json", report, skip_bad=True)) == []
    assert dict(report.skipped) == {reason: 1}


def test_instruction_and_response_are_a_chat():
    made = example_from_json({"instruction": "add 1 1", "response": "2"}, "x:1", "u")
    assert [(t.role, t.spans[0].text) for t in made.turns[1:]] == [("user", "add 1 1"), ("assistant", "2")]


def test_ids_back_to_turns_and_again_to_ids(tmp_path, tokenizer):
    tokenizer.save(tmp_path)
    codes = np.array([[0, 1, 2], [4, 3, 0]], dtype=np.int32)
    spoken = Example(
        "a", (Turn("user", (Span("text", "a cat"),)), Turn("assistant", (Span("audio", codes=codes, style="last"),)))
    )
    ids = encode_example(spoken, tokenizer).ids.tolist()
    words = tokenizer.encode("a cat on")
    rows = [{"input_ids": ids, "prompt_lengths": 2, "data_type": "tts"}, {"input_ids": words, "prompt_length": 1},
            {"input_ids": words}]  # fmt: skip
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    assert main(["data", "convert", "--from", "llada", str(tmp_path / "x.jsonl"), str(tmp_path / "out.jsonl")]) == 0
    made = read_examples(tmp_path / "out.jsonl")
    assert [t.role for t in made[0].turns] == ["user", "assistant"] and made[0].task == "tts"
    assert np.array_equal(made[0].turns[1].spans[0].codes, codes)
    assert encode_example(made[0], tokenizer).ids.tolist() == ids
    assert [t.role for t in made[1].turns] == ["user", "assistant"] and made[2].turns[0].role == "document"
    assert made[2].turns[0].spans[0].text == "a cat on"


def test_ids_out_of_range_name_the_row(tmp_path, tokenizer):
    tokenizer.save(tmp_path)
    where = f"{tmp_path}/x.jsonl:4"
    with pytest.raises(RecordError, match=r"x.jsonl:4: uid 'x.jsonl:4': id 9999 at place 1 is outside the vocabulary"):
        build("llada").convert(where, {"input_ids": [1, 9999]})
    with pytest.raises(RecordError, match="holds no token ids; keys: "):
        build("llada").convert(where, {"text": "a"})
    with pytest.raises(DataError, match="no tokenizer here"):
        build("llada").convert("/nowhere/x.jsonl:1", {"input_ids": [1]})


def test_plain_text_in_chunks(tmp_path, tokenizer):
    tokenizer.save(tmp_path / "tok")
    texts = {"b.txt": "a cat on a mat\n" * 30, "deep/a.txt": "on\n", "c.md": "never"}
    for name, text in texts.items():
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_text(text)
    settings = ["--from", "text", str(tmp_path / "in"), str(tmp_path / "ids.jsonl")]
    assert main(["data", "convert", *settings, f"tokenizer={tmp_path / 'tok'}", "max_tokens=40", "min_tokens=8"]) == 0
    whole = tokenizer.encode(texts["b.txt"])
    made = list(open_streams(tmp_path / "ids.jsonl", tokenizer))
    wanted = [whole[at : at + 40] for at in range(0, len(whole), 40)]
    wanted = [w for w in wanted if len(w) >= 8]  # "on" alone is too short
    assert [s.ids.tolist() for s in made] == wanted and [s.uid for s in made] == [
        f"b.txt[{i}]" for i in range(len(wanted))
    ]
    assert all(s.target.all() and s.task == "text" for s in made)
    with pytest.raises(ConfigError, match="need min_tokens <= max_tokens, got 8 and 4"):
        build("text", max_tokens=4, min_tokens=8)
    with pytest.raises(DataError, match="no text file here"):
        list(build("text").rows(tmp_path / "tok"))


def test_what_was_converted_is_packed(tmp_path, tokenizer):
    """Records of ids pass the verbs that records of turns pass."""
    tokenizer.save(tmp_path / "tok")
    (tmp_path / "a.txt").write_text("a cat on a mat\n" * 40)
    assert main(["data", "convert", "--from", "text", str(tmp_path / "a.txt"), str(tmp_path / "a.jsonl"),
                 f"tokenizer={tmp_path / 'tok'}", "max_tokens=64"]) == 0  # fmt: skip
    assert (
        main(
            [
                "data",
                "pack",
                str(tmp_path / "a.jsonl"),
                "--out",
                str(tmp_path / "s"),
                "--tokenizer",
                str(tmp_path / "tok"),
            ]
        )
        == 0
    )
    store = open_streams(tmp_path / "s", TextTokenizer.load(tmp_path / "tok"))
    first = stream_of_ids("x:1", json.loads((tmp_path / "a.jsonl").read_text().splitlines()[0]), tokenizer.vocab)
    assert np.array_equal(store[0].ids, first.ids) and store[0].task == "text"
