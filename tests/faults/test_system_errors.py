"""What the operating system refuses is one line, before the work; what was decoded survives a full disk."""

from __future__ import annotations

import builtins
import errno
import io
import os
from pathlib import Path

import pytest
from broken_files import is_root

C = ("--config", "recipe.yaml")


# Calls that write, with OUT where the output goes; "file": OUT is a file, "folder": OUT is a folder.
WRITERS = {
    "tokenize": ("folder", ["tokenize", *C, "data.dir=OUT"]),
    "tokenizer": ("folder", ["tokenizer", *C, "data.tokenizer=OUT", "model.path=model", "data.num_codes=32"]),
    "train": ("folder", ["train", *C, "run.dir=OUT"]),
    "generate": ("folder", ["generate", *C, "eval.out=OUT"]),
    "floor": ("folder", ["floor", *C, "eval.out=OUT"]),
    "likelihood": ("folder", ["likelihood", *C, "eval.out=OUT", "--draws", "1"]),
    "vocode": ("file", ["vocode", *C, "--tokens", "codes.json", "--out", "OUT.wav"]),
    "pack": ("folder", ["data", "pack", "data/test.jsonl", "--tokenizer", "data/tokenizer", "--out", "OUT"]),
    "split": ("file", ["data", "split", "data/test.jsonl", "--train", "OUT.jsonl", "--eval", "b.jsonl"]),
    "convert": ("file", ["data", "convert", "--from", "official", "chats.jsonl", "OUT.jsonl"]),
    "stream": ("folder", ["stream", "run", "--text", "hello", "--warmup", "0", "--out", "OUT"]),
    "chat": ("folder", ["chat", "run", "--out", "OUT"]),
    "samplers": ("folder", ["inspect", "samplers", "run", "--examples", "data/test.jsonl", "--samplers", "own", "--out", "OUT"]),
    "attention": ("folder", ["inspect", "attention", "run", "--examples", "data/test.jsonl", "--out", "OUT"]),
    "bands": ("file", ["doctor", "run", "--no-probes", "--write-bands", "OUT.yaml"]),
    "export": ("folder", ["model", "export", "model", "OUT"]),
    "merge": ("folder", ["model", "merge", "model", "OUT"]),
    "init": ("folder", ["model", "init", "recipe.yaml", "OUT"]),
    "show": ("file", ["show", *C, "--png", "OUT.png"]),
    "replay": ("file", ["replay", "run/eval/test.trace.jsonl", "--speed", "0", "--png", "OUT.png"]),
    "plugin": ("file", ["new", "plugin", "mask", "mine", "OUT.py"]),
    "recipe": ("folder", ["new", "recipe", "mine", "OUT"]),
    "mmlu": ("folder", ["eval", "mmlu-redux", "questions", "--model", "run", "--out", "OUT"]),
    "ablate": ("folder", ["ablate", "table.yaml", "--out", "OUT"]),
    "repro": ("folder", ["repro", "run/eval/card.json", "--out", "OUT"]),
}  # fmt: skip

PLACES = {
    "a file where a folder is needed": "blocked/inside",
    "a link loop above": "loop/inside",
    "a link loop in its place": "loop",
    "a name too long": "n" * 300,
    "a path too long": "/".join(["d" * 200] * 30),
    "below a device": "/dev/null/inside",
    "a folder that takes no files": "/proc/self/inside",
}


@pytest.fixture
def no_work(monkeypatch):
    """No network is run: whoever gets as far as that has looked for the place of the result too late."""
    import ttt.model.lm
    import ttt.sampling.decoder.decoder
    import ttt.train.trainer

    def late(*arguments, **named):
        raise AssertionError("work began before the output was looked at")

    monkeypatch.setattr(ttt.train.trainer.Trainer, "_loop", late, raising=False)
    monkeypatch.setattr(ttt.sampling.decoder.decoder.Decoder, "generate", late)
    monkeypatch.setattr(ttt.sampling.decoder.decoder.Decoder, "events", late)


@pytest.mark.parametrize("verb", WRITERS)
def test_a_place_that_cannot_be_written_is_refused_before_the_work(verb, world, run, tree, no_work):
    Path("blocked").write_text("somebody's")
    for end in ("", ".wav", ".jsonl", ".yaml", ".png", ".py"):
        Path(f"loop{end}").symlink_to(f"loop{end}")
    before = tree()
    wrong = []
    for what, place in PLACES.items():
        words = [word.replace("OUT", place) for word in WRITERS[verb][1]]
        outcome = run(*words, stdin="hello\n")
        lines = outcome.err.splitlines()
        if outcome.code != 2 or len(lines) != 1 or tree() != before:
            wrong.append(f"{what}: exit code {outcome.code}: {outcome.err[-400:]}")
    assert not wrong, "\n".join(wrong)


def test_a_read_only_folder(world, run, tree, monkeypatch):
    """Root may write anywhere, so the system's answer is made."""
    real = io.open

    def refuse(path, mode="r", *arguments, **named):
        if isinstance(path, str | os.PathLike) and os.fspath(path).startswith("new/") and set(mode) & set("wax"):
            raise PermissionError(errno.EACCES, "Permission denied", os.fspath(path))
        return real(path, mode, *arguments, **named)

    Path("new").mkdir()
    before = tree()
    for module in (builtins, io):
        monkeypatch.setattr(module, "open", refuse)
    for words in (("floor", *C, "eval.out=new"), ("generate", *C, "eval.out=new")):
        line = run(*words).complaint()
        assert line.startswith(f"ttt {' '.join(w for w in words[:2] if w[0].isalpha())}".rstrip()) and "new" in line, line
        assert "no permission; choose another place" in line
    assert tree() == before


@pytest.mark.skipif(is_root(), reason="root reads everything")
def test_a_file_that_may_not_be_read(world, run):
    Path(world.examples).chmod(0)
    assert world.examples in run("generate", "--overwrite", *C).complaint()


class Full(io.StringIO):
    """Standard output on /dev/full."""

    def flush(self) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    "words", [("list",), ("config", *C), ("replay", "run/eval/test.trace.jsonl", "--list"), ("model", "show", "model")]
)
def test_standard_output_is_full(words, world, monkeypatch, capsys):
    from ttt.cli.main import main

    monkeypatch.setattr("sys.stdout", Full())
    assert main(words) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "standard output: no room left on the disk" in err


def test_the_real_full_device(world):
    import subprocess
    import sys

    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "ttt.cli.main", "list"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2 and done.stderr == (
        "ttt list: standard output: no room left on the disk; free some, or write to another place\n"
    )
