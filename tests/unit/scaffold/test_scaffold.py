import importlib.util
import inspect
import json
import re
import subprocess
from importlib import resources
from pathlib import Path

import pytest

from ttt.check.core import MODULES, check
from ttt.cli.main import main
from ttt.config.load import load_config, resolved_yaml
from ttt.errors import ConfigError
from ttt.registry import name_of
from ttt.registry.core import FAMILIES, family
from ttt.registry.plugins import load_plugins
from ttt.scaffold.copied import METHODS
from ttt.scaffold.recipe import KINDS, read_kind, recipe_files

importlib.import_module("ttt.registry.families")
ROOT = Path(__file__).resolve().parents[3]
ALL = sorted(k for k in FAMILIES if k not in ("demo",))


@pytest.fixture(autouse=True)
def registries_as_they_were():
    """What a test registers is gone afterwards."""
    before = {k: dict(r._entries) for k, r in FAMILIES.items()}
    yield
    for k, r in FAMILIES.items():
        if k in before:
            loaded = set(r._entries) - set(before[k])
            for name in loaded:
                if r._entries[name].cls.__module__.startswith("ttt_plugin_"):
                    del r._entries[name]


@pytest.mark.parametrize("key", ALL)
def test_a_fresh_plugin_keeps_the_promises_of_its_family(key, tmp_path, capsys):
    path = tmp_path / "fresh.py"
    assert main(["new", "plugin", key, "fresh_one", str(path)]) == 0
    assert f"wrote {path}" in capsys.readouterr().out
    load_plugins([str(path)])
    registry = family(key)
    assert "fresh_one" in registry.names() and path.read_text().count('"""') % 2 == 0
    assert max(map(len, path.read_text().splitlines())) <= 120
    assert not re.findall("@[A-Z_]+@|my_plugin|MyPlugin", path.read_text())
    cls = registry.get("fresh_one")
    assert cls.__name__ == "FreshOne" and not getattr(cls, "__abstractmethods__", ())
    for name in registry.base.__abstractmethods__:
        own, promised = (inspect.getattr_static(c, name) for c in (cls, registry.base))
        if callable(promised):
            assert list(inspect.signature(own).parameters) == list(inspect.signature(promised).parameters), name
    if key in MODULES:
        broken = [(r.name, r.counter) for r in check(key, registry.build("fresh_one", key)) if r.failed]
        assert not broken


def test_every_template_belongs_to_a_family():
    folder = resources.files("ttt.scaffold") / "templates" / "plugins"
    assert sorted(p.name for p in folder.iterdir()) == [f"{key}.py.txt" for key in ALL]


