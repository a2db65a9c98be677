import json
import logging
import subprocess
import sys

import pytest

from ttt.cli.main import VERBS, main, parser
from ttt.errors import ConfigError, DataError
from ttt.stage import Stage, fingerprint


def test_unknown_verb(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["trian"])
    err = capsys.readouterr().err
    assert stop.value.code == 2 and "invalid choice: 'trian'" in err and "train" in err


def test_no_verb_and_version(capsys):
    with pytest.raises(SystemExit) as stop:
        main([])
    assert stop.value.code == 2
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0 and capsys.readouterr().out.startswith("ttt ")


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_every_verb_exists_and_has_help(verb, capsys):
    import importlib

    module, _, function = VERBS[verb][0].partition(":")
    assert callable(getattr(importlib.import_module(module), function))
    with pytest.raises(SystemExit) as stop:
        parser().parse_args([verb, "--help"])
    assert stop.value.code == 0 and "usage: ttt" in capsys.readouterr().out


@pytest.mark.parametrize(
    "argv, pattern",
    [
        (["train"], "ttt train: run.dir: missing mandatory value"),
        (
            ["train", "run.dir=/x", "data.train=/x", "data.tokenizer=/x", "train.stpes=3"],
            "ttt train: train.stpes: no such key",
        ),
        (["train", "--config", "nowhere.yaml"], "nowhere.yaml: no such config file"),
        (["list", "nosie"], "ttt list: no plug-in family named 'nosie'. Did you mean 'noise'?"),
        (["config", "--plugins", "nowhere.py"], "plug-in 'nowhere.py': no such file"),
        (["tokenize", "data.corpus=/x", "data.dir=/y"], "ttt tokenize: codec: missing; name a codec"),
        (["generate", "run.dir=/nowhere"], "ttt generate: "),
        (["show", "data.train=/nowhere.jsonl", "data.tokenizer=/nowhere"], "ttt show: /nowhere: no tokenizer here"),
    ],
)
def test_mendable_errors_are_one_line_and_exit_2(argv, pattern, capsys):
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert pattern in err and err.count("\n") == 1 and "Traceback" not in err


def test_faults_of_the_program_are_not_hidden(monkeypatch):
    monkeypatch.setitem(VERBS, "config", ("tests.unit_no_such_module:x", "?"))
    with pytest.raises(ModuleNotFoundError):
        main(["config"])


def test_dry_run_prints_and_touches_nothing(tmp_path, capsys):
    argv = [
        "train",
        f"run.dir={tmp_path / 'run'}",
        "data.train=/x.jsonl",
        "data.tokenizer=/t",
        "train.steps=7",
        "--dry-run",
    ]
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert "plan:" in out and "steps: 7" in out and "train 'ttt' for 7 updates" in out and not list(tmp_path.iterdir())


def test_config_prints_what_loads_again(tmp_path, capsys):
    assert main(["config", "train.steps=3", "objective.noise=cosine"]) == 0
    first = capsys.readouterr().out
    (tmp_path / "c.yaml").write_text(first)
    assert main(["config", "--config", str(tmp_path / "c.yaml")]) == 0
    assert capsys.readouterr().out == first


def test_list(capsys):
    assert main(["list", "noise"]) == 0
    out = capsys.readouterr().out
    assert (
        out.startswith("noise: noise schedule\n")
        and "  polynomial" in out
        and "power=2.0" in out
        and "schedules.py:" in out
    )
    assert main(["list", "strategy", "--markdown"]) == 0
    out = capsys.readouterr().out
    assert "| name | fields | what it is |" in out and "| `sst` | `p=0.5`" in out


def test_list_all_families(capsys):
    from ttt.registry.core import FAMILIES

    assert main(["list"]) == 0
    out = capsys.readouterr().out
    assert all(f"{key}: " in out for key in FAMILIES)


def test_show(tmp_path, tokenizer, capsys):
    from tests.conftest import audio, chat, text
    from ttt.data.formats import write_examples

    tokenizer.save(tmp_path / "tokenizer")
    write_examples(
        tmp_path / "x.jsonl",
        [chat("a", [text("hi")], [text("yes"), audio([1, 2], "last")]), chat("b", [text("hi")], [text("no")])],
    )
    argv = ["show", f"data.train={tmp_path / 'x.jsonl'}", f"data.tokenizer={tmp_path / 'tokenizer'}"]
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert (
        out.startswith("a  task chat")
        and "2 codes in 1 spans" in out
        and "'<|end_of_audio_span_last|>'" in out
        and "###" in out
    )
    assert main([*argv, "--uid", "b"]) == 0 and capsys.readouterr().out.startswith("b ")
    assert main([*argv, "--uid", "c"]) == 2 and "no example with uid 'c'" in capsys.readouterr().err


def test_help_imports_nothing_heavy():
    heavy = "{'torch', 'transformers', 'omegaconf'}"
    code = f"import sys; from ttt.cli.main import parser; parser(); print(sorted({heavy} & set(sys.modules)))"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


@pytest.fixture
def stage(tmp_path):
    (tmp_path / "in.txt").write_text("one")

    def make(**settings):
        return Stage(
            "cook",
            tmp_path / "out" / "cook.done.json",
            [tmp_path / "in.txt"],
            [tmp_path / "out" / "x"],
            settings,
            "buy it first",
        )

    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x").write_text("done")
    return make


def test_stage_is_up_to_date_after_finishing(stage, caplog):
    assert not stage(a=1).is_done(False)
    stage(a=1).finish({"n": 3}, 1.234)
    with caplog.at_level(logging.INFO):
        assert stage(a=1).is_done(False)
    assert "cook: up to date" in caplog.text
    assert not stage(a=1).is_done(True), "--overwrite does it again"


def test_stage_refuses_changed_settings_and_inputs(stage, tmp_path):
    stage(codec={"name": "x", "k": 1}, seed=1).finish({}, 0)
    with pytest.raises(ConfigError, match=r"made with other settings \(setting codec\.k\); give --overwrite"):
        stage(codec={"name": "x", "k": 2}, seed=1).is_done(False)
    (tmp_path / "in.txt").write_text("two")
    with pytest.raises(ConfigError, match=r"\(input .*in\.txt\)"):
        stage(codec={"name": "x", "k": 1}, seed=1).is_done(False)


def test_stage_missing_input_output_and_broken_marker(stage, tmp_path):
    stage(a=1).finish({}, 0)
    marker = tmp_path / "out" / "cook.done.json"
    assert json.loads(marker.read_text())["stage"] == "cook"
    (tmp_path / "out" / "x").unlink()
    assert not stage(a=1).is_done(False)
    marker.write_text("{")
    assert not stage(a=1).is_done(False)
    (tmp_path / "in.txt").unlink()
    with pytest.raises(DataError, match=r"in\.txt: missing; buy it first"):
        stage(a=1)


def test_fingerprints_of_folders(tmp_path):
    (tmp_path / "a").write_text("12")
    first = fingerprint(tmp_path)
    (tmp_path / "x.done.json").write_text("{}")
    assert fingerprint(tmp_path) == first
    (tmp_path / "a").write_text("123")
    assert fingerprint(tmp_path) != first
