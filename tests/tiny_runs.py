"""Tiny untrained runs on disk, one per objective, and chats with lines from a pipe."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import yaml

from tests.conftest import audio, chat, text, tiny_model
from ttt.cli.main import main
from ttt.data.read.examples import write_examples

SPAN = {"name": "blockwise", "block_length": 4, "gen_length": 16, "diffusion_steps": 8}
SYSTEMS = {
    "ttt": ({"name": "ttt"}, SPAN),
    "dual_stream": (
        {"name": "dual_stream", "mask": {"name": "dual_stream", "clean": {"name": "block_causal", "block_length": 4}}}, SPAN,
    ),
    "ar": ({"name": "ar"}, {"name": "ar"}),
    "nar": ({"name": "nar"}, {**SPAN, "canvas": "answer"}),
}  # fmt: skip


def make_run(folder: Path, system: str, **sections) -> Path:
    """A run folder with ``config.yaml``, random weights and three examples (``examples.jsonl``)."""
    objective, sampler = SYSTEMS[system]
    config = {
        "run": {"dir": str(folder)}, "objective": objective, "codec": "toy",
        "tasks": [{"name": "asr"}, {"name": "tts"}, {"name": "qa"}],
        "eval": {"sampler": sampler, "max_tokens": 14, "batch_size": 4, "bootstrap": 50},
    }  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({**config, **sections}))
    v = tiny_model().tokenizer.vocab
    tiny_model(bias={v.soa_id: 5.0}).save(folder / "model")
    write_examples(folder / "examples.jsonl", [
        chat_of("a", "tts", [text("a cat")], [audio([1, 2, 3], "last")]),
        chat_of("b", "asr", [audio([4, 5, 6], "user")], [text("a mat"), audio([7] * 6, "last")]),
        chat_of("c", "qa", [audio([9], "user")], [text("one"), audio([1], "span"), text("two"), audio([2, 3], "last")]),
    ])  # fmt: skip
    return folder


def chat_of(uid: str, task: str, user, answer):
    import dataclasses

    return dataclasses.replace(chat(uid, user, answer, "read this"), task=task)


def talk(monkeypatch, capsys, run: Path, lines: Sequence[str], *options: str) -> tuple[int, str]:
    """(exit code, output) of ``ttt chat`` with lines from a pipe."""
    source = io.TextIOWrapper(io.BytesIO("".join(line + "\n" for line in lines).encode()))
    monkeypatch.setattr("sys.stdin", source)
    capsys.readouterr()
    code = main(["chat", str(run), *options])
    captured = capsys.readouterr()
    return code, captured.out + captured.err
