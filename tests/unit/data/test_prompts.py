"""Prompts of every form: what they are read as, and what the model reads."""

import json

import pytest

from tests.conftest import tiny_tokenizer
from tests.saved_dataset import save_to_disk
from ttt.data.encode import encode_example
from ttt.data.read.examples import distinct, official_record
from ttt.data.read.prompts import iter_prompts, prompt_of
from ttt.errors import DataError
from ttt.tasks.records import Chat, Document

T = tiny_tokenizer()
TASKS = {"chat": Chat(), "document": Document()}


def read(path, *tasks):
    return list(distinct(iter_prompts(path, tasks or tuple(TASKS))))


def ids_of(example):
    return list(prompt_of(TASKS[example.task].prompt(example), T).ids)


def chat_ids(prompt, response="a"):
    """What training reads before the answer."""
    made = official_record({"prompt": prompt, "response": response}, "x")
    return encode_example(Chat().prompt(made), T, open_answer=True).ids.tolist()


@pytest.mark.parametrize("name,text", [
    ("p.txt", "a cat\n\n  \none\r\n"),
    ("p.jsonl", '{"prompt": "a cat"}\n"one"\n'),
    ("p.json", '[{"instruction": "a cat", "id": "first"}, {"prompt": "one", "response": null}]'),
    ("p.jsonl", '{"messages": [{"role": "user", "content": "a cat"}]}\n{"prompt": "one", "response": "two"}\n'),
    ("p.jsonl", '{"conversations": [{"from": "human", "value": "a cat"}, {"from": "gpt", "value": "b"}]}\n{"prompt": "one"}\n'),
])  # fmt: skip
def test_a_prompt_is_read_as_in_training(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    first, second = read(tmp_path / name)
    assert ids_of(first) == chat_ids("a cat") and ids_of(second) == chat_ids("one")
    assert first.task == "chat" and first.uid in ("p.txt:1", "p.jsonl:1", "first") and second.uid != first.uid


def test_a_system_message(tmp_path):
    (tmp_path / "p.jsonl").write_text('{"system": "two", "prompt": "one"}\n')
    (example,) = read(tmp_path / "p.jsonl")
    asked = official_record({"messages": [{"role": "system", "content": "two"}, {"role": "user", "content": "one"}]}, "x")
    assert ids_of(example) == encode_example(asked, T, open_answer=True).ids.tolist()


def test_text_to_go_on_from(tmp_path):
    (tmp_path / "p.txt").write_text("a cat sat on\n")
    (example,) = read(tmp_path / "p.txt", "document", "chat")
    assert ids_of(example) == T.encode("a cat sat on") and TASKS["document"].with_reference(example).meta["text_ref"] is None


@pytest.mark.parametrize("record,prompt", [
    ({"input_ids": [5, 6, 7, 8, 9], "prompt_length": 2}, [5, 6]),
    ({"instruction_ids": [5, 6, 7], "response_ids": [8]}, [5, 6, 7]),
    ({"input_ids": [5, 6, 7, 8], "labels": [-100, 6, 7, 8]}, [5]),
    ({"input_ids": [5, 6, 7, 8]}, [5, 6]),
])  # fmt: skip
@pytest.mark.parametrize("task", TASKS)
def test_ids_are_taken_as_they_are(tmp_path, record, prompt, task):
    (tmp_path / "p.jsonl").write_text(json.dumps({"id": "x", **record}) + "\n")
    (example,) = read(tmp_path / "p.jsonl", task)
    assert (example.uid, example.task) == ("x", task) and ids_of(TASKS[task].with_reference(example)) == prompt


def test_a_saved_dataset(tmp_path):
    pytest.importorskip("pyarrow")
    rows = [{"messages": [{"role": "user", "content": "a cat"}, {"role": "assistant", "content": "one"}]}]
    (example,) = read(save_to_disk(tmp_path / "saved", rows, 1))
    assert ids_of(example) == chat_ids("a cat")


@pytest.mark.parametrize("text,message", [
    ('{"prompt": " "}\n', "p.jsonl:1: the prompt is empty"),
    ('{"question": "a"}\n', "p.jsonl:1: no 'messages'"),
    ('{"prompt": "a", "id": 1}\n{"prompt": "b", "id": 1}\n', "uid '1' was already used at"),
    ('{"prompt": "<|begin_of_audio|>a"}\n', "p.jsonl:1: span opened by"),
])  # fmt: skip
def test_what_is_no_prompt(tmp_path, text, message):
    (tmp_path / "p.jsonl").write_text(text)
    with pytest.raises(DataError, match="p.jsonl:[12]: .*" + message.partition(": ")[2] if ": " in message else message):
        read(tmp_path / "p.jsonl")


def test_other_encodings(tmp_path):
    (tmp_path / "p.txt").write_bytes("ok\nchât".encode("latin-1"))
    with pytest.raises(DataError, match="p.txt:2: not UTF-8"):
        read(tmp_path / "p.txt")
