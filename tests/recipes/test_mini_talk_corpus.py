"""The mini_talk corpus: its promises about texts (full size, no sound) and about a tiny corpus with sound."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from ttt.audio import wav
from ttt.data.manifest import read_manifest, wav_path
from ttt.errors import DataError
from ttt.types import Waveform

ROOT = Path(__file__).resolve().parents[2]
LOCAL = ROOT / "egs" / "mini_talk" / "local"
MODULES = ("corpus_files", "data", "grammar", "plan", "synth")
TESTS = ("dev", "test", "test_unseen_voice")


@pytest.fixture(scope="module")
def local():
    """The recipe's modules by name, imported the way its script imports them, and forgotten afterwards."""
    shadowed = {name: sys.modules.pop(name) for name in MODULES if name in sys.modules}
    sys.path.insert(0, str(LOCAL))
    try:
        yield {name: __import__(name) for name in MODULES}
    finally:
        sys.path.remove(str(LOCAL))
        for name in MODULES:
            sys.modules.pop(name, None)
        sys.modules.update(shadowed)


@pytest.fixture(scope="module", params=["full", "quick", "tiny"])
def items(local, request):
    return make_plan(local, request.param)


def make_plan(local, size, seed=1):
    names = [voice.name for voice in local["synth"].TRAINED], [voice.name for voice in local["synth"].UNSEEN]
    return local["plan"].make_plan(local["plan"].SIZES[size], seed, *names)


def of(items, split, task=None):
    return [item for item in items if item.split == split and task in (None, item.task)]


# --- texts


def test_grammar_is_small_in_words_and_large_in_sentences(local):
    grammar, rng = local["grammar"], random.Random(1)
    assert 60 <= len(grammar.vocabulary()) <= 110
    said = {grammar.sentence(kind, rng) for kind in grammar.SENTENCE_KINDS for _ in range(20_000)}
    assert len(said) > 20_000
    words = {word for text in said for word in text.split()}
    assert words <= set(grammar.vocabulary()) and all(word.isalpha() and word.islower() for word in words)


def test_same_seed_same_plan_other_seed_other_plan(local):
    assert make_plan(local, "tiny") == make_plan(local, "tiny")
    assert make_plan(local, "tiny") != make_plan(local, "tiny", seed=2)


def test_no_test_text_in_train_and_none_twice(items):
    train = {text for item in of(items, "train") for text in (item.text_in, item.text_out)}
    for split in TESTS:
        for task in ("asr", "tts", "qa"):
            asked = [item.text_in for item in of(items, split, task)]
            assert len(set(asked)) == len(asked)
            assert not train & set(asked)
    assert not {i.text_in for i in of(items, "dev")} & {i.text_in for i in of(items, "test")}


def test_every_test_word_is_in_train(items):
    for task in ("asr", "tts", "qa"):
        words = {w for item in of(items, "train", task) for w in f"{item.text_in} {item.text_out}".split()}
        for split in TESTS:
            for item in of(items, split, task):
                assert words.issuperset(f"{item.text_in} {item.text_out}".split()), item


def test_unseen_voice_split_is_test_in_other_voices(items):
    pairs = list(zip(of(items, "test"), of(items, "test_unseen_voice"), strict=True))
    assert all((a.task, a.text_in, a.text_out) == (b.task, b.text_in, b.text_out) for a, b in pairs)
    assert not {i.voice for s in ("train", "dev", "test") for i in of(items, s) if i.voice} & {
        b.voice for _, b in pairs
    }


@pytest.mark.parametrize("size", ["full", "quick", "tiny"])
def test_qa_asks_new_combinations_of_known_parts(local, size):
    grammar, plan = local["grammar"], local["plan"]
    asked = plan._questions(plan.SIZES[size], random.Random(3))
    known = asked["train"]
    for split in ("dev", "test"):
        for a in asked[split]:
            same = [k for k in known if k.family == a.family]
            assert a.phrasing in {k.phrasing for k in same}
            if a.family in grammar.CLOSED_FAMILIES:  # known fact, known phrasing, never together
                assert a.instance in {k.instance for k in same}
                assert (a.instance, a.phrasing) not in {(k.instance, k.phrasing) for k in same}
            else:  # a new string
                strings = {k.instance for k in known if k.family in grammar.OPEN_FAMILIES}
                assert a.instance not in strings
    pairs = {k.instance for k in known if k.family == "plus"}
    assert len(pairs) == 49  # every operand pair is taught
    assert len({k.instance for k in known if k.family == "minus"}) == 28


