"""Records of token ids: LLaDA's and LLaDA-TTS's forms become the streams that turns would have become."""

import json

import numpy as np
import pytest

from tests.conftest import SENTENCES
from ttt.cli.main import main
from ttt.config.schema import DataSection
from ttt.data.batches.long_examples import frame_cut
from ttt.data.batches.text_ratio import training_loader
from ttt.data.encode import encode_example
from ttt.data.read.records import RecordError
from ttt.data.read.token_ids import is_ids, stream_of, stream_of_ids
from ttt.data.sources.build_store import Settings, pack
from ttt.data.sources.mix import Source, open_streams
from ttt.text.tokenizer import train_bpe
from ttt.types import Example, Span, Turn

BOOKS, CODES = 3, 5


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(SENTENCES * 3, 300, CODES, BOOKS, "llada_tts")


def spoken(frames):
    codes = np.arange(frames * BOOKS, dtype=np.int32).reshape(frames, BOOKS) % CODES
    return Example(
        "a",
        (Turn("user", (Span("text", "a cat"),)), Turn("assistant", (Span("audio", codes=codes, style="last"),))),
        "tts",
    )


def same(a, b):
    arrays = all(np.array_equal(getattr(a, n), getattr(b, n)) for n in ("ids", "kind", "run_id", "target", "noisable"))
    cut = [(s.start, s.stop, s.style, s.target) for s in a.segments] == [
        (s.start, s.stop, s.style, s.target) for s in b.segments
    ]
    return arrays and cut and (a.uid, a.task) == (b.uid, b.task)


@pytest.mark.parametrize("more", [
    {}, {"data_type": "tts"}, {"prompt_lengths": 3, "data_type": "tts"}, {"prompt_length": [4], "data_type": "tts"},
])  # fmt: skip
def test_speech_is_what_its_turns_are(tokenizer, more):
    wanted = encode_example(spoken(4), tokenizer)
    record = {"uid": "a", "input_ids": wanted.ids.tolist(), **more}
    assert same(stream_of_ids("x:1", record, tokenizer.vocab), wanted)
    pads = [tokenizer.vocab.pad_id] * 3
    padded = {**record, "input_ids": [*record["input_ids"], *pads], "attention_mask": [1] * len(wanted) + [0] * 3}
    assert same(stream_of_ids("x:1", padded, tokenizer.vocab), wanted)


def test_text(tokenizer):
    v = tokenizer.vocab
    made = stream_of_ids("f/x:1", {"input_ids": np.arange(6, dtype=np.int32)}, v, "x:1")
    assert made.uid == "x:1" and made.task == "text" and made.target.all() and made.prompt_length == 0
    made = stream_of_ids("x:1", {"id": 7, "input_ids": [1, 2, 3, 4], "prompt_length": 3, "data_type": "text"}, v)
    assert made.uid == "7" and made.target.tolist() == [False, False, False, True] and not made.segments
    made = stream_of_ids("x:1", {"instruction_ids": [1, 2], "response_ids": [3]}, v)
    assert made.ids.tolist() == [1, 2, 3] and made.target.tolist() == [False, False, True]
    made = stream_of_ids("x:1", {"input_ids": [1, 2, 3], "labels": [-100, 2, -100]}, v)
    assert made.target.tolist() == [False, True, False]


def test_conversations_up_to_the_first_answer(tokenizer):
    turns = [("human", [1]), ("user", [2, 3]), ("gpt", [4, 5]), ("human", [6]), ("assistant", [7])]
    record = {"conversations": [{"from": who, "input_ids": ids} for who, ids in turns]}
    made = stream_of_ids("x:1", record, tokenizer.vocab)
    assert made.ids.tolist() == [1, 2, 3, 4, 5] and made.target.tolist() == [False] * 3 + [True] * 2


@pytest.mark.parametrize("record, message", [
    ({"input_ids": [1, 2, 400]}, "id 400 at place 2 is outside the vocabulary of 3"),
    ({"input_ids": [-1]}, "id -1 at place 0"), ({"input_ids": []}, "input_ids is empty"),
    ({"input_ids": "1 2"}, "input_ids must be a list of whole numbers"), ({"input_ids": [1.5]}, "list of whole numbers"),
    ({"input_ids": [1, 2], "prompt_length": 3}, r"prompt_length 3 is not in \[0, 2\]"),
    ({"input_ids": [1, 2], "prompt_lengths": [1, 1]}, "prompt_lengths must be one number"),
    ({"input_ids": [1, 2], "attention_mask": [0, 1]}, "attention_mask must be ones, then zeros"),
    ({"input_ids": [1, 2], "data_type": "ttts"}, "data_type 'ttts' is none of tts, text. Did you mean 'tts'"),
    ({"input_ids": [1, 2], "data_type": "tts"}, "nothing opens a span of codes"),
    ({"input_ids": [1, 2], "labels": [1]}, "labels has 1 entries for 2 ids"),
    ({"conversations": [{"from": "human", "input_ids": [1]}]}, "no turn of the assistant"),
    ({"conversations": [{"from": "me", "input_ids": [1]}]}, "turn 0: unknown sender 'me'"),
])  # fmt: skip
def test_wrong_records_are_named(tokenizer, record, message):
    with pytest.raises(RecordError, match=rf"^d/x.jsonl:3: uid 'r': .*{message}"):
        stream_of_ids("d/x.jsonl:3", {"uid": "r", **record}, tokenizer.vocab)


