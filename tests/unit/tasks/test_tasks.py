import json

import numpy as np
import pytest

from tests.conftest import tiny_tokenizer
from ttt.data.encode import encode_example
from ttt.data.read.examples import interleave, words_of
from ttt.errors import ConfigError, DataError
from ttt.registry.families import CONVERTER, TASK
from ttt.tasks.prepare import build_examples, corpus_texts, read_codes

CODES = {"in": np.arange(10, dtype=np.int32)[:, None], "out": np.arange(20, 32, dtype=np.int32)[:, None]}
ITEM = {
    "id": "i1",
    "task": "asr",
    "input": "in",
    "output": "out",
    "text_in": "say a b c",
    "text_out": "a b c d e",
    "answer_key": "e",
    "split": "dev",
}


def task(name, **fields):
    return TASK.build({"name": name, **fields}, "tasks[0]")


def shape(turn):
    return [s.text if s.kind == "text" else (s.style, s.codes[:, 0].tolist()) for s in turn.spans]


def test_recognition():
    e = task("asr").build(ITEM, CODES)
    assert [t.role for t in e.turns] == ["system", "user", "assistant"]
    assert shape(e.turns[1]) == [("user", list(range(10)))] and shape(e.turns[2]) == [
        "a b c d e",
        ("last", list(range(20, 32))),
    ]
    assert shape(task("asr", speak=False).build(ITEM, CODES).turns[2]) == ["a b c d e"]
    assert (
        e.meta["text_ref"] == "a b c d e"
        and e.meta["answer_key"] == "e"
        and e.meta["split"] == "dev"
        and e.task == "asr"
    )


def test_synthesis():
    e = task("tts").build(ITEM, CODES)
    assert shape(e.turns[1]) == ["say a b c"] and shape(e.turns[2]) == [("last", list(range(20, 32)))]


def test_question_answering():
    e = task("qa", system="be brief").build(ITEM, CODES)
    assert (
        shape(e.turns[0]) == ["be brief"] and shape(e.turns[1])[0][0] == "user" and shape(e.turns[2])[0] == "a b c d e"
    )
    assert shape(task("text_qa").build(ITEM, {}).turns[2]) == ["a b c d e"]


@pytest.mark.parametrize(
    "words, codes, n, m",
    [
        (5, 12, 2, 3), (5, 7, 2, 26), (2, 9, 2, 3), (7, 6, 2, 3), (30, 100, 13, 26), (40, 53, 13, 26), (3, 5, 0, 2),
        (0, 5, 2, 2), (3, 0, 2, 2),
    ],
)  # fmt: skip
def test_interleaving_rule_of_the_spec(words, codes, n, m):
    """Section 2.3: n text units and m codes while more than n units and any audio remain, then the rest and one quad span."""
    text = [f" w{i}" if i else "w0" for i in range(words)]
    audio = np.arange(codes, dtype=np.int32)[:, None]
    spans = interleave(text, audio, n, m)
    assert "".join(s.text for s in spans if s.kind == "text") == "".join(text)
    found = [s for s in spans if s.kind == "audio"]
    assert np.concatenate([s.codes for s in found] or [audio]).tolist() == audio.tolist()
    assert [s.style for s in found[:-1]] == ["span"] * (len(found) - 1)
    assert not found or (found[-1].style == "last" and spans[-1] is found[-1])
    assert all(len(s.codes) == m for s in found[:-1]) and all(
        len(s.text.split()) == n for s in spans[: 2 * (len(found) - 1) : 2]
    )
    tail = [s.text for s in spans[2 * max(0, len(found) - 1) :] if s.kind == "text"]
    audio_left = len(found[-1].codes) if found else 0
    if n and tail and audio_left > m:
        assert len(tail[0].split()) <= n, "chunks go on while text and audio remain"


def test_uids_and_labels_differ_by_interleaving():
    tasks = [task("asr"), *(task("asr", text_chunk=2, audio_chunk=n, text_unit="words") for n in (3, 4))]
    assert len({t.build(ITEM, CODES).uid for t in tasks}) == 3
    assert [t.label for t in tasks] == ["asr", "asr_2_3", "asr_2_4"]


@pytest.mark.parametrize("name", ["asr", "tts", "qa"])
def test_prompt_is_everything_before_the_answer(name):
    t = task(name)
    e = t.build(ITEM, CODES)
    prompt = encode_example(t.prompt(e), tiny_tokenizer(), open_answer=True)
    full = encode_example(e, tiny_tokenizer())
    assert prompt.ids.tolist() == full.ids[: len(prompt)].tolist() and int(full.target.argmax()) == len(prompt)
    with pytest.raises(DataError, match="the last turn must be the assistant's, got 'user'"):
        t.prompt(t.prompt(e))


def test_missing_codes_and_fields():
    with pytest.raises(DataError, match="item 'i1': no codes for utterance 'in'; run 'ttt tokenize'"):
        task("asr").build(ITEM, {"out": CODES["out"]})
    with pytest.raises(DataError, match="item 'i1': task 'asr' needs 'output', the item has none"):
        task("asr").build({**ITEM, "output": None}, CODES)
    with pytest.raises(Exception, match=r"tasks\[0\]\.\w+_chunk: must be >= [01], got"):
        task("asr", audio_chunk=0)


@pytest.mark.parametrize("name", ["asr", "tts", "qa", "text_qa"])
def test_metrics_exist(name):
    from ttt.registry.families import METRIC

    assert set(task(name).metrics.values()) <= set(METRIC.names())


