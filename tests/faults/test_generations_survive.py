"""What 'ttt generate' has decoded survives a kill and a full disk; 'ttt score' says when it is not complete."""

import errno
import json
import os
from pathlib import Path

import pytest

from ttt.eval.partial import PartialAnswers, partial_path

COMMON = ("--config", "recipe.yaml", "eval.out=out", "eval.limit=2")
TARGET = Path("out/test.generations.jsonl")
PARTIAL = partial_path(TARGET)
TIMES = ("seconds", "first_block_s")


class Killed(BaseException):
    """What a signal does to a call, as far as its files are concerned."""


def records(path=TARGET):
    return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in path.read_text().splitlines()]


def dies_after(monkeypatch, answers):
    """The next call ends when it has written ``answers``; -> the uids of all answers that are decoded from now on."""
    uids: list[str] = []
    add = PartialAnswers.add

    def counted(self, record, trace=None):
        if len(uids) == answers:
            raise Killed
        add(self, record, trace)
        uids.append(record["uid"])

    monkeypatch.setattr(PartialAnswers, "add", counted)
    return uids


@pytest.fixture
def whole(world, run):
    """Records and trace of a call that nobody interrupted."""
    assert run("generate", "--trace", *COMMON).code == 0
    made = records(), Path("out/test.trace.jsonl").read_text()
    for path in Path("out").iterdir():
        path.unlink()
    return made


def interrupted(run, monkeypatch, answers=2, words=("--trace",)):
    with monkeypatch.context() as patch:
        uids = dies_after(patch, answers)
        assert "Killed" in run("generate", *words, *COMMON).err
    assert len(uids) == answers and not TARGET.exists()
    return uids


def test_a_second_call_goes_on_where_the_first_was_killed(whole, run, monkeypatch):
    before = interrupted(run, monkeypatch)
    line = run("score", *COMMON).complaint()
    assert str(PARTIAL) in line and "not complete, only 2 answers are decoded; run the same 'ttt generate' again" in line
    with monkeypatch.context() as patch:
        after = dies_after(patch, 99)
        assert run("generate", "--trace", *COMMON).code == 0
    assert records() == whole[0] and sorted(before + after) == sorted(r["uid"] for r in whole[0])
    assert Path("out/test.trace.jsonl").read_text() == whole[1]
    assert not PARTIAL.exists() and run("score", *COMMON).code == 0


@pytest.mark.parametrize("damage", [
    lambda text: text[:-9], lambda text: text + "{", lambda text: text + '{"record": 5}\n', lambda text: "",
    lambda text: "x\n" + text, lambda text: text.replace('"text"', '"txt"'), lambda text: text + "\x00" * 50,
])  # fmt: skip
def test_damaged_lines_are_decoded_again(whole, run, monkeypatch, damage):
    interrupted(run, monkeypatch)
    PARTIAL.write_text(damage(PARTIAL.read_text()))
    assert run("generate", "--trace", *COMMON).code == 0 and records() == whole[0]


def test_a_full_disk_keeps_what_was_decoded(whole, run, monkeypatch):
    write, lines = os.pwrite, []

    def full(handle, data, at):
        if len(lines) == 3:
            write(handle, data[:5], at)
            raise OSError(errno.ENOSPC, "No space left on device")
        lines.append(data)
        return write(handle, data, at)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        line = run("generate", "--trace", *COMMON).complaint()
    assert str(PARTIAL) in line and "the 2 answers before are kept" in line
    assert run("generate", "--trace", *COMMON).code == 0 and records() == whole[0]


def test_a_full_disk_at_the_very_end(whole, run, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device", str(TARGET))

    with monkeypatch.context() as patch:
        patch.setattr("ttt.answering.write_json_lines", full)
        run("generate", "--trace", *COMMON).complaint()
    with monkeypatch.context() as patch:
        assert not dies_after(patch, 0) and run("generate", "--trace", *COMMON).code == 0, "nothing is decoded again"
    assert records() == whole[0]


def test_answers_of_other_settings_are_not_mixed(whole, run, monkeypatch):
    interrupted(run, monkeypatch)
    line = run("generate", "--trace", *COMMON, "run.seed=7").complaint()
    assert "these answers were made with other settings (settings.seed)" in line and "--overwrite" in line
    assert run("generate", "--trace", "--overwrite", *COMMON, "run.seed=7").code == 0 and not PARTIAL.exists()


def test_answers_without_a_trace_are_decoded_again_for_one(whole, run, monkeypatch):
    interrupted(run, monkeypatch, words=())
    with monkeypatch.context() as patch:
        uids = dies_after(patch, 99)
        assert run("generate", "--trace", *COMMON).code == 0
    assert len(uids) == len(whole[0]) and records() == whole[0]


def test_older_generations_are_not_scored_as_the_new_ones(whole, run, monkeypatch):
    assert run("generate", *COMMON).code == 0
    with monkeypatch.context() as patch:
        dies_after(patch, 1)
        run("generate", "--overwrite", *COMMON)
    assert "or delete this file to score the older answers" in run("score", *COMMON).complaint()
    assert run("generate", *COMMON).code == 0 and not PARTIAL.exists(), "the marker of the older ones does not count"
    assert run("score", *COMMON).code == 0


def test_a_refused_call_leaves_nothing(world, run):
    Path("model/config.json").write_text("{")
    run("generate", *COMMON, "eval.checkpoint=model").complaint()
    assert not PARTIAL.exists()


def test_two_calls_at_once(world, run):
    with PartialAnswers(TARGET, {}):
        assert "another 'ttt generate' is writing these answers" in run("generate", *COMMON).complaint()
    assert not PARTIAL.exists() and run("generate", *COMMON).code == 0


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_files_without_anything(world, run, content):
    Path("data/test.jsonl").write_text(content)
    for verb in ("generate", "score"):
        line = run(verb, *COMMON[:2], "eval.out=run/eval", *(["--overwrite"] if verb == "score" else ["eval.out=new"])).complaint()
        assert "data/test.jsonl: no examples" in line
    assert not Path("new/test.generations.done.json").exists()


def test_generations_without_anything(world, run):
    Path(world.generations).write_text("")
    line = run("score", "--config", "recipe.yaml", "--overwrite").complaint()
    assert f"{world.generations}: no generations in it" in line


def test_answers_with_nothing_in_them_are_said(world, run):
    path = Path(world.generations)
    lines = [{**json.loads(line), "text": " ", "codes": []} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    outcome = run("score", "--config", "recipe.yaml", "--overwrite")
    assert outcome.code == 0 and "not one of the 1 answers holds text or speech" in outcome.log