def test_answers_follow_from_questions(local, items):
    """A slow twin: read the question's words, compute the answer anew."""
    grammar = local["grammar"]
    value = {word: n for n, word in enumerate(grammar.NUMBERS)}
    for item in (i for i in items if i.task == "qa"):
        assert grammar.is_correct(item.text_out, item.answer_key)
        words = item.text_in.split()
        numbers = [value[w] for w in words if w in value]
        if item.kind == "repeat":
            assert [value[w] for w in item.answer_key.split()] == numbers
        elif item.kind == "plus":
            assert value[item.answer_key] == sum(numbers)
        elif item.kind == "minus":
            assert value[item.answer_key] == abs(numbers[0] - numbers[1])
        elif item.kind in ("after", "before"):
            assert value[item.answer_key] == numbers[0] + (1 if item.kind == "after" else -1)
        elif item.kind == "opposite":
            (word,) = (w for w in words if w in grammar.OPPOSITE_OF)
            assert item.answer_key == grammar.OPPOSITE_OF[word]
        elif item.kind == "color":
            (word,) = (w for w in words if w in grammar.COLOR_OF)
            assert item.answer_key == grammar.COLOR_OF[word]
        else:
            (word,) = (w for w in words if w in grammar.LEGS_OF)
            assert item.answer_key == f"{grammar.NUMBERS[grammar.LEGS_OF[word]]} legs"


def test_an_operand_is_not_taken_for_the_result(local):
    is_correct = local["grammar"].is_correct
    assert is_correct("three plus zero is three", "three")
    assert not is_correct("three plus zero is zero", "three")
    assert not is_correct("", "three")


def test_promised_sizes(local):
    items = make_plan(local, "full")
    counts = Counter((item.split, item.task) for item in items)
    assert counts["train", "asr"] == counts["train", "tts"] >= 3000 and counts["train", "qa"] >= 2200
    assert all(counts["dev", task] == 100 for task in ("asr", "tts", "qa"))
    assert all(counts[split, task] == 200 for split in TESTS[1:] for task in ("asr", "tts", "qa"))
    voices = Counter(item.voice for item in of(items, "train", "asr"))
    assert len(voices) == 8 and max(voices.values()) - min(voices.values()) <= 1


# --- refused sound (no engine needed)


def test_faults_are_named(local):
    fault, rng = local["synth"].fault, np.random.default_rng(1)

    def noise(duration_s, level=0.1):
        return Waveform((level * rng.standard_normal(round(duration_s * 22050))).astype(np.float32), 22050)

    text = "turn on the light"  # 14 letters
    assert fault(noise(1.0), text) == ""
    assert fault(noise(0.0), text) == "empty"
    assert fault(noise(1.0, 1e-5), text) == "silent"
    assert fault(noise(0.2), text) == "too short for its text"
    assert fault(noise(9.0), text) == "too long for its text"
    assert fault(noise(1.0, 1.0), text) == "clipped"
    broken = noise(1.0)
    broken.samples[5] = np.nan
    assert fault(broken, text) == "NaN or infinite samples"


def test_trim_leaves_equal_silence_at_both_ends(local):
    samples = np.zeros(16000, dtype=np.float32)
    samples[200:9000] = 0.5
    trimmed = local["synth"].trim(Waveform(samples, 16000)).samples
    sound = np.flatnonzero(trimmed)
    assert sound[0] == 800 and len(trimmed) - 1 - sound[-1] == 800  # 50 ms; the start had to be padded


# --- sound


@pytest.fixture(scope="module")
def engine(local):
    why_not = local["synth"].available()
    if why_not:
        pytest.skip(why_not)


@pytest.fixture(scope="module")
def tiny(local, engine, tmp_path_factory):
    """A tiny corpus and what its maker returned."""
    out = tmp_path_factory.mktemp("mini_talk") / "tiny"
    return out, local["data"].make_corpus(out, "tiny", seed=1)