def test_build_examples_counts(tmp_path):
    items = tmp_path / "train.items.jsonl"
    lines = [ITEM, {**ITEM, "id": "i2", "task": "tts"}, {**ITEM, "id": "i3", "task": "aac"}]
    items.write_text("".join(json.dumps(i) + "\n" for i in lines))
    examples, counts = build_examples(items, CODES, [task("asr"), task("asr", text_chunk=2, text_unit="words"), task("tts")])
    assert [e.task for e in examples] == ["asr", "asr_2_26", "tts"] and len({e.uid for e in examples}) == 3
    assert counts == {"asr": 1, "asr_2_26": 1, "tts": 1, "skipped: task 'aac' is not in the recipe": 1}
    items.write_text(json.dumps({k: v for k, v in ITEM.items() if k != "text_out"}) + "\n")
    with pytest.raises(DataError, match=r"items\.jsonl:1: item lacks the field 'text_out'"):
        build_examples(items, CODES, [task("asr")])


def test_written_questions_of_spoken_ones(tmp_path):
    items = tmp_path / "train.items.jsonl"
    items.write_text(json.dumps({**ITEM, "task": "qa"}) + "\n")
    (example,), counts = build_examples(items, {}, [task("text_qa", items="qa"), task("text_qa")])
    assert example.task == "text_qa" and shape(example.turns[1]) == ["say a b c"] and counts == {"text_qa": 1}


def test_read_codes(tmp_path):
    path = tmp_path / "codes.jsonl"
    path.write_text('{"codec": "toy-1"}\n{"id": "a", "codes": [1, 2]}\n{"id": "b", "codes": [[1, 2]]}\n')
    codes = read_codes(path, "toy-1")
    assert codes["a"].tolist() == [[1], [2]] and codes["b"].tolist() == [[1, 2]]
    with pytest.raises(DataError, match="codes of codec 'toy-1', the run uses 'toy-2'; run 'ttt tokenize' again"):
        read_codes(path, "toy-2")
    path.write_text('{"id": "a", "codes": []}\n')
    with pytest.raises(DataError, match=r"codes\.jsonl:1: utterance 'a' has no codes"):
        read_codes(path)


def test_texts_for_the_tokenizer(tmp_path):
    items = tmp_path / "train.items.jsonl"
    items.write_text(json.dumps(ITEM) + "\n")
    texts = corpus_texts([items], [task("asr", system="be quick")])
    assert {"say a b c", " say a b c", "a b c d e", "be quick", "assistant", "\n"} <= set(texts)


@pytest.mark.parametrize(
    "text",
    ["the quick brown fox", "  so it\nis \n\n", "我用 ABC 说话", "héllo wörld 🎉", "e\u0301a", "", "\n", "你" * 40],
)
def test_pieces_of_a_text_are_its_tokens_as_written(text):
    tokenizer = tiny_tokenizer()
    pieces = tokenizer.pieces(text)
    assert "".join(pieces) == text and len(pieces) == len(tokenizer.encode(text))
    assert "".join(words_of(text)) == text


@pytest.mark.parametrize("text", ["one two three four five six", "so it\nis.\n\nnow then " * 3, "我用普通话说话" * 3])
def test_interleaving_counts_tokens_and_keeps_the_text(text):
    """13 tokens of text, then 26 codes, as in the published data; whatever the language, and as it is written."""
    tokenizer, audio = tiny_tokenizer(), np.arange(200, dtype=np.int32)[:, None] % 32
    asr = TASK.build({"name": "asr", "text_chunk": 13, "audio_chunk": 26}, "tasks").with_tokenizer(tokenizer)
    spans = asr.build({**ITEM, "text_out": text}, {"in": audio, "out": audio}).turns[2].spans
    texts = [s.text for s in spans if s.kind == "text"]
    assert "".join(texts) == text and len(texts) > 1
    assert [len(s.codes) for s in spans if s.kind == "audio"][: len(texts) - 1] == [26] * (len(texts) - 1)
    counts, pieces = [], tokenizer.pieces(text)
    at = 0
    for part in texts[:-1]:
        n = 13
        assert "".join(pieces[at : at + n]) == part
        at += n
        counts.append(n)
    assert len(pieces) - at > 0 and (len(pieces) - at <= 13 or 26 * len(counts) + 26 >= 200)


def test_tokens_are_counted_with_a_tokenizer_only():
    with pytest.raises(DataError, match="task 'asr_2_3': text_chunk counts tokens of a tokenizer; .* text_unit: words"):
        task("asr", text_chunk=2, audio_chunk=3).build(ITEM, CODES)
    with pytest.raises(ConfigError, match="name the folder of a tokenizer in 'tokenizer', or set text_unit=words"):
        CONVERTER.build({"name": "slam_omni", "text_chunk": 2}, "--from")


def test_units_of_converters(tmp_path):
    tiny_tokenizer().save(tmp_path)
    row = {"question": "q", "answer": "one two\nthree four", "answer_cosyvoice_speech_token": list(range(9))}
    for unit, first in (("tokens", "".join(tiny_tokenizer().pieces(row["answer"])[:3])), ("words", "one two\nthree")):
        converter = CONVERTER.build(
            {"name": "slam_omni", "text_chunk": 3, "audio_chunk": 2, "text_unit": unit, "tokenizer": str(tmp_path)}, "--from"
        )
        spans = converter.convert("x:1", row)["turns"][2]["spans"]
        assert spans[0]["text"] == first and "".join(s.get("text", "") for s in spans) == row["answer"]
