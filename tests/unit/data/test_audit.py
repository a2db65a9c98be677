"""`ttt data check`: planted faults, duplicates and overlaps are found, and nothing else."""

import json
from dataclasses import replace

import numpy as np
import pytest

from tests.conftest import SENTENCES, audio, chat, text, tiny_tokenizer
from ttt.cli.main import main
from ttt.data.read.examples import write_examples
from ttt.data.reports.audit import Settings, audit
from ttt.data.reports.lengths import histogram, summary
from ttt.data.reports.overlap import Table, code_runs, codes_key, runs, text_key, word_runs, words
from ttt.data.sources.build_store import Settings as PackSettings
from ttt.data.sources.build_store import pack
from ttt.data.sources.mix import sources_of

LONG = "what is the name of the river that flows through the old town of my uncle"


def rng_codes(seed, n=40):
    return np.random.default_rng(seed).integers(0, 32, n).tolist()


def spoken(uid, question, answer, seed):
    return chat(
        uid, [audio(rng_codes(seed), "user")], [text(answer), audio(rng_codes(seed + 1000), "last")], system=question
    )


@pytest.fixture
def files(tmp_path):
    """train.jsonl: 12 clean examples, one twice; test.jsonl: four, of which three overlap."""
    train = [spoken(f"t{i}", "the same for all", f"{SENTENCES[i % 7]} number {i}", i) for i in range(11)]
    train.append(chat("long", [text(LONG)], [text("well"), audio(rng_codes(77), "last")]))
    train.append(replace(train[2], uid="again"))
    test = [
        spoken("new", "the same for all", "nothing of this was ever said", 500),
        chat("words", [text("Tell me: " + LONG.upper() + "?")], [text("hm")]),
        chat("codes", [audio(rng_codes(5)[3:35], "user")], [text("quite new")]),
        chat("whole", [text("a cat sat on the mat, number 1!")], [text("ok")]),
    ]
    write_examples(tmp_path / "train.jsonl", train)
    write_examples(tmp_path / "test.jsonl", test)
    return tmp_path


@pytest.mark.parametrize("jobs", [1, 2])
def test_overlap_and_duplicates(files, jobs):
    report = audit([files / "train.jsonl"], [files / "test.jsonl"], Settings(), jobs)
    assert report.errors == 0 and report.duplicates["both"] == {
        "examples": 1, "pairs": [(f"{files}/train.jsonl:13", f"{files}/train.jsonl:3")],
    }  # fmt: skip
    assert report.duplicates["text"]["examples"] == report.duplicates["codes"]["examples"] == 1
    found = report.overlap
    assert found["test_examples"] == 4 and found["either"] == 3
    train, test = f"{files}/train.jsonl", f"{files}/test.jsonl"
    assert dict(found["text"]["pairs"]) == {f"{test}:2": f"{train}:12", f"{test}:4": f"{train}:2"}
    assert found["codes"]["pairs"] == [(f"{files}/test.jsonl:3", f"{files}/train.jsonl:6")]
    strict = audit([files / "train.jsonl"], [files / "test.jsonl"], Settings(words=20, codes=33))
    assert strict.overlap["text"]["examples"] == 1 and strict.overlap["codes"]["examples"] == 0


def test_numbers_of_a_file(files):
    report = audit([files / "train.jsonl"], [], Settings(frame_rate_hz=10.0))
    (file,) = report.as_json()["files"]
    assert file["records"] == file["examples"] == 13 and file["frames"] == 24 * 40 + 40
    assert file["hours"] == pytest.approx(1000 / 10 / 3600) and dict(file["styles"]) == {"user": 12, "last": 13}
    lengths = report.lengths
    assert report.unit == "words and codes" and lengths.sum() == file["tokens"] and report.overlap is None
    assert json.dumps(report.as_json())


