"""Audio continuation on mini_talk: the corpus of series, the script's commands, its recipes and its table."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ttt.config.load import load_config
from ttt.data.manifest import read_manifest, wav_path
from ttt.errors import DataError
from ttt.lab.table_file import read_table
from ttt.registry import name_of

ROOT = Path(__file__).resolve().parents[2]
LOCAL = ROOT / "egs" / "mini_talk" / "local"
SCRIPT = ROOT / "egs/mini_talk/audiolm/run.sh"
MODULES = ("corpus_files", "data", "grammar", "plan", "series", "synth")


@pytest.fixture(scope="module")
def local():
    """The recipe's modules, imported as its script imports them, and forgotten afterwards."""
    shadowed = {name: sys.modules.pop(name) for name in MODULES if name in sys.modules}
    sys.path.insert(0, str(LOCAL))
    try:
        yield {name: __import__(name) for name in MODULES}
    finally:
        sys.path.remove(str(LOCAL))
        for name in MODULES:
            sys.modules.pop(name, None)
        sys.modules.update(shadowed)


def determined(series, given: int) -> set[tuple[str, ...]]:
    """All ends that a beginning leaves open, by the definition of the kinds alone."""
    words = series.text.split()
    begin, numbers = words[:given], None
    if series.kind == "again":
        assert len(set(begin)) == 1
        return {(begin[0],) * (5 - given)}
    if series.kind == "twice":
        return {tuple(begin[i % 2] for i in range(given, 6))}
    if series.kind == "echo":
        return {tuple(begin[i % 3] for i in range(given, 6))}
    numbers = [
        "zero",
        "one",
        "two",
        "three",
        "four",
        "five",
        "six",
        "seven",
        "eight",
        "nine",
        "ten",
        "eleven",
        "twelve",
    ]
    at = [numbers.index(w) for w in begin]
    step = at[1] - at[0]
    assert abs(step) == 1 and all(b - a == step for a, b in zip(at, at[1:]))
    return {tuple(numbers[at[-1] + step * (i + 1)] for i in range(len(words) - given))}


@pytest.mark.parametrize("size", ["full", "tiny"])
def test_texts_keep_their_promises(local, size):
    plan = local["series"].plan(size, seed=1)
    said = {split: [s.text for s in some] for split, some in plan.items()}
    words = {w for text in said["train"] for w in text.split()}
    assert len(set(said["train"])) == len(said["train"])
    for split in ("dev", "test"):
        assert not set(said[split]) & set(said["train"])
        assert words.issuperset(w for text in said[split] for w in text.split())
    assert not set(said["dev"]) & set(said["test"])
    assert local["series"].plan(size, seed=1) == plan != local["series"].plan(size, seed=2)


def test_the_beginning_determines_the_end(local):
    for some in local["series"].plan("full", seed=3).values():
        for one in some:
            words = one.text.split()
            assert 0 < one.given < len(words) or one.kind == "talk"
            if one.kind != "talk":
                assert determined(one, one.given) == {tuple(words[one.given :])}


def test_voices(local):
    said = local["series"].spoken(local["series"].plan("full", 1), 1)
    trained, crowd = ({v.name: v for v in local["synth"].__dict__[key]} for key in ("TRAINED", "CROWD"))
    unseen = {v.name for v in local["synth"].UNSEEN}
    bases = [v.base for key in ("TRAINED", "CROWD", "UNSEEN") for v in local["synth"].__dict__[key]]
    assert len(set(bases)) == len(bases) and len({b.lower() for b in bases}) == len(bases)  # no voice is another's double
    assert {v.name for _, v in said["test_unseen_voice"]} == unseen
    assert {v.name for _, v in said["test"]} == set(trained)
    manners = {v.name for _, v in said["train"]}
    base = trained | crowd
    assert {name.partition("_")[0] for name in manners} == set(base) and len(manners) > 2 * len(base)
    few = local["series"].FEW
    free = [v.name.partition("_")[0] in trained for s, v in said["train"] if s.kind not in few]
    assert 0.4 < sum(free) / len(free) < 0.6
    assert all(abs(v.pitch - base[v.name.partition("_")[0]].pitch) <= 12 for _, v in said["train"])
    assert [s for s, _ in said["test"]] == [s for s, _ in said["test_unseen_voice"]]