@pytest.mark.parametrize(
    "argv, says",
    [
        (["noise", "linear", "{}/a.py"], "noise schedule 'linear' is registered already"),
        (["noise", "My-Noise", "{}/a.py"], "'My-Noise' must be small letters"),
        (["noize", "a", "{}/a.py"], "no plug-in family named 'noize'. Did you mean 'noise'?"),
        (["noise", "a", "{}/a.txt"], "give it the ending .py"),
        (["noise", "a", "{}/there.py"], "there.py: is there already"),
    ],
)
def test_refused_plugins(argv, says, tmp_path, capsys):
    (tmp_path / "there.py").write_text("x = 1\n")
    assert main(["new", "plugin", *(a.format(tmp_path) for a in argv)]) == 2
    assert says in capsys.readouterr().err and [p.name for p in tmp_path.iterdir()] == ["there.py"]
    assert (tmp_path / "there.py").read_text() == "x = 1\n"


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_fresh_recipe_is_a_whole_configuration(kind, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "deep" / "mine"
    assert main(["new", "recipe", "mine", str(folder), "--from", kind]) == 0
    assert main(["config", "--config", str(folder / "conf/base.yaml")]) == 0
    config = load_config([folder / "conf/base.yaml"], need=("run.dir", "data.train", "data.tokenizer", "data.corpus"))
    assert name_of(config.objective) == {"toy": "ttt", "toy_llada": "nar"}.get(kind, kind)
    plugged = config.eval.length if kind == "ar" else config.objective.noise
    assert name_of(plugged) == f"mine_{read_kind(kind).family}"
    assert type(plugged).__module__.startswith("ttt_plugin_")
    monkeypatch.chdir(folder)
    capsys.readouterr()
    for verb in ("train", "generate", "score", "tokenize"):
        assert main([verb, "--config", "conf/base.yaml", "--dry-run"]) == 0
        assert "plan:" in capsys.readouterr().out
    (folder / "exp" / "run").mkdir(parents=True)  # what a run writes down finds the plug-in again
    written = load_config(["conf/base.yaml"])
    assert list(written.plugins) == ["plugin.py"]
    (folder / "exp" / "run" / "config.yaml").write_text(resolved_yaml(written))
    assert load_config(["exp/run/config.yaml"]) == written
    text = "".join(p.read_text() for p in folder.rglob("*") if p.is_file() and p.suffix != ".pyc")
    assert not re.findall("@[A-Z_]+@", text)
    assert (folder / "run.sh").stat().st_mode & 0o111
    assert not list(folder.parent.glob(".*"))


@pytest.mark.parametrize("method", METHODS)
def test_a_methods_recipe_is_copied_whole_and_stands_alone(method, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["new", "recipe", "mine", "--from", method]) == 0
    source = ROOT / "recipes" / method / "conf"
    configs = sorted(str(path.relative_to(source)) for path in source.rglob("*.yaml"))
    for name in configs:
        assert (tmp_path / "mine/conf" / name).read_text() == (source / name).read_text()
        settings = ["data.text=t"] if name == "mixed.yaml" else []
        if "more/" not in name:
            assert load_config([tmp_path / "mine/conf" / name], settings) == load_config([source / name], settings)
    if method == "llada":
        assert {"mixed.yaml", "pretrain.yaml", "sft.yaml", "tts.yaml"} <= set(configs)
    script = (tmp_path / "mine/run.sh").read_text()
    assert not re.findall(r"recipes/|\.\./", script + (tmp_path / "mine/README.md").read_text().replace("/recipes/", ""))
    (tmp_path / "ttt").write_text('#!/bin/sh\necho "plan:"; echo "ttt $@" in $PWD\n')
    (tmp_path / "ttt").chmod(0o755)
    (tmp_path / "model").mkdir()
    for name in ("model/config.json", "model/tokenizer.json", "t.jsonl"):
        (tmp_path / name).write_text("")

    def run(*options):
        env = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
        return subprocess.run(["mine/run.sh", *options], env=env, capture_output=True, text=True, cwd=tmp_path)

    assert "./run.sh" in run("--help").stdout and "Stages: 0 environment" in run("--help").stdout
    if method in ("ttt", "llada"):  # the others have no plan without data
        conf = "sft" if method == "llada" else "base"
        done = run("--conf", conf, "--model", "model", "--train", "t.jsonl", "--dry-run")
        assert done.returncode == 0, done.stderr
        assert f"--config {tmp_path}/mine/conf/{conf}.yaml" in done.stdout and f"in {tmp_path}" in done.stdout
    done = run("--conf", "nothing", "--exp", "exp")
    assert done.returncode == 2 and "conf/nothing.yaml; there are:" in done.stderr


def test_the_stages_of_a_fresh_recipe(tmp_path):
    folder = tmp_path / "mine"
    assert main(["new", "recipe", "mine", str(folder)]) == 0
    log = tmp_path / "calls"
    fake = tmp_path / "fake"
    fake.write_text(
        f'#!/bin/sh\necho "$@" >> {log}\n[ "$1" = config ] && printf \'codec:\\n  name: mel_kmeans\\n\'\nexit 0\n'
    )
    fake.chmod(0o755)
    env = {"PATH": "/usr/bin:/bin", "TTT": str(fake), "PYTHON": str(fake)}

    def run(*options):
        log.write_text("")
        done = subprocess.run([folder / "run.sh", *options], env=env, capture_output=True, text=True, cwd=tmp_path)
        return done, [line.partition(" --")[0] for line in log.read_text().splitlines()]

    done, verbs = run("run.seed=3")
    assert done.returncode == 0, done.stderr
    assert verbs == [
        "local/data.py exp/corpus",
        "config",
        "fit codec",
        "tokenize",
        "examples",
        "train",
        "generate",
        "floor",
        "score",
        "report",
    ]
    assert all(line.endswith("--config conf/base.yaml run.seed=3") for line in log.read_text().splitlines()[1:])
    assert run("--stage", "4", "--stop-stage", "5")[1] == ["train", "generate"]
    for options, says in (
        (["--stage"], "needs a value"),
        (["hm"], "unknown argument hm"),
        (["--conf", "x"], "no conf/x.yaml"),
    ):
        done, verbs = run(*options)
        assert done.returncode == 2 and says in done.stderr and verbs == []


def test_the_data_of_a_fresh_recipe(tmp_path):
    (tmp_path / "data.py").write_text(recipe_files("mine", "toy")["local/data.py"])
    spec = importlib.util.spec_from_file_location("fresh_recipe_data", tmp_path / "data.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.ITEMS = {"train": 7, "test": 3}
    module.main(tmp_path / "corpus")
    from ttt.data.manifest import read_manifest

    known = {u.id for u in read_manifest(tmp_path / "corpus" / "train.jsonl")}
    items = [json.loads(line) for line in (tmp_path / "corpus" / "train.items.jsonl").read_text().splitlines()]
    assert len(items) == 7 and {i["task"] for i in items} == {"asr", "tts", "qa"}
    assert all(i["output"] in known and (i["input"] is None or i["input"] in known) for i in items)
    qa = next(i for i in items if i["task"] == "qa")
    assert qa["text_out"].split() == qa["text_in"].split()[::-1] and (tmp_path / "corpus" / "corpus.json").is_file()


def test_names_that_contain_a_placeholder():
    files = recipe_files("tommy", "toy")
    assert "noise: {name: tommy_noise, power: 1.0}" in files["conf/base.yaml"]
    assert '@NOISE.register("tommy_noise")' in files["plugin.py"]


def test_refused_recipes(tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("mine")
    assert (
        main(["new", "recipe", "a", str(tmp_path / "full")]) == 2
        and "not empty; name a new folder" in capsys.readouterr().err
    )
    assert (
        main(["new", "recipe", "A b", str(tmp_path / "n")]) == 2 and "must be small letters" in capsys.readouterr().err
    )
    assert main(["new", "recipe", "a", str(tmp_path / "n"), "--from", "nars"]) == 2
    assert "no recipe 'nars'. Did you mean 'nar'?" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["full", "x"]
    (tmp_path / "empty").mkdir()
    assert main(["new", "recipe", "a", str(tmp_path / "empty")]) == 0 and (tmp_path / "empty" / "plugin.py").is_file()
    with pytest.raises(ConfigError):
        recipe_files("a", "nothing")