def digests(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_same_seed_same_bytes_whatever_the_number_of_processes(tiny, tmp_path):
    out, _ = tiny
    command = [sys.executable, str(LOCAL / "data.py"), "--out", "again", "--size", "tiny", "--jobs", "2"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert digests(out) == digests(tmp_path / "again")


def test_manifests_items_and_wavs_fit_together(tiny, local):
    out, corpus = tiny
    assert corpus == json.loads((out / "corpus.json").read_text()) and corpus["dropped"] == {}
    for split in local["plan"].SPLITS:
        utterances = {u.id: u for u in read_manifest(out / f"{split}.jsonl")}
        items = [json.loads(line) for line in (out / f"{split}.items.jsonl").read_text().splitlines()]
        assert len(items) == sum(corpus["counts"][split]["items"].values())
        used = set()
        for item in items:
            assert item["split"] == split and (item["input"] is None) == (item["task"] == "tts")
            if item["input"] is not None:
                assert utterances[item["input"]].text == item["text_in"]
            assert utterances[item["output"]].text == item["text_out"]
            assert utterances[item["output"]].speaker == "out"
            used |= {item["input"], item["output"]} - {None}
        assert used == set(utterances)
        heard = {u.speaker for u in utterances.values()} - {"out"}
        wanted = local["synth"].UNSEEN if split == "test_unseen_voice" else local["synth"].TRAINED
        assert heard == {voice.name for voice in wanted}


def test_wavs_are_speech_of_the_stated_length(tiny):
    out, _ = tiny
    for u in read_manifest(out / "test.jsonl"):
        found = wav.read(wav_path(out / "test.jsonl", u), rate_hz=16_000)
        wav.check_speech(found, u.id)
        assert found.duration_s == pytest.approx(u.duration_s, abs=1e-3)
        assert np.abs(found.samples).max() < 0.999


def test_any_two_voices_differ(local, engine):
    """Long-term spectra of the same texts lie 2.5 dB or more apart (about 4 found), seen or unseen, input or output."""
    synth = local["synth"]
    texts = ["turn on the light in the kitchen", "seven three zero two", "the small black horse is fast"]
    spectrum = {}
    for voice in (*synth.TRAINED, *synth.UNSEEN, synth.OUT):
        samples = np.concatenate([spoken.waveform.samples for spoken in synth.speak(voice, texts)])
        frames = np.lib.stride_tricks.sliding_window_view(samples, 512)[::256]
        power = np.abs(np.fft.rfft(frames[frames.std(axis=1) > 0.01] * np.hanning(512))) ** 2
        bands = 10 * np.log10(power[:, 1:].reshape(len(power), 32, 8).mean(axis=2) + 1e-9).mean(axis=0)
        spectrum[voice.name] = bands - bands.mean()
    for one, other in itertools.combinations(spectrum, 2):
        distance_db = np.sqrt(np.square(spectrum[one] - spectrum[other]).mean())
        assert distance_db > 2.5, (one, other)


def test_silent_synthesis_is_dropped_counted_and_reported(local, engine, tmp_path, monkeypatch):
    synth, data = local["synth"], local["data"]
    victim = next(i for i in make_plan(local, "tiny") if i.split == "train" and i.task == "asr")
    monkeypatch.setattr(synth, "Espeak", _silent_on({victim.text_in}))
    corpus = data.make_corpus(tmp_path / "out", "tiny", seed=1)
    assert corpus["dropped"] == {"silent": 2}  # in the input voice and in the output voice
    assert corpus["counts"]["train"]["dropped_items"] == 2  # asr and tts
    assert victim.text_in not in {u.text for u in read_manifest(tmp_path / "out" / "train.jsonl")}


def test_too_much_silence_stops_and_leaves_nothing(local, engine, tmp_path, monkeypatch):
    monkeypatch.setattr(local["synth"], "Espeak", _silent_on(None))
    with pytest.raises(DataError, match="utterances are unusable .*'silent'.* more than 1%"):
        local["data"].make_corpus(tmp_path / "out", "tiny", seed=1)
    assert list(tmp_path.iterdir()) == []


def _silent_on(texts):
    """A stand-in engine: noise of a fitting length, silence on these texts (None: on all)."""

    class Stub:
        version = "stub"

        def use(self, voice):
            self.rng = np.random.default_rng(len(voice.name))

        def say(self, text):
            level = 0.0 if texts is None or text in texts else 0.1
            return Waveform((level * self.rng.standard_normal(800 * len(text))).astype(np.float32), 16_000)

    return Stub


def test_an_existing_folder_is_safe(tiny, local, tmp_path):
    out, _ = tiny
    with pytest.raises(DataError, match="exists and is not empty: choose another --out, or pass --overwrite"):
        local["data"].make_corpus(out, "tiny")
    (tmp_path / "letter.txt").write_text("dear reader")
    with pytest.raises(DataError, match="no corpus.json there, so --overwrite leaves it alone"):
        local["data"].make_corpus(tmp_path, "tiny", overwrite=True)
    assert local["data"].main(["--out", str(out), "--size", "tiny"]) == 2


def test_an_unknown_voice_is_named(local, engine):
    synth = local["synth"]
    for base in ("en-us+nobody", "xx-klingon"):
        with pytest.raises(Exception, match=f"voice 'v': espeak-ng .*{base.split('+')[-1]}.*choose another base"):
            synth.Espeak().use(synth.Voice("v", base, "male"))


def test_an_engine_forgets_what_was_said_before(local, engine):
    synth = local["synth"]
    texts = ["one two three", "turn on the light"]

    def say():
        return [spoken.waveform.samples for spoken in synth.speak(synth.TRAINED[0], texts)]

    before = say()
    list(synth.speak(synth.TRAINED[5], ["the sky is blue"]))
    assert all(np.array_equal(a, b) for a, b in zip(before, say(), strict=True))
