"""Recordings of which nobody has written down what they say: sound files -> corpus -> codec -> codes -> examples, by the verbs."""

from __future__ import annotations

import json

import numpy as np
import pytest

from ttt.audio.wav import write
from ttt.cli.main import main
from ttt.data.read.examples import read_examples
from ttt.types import Waveform

SPLITS = ("train", "dev", "test")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Six recordings of a second a split, as they lie in a folder."""
    folder = tmp_path_factory.mktemp("audio_only")
    rng = np.random.default_rng(1)
    for split in SPLITS:
        for i in range(6):
            times = np.arange(16000) / 16000
            tones = np.sin(2 * np.pi * np.cumsum(rng.uniform(200, 900, 16000 // 1600).repeat(1600)) / 16000)
            sound = 0.3 * tones * np.sin(8 * times) + 0.01 * rng.standard_normal(16000)
            write(folder / "wavs" / split / "ann" / f"{split}{i}.wav", Waveform(sound.astype(np.float32), 16000))
        assert main(["data", "convert", "--from", "folder", str(folder / "wavs" / split), str(folder / "corpus"),
                     "--split", split, "--tasks", "continuation", "speaker_level=1"]) == 0  # fmt: skip
    return folder


def verb(name, world, *settings):
    codec = f"{{name: rvq, path: {world}/codec, strides: [1, 1], frame_rate_hz: 20, num_codes: 8, mels: 20}}"
    folders = [f"data.corpus={world}/corpus", f"data.dir={world}/data"]
    return main([*name.split(), f"codec={codec}", *folders, "data.bpe_size=300", *settings])


def one_line(capsys):
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1, said
    return said[0]


def test_wavs_become_examples(world, capsys):
    lines = [json.loads(line) for line in (world / "corpus/train.jsonl").read_text().splitlines()]
    assert len(lines) == 6 and {u["text"] for u in lines} == {""} and {u["speaker"] for u in lines} == {"ann"}
    task = "tasks=[{name: continuation, cut: {least: 4}}]"
    assert [verb(name, world, task) for name in ("fit codec", "tokenize", "examples")] == [0, 0, 0]
    for split in SPLITS:
        made = read_examples(world / f"data/{split}.jsonl")
        assert [e.task for e in made] == ["continuation"] * 6
        sizes = [[t.spans[0].codes.shape for t in e.turns] for e in made]
        assert all(a == (8, 2) and b[0] + a[0] in (20, 21) for a, b in sizes), sizes
    capsys.readouterr()
    train, test, tokenizer = (str(world / "data" / name) for name in ("train.jsonl", "test.jsonl", "tokenizer"))
    check = ["data", "check", train, "--test", test, "--tokenizer", tokenizer, "--json"]
    assert main([*check, "--fail-on", "duplicates", "warnings"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["errors"] == 0 and found["duplicates"]["text"]["examples"] == 0 and found["overlap"]["either"] == 0
    assert found["files"][0]["examples"] == 6 and found["files"][0]["frames"] in range(120, 127)


def test_who_reads_text_says_so(world, capsys, tmp_path):
    call = ["data", "convert", "--from", "folder", str(world / "wavs/test"), str(tmp_path / "out")]
    assert main(call) == 2
    said = one_line(capsys)
    assert "test0.wav: utterance 'ann/test0' has no text (test0.txt is missing), which task 'asr' reads" in said, said
    assert "--tasks continuation" in said
    assert main([*call, "--tasks", "continuation", "unheard_of", "--skip-bad"]) == 2
    assert "nothing was written (6 rows, 0 written" in one_line(capsys)
    assert not (tmp_path / "out").exists()
    assert verb("fit judge", world, f"judge={{name: ctc, path: {tmp_path}/judge}}") == 2
    assert "utterance 'ann/train0' has no text, which the judge reads" in one_line(capsys)


def test_a_task_that_reads_text_refuses_such_an_item(world, capsys):
    import shutil

    other = world / "mixed"
    shutil.copytree(world / "corpus", other)
    for split in SPLITS:
        items = other / f"{split}.items.jsonl"
        items.write_text(items.read_text().replace('"task": "continuation"', '"task": "tts"'))
    there = [f"data.corpus={other}", f"data.dir={world}/data2", "tasks=[{name: tts}]"]
    assert verb("fit codec", world) == verb("tokenize", world, *there) == 0
    capsys.readouterr()
    assert verb("examples", world, *there) == 2
    assert "item 'ann/train0-continuation': task 'tts' reads 'text_in', which is empty" in one_line(capsys)


def test_what_is_heard_needs_words_to_compare_with(world, capsys, tmp_path):
    """Said before anything is listened to."""
    from ttt.errors import DataError
    from ttt.eval.inputs import check_words
    from ttt.registry.families import TASK
    from ttt.types import Example, Span, Turn

    task = TASK.build({"name": "continuation", "measure": ["mel_distance", "judged_wer"]}, "tasks[0]")
    codes = np.zeros((2, 1), dtype=np.int32)
    turns = (Turn("user", (Span("audio", codes=codes),)), Turn("assistant", (Span("audio", codes=codes),)))
    silent = [Example(f"e{i}", turns, "continuation") for i in range(2)]
    with pytest.raises(DataError, match="metric 'judged_wer' of task 'continuation' .* example 'e0' has none"):
        check_words({tmp_path: silent}, {"continuation": task})
    said = Example("e2", turns, "continuation", {"speech_ref": "one"})
    check_words({tmp_path: [*silent, said]}, {"continuation": task})
