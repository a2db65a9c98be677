"""recipes/slamomni and egs/mini_talk/slamomni: dry runs, refusals, the published values, tables whose rows are recipes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.warm_python import programs
from ttt.config.load import load_config
from ttt.lab.table_file import read_table

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/unit/model"))
CLEAN = {
    k: v
    for k, v in os.environ.items()
    if not k.startswith(("SLURM_", "MASTER_", "NNODES", "NODE_RANK", "TTT", "WORLD"))
}
CONF = ROOT / "recipes/slamomni/conf"
MINI = ROOT / "egs/mini_talk/slamomni"


def run(script: str, *arguments: object, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", str(ROOT / script), *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**CLEAN, **programs(), **env},
        timeout=120,
    )


@pytest.fixture
def recorder(tmp_path) -> tuple[str, Path]:
    """A program that writes down what it is called with."""
    log, path = tmp_path / "calls.log", tmp_path / "recorder"
    path.write_text(f'#!/bin/sh\necho "$@" >> {log}\n')
    path.chmod(0o755)
    return str(path), log


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> list[str]:
    from local_backbones import make_backbone

    folder = tmp_path_factory.mktemp("given")
    make_backbone(folder / "model", "qwen3")
    (folder / "train-00000-of-00002.parquet").touch()
    return ["--model", str(folder / "model"), "--data", str(folder / "train-*.parquet"), "--exp", str(folder / "exp")]


def test_a_dry_run_names_every_command_and_writes_nothing(given):
    done = run(
        "recipes/slamomni/run.sh", *given, "--conf", "v1.1_frozen", "--gpus", 8, "--guard", "mmlu quiz.yaml", "--limit", 500,
        "--dry-run", "train.lr=2e-5",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    listed = done.stdout.partition("commands:")[2].splitlines()
    commands = [line.strip() for line in listed if line.strip() and not line.strip().startswith("#")]
    named = [" ".join(c.split()[:3]) for c in commands if c.startswith(("ttt", "torchrun"))]
    assert named == [
        "ttt data convert", "ttt data split", "ttt tokenizer --config", "ttt data stats", "ttt data show",
        "torchrun --standalone --nproc-per-node", "ttt eval guard",
    ]  # fmt: skip
    assert "--limit 500" in commands[0] and "--eval-ratio 0.15 --seed 42" in commands[1]
    train = next(c for c in commands if c.startswith("torchrun"))
    assert "recipes/slamomni/conf/v1.1_frozen.yaml" in train and train.endswith("train.lr=2e-5")
    assert "--tasks mmlu quiz.yaml --chat --template qwen3" in commands[-1]
    assert not Path(given[5]).exists()


@pytest.mark.parametrize(
    "change, message",
    [
        (["--model", "/no/model"], "--model /no/model: config.json is missing"),
        (["--data", "/no/*.parquet"], "--data /no/*.parquet: no such file"),
        (["--conf", "v2"], "no recipes/slamomni/conf/v2.yaml"), (["--mmlu", "/no"], "no such folder: /no"),
        (["--test", "/no"], "no such file: /no"), (["--gpus", "two"], "--gpus and --limit take numbers"),
        (["train.max_tiem=5"], "train.max_tiem: no such key"),
    ],
)  # fmt: skip
def test_what_cannot_run_is_refused_at_once(given, change, message):
    done = run("recipes/slamomni/run.sh", *given, *change, "--dry-run")
    assert message in done.stderr + done.stdout
    if "=" not in change[0]:
        assert done.returncode == 2


def test_the_published_values():
    given = ["run.dir=x", "data.train=y", "data.tokenizer=z"]
    frozen, plain, tags = (load_config([CONF / f"{n}.yaml"], given) for n in ("v1.1_frozen", "v1", "v1.1"))
    assert [c.data.form for c in (plain, tags)] == ["text_then_speech", "text_then_speech_tags"]
    assert (frozen.model.freeze, tags.model.freeze, frozen.data.form) == ("text_rows", "none", tags.data.form)
    t = tags.train
    assert (t.lr, t.accumulate, t.epochs, t.clip_norm, t.weight_decay) == (1e-4, 4, 1, 0.5, 0.0)
    assert (tags.data.num_codes, tags.data.codes_hz, tags.objective.normalize) == (4096, 50, "token")
    assert (tags.eval.temperature, tags.eval.sampler.temperature, tags.eval.top_p, tags.eval.speak) == (
        0.7,
        0.7,
        0.9,
        "always",
    )


def test_every_row_of_the_table_is_a_recipe_of_the_small_world():
    spec = read_table(ROOT / "egs/mini_talk/ablations/slamomni.yaml")
    assert len(spec.seeds) == 3 and spec.baseline in spec.rows
    recipes = {
        "slamomni": "v1.1",
        "plain": "v1",
        "frozen": "v1.1_frozen",
        **{n: n for n in ("replay", "random", "ar", "ttt")},
    }
    assert set(recipes) == set(spec.rows)
    for name, row in spec.rows.items():
        config = load_config([ROOT / p for p in (*spec.base, *row.files)], [*spec.settings, *row.settings, "run.dir=x"])
        assert {key.partition("/")[0] for key in spec.metrics} == {task.label for task in config.tasks}
        assert config.data.tokenizer.endswith(f"exp/tokenizer/{config.data.form}")
        assert bool(config.model.path) == (name != "random")
        own = load_config([MINI / f"conf/{recipes[name]}.yaml"], ["run.dir=x", "data.dir=y"])
        assert (own.data.form, own.data.ratio, own.objective, own.model.freeze, own.eval.sampler) == (
            config.data.form, config.data.ratio, config.objective, config.model.freeze, config.eval.sampler
        )  # fmt: skip


def test_stages_of_the_small_world_name_their_folders(recorder, tmp_path):
    program, log = recorder
    world, exp = tmp_path / "world", tmp_path / "exp"
    env = {"TTT": program, "PYTHON": program, "WORLD": str(world), "SLAMOMNI_EXP": str(exp)}
    script = "egs/mini_talk/slamomni/run.sh"
    short = run(script, "--stage", 2, **env)
    assert short.returncode == 2 and f"missing {world}/corpus/corpus.json: run stage 1 first" in short.stderr
    (world / "corpus").mkdir(parents=True)
    (world / "corpus/corpus.json").touch()
    (world / "data/codes").mkdir(parents=True)
    for split in ("train", "dev", "test"):
        (world / f"data/codes/{split}.jsonl").touch()
    for path in (
        "text/train.jsonl",
        "backbone/config.json",
        "talk/train.jsonl",
        "run/eval/test.generations.jsonl",
        "run/checkpoints/x",
    ):
        (exp / path).parent.mkdir(parents=True, exist_ok=True)
        (exp / path).touch()
    lines = [
        {"uid": "a", "task": "text_then_speech"},
        {"uid": '"task": "text_qa"', "task": "x"},
        {"uid": "b", "task": "text_qa"},
    ]
    (exp / "talk/test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = run(script, "--stage", 2, "--recipe", "ttt", "--name", "run", "run.seed=2", **env)
    assert done.returncode == 0, done.stderr
    calls = log.read_text().splitlines()
    assert [c.split()[0] for c in calls if not c.startswith("egs")] == [
        "examples", "train", "tokenizer", "tokenizer", "tokenizer", "examples", "train", "generate", "score", "report",
        "generate", "generate", "score", "score", "eval",
    ]  # fmt: skip
    train = [c for c in calls if c.startswith("train")][1]
    assert f"data.tokenizer={exp}/tokenizer/interleaved" in train and train.endswith("run.seed=2")
    assert [json.loads(line)["uid"] for line in (exp / "talk/guard.jsonl").read_text().splitlines()] == ["b"]
    assert calls[-1] == f"eval guard {exp}/text_model/guard {exp}/run/guard --out {exp}/run/guard"
