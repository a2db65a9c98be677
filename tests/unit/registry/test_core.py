import sys
import types
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import pytest

from ttt.config.load import build_config
from ttt.errors import ConfigError, DuplicateNameError, RegistryError, UnknownNameError
from ttt.registry import Registry, component, components, name_of
from ttt.registry import plugins as plugin_module
from ttt.registry.core import FAMILIES, build_dataclass, family
from ttt.registry.families import MASK, NOISE, STRATEGY
from ttt.registry.plugins import load_plugins

PLUGIN = """
from dataclasses import dataclass
from ttt.interfaces import NoiseSchedule
from ttt.registry.families import NOISE

@NOISE.register("{name}")
@dataclass(frozen=True)
class Added(NoiseSchedule):
    rate: float = 1.5

    def alpha(self, t):
        return 1 - t

    def dalpha(self, t):
        return -1 + 0 * t
"""


class Animal(ABC):
    @abstractmethod
    def sound(self) -> str: ...


@pytest.fixture
def zoo():
    registry = Registry("zoo_test", "animal", "unused.Animal", Animal)
    registry._loaded = True
    yield registry
    del FAMILIES["zoo_test"]


@pytest.fixture
def clean_noise():
    NOISE.load()
    before = dict(NOISE._entries)
    yield
    NOISE._entries.clear()
    NOISE._entries.update(before)


def test_wrong_name_names_the_nearest_and_lists_all():
    with pytest.raises(UnknownNameError) as error:
        NOISE.build({"name": "polynomal", "power": 2}, "objective.noise")
    message = str(error.value)
    assert message.startswith("objective.noise: no noise schedule named 'polynomal'")
    assert "Did you mean 'polynomial'?" in message and "Registered: clipped_uniform, cosine, linear" in message
    assert "\n" not in message


@pytest.mark.parametrize("name", ["audio-lm", "audiolm", "valle-audio", "valle_audio"])
def test_a_name_of_other_programs_is_answered_with_ours(name):
    with pytest.raises(
        UnknownNameError, match=rf"^model.arch: no architecture named '{name}'. Here it is called 'valle'. Reg"
    ):
        build_config({"model": {"arch": {"name": name, "dim": 8}}})


def test_wrong_field_gives_the_full_key_and_a_suggestion():
    with pytest.raises(ConfigError, match=r"^objective\.noise\.powr: .*Did you mean 'power'\?"):
        NOISE.build({"name": "polynomial", "powr": 2}, "objective.noise")


@pytest.mark.parametrize("key", ["name:polynomial", "power:3"])
def test_yaml_without_a_space_behind_the_colon_is_said(key):
    with pytest.raises(ConfigError, match=rf"^objective\.noise\.{key}: no such key .* Write a space behind the colon\. Keys:"):
        NOISE.build({"name": "polynomial", key: None}, "objective.noise")


def test_wrong_type_and_refused_value_give_the_key():
    with pytest.raises(ConfigError, match=r"^objective\.noise\.power: "):
        NOISE.build({"name": "polynomial", "power": "many"}, "objective.noise")
    with pytest.raises(ConfigError, match=r"^objective\.noise\.power: must be > 0, got -1"):
        NOISE.build({"name": "polynomial", "power": -1}, "objective.noise")


@pytest.mark.parametrize("node", [3, ["linear"], None])
def test_not_a_component(node):
    with pytest.raises(ConfigError, match="^noise: expected a noise schedule"):
        NOISE.build(node, "noise")


def test_block_without_name_lists_the_names():
    with pytest.raises(ConfigError, match="^noise: a noise schedule needs 'name'.*cosine"):
        NOISE.build({"power": 2}, "noise")


def test_built_component_passes_through():
    built = MASK.build("causal", "m")
    assert MASK.build(built, "m") is built


def test_nested_components_are_built_from_the_leaves_up_with_their_path():
    def of(strategies):
        return {"objective": {"name": "ttt", "strategies": strategies}}

    config = build_config(of([{"name": "sst", "p": 0.25}, "banom"]))
    assert [name_of(s) for s in config.objective.strategies] == ["sst", "banom"]
    assert config.objective.strategies[0].p == 0.25 and name_of(config.objective.mask) == "hybrid"
    with pytest.raises(ConfigError, match=r"^objective\.strategies\[0\]\.lowr: .*'low'"):
        build_config(of([{"name": "sst", "lowr": 0.25}]))
    with pytest.raises(UnknownNameError, match=r"^objective\.strategies\[1\]: .*'banom'"):
        build_config(of(["sst", "banon"]))
    with pytest.raises(ConfigError, match=r"^objective\.strategies\[1\]\.p: must be >= 0 and <= 1, got 1\.5"):
        build_config(of(["sst", {"name": "banom", "p": 1.5}]))
    with pytest.raises(ConfigError, match=r"^objective\.strategies: expected a list"):
        build_config(of({"name": "sst"}))


def test_fields_without_a_name_go_to_the_default_plug_in():
    config = build_config({"objective": {"mask": {"bidirectional_prompt_audio": False}}})
    assert name_of(config.objective.mask) == "hybrid"
    assert config.objective.mask.bidirectional_prompt_audio is False