def test_lengths_are_tokens_with_a_tokenizer_and_of_a_store(files):
    tiny_tokenizer().save(files / "tok")
    store, _ = pack(sources_of(files / "train.jsonl"), files / "s", PackSettings(str(files / "tok")))
    settings = Settings(tokenizer=str(files / "tok"), row_tokens=int(store.lengths.max()) - 1)
    by_file, by_store = audit([files / "train.jsonl"], [], settings), audit([files / "s"], [], settings)
    assert by_file.lengths.tolist() == by_store.lengths.tolist() == store.lengths.tolist() and by_store.unit == "tokens"
    assert by_file.duplicates["both"]["examples"] == by_store.duplicates["both"]["examples"] == 1
    assert sum(by_file.files[0].warnings.values()) == int((store.lengths == store.lengths.max()).sum())


def test_every_broken_record_is_named_and_counted(tmp_path):
    spoken_ = "<|begin_of_quad|><|audio_1|><|end_of_audio_span_last|>"
    good = {"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": spoken_}]}
    open_span = {"messages": [{"role": "user", "content": "<|begin_of_audio|><|audio_1|>"}], "id": "mine"}
    empty_span = {"text": "<|begin_of_audio|><|end_of_audio_new|> so"}
    bad_code = {"text": "<|begin_of_audio|><|audio_40|><|end_of_audio_new|>"}
    no_code = {"text": "<|begin_of_audio|><|audio_2147483648|><|end_of_audio_new|>"}
    special = {"text": "<|im_end|>"}
    unanswered = {"messages": [{"role": "user", "content": "hello"}]}
    lines = [good, open_span, empty_span, bad_code, special, unanswered, {"id": 1, **good}, {"id": 1, **good}, no_code]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n{\n3\n")
    tiny_tokenizer().save(tmp_path / "tok")
    report = audit([tmp_path / "x.jsonl"], [], Settings(tokenizer=str(tmp_path / "tok")))
    (file,) = report.files
    assert dict(file.errors) == {
        "span without an end": 1, "code out of range": 1, "special token in text": 1, "not JSON": 1,
        "not an object": 1, "duplicate uid": 1, "not codes": 1,
    }  # fmt: skip
    assert dict(file.warnings) == {"empty audio span": 1, "nothing to learn (no assistant turn or document)": 1}
    assert file.records == 11 and file.examples == 5 and report.errors == 7
    (message,) = file.shown["span without an end"]
    assert (
        message.startswith(f"{tmp_path}/x.jsonl:2: ")
        and "uid 'mine'" in message
        and "close it or drop the record" in message
    )
    assert file.shown["duplicate uid"] == [f"{tmp_path}/x.jsonl:8: same uid as {tmp_path}/x.jsonl:7; rename one"]
    assert audit([tmp_path / "x.jsonl"], [], Settings(num_codes=32)).files[0].errors["code out of range"] == 1
    assert audit([tmp_path / "x.jsonl"], [], Settings()).files[0].errors["code out of range"] == 0


def test_a_list_that_breaks_off_is_an_error_of_its_file(tmp_path):
    (tmp_path / "x.json").write_text('[{"text": "a"}, {"text": "b"')
    (tmp_path / "y.json").write_text('[{"text": "a"}]')
    report = audit([tmp_path / "x.json", tmp_path / "y.json"], [], Settings())
    assert [f.examples for f in report.files] in ([0, 1], [1, 1]) and dict(report.files[0].errors) == {"not JSON": 1}
    assert "nothing behind it was read" in report.files[0].shown["not JSON"][0]


@pytest.mark.parametrize("name, content", [("x.jsonl", ""), ("x.jsonl", "\n"), ("x.json", "[]")])
def test_a_file_without_records_is_an_error(tmp_path, capsys, name, content):
    (tmp_path / name).write_text(content)
    (tmp_path / "y.jsonl").write_text('{"text": "a"}\n')
    assert main(["data", "check", str(tmp_path / name), str(tmp_path / "y.jsonl")]) == 1
    assert f"{tmp_path / name}: no records in it; write it again or leave it out" in capsys.readouterr().out


@pytest.mark.parametrize("option", ["--row-tokens", "--num-codes"])
def test_sizes_are_not_negative(tmp_path, capsys, option):
    (tmp_path / "y.jsonl").write_text('{"text": "a"}\n')
    assert main(["data", "check", str(tmp_path / "y.jsonl"), option, "-1"]) == 2
    assert f"{option}: must be >= 0, got -1" in capsys.readouterr().err


def test_runs_are_equal_exactly_when_the_values_are():
    rng = np.random.default_rng(0)
    values = rng.integers(0, 4, 3000).astype(np.uint64)
    found = runs(values, 5, 3)
    by_window: dict = {}
    for i, h in enumerate(found.tolist()):
        assert by_window.setdefault(tuple(values[i : i + 5].tolist()), h) == h
    assert len(found) == 2996 and len(set(by_window.values())) == len(by_window)
    assert runs(values[7:12], 5, 3)[0] == found[7], "the place does not matter"
    assert len(runs(values[:4], 5, 3)) == 1 and runs(values[:4], 5, 3)[0] not in set(
        runs(values[:9], 4, 3)[1:].tolist()
    )
    assert len(runs(values[:2], 5, 3)) == 0


def test_what_counts_as_the_same():
    assert words("Ｈello,  WÖRLD—it's 5！ 我很好 ok") == ["hello", "wörld", "it", "s", "5", "我", "很", "好", "ok"]
    assert np.array_equal(word_runs("One two, THREE four!"), word_runs("one two three four"))
    assert len(word_runs("one two three")) == 0, "three words are said everywhere"
    silence = np.zeros((100, 1), dtype=np.int32)
    assert len(code_runs(silence)) == 0 and len(code_runs(np.arange(100)[:, None])) == 75
    two = np.stack([np.arange(30), np.arange(30) % 3], axis=1)
    assert not np.isin(code_runs(two), code_runs(two[:, ::-1])).any()
    assert text_key(["a b", "c"]) != text_key(["a", "b c"]) != 0 and text_key(["", "!"]) == 0
    assert (
        codes_key([np.ones((2, 1)), np.ones((1, 1))]) != codes_key([np.ones((1, 1)), np.ones((2, 1))])
        and codes_key([]) == 0
    )


def test_table_finds_every_owner():
    hashes = [np.array(h, "u8") for h in ([5, 7], [7], [])]
    table = Table.of(hashes, [np.full(len(h), i) for i, h in enumerate(hashes)])
    assert table.hits(np.array([7, 1], "u8")).tolist() == [0, 1] and table.hits(np.array([5, 5], "u8")).tolist() == [0]
    assert Table.empty().hits(np.array([5], "u8")).tolist() == []


def test_histogram_and_summary():
    lengths = np.concatenate([np.arange(1, 1000), [50_000]])
    bins = histogram(lengths)
    assert sum(n for _, _, n in bins) == 1000 and bins[0][0] == 1 and bins[-1][1] == 50_000 and len(bins) == 17
    assert all(b[0] == a[1] + 1 for a, b in zip(bins, bins[1:]))
    assert summary(lengths)["p50"] == pytest.approx(500.5) and summary(np.zeros(0)) == {"n": 0}
    assert histogram(np.array([4, 4])) == [(4, 4, 2)]


@pytest.mark.parametrize("form, warned", [("text_then_speech", 3), ("text_then_speech_tags", 3), ("interleaved", 0)])
def test_answers_that_are_not_text_then_speech(tmp_path, form, warned):
    from tests.conftest import SENTENCES, audio, chat, text
    from ttt.data.read.examples import write_examples
    from ttt.text.tokenizer import train_bpe

    train_bpe(SENTENCES, 300, 16, form=form).save(tmp_path / "tok")
    answers = [
        [text("yes"), audio([1], "last")], [audio([1], "last")], [audio([1], "last"), text("yes")], [text("yes")],
        [text("a"), audio([1]), text("b"), audio([2], "last")],
    ]  # fmt: skip
    examples = [chat(f"e{n}", [audio([3], "user")], spans) for n, spans in enumerate(answers)]
    write_examples(tmp_path / "x.jsonl", examples)
    (file,) = audit([tmp_path / "x.jsonl"], [], Settings(str(tmp_path / "tok"))).files
    assert file.warnings["not all text, then all speech"] == warned and not file.errors
