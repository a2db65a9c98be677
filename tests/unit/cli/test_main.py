import inspect
import re
import subprocess
import sys

import pytest

from ttt.cli.main import ALIASES, HEADINGS, VERBS, help_line, main, module_of, parser_of


@pytest.mark.parametrize(
    "argv, message",
    [
        (["trian"], "ttt: no verb 'trian'. Did you mean 'train'? There are: data, fit,"),
        (["data", "chekc"], "ttt data: no verb 'chekc'. Did you mean 'check'? There are: convert,"),
        (["data"], "ttt data: name a verb. There are: convert,"),
    ],
)
def test_a_wrong_or_missing_verb_is_one_line_and_exit_2(argv, message, capsys):
    assert main(argv) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(message) and printed.err.count("\n") == 1 and not printed.out


def test_no_verb_and_version(capsys):
    assert main([]) == 2
    assert capsys.readouterr().out.startswith("usage: ttt VERB")
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("ttt ")


FITTED = {"codec": "mel_kmeans", "judge": "ctc", "speaker": "small"}


def paths() -> list[tuple[str, ...]]:
    """Every verb, those of groups included."""
    found = []
    for name in VERBS:
        group = getattr(module_of(["ttt", name]), "VERBS", ())
        found += [("ttt", name, sub) for sub in group] or [("ttt", name)]
    return found


@pytest.mark.parametrize("path", paths(), ids=" ".join)
def test_every_verb_keeps_the_contract(path, capsys):
    verb = module_of(path)
    assert callable(verb.add_arguments) and callable(verb.run)
    line = help_line(path)
    assert 0 < len(line) <= 80 and not line.endswith(".") and "``" not in line
    with pytest.raises(SystemExit) as stop:
        main([*path[1:], "--help"])
    printed = capsys.readouterr().out
    assert stop.value.code == 0 and printed.startswith(f"usage: {' '.join(path)}") and line in printed


def test_help_lists_every_verb_once_under_its_heading(capsys):
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 112
    sections = printed.split("\n\n")[2:-1]
    listed = {part.splitlines()[0]: [line.split()[0] for line in part.splitlines()[1:]] for part in sections}
    assert listed == {heading: list(names) for heading, names in HEADINGS.items()} and len(VERBS) == len(set(VERBS))


def test_help_is_fast_and_imports_nothing_heavy():
    heavy = "{'torch', 'transformers', 'omegaconf', 'numpy'}"
    code = (
        "import sys, time; start = time.process_time(); from ttt.cli.main import main; main(['--help']);"
        f"print(sorted({heavy} & set(sys.modules)), time.process_time() - start < 0.5)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[] True"


def test_only_the_module_of_the_verb_is_imported():
    code = (
        "import sys; from ttt.cli.main import module_of, parser_of; parser_of(['ttt', 'config'], module_of(['ttt', 'config']));"
        "print(sorted(m for m in sys.modules if m.startswith('ttt.cli.')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "'ttt.cli.config'" in done.stdout and not {
        f"'ttt.cli.{v}'" in done.stdout for v in VERBS if v != "config"
    } & {True}


@pytest.mark.parametrize("name", ["codec", "judge", "speaker"])
def test_former_names_work_and_say_so(name, capsys):
    words = [name, f"{name}={{name: {FITTED[name]}, path: /x}}", "data.corpus=/y", "--dry-run"]
    assert main(words) == 0
    printed = capsys.readouterr()
    assert "fit and save to /x" in printed.out and printed.err == f"ttt {name}: is now 'ttt fit {name}'\n"
    assert name not in VERBS and name in ALIASES


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
    monkeypatch.setattr("ttt.cli.config.configure", lambda *_: {}["a fault"])
    with pytest.raises(KeyError):
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


# What functions read of the arguments they are handed whole.
READ_BY = {
    "configure": {"config", "overrides", "plugins"}, "dry_run": {"dry_run"}, "wants_color": {"color"},
    "fit_component": {"config", "overrides", "plugins", "dry_run", "overwrite"}, "source_of": {"source"},
    "source_and_out": {"source", "out"}, "open_config": {"run", "overrides", "config", "plugins"},
    "results_folder": {"run", "out"},
}  # fmt: skip


@pytest.mark.parametrize("path", paths(), ids=" ".join)
def test_a_verb_has_no_argument_that_it_does_not_read(path):
    verb = module_of(path)
    source = inspect.getsource(verb)
    handed_to = set(re.findall(r"(\w+)\(arguments[,)]", source)) - {"run"}
    if not handed_to <= set(READ_BY):
        pytest.skip(f"hands its arguments to {', '.join(sorted(handed_to - set(READ_BY)))}")
    read = set(re.findall(r"arguments\.(\w+)", source)).union(*(READ_BY[name] for name in handed_to))
    declared = {action.dest for action in parser_of(path, verb)._actions} - {"help"}
    assert declared <= read | {"trust"}  # `main` reads it


@pytest.mark.parametrize("argv, code", [(["--help"], 0), (["--no-such-option"], 2)])
def test_options_of_a_benchmark(argv, code, capsys):
    assert main(["bench", "decode", *argv]) == code
    printed = capsys.readouterr()
    assert (printed.out or printed.err).startswith("usage: ttt bench decode") and "sys.exit" not in printed.err
