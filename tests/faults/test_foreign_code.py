"""Code that nobody asked for: plug-ins named by the files of others, plug-ins that end the program, code of model folders."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest
import yaml

PLUGIN = """
from pathlib import Path
Path({mark!r}).write_text("ran")
"""


@pytest.fixture
def foreign(world, tmp_path) -> Path:
    """Somebody else's run, unpacked elsewhere, whose files name a plug-in that lies beside them."""
    folder = tmp_path / "download"
    shutil.copytree("run", folder / "run")
    shutil.copy("recipe.yaml", folder)
    plugin = folder / "run/plug.py"
    plugin.write_text(PLUGIN.format(mark=str(tmp_path / "ran")))
    for path in [*folder.rglob("config.yaml"), folder / "recipe.yaml"]:
        path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "plugins": [str(plugin)]}))
    card = folder / "run/eval/card.json"
    record = json.loads(card.read_text())
    record["config"]["plugins"] = [str(plugin)]
    card.write_text(json.dumps(record))
    table = {"title": "T", "seeds": 1, "examples": ["data/test.jsonl"], "baseline": "a", "metrics": {"asr/wer": "WER"}}
    table["rows"] = {name: {"settings": {"train.lr": rate}} for name, rate in (("a", 1e-3), ("b", 1e-4))}
    (folder / "table.yaml").write_text(yaml.safe_dump({**table, "base": str(folder / "recipe.yaml")}))
    settings = {"base": "recipe.yaml", "settings": {"plugins": [str(plugin)]}}
    (folder / "settings.yaml").write_text(yaml.safe_dump({**table, **settings}))
    return folder


VERBS = {
    "chat": ("chat", "{run}"),
    "chat of a checkpoint": ("chat", "{run}/checkpoints/step-00000004"),
    "chat of weights": ("chat", "{run}/checkpoints/step-00000004/model"),
    "stream": ("stream", "{run}", "--text", "one"),
    "continue": ("continue", "--run", "{run}", "question.wav"),
    "doctor": ("doctor", "{run}"),
    "attention": ("inspect", "attention", "{run}", "--examples", "data/test.jsonl"),
    "samplers": ("inspect", "samplers", "{run}", "--examples", "data/test.jsonl", "--samplers", "blockwise"),
    "repro": ("repro", "{run}/eval/card.json", "--dry-run"),
    "table": ("ablate", "{folder}/table.yaml", "--dry-run"),
    "settings of a table": ("ablate", "{folder}/settings.yaml", "--dry-run"),
    "text benchmark": ("eval", "mmlu-redux", "questions", "--model", "{run}/checkpoints/step-00000004/model"),
}


def words_of(case: str, foreign: Path) -> list[str]:
    return [word.format(run=foreign / "run", folder=foreign) for word in VERBS[case]]


@pytest.mark.parametrize("case", VERBS)
def test_plugins_of_others_are_not_run(case, foreign, run, tmp_path):
    outcome = run(*words_of(case, foreign))
    line = outcome.complaint()
    assert "plugins: lists" in line and str(foreign / "run/plug.py") in line and "digest" in line and "--trust" in line
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("how", ["--trust", "--plugins"])
@pytest.mark.parametrize("case", ["chat of weights", "repro", "table"])
def test_plugins_of_others_run_by_the_users_word(case, how, foreign, run, tmp_path):
    word = [how, *([str(foreign / "run/plug.py")] if how == "--plugins" else [])]
    outcome = run(*words_of(case, foreign), *word)
    assert (tmp_path / "ran").exists(), outcome.err
    assert "plugins: lists" not in outcome.err
    (tmp_path / "ran").unlink()
    assert "plugins: lists" in run(*words_of(case, foreign)).complaint()  # allowed once, not for ever


def test_own_runs_open_as_before(world, run, tmp_path):
    Path("plug.py").write_text(PLUGIN.format(mark=str(tmp_path / "ran")))
    train = ("train", "--config", world.recipe, "plugins=[plug.py]", "run.dir=own", "train.steps=1")
    assert run(*train).code == 0
    assert (tmp_path / "ran").exists()
    assert run("doctor", "own", "--no-probes").code in (0, 1)
    assert run(*train).code == 0  # resume
    Path("plug.py").write_text("changed = True\n")
    assert "plugins: lists" in run("doctor", "own", "--no-probes").complaint()
    shutil.move("own", "elsewhere")
    shutil.move("plug.py", "elsewhere")
    path = Path("elsewhere/config.yaml")
    path.write_text(path.read_text().replace("- plug.py", "- elsewhere/plug.py"))
    assert "plugins: lists" in run("doctor", "elsewhere", "--no-probes").complaint()


def test_modules_and_settings_of_others(world, run, monkeypatch, tmp_path):
    Path("innocent_name.py").write_text(PLUGIN.format(mark=str(tmp_path / "ran")))
    monkeypatch.syspath_prepend(Path.cwd())
    path = Path("run/config.yaml")
    before = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**before, "plugins": ["innocent_name"]}))
    assert f"plugins: lists {Path.cwd()}/innocent_name.py" in run("chat", "run").complaint()
    path.write_text(yaml.safe_dump({**before, "plugins": ["ttt_nowhere_at_all"]}))
    assert "plugins: lists the module ttt_nowhere_at_all" in run("chat", "run").complaint()
    assert not (tmp_path / "ran").exists()
    for wrong in (5, ["x", None], "x", [""], [["x"]]):
        path.write_text(yaml.safe_dump({**before, "plugins": wrong}))
        assert "plugins: expected a list of files or modules" in run("chat", "run").complaint(), wrong
    assert run("chat", "run", "plugins=[]").code == 0  # the user's word wins
    assert run("chat", "run", "--plugins", "innocent_name", "plugins=[]").code == 0 and (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "body, says",
    [
        ("import sys; sys.exit(0)", "sys.exit(0)"), ("raise SystemExit", "sys.exit(None)"), ("exit('bye')", "sys.exit('bye')"),
        ("raise GeneratorExit('no')", "GeneratorExit: no"), ("class Odd(BaseException): pass\nraise Odd('a\\nb')", "Odd: a b"),
        ("1 / 0", "ZeroDivisionError"), ("import os, signal; os.kill(os.getpid(), signal.SIGINT)\nimport time; time.sleep(5)", ""),
    ],
    ids=["exit", "raise", "words", "generator", "own", "error", "interrupt"],
)  # fmt: skip
def test_a_plugin_cannot_end_a_verb_as_if_it_were_done(body, says, tmp_path, run, request):
    # Programs that a shell starts in the background ignore Ctrl-C from the beginning.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    path = tmp_path / "plug.py"
    path.write_text(body)
    outcome = None
    for words in (("list",), ("config",), ("check", "mask", "causal")):
        outcome = run(*words, "--plugins", path)
        if says:
            line = outcome.complaint()
            assert str(path) in line and says in line and "mend the plug-in" in line
        else:
            assert (outcome.code, outcome.out) == (130, "") and "interrupted" in outcome.err


def test_a_component_cannot_end_a_verb_either(tmp_path, run):
    path = tmp_path / "plug.py"
    path.write_text(
        "import sys\nfrom dataclasses import dataclass\nfrom ttt.registry.families import LENGTH\nfrom ttt.interfaces import "
        "LengthController\n@LENGTH.register('ender')\n@dataclass\nclass Ender:\n    def __post_init__(self): sys.exit(0)\n"
    )
    outcome = run("config", "--plugins", path, "eval.length=ender")
    assert outcome.code == 2 and len(outcome.err.splitlines()) == 1, outcome.err
