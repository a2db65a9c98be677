"""Files of a run, a corpus or a store that somebody edited; environments and plug-ins that do what they like."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from broken_files import WRONG_VALUES

C = ("--config", "recipe.yaml")

# Configuration of wrong types: every top-level key and every key of a section.
WRONG = [[1], 5, "x", True, {"a": 1}, [[1]], [None], [5], {"name": 5}, {"name": ["x"]}, -1, 0.5, "${x}", "\x1b[31m"]
KEYS = ["extends", "plugins", "run", "data", "model", "objective", "train", "eval", "tasks", "codec", "judge", "speaker"]


def config_verdict(run, content: str) -> str:
    """'' or what is wrong with how ``ttt config`` takes a file."""
    Path("edited.yaml").write_text(content)
    outcome = run("config", "--config", "edited.yaml")
    if outcome.code == 0 and not outcome.crashed:
        return ""
    lines = outcome.err.splitlines()
    return "" if outcome.code == 2 and len(lines) == 1 and "\x1b" not in outcome.err else f"{content!r}: {outcome.err[-300:]}"


@pytest.mark.parametrize("key", KEYS)
def test_configuration_of_wrong_types(key, world, run):
    wrong = [config_verdict(run, yaml.safe_dump({key: value})) for value in WRONG]
    assert not any(wrong), "\n".join(filter(None, wrong))


@pytest.mark.parametrize("section", ["run", "data", "train", "eval", "model"])
def test_every_key_of_a_section_with_values_of_wrong_types(section, world, run):
    from ttt.config.load import SECTIONS

    values = [[1], {"a": 1}, "x", None, float("nan")]
    wrong = []
    for number, key in enumerate(SECTIONS[section].__dataclass_fields__):
        for value in (values[number % 5], values[(number + 1) % 5]):
            wrong.append(config_verdict(run, yaml.safe_dump({section: {key: value}})))
    assert not any(wrong), "\n".join(filter(None, wrong))


@pytest.mark.parametrize("text", [
    "a: [", "a: {b", "\t- x", "? [a]: b", "a: &a [*a]", "2024-13-45", "- 1", "!!python/none x", "a: !x 1", "a: 1\na: 2", "null",
    "%YAML 9\n---\n", "a: \x00", "[" * 5000, "a: " + "9" * 5000, "0x" + "f" * 5000,
])  # fmt: skip
def test_no_yaml(text, world, run):
    assert not config_verdict(run, text)


@pytest.mark.parametrize("name, value", [
    ("WORLD_SIZE", "abc"), ("WORLD_SIZE", "0"), ("WORLD_SIZE", "-1"), ("WORLD_SIZE", "1.5"), ("WORLD_SIZE", "9" * 30),
    ("RANK", "x"), ("RANK", "3"), ("RANK", "²"),
])  # fmt: skip
def test_ranks_that_are_no_numbers(name, value, world, run, tree, monkeypatch):
    monkeypatch.setenv(name, value)
    before = tree()
    line = run("train", *C, "run.dir=new").complaint()
    assert f"environment: {name}={value}" in line.replace("'", "")
    assert tree() == before


@pytest.mark.parametrize("level", ["nonsense", "", "5", "debug"])
def test_a_log_level_that_is_none(level, run, monkeypatch):
    monkeypatch.setenv("TTT_LOG", level)
    assert run("list", "codec").code == 0


def test_chat_without_standard_input(world, run):
    assert "standard input is closed" in run("chat", "run", stdin=None).complaint()


@pytest.mark.parametrize("player", ["'", 'aplay "', "no-such-program", " ", "\\"])
def test_a_player_that_cannot_be_run(player, world, run):
    line = run("chat", "run", "--play", player).complaint()
    assert "--play:" in line and "name one that takes a wav file" in line


PLUGIN = '''
import sys
from dataclasses import dataclass

from ttt.masks.library import Causal
from ttt.registry.families import MASK


@MASK.register("{name}")
@dataclass(frozen=True)
class Rogue(Causal):
    """A mask that misbehaves."""

    def __post_init__(self):
        {action}
'''
ACTIONS = ["raise KeyError('x')", "raise ValueError('two\\nlines')", "1 / 0", "sys.exit(0)", "raise SystemExit",
           "raise Exception", "raise RuntimeError('\\x1b[2Jred')", "raise StopIteration",
           "raise OSError(2, 'No such file', 'f')", "assert False"]  # fmt: skip


@pytest.mark.parametrize("action", ACTIONS)
def test_a_plugin_whose_construction_fails(action, world, run, tmp_path):
    file = tmp_path / "rogue.py"
    name = f"rogue_{ACTIONS.index(action)}"
    file.write_text(PLUGIN.format(action=action, name=name))
    line = run("config", "--plugins", file, f"objective={{name: ttt, mask: {name}}}", *C).complaint()
    assert "objective.mask" in line and "\x1b" not in line


@pytest.mark.parametrize("action", ["sys.exit(0)", "sys.exit()", "sys.exit('bye')", "raise SystemExit(3)", "raise Exception('x')"])
@pytest.mark.parametrize("verb", [("list", "mask"), ("config", *C), ("train", *C), ("check", "mask", "causal"), ("chat", "run")])
def test_a_plugin_that_exits_when_imported(action, verb, world, run, tmp_path, tree):
    file = tmp_path / "leaves.py"
    file.write_text(f"import sys\n{action}\n")
    before = tree()
    line = run(*verb, "--plugins", file).complaint()
    assert "leaves.py" in line and tree() == before


def test_a_plugin_that_exits_in_the_middle_of_the_work(world, run, tmp_path):
    file = tmp_path / "later.py"
    text = PLUGIN.format(action="pass", name="rogue_later")
    text += "\n    def allow(self, layout):\n        sys.exit(0)\n"
    file.write_text(text)
    line = run("show", "--plugins", file, "objective={name: ttt, mask: rogue_later}", *C).complaint()
    assert "later.py" in line and "sys.exit(0)" in line


# --- what is printed

ESCAPE = "\x1b[31m\x1b]0;title\x07\x9b2J\r\u202e"
PRINTERS = [
    ("show", *C, "data.train=odd.jsonl"), ("data", "show", "odd.jsonl", "--tokenizer", "data/tokenizer"),
    ("data", "show", "odd.jsonl", "--tokenizer", "data/tokenizer", "--uid", "none"), ("data", "check", "odd.jsonl"),
    ("data", "stats", "odd.jsonl", "--tokenizer", "data/tokenizer"), ("stream", "run", "--examples", "odd.jsonl", "--warmup", "0"),
    ("inspect", "samplers", "run", "--examples", "odd.jsonl", "--samplers", "own", "--limit", "1", "--draws", "1",
     "--likelihood-draws", "0", "--side-by-side", "1", "--out", "new"),
    ("replay", "odd.trace.jsonl", "--list"), ("replay", "odd.trace.jsonl", "--speed", "0"),
    ("replay", "odd.trace.jsonl", "--speed", "0", "--uid", "none"), ("generate", *C, "eval.examples=[odd.jsonl]", "eval.out=new"),
    ("likelihood", *C, "eval.examples=[odd.jsonl]", "eval.out=new", "--draws", "1"),
]  # fmt: skip


@pytest.mark.parametrize("words", PRINTERS, ids=lambda words: " ".join(w for w in words[:2] if not w.startswith("-")))
def test_ids_are_no_commands_to_the_terminal(words, world, run):
    lines = [json.loads(line) for line in Path(world.examples).read_text().splitlines()]
    for number, line in enumerate(lines):
        line["uid"] = f"{ESCAPE}{number}"
    Path("odd.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines[:3]))
    trace = [json.loads(line) for line in Path(world.trace).read_text().splitlines()]
    for number, line in enumerate(trace[1:]):
        line["uid"] = f"{ESCAPE}{number}"
    Path("odd.trace.jsonl").write_text("".join(json.dumps(line) + "\n" for line in trace))
    outcome = run(*words)
    assert outcome.code in (0, 1, 2) and not outcome.crashed, outcome.err
    shown = outcome.out + outcome.err
    assert not set(shown) & set("\x1b\x07\x9b\r\u202e"), repr(shown)


def test_log_lines_are_no_commands_either():
    import logging

    from ttt.io.terminal import VisibleFormatter

    record = logging.LogRecord("ttt", logging.INFO, "f", 1, "uid %s", (ESCAPE,), None)
    assert not set(VisibleFormatter("%(message)s").format(record)) & set("\x1b\x07\x9b\r\u202e")


# --- fields of JSON files

FILES = {
    "run/data.json": ("train", *C, "train.steps=4"),
    "data/examples.done.json": ("examples", *C),
    "run/eval/score.done.json": ("score", *C),
    "run/eval/card.json": ("repro", "run/eval/card.json", "--dry-run"),
    "store/store.json": ("show", *C, "data.train=store"),
    "codes.json": ("vocode", *C, "--tokens", "codes.json", "--out", "new.wav"),
    "data/tokenizer/vocab.json": ("show", *C),
    "model/config.json": ("model", "show", "model"),
    "model/vocab.json": ("model", "show", "model"),
}
LINES = {
    "data/test.jsonl": ("data", "show", "data/test.jsonl", "--tokenizer", "data/tokenizer"),
    "corpus/test.items.jsonl": ("examples", "--overwrite", *C),
    "corpus/test.jsonl": ("tokenize", "--overwrite", *C),
    "data/codes/test.jsonl": ("examples", "--overwrite", *C),
    "run/eval/test.generations.jsonl": ("score", "--overwrite", *C),
    "run/eval/test.trace.jsonl": ("replay", "run/eval/test.trace.jsonl", "--speed", "0"),
}


STEPS = 2  # values tried at each field


def edited(path: Path, key: str, value: object, line: int | None) -> None:
    """Give one key of a file (of one of its lines) another value."""
    if line is None:
        path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
        return
    lines = path.read_text().splitlines()
    lines[line] = json.dumps({**json.loads(lines[line]), key: value})
    path.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("path", [*FILES, *LINES])
def test_any_field_with_a_value_of_another_type(path, world, run):
    file = Path(path)
    good = file.read_bytes()
    places = [None] if path in FILES else [0, 1]
    wrong, number = [], 0
    for line in places:
        record = json.loads(good if line is None else good.splitlines()[line])
        for key in record:
            for step in range(STEPS):  # a few of all values, others for every key
                name = list(WRONG_VALUES)[(number + 4 * step) % len(WRONG_VALUES)]
                edited(file, key, WRONG_VALUES[name], line)
                outcome = run(*(FILES.get(path) or LINES[path]))
                lines = outcome.err.splitlines()
                if outcome.crashed or outcome.code == 2 and len(lines) != 1:
                    wrong.append(f"{path}: {key} = {name}: {lines[-1] if lines else ''}")
                file.write_bytes(good)
            number += 1
    assert not wrong, f"{len(wrong)}\n" + "\n".join(wrong)


@pytest.mark.parametrize("name", WRONG_VALUES)
def test_the_log_holds_numbers(name, tmp_path):
    from ttt.errors import DataError
    from ttt.io.metrics_log import read_metrics

    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps({"step": 1, "train/loss": WRONG_VALUES[name]}) + "\n" + '{"step": 2}\n')
    if name in ("null", "number", "minus", "fraction", "beyond 64 bits", "object", "block"):  # objects: as older logs
        assert read_metrics(path)[1] == {"step": 2}
        return
    with pytest.raises(DataError, match="metrics.jsonl:1: "):
        read_metrics(path)


def test_a_damaged_log_is_not_cut(tmp_path):
    """Lines that cannot be read are no reason to throw them away."""
    from ttt.errors import DataError
    from ttt.io.metrics_log import cut_back

    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, \n{"step": 3}\n')
    with pytest.raises(DataError, match="metrics.jsonl:2: not JSON"):
        cut_back(path, 3)
    assert path.read_text().count("\n") == 3


def test_records_without_id_are_not_encoded(world, run):
    assert "chats.jsonl:1: no text 'uid'" in run("data", "encode", world.chats, "new.jsonl", *C).complaint()
