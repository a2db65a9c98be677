"""'ttt tokenize': parts, several processes, array jobs, going on after a kill, recordings that cannot be encoded."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal

import numpy as np
import pytest
import soundfile

from ttt.audio.codecs.toy import Toy
from ttt.audio.wav import write
from ttt.cli.main import main
from ttt.data.manifest import Utterance, read_manifest, scan_manifest, write_manifest
from ttt.errors import ConfigError, DataError
from ttt.tasks import encode_corpus
from ttt.tasks.encode_corpus import cut_into_parts, encode_manifest
from ttt.types import Waveform

UTTERANCES = 11


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    """Eleven short recordings, cut into parts of three."""
    monkeypatch.setattr(encode_corpus, "PART_ITEMS", 3)
    codec, rng = Toy(num_codes=8), np.random.default_rng(0)
    items = []
    for i in range(UTTERANCES):
        samples = codec.tone(rng.integers(0, 8, size=5 + i))
        write(tmp_path / "corpus" / "wav" / f"{i}.wav", Waveform(samples, 16_000))
        items.append(Utterance(f"é{i}", f"wav/{i}.wav", "", len(samples) / 16_000, "her", "train"))
    write_manifest(tmp_path / "corpus" / "train.jsonl", items)
    return tmp_path


def arguments(root, *more):
    return [
        "tokenize", "codec.name=toy", "codec.num_codes=8", f"data.corpus={root / 'corpus'}", f"data.dir={root / 'data'}",
        "data.splits=[train]", *more,
    ]  # fmt: skip


def made(root):
    return (root / "data" / "codes" / "train.jsonl").read_bytes()


def test_parts_cover_the_manifest_once(corpus, monkeypatch):
    manifest = corpus / "corpus" / "train.jsonl"
    parts = cut_into_parts(manifest)
    assert [p.items for p in parts] == [3, 3, 3, 2]
    read = [u for p in parts for _, u in encode_corpus.read_lines_between(manifest, p.line, p.start, p.stop)]
    assert read == read_manifest(manifest)
    assert parts[-1].stop == manifest.stat().st_size
    monkeypatch.setattr(encode_corpus, "PART_S", 0.25)  # codes last 20 ms; parts are bounded in seconds too
    assert max(p.duration_s for p in cut_into_parts(manifest)) <= 0.3 and len(cut_into_parts(manifest)) > 4


def test_an_id_that_comes_twice_is_refused_with_its_lines(corpus):
    manifest = corpus / "corpus" / "train.jsonl"
    lines = manifest.read_text().splitlines()
    manifest.write_text("\n".join([*lines, lines[4]]) + "\n")
    with pytest.raises(DataError, match=r"train.jsonl:12: id 'é4' is used twice, first on line 5"):
        list(scan_manifest(manifest))


def test_two_processes_write_the_same_bytes(corpus, tmp_path):
    manifest = corpus / "corpus" / "train.jsonl"
    codec = Toy(num_codes=8)
    encode_manifest(manifest, codec, tmp_path / "one.jsonl")
    result = encode_manifest(manifest, codec, tmp_path / "two.jsonl", jobs=2)
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "two.jsonl").read_bytes()
    assert result["utterances"] == UTTERANCES
    head, *rows = map(json.loads, (tmp_path / "one.jsonl").read_text().splitlines())
    assert head["codec"] == codec.codec_id and [r["id"] for r in rows] == [f"é{i}" for i in range(UTTERANCES)]


def test_array_jobs_make_the_parts_and_a_last_call_joins_them(corpus, tmp_path, caplog):
    caplog.set_level("INFO")
    assert main(arguments(corpus)) == 0
    whole = made(corpus)
    other = ["data.dir=" + str(tmp_path / "other")]
    for shard in ("1/2", "2/2"):
        assert main(arguments(corpus, *other, "--shard", shard)) == 0
        assert not (tmp_path / "other" / "codes" / "train.jsonl").exists()
    assert "4 of 4 parts are there; run the same command without --shard" in caplog.text
    assert main(arguments(corpus, *other)) == 0
    assert (tmp_path / "other" / "codes" / "train.jsonl").read_bytes() == whole
    assert sorted(p.name for p in (tmp_path / "other" / "codes").iterdir()) == ["train.done.json", "train.jsonl"]


@pytest.mark.parametrize("shard", ["0/2", "3/2", "2", "a/b", "1/0"])
def test_a_shard_that_cannot_be_is_refused(corpus, shard, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments(corpus, "--shard", shard))
    assert ended.value.code == 2 and "expected I/N with 1 <= I <= N" in capsys.readouterr().err


def _encode_until_killed(manifest, out):
    encode_part, done = encode_corpus.encode_part, 0

    def killed_in_the_third(work, part):
        nonlocal done
        done += 1
        if done == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return encode_part(work, part)

    encode_corpus.encode_part = killed_in_the_third
    encode_manifest(manifest, Toy(num_codes=8), out)


@pytest.mark.parametrize("while_encoding", [True, False])
def test_of_two_calls_at_once_the_slower_one_says_so_and_leaves_nothing(corpus, monkeypatch, while_encoding):
    slow = encode_corpus.encode_part if while_encoding else encode_corpus._join
    undisturbed = encode_corpus.encode_part, encode_corpus._join

    def overtaken(*of_slow):
        monkeypatch.setattr(encode_corpus, "encode_part", undisturbed[0])
        monkeypatch.setattr(encode_corpus, "_join", undisturbed[1])
        assert main(arguments(corpus)) == 0  # the other call; it removes the parts
        return slow(*of_slow)

    monkeypatch.setattr(encode_corpus, slow.__name__, overtaken)
    manifest, out = corpus / "corpus" / "train.jsonl", corpus / "data" / "codes" / "train.jsonl"
    with pytest.raises(DataError, match="parts are gone: another call has finished the same work.*run the same command"):
        encode_manifest(manifest, Toy(num_codes=8), out)
    assert sorted(p.name for p in out.parent.iterdir()) == ["train.done.json", "train.jsonl"]


def test_a_killed_call_goes_on_where_it_was(corpus, tmp_path, caplog):
    manifest = corpus / "corpus" / "train.jsonl"
    encode_manifest(manifest, Toy(num_codes=8), tmp_path / "whole.jsonl")
    out = tmp_path / "killed" / "train.jsonl"
    child = multiprocessing.get_context("fork").Process(target=_encode_until_killed, args=(manifest, out))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL and not out.exists()
    caplog.clear()
    caplog.set_level("INFO")
    result = encode_manifest(manifest, Toy(num_codes=8), out)
    assert "2 of 4 parts are there already" in caplog.text
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert 0 < result["encoded_s"] < 0.8 * sum(u.duration_s for u in read_manifest(manifest))


def test_parts_of_another_codec_are_not_taken(corpus, tmp_path):
    manifest, out = corpus / "corpus" / "train.jsonl", tmp_path / "codes.jsonl"
    encode_manifest(manifest, Toy(num_codes=8), out, shard=(0, 2))
    encode_manifest(manifest, Toy(num_codes=16), out)
    assert json.loads(out.read_text().splitlines()[0])["codec"] == Toy(num_codes=16).codec_id
    encode_corpus.remove_parts(out)
    assert not list(tmp_path.glob("*.parts-*"))


def test_a_foreign_folder_of_that_name_is_not_touched(corpus, tmp_path):
    manifest, out = corpus / "corpus" / "train.jsonl", tmp_path / "codes.jsonl"
    encode_manifest(manifest, Toy(num_codes=8), out, shard=(0, 2))
    (folder,) = tmp_path.glob("*.parts-*")
    (folder / "plan.json").unlink()
    with pytest.raises(ConfigError, match="was not made by ttt"):
        encode_manifest(manifest, Toy(num_codes=8), out)
    encode_corpus.remove_parts(out)
    assert folder.is_dir()


@pytest.mark.parametrize(
    "spoil, reason",
    [
        (lambda path: path.write_bytes(b"RIFF no sound"), "train.jsonl:6: id 'é5'"),
        (lambda path: soundfile.write(path, np.zeros(0), 16_000), "train.jsonl:6: id 'é5': .*no samples"),
    ],
)
def test_a_bad_recording_is_named_or_left_out_and_listed(corpus, spoil, reason, capsys, caplog):
    spoil(corpus / "corpus" / "wav" / "5.wav")
    assert main(arguments(corpus)) == 2
    error = capsys.readouterr().err
    assert re.search(reason, error) and "--skip-bad" in error
    assert main(arguments(corpus, "--skip-bad")) == 0
    rows = [json.loads(line) for line in made(corpus).splitlines()[1:]]
    assert [r["id"] for r in rows] == [f"é{i}" for i in range(UTTERANCES) if i != 5]
    assert encode_corpus.read_skipped(corpus / "data" / "codes" / "train.jsonl") == {"é5"}
    assert "1 left out" in caplog.text


def test_all_manifests_are_checked_before_the_first_is_encoded(corpus, capsys):
    (corpus / "corpus" / "dev.jsonl").write_text("{}\n")
    assert main(arguments(corpus, "data.splits=[train,dev]")) == 2
    assert "dev.jsonl:1" in capsys.readouterr().err and not (corpus / "data" / "codes" / "train.jsonl").exists()