def test_wrong_codes_are_named(tokenizer):
    v = tokenizer.vocab
    good = encode_example(spoken(2), tokenizer).ids
    at = int(np.flatnonzero(good == v.soa_id)[0]) + 1
    for change, message in (
        (
            {at + 1: v.code_start},
            f"codes from place {at} on: id {v.code_start} at place 1 is no code for position 1 of frame 0",
        ),
        ({at + 2: 5}, f"id 5 at place {at + 2} stands among codes and does not end them"),
        ({at + 5: v.eoa_id}, "5 codes are no whole frames of 3"),
    ):
        ids = good.copy()
        ids[list(change)] = list(change.values())
        with pytest.raises(RecordError, match=f"x:1: uid 'r': .*{message}"):
            stream_of_ids("x:1", {"uid": "r", "input_ids": ids}, v)
    cut = stream_of_ids("x:1", {"uid": "r", "input_ids": good[: at + 4]}, v)  # a row that was cut is an open span
    assert [s.style for s in cut.segments] == ["open_last"]


def test_records_of_turns_are_no_ids(tokenizer):
    record = {"messages": [{"role": "user", "content": "on"}, {"role": "assistant", "content": "a cat"}]}
    assert not is_ids(record) and not is_ids([1]) and not is_ids({"conversations": [{"from": "human", "value": "on"}]})
    assert stream_of("x:1", json.dumps(record).encode(), "", tokenizer).task == "chat"


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory):
    """20 rows of speech, 1 to 20 frames, as JSONL and as a saved dataset; the tokenizer."""
    from tests.unit.data.test_records import save_to_disk

    path = tmp_path_factory.mktemp("ids")
    rows = [{"input_ids": encode_example(spoken(n), tokenizer).ids.tolist(), "data_type": "tts"} for n in range(1, 21)]
    (path / "tts.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    save_to_disk(path / "saved", rows)
    tokenizer.save(path / "tok")
    return path


def test_a_saved_dataset_a_file_and_a_store_hold_the_same(folder, tokenizer):
    pytest.importorskip("pyarrow")
    of_file, of_set = (open_streams(folder / n, tokenizer) for n in ("tts.jsonl", "saved"))
    store, _ = pack([Source(folder / "saved", name="saved")], folder / "store", Settings(str(folder / "tok")))
    assert len(store) == 20
    for a, b, c in zip(of_file, of_set, store, strict=True):
        assert np.array_equal(a.ids, b.ids) and np.array_equal(a.target, c.target) and same(b, c)
    assert of_set.uid(3) == "saved[3]" and of_file.uid(3) == "tts.jsonl:4"


def test_check_knows_ids(folder, capsys):
    assert main(["data", "check", str(folder / "tts.jsonl"), "--tokenizer", str(folder / "tok")]) == 0
    assert "20 records, 20 usable" in capsys.readouterr().out
    assert main(["data", "check", str(folder / "tts.jsonl")]) == 1
    assert "name the tokenizer they were made with" in capsys.readouterr().out


@pytest.mark.parametrize("packed", [True, False])
def test_long_rows_end_at_a_frame(folder, tokenizer, packed):
    section = DataSection(
        train=str(folder / "tts.jsonl"), row_tokens=40, batch_tokens=80, max_drop_share=1.0, pack=packed
    )
    drop = training_loader(section, tokenizer, seed=1)
    import dataclasses

    cut = training_loader(dataclasses.replace(section, long_rows="cut"), tokenizer, seed=1)
    words = len(tokenizer.encode("a cat"))
    long = [n for n in range(1, 21) if words + 6 + 1 + BOOKS * n > 40]
    assert len(drop.report.dropped["longer than data.row_tokens"]) == len(long) == len(cut.report.cut) > 0
    assert not cut.report.dropped and f"{len(long)} cut at a frame" in cut.report.summary()
    for stream in cut.streams:
        segment = stream.segments[0]
        assert len(stream) <= 40 and (segment.stop - segment.start) % BOOKS == 0 and segment.stop > segment.start
    assert cut.digest != drop.digest
    seen = {u for b in range(cut.updates_per_epoch) for u in cut.micro_batch(b, 0).uids}
    assert set(cut.report.cut) & seen


def test_what_cannot_be_cut_is_dropped(tokenizer):
    stream = encode_example(spoken(4), tokenizer)
    start = stream.segments[0].start
    assert frame_cut(stream, start + BOOKS, BOOKS) == (0, BOOKS)
    assert frame_cut(stream, start + BOOKS - 1, BOOKS) is None
    text = stream_of_ids("x:1", {"input_ids": [1] * 9}, tokenizer.vocab)
    assert frame_cut(text, 5, BOOKS) is None


@pytest.mark.parametrize("spans, learned", [("all", True), ("first", False)])
def test_cut_speech_is_learned(folder, tokenizer, spans, learned):
    """A span that the loader cut has no end token; only the published rule (`spans: first`) leaves it out."""
    from ttt.objective.places import whole_spans

    section = DataSection(train=str(folder / "tts.jsonl"), row_tokens=40, batch_tokens=40, pack=False, long_rows="cut")
    loader = training_loader(section, tokenizer, seed=1)
    for number in range(loader.updates_per_epoch):
        batch = loader.micro_batch(number, 0)
        found = whole_spans(batch, spans == "first")
        for doc, uid in enumerate(batch.uids):
            assert bool(found[batch.doc == doc].any()) == (learned or uid not in loader.report.cut)
