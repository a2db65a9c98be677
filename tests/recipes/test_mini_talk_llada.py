"""LLaDA on mini_talk: the script's commands and refusals, its recipes, and the tables that rest on them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from ttt.config.load import load_config
from ttt.lab.table_file import read_table

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "egs/mini_talk/llada/run.sh"
CONF = ROOT / "egs/mini_talk/llada/conf"
FOLDERS = ["run.dir=x", "data.corpus=c", "data.dir=d", "codec.path=k", "judge.path=j"]
TABLES = ("llada_tts", "llada_mixed", "llada_samplers")


def run(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", str(SCRIPT), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **(env or {})},
        timeout=120,
    )


@pytest.fixture
def recorder(tmp_path):
    log = tmp_path / "calls.txt"
    script = tmp_path / "recorder"
    script.write_text(f'#!/bin/sh\necho "$@" >> {log}\n')
    script.chmod(0o755)
    return {"TTT": str(script)}, log


def test_shell_parses_and_help_is_the_header():
    assert subprocess.run(["bash", "-n", str(SCRIPT)]).returncode == 0
    done = run("--help")
    assert done.returncode == 0 and "Stages: 0 environment" in done.stdout


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


@pytest.mark.parametrize(
    ("recipe", "tests"), [("text", "text_qa.test.jsonl"), ("tts", "tts.test.jsonl"), ("mixed", "/test.jsonl")]
)
def test_decoding_and_scores_of_a_recipe(recorder, recipe, tests):
    env, log = recorder
    name = f"test-{os.getpid()}"
    folder = ROOT / "egs/mini_talk/llada/exp" / name
    world = ROOT / "egs/mini_talk/llada/exp/world/judge/judge.json"
    made = not world.exists()
    try:
        (folder / "checkpoints").mkdir(parents=True)
        (folder / "eval").mkdir()
        stem = Path(tests).name.removesuffix(".jsonl")
        (folder / "eval" / f"{stem}.generations.jsonl").touch()
        if made:
            world.parent.mkdir(parents=True, exist_ok=True)
            world.touch()
        done = run("--stage", "5", "--recipe", recipe, "--name", name, "eval.batch_size=7", env=env)
    finally:
        shutil.rmtree(folder)
        if made:
            world.unlink()
    assert done.returncode == 0, done.stderr
    calls = log.read_text().splitlines()
    assert [c.split()[0] for c in calls] == ["generate", "floor", "score", "report"]
    for call in calls:
        assert f"--config egs/mini_talk/llada/conf/{recipe}.yaml" in call and "eval.batch_size=7" in call
        assert tests in call.split("eval.examples=")[1].split("]")[0]


def test_examples_are_split_by_task(recorder):
    """Stage 3 gives each recipe the examples of its own tasks."""
    from ttt.data.read.examples import write_examples
    from ttt.types import Example, Span, Turn

    env, _ = recorder
    world = ROOT / "egs/mini_talk/llada/exp/world"
    if (world / "data").exists():
        pytest.skip("the real world is there")
    try:
        (world / "codec").mkdir(parents=True)
        (world / "codec/codec.json").touch()
        for split in ("train", "dev", "test"):
            turns = (Turn("user", (Span("text", '", "task": "tts"'),)), Turn("assistant", (Span("text", "b"),)))
            tasks = [(f"{split}-{i}", task) for i, task in enumerate(("tts", "text_qa", "text_qa"))]
            write_examples(world / "data" / f"{split}.jsonl", [Example(uid, turns, task) for uid, task in tasks])
        done = run("--stage", "3", "--stop-stage", "3", env=env)
        assert done.returncode == 0, done.stderr
        found = {
            task: [json.loads(x)["uid"] for x in (world / "data" / f"{task}.dev.jsonl").read_text().splitlines()]
            for task in ("tts", "text_qa")
        }
    finally:
        shutil.rmtree(world)
    assert found == {"tts": ["dev-0"], "text_qa": ["dev-1", "dev-2"]}


@pytest.mark.parametrize("recipe", sorted(p.stem for p in CONF.glob("*.yaml") if p.stem != "base"))
def test_recipes_train_what_they_decode(recipe):
    config = load_config([CONF / f"{recipe}.yaml"], FOLDERS)
    assert config.codec.num_codebooks == 3 and config.codec.frame_rate_hz == 6.25
    (padding,) = config.objective.strategies
    assert config.eval.sampler.gen_length == config.eval.sampler.block_length == padding.length  # the canvas that was learned
    assert padding.length % config.codec.num_codebooks == 0
    assert config.eval.sampler.canvas in (config.objective.canvas, *getattr(config.objective, "canvases", ()))
    assert not config.data.pack


@pytest.mark.parametrize("table", TABLES)
def test_tables_are_read_and_every_row_is_a_recipe(table):
    spec = read_table(ROOT / f"egs/mini_talk/ablations/{table}.yaml")
    assert len(spec.seeds) >= 3 and spec.baseline in spec.rows
    for row in spec.rows.values():
        files = [ROOT / p for p in (*spec.base, *row.files)]
        config = load_config(files, [*spec.settings, *row.settings, "run.dir=x"])
        assert {key.partition("/")[0] for key in spec.metrics} <= {task.label for task in config.tasks}