def test_a_tiny_corpus_is_cut_at_words(local, tmp_path):
    problem = local["synth"].available()
    if problem:
        pytest.skip(problem)
    corpus = local["series"].make_corpus(tmp_path / "c", "tiny", 1)
    assert set(corpus["dropped"]) <= {"words not timed"}
    for split in local["series"].SPLITS:
        manifest = {u.id: u for u in read_manifest(tmp_path / "c" / f"{split}.jsonl")}
        items = [json.loads(x) for x in (tmp_path / "c" / f"{split}.items.jsonl").read_text().splitlines()]
        assert len(items) == corpus["counts"][split]["items"] > 0
        for item in items:
            u = manifest[item["output"]]
            assert wav_path(tmp_path / "c" / f"{split}.jsonl", u).is_file() and 0 < item["cut"] < 1
            assert item["kind"] == "talk" or f"{item['text_in']} {item['text_out']}" == u.text
            assert (item["kind"] == "talk") == (item["text_out"] == "")
            if item["kind"] in ("twice", "echo"):  # four of six words: about two thirds
                assert 0.45 < item["cut"] < 0.85
    again = local["series"].make_corpus(tmp_path / "d", "tiny", 1)
    assert again["digest"] == corpus["digest"]


def run(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", str(SCRIPT), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **(env or {})},
        timeout=120,
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stge", "3"], "unknown option --stge"), (["--recipe", "nothing", "--stage", "1"], "/conf/nothing.yaml; there are: ./"),
        (["--stage", "5", "--stop-stage", "5", "--name", "never-trained"], "never-trained/checkpoints: run stage 4 first"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_one_line(arguments, message):
    done = run(*arguments)
    assert done.returncode == 2 and message in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_the_script_passes_folders_and_settings(tmp_path):
    log, script = tmp_path / "calls.txt", tmp_path / "recorder"
    script.write_text(f'#!/bin/sh\necho "$@" >> {log}\n')
    script.chmod(0o755)
    world = tmp_path / "world"
    for name in ("corpus/corpus.json", "codec/codec.json", "data/train.jsonl"):
        (world / name).parent.mkdir(parents=True, exist_ok=True)
        (world / name).touch()
    env = {"TTT": str(script), "PYTHON": str(script), "WORLD": str(world)}
    done = run("--stage", "1", "--stop-stage", "4", "--recipe", "masked", "train.steps=7", env=env)
    assert done.returncode == 0, done.stderr
    calls = log.read_text().splitlines()
    assert [c.partition(" --")[0] for c in calls] == ["fit codec", "fit speaker", "fit judge", "tokenize", "examples", "train"]
    assert all(f"speaker.path={world}/speaker" in c and c.endswith("train.steps=7") for c in calls)
    assert "--config egs/mini_talk/audiolm/conf/masked.yaml" in calls[-1]


def test_more_texts_than_there_are_is_an_error(local, monkeypatch):
    """Words said again and again are as many as there are words."""
    series = local["series"]
    more = {**series.SIZES["tiny"], "train": {"again": len(series.WORDS) + 1}}
    monkeypatch.setitem(series.SIZES, "tiny", more)
    with pytest.raises(DataError, match="1 more texts of kind 'again' are asked of train"):
        series.plan("tiny", 1)


@pytest.mark.parametrize("recipe", ["stages", "masked"])
def test_recipes_are_whole(recipe):
    config = load_config([ROOT / f"egs/mini_talk/audiolm/conf/{recipe}.yaml"], ["run.dir=x", "data.dir=d"])
    assert config.codec.num_codebooks == 4 and config.eval.floor and config.eval.forced
    assert (
        config.objective.arch == config.eval.sampler.arch == name_of(config.model.arch) == "valle"
    )


def test_the_table_names_metrics_that_its_rows_have():
    table = read_table(ROOT / "egs/mini_talk/ablations/audiolm.yaml")
    config = load_config([ROOT / p for p in table.base], ["run.dir=x"])
    (task,) = config.tasks
    assert {key.rpartition("/")[2] for key in table.metrics} <= set(task.metrics)
    assert len(table.seeds) >= 3 and table.baseline in table.rows