def test_duplicate_names_give_both_places(zoo):
    @zoo.register("cat")
    @dataclass(frozen=True)
    class Cat(Animal):
        def sound(self) -> str:
            return "miaow"

    with pytest.raises(DuplicateNameError) as error:

        @zoo.register("cat")
        @dataclass(frozen=True)
        class Tiger(Animal):
            def sound(self) -> str:
                return "roar"

    lines = [part.split()[0] for part in str(error.value).split("test_core.py:")[1:]]
    assert len(lines) == 2 and lines[0] != lines[1]
    assert zoo.get("cat") is Cat
    assert zoo.register("cat")(Cat) is Cat, "the same class again is no duplicate"


def test_wrong_base_not_a_dataclass_abstract(zoo):
    with pytest.raises(RegistryError, match=r"test_core\.py:\d+: animal 'stone' must derive from Animal"):

        @zoo.register("stone")
        @dataclass(frozen=True)
        class Stone:
            pass

    with pytest.raises(RegistryError, match=r"test_core\.py:\d+: animal 'bare' must be a dataclass"):

        @zoo.register("bare")
        class Bare(Animal):
            def sound(self) -> str:
                return ""

    with pytest.raises(RegistryError, match=r"'mute' does not implement sound"):

        @zoo.register("mute")
        @dataclass(frozen=True)
        class Mute(Animal):
            pass

    assert zoo.names() == []


def test_missing_component_lists_names():
    @dataclass(frozen=True)
    class Needs:
        noise: Any = component("noise")
        strategies: Any = components("strategy", ("sst",))

    with pytest.raises(ConfigError, match=r"^x\.noise: missing mandatory value.*linear"):
        build_dataclass(Needs, {}, "x")
    assert STRATEGY.build("sst", "") == build_dataclass(Needs, {"noise": "linear"}, "x").strategies[0]


def test_unknown_family():
    with pytest.raises(UnknownNameError, match="'sampler'"):
        family("samplr")


def test_plugin_file_relative_to_the_recipe(tmp_path, clean_noise):
    (tmp_path / "added.py").write_text(PLUGIN.format(name="added_by_file"))
    origins = load_plugins(["added.py"], tmp_path)
    assert origins == [str(tmp_path / "added.py")]
    assert NOISE.build({"name": "added_by_file", "rate": "2"}, "noise").rate == 2.0
    load_plugins(["added.py"], tmp_path)  # twice is once


def test_plugin_module(tmp_path, monkeypatch, clean_noise):
    (tmp_path / "ttt_test_added_module.py").write_text(PLUGIN.format(name="added_by_module"))
    monkeypatch.syspath_prepend(tmp_path)
    assert load_plugins(["ttt_test_added_module"]) == ["ttt_test_added_module"]
    assert "added_by_module" in NOISE.names()
    sys.modules.pop("ttt_test_added_module")


def test_plugin_entry_point(tmp_path, monkeypatch, clean_noise):
    (tmp_path / "ttt_test_added_entry.py").write_text(PLUGIN.format(name="added_by_entry"))
    monkeypatch.syspath_prepend(tmp_path)
    point = __import__("importlib.metadata").metadata.EntryPoint("mine", "ttt_test_added_entry", "ttt.plugins")
    asked = []

    def entry_points(group):
        asked.append(group)
        return [point]

    monkeypatch.setattr("importlib.metadata.entry_points", entry_points)
    monkeypatch.setattr(plugin_module, "_installed_loaded", False)
    monkeypatch.setattr(NOISE, "_loaded", False)
    assert "added_by_entry" in NOISE.names() and asked == ["ttt.plugins"]


def test_failing_entry_point_stops(monkeypatch):
    def load():
        raise ImportError("no such thing")

    point = types.SimpleNamespace(name="broken", value="broken.module", load=load)
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: [point])
    monkeypatch.setattr(plugin_module, "_installed_loaded", False)
    with pytest.raises(RegistryError, match="'broken'.*broken.module.*ImportError: no such thing"):
        plugin_module.load_installed()


@pytest.mark.parametrize("code, line", [("\n\nimport nothing_of_that_name\n", 3), ("x = 1\ny = x / 0\n", 2)])
def test_failing_plugin_file_names_file_and_line(tmp_path, code, line):
    (tmp_path / "broken.py").write_text(code)
    with pytest.raises(RegistryError, match=rf"broken\.py:{line}; mend the plug-in"):
        load_plugins([str(tmp_path / "broken.py")])
    with pytest.raises(RegistryError):  # not half loaded
        load_plugins([str(tmp_path / "broken.py")])


def test_plugin_with_broken_syntax_names_its_line(tmp_path):
    (tmp_path / "syntax.py").write_text("x = 1\ndef f(:\n")
    with pytest.raises(RegistryError, match=r"SyntaxError.*syntax\.py.*line 2"):
        load_plugins([str(tmp_path / "syntax.py")])


def test_absent_plugin():
    with pytest.raises(RegistryError, match="no such file"):
        load_plugins(["nowhere/at_all.py"])
    with pytest.raises(RegistryError, match="ModuleNotFoundError"):
        load_plugins(["ttt_no_such_module"])
