"""``ttt config --explain``: every key with its type, default, choices, range and line of documentation."""

from dataclasses import dataclass, field
from typing import Literal

import pytest

from ttt.cli.main import main
from ttt.config.explain import Key, explain, keys_of
from ttt.config.schema import RunConfig
from ttt.errors import ConfigError, UnknownNameError
from ttt.registry import PositiveInt, Share, component


@dataclass(frozen=True)
class Base:
    """A base.  ``shared`` is explained here; nobody else is."""

    shared: bool = True
    renewed: int = 1  # of the base


@dataclass(frozen=True)
class Sample(Base):
    """A sample."""

    mode: Literal["", "cut"] = ""  # how it is read
    # a comment of two lines,
    # above its field
    shares: tuple[Share, Share] = (0.5, 1.0)
    names: list[str] = field(  # names of things
        default_factory=lambda: ["a", "b"]
    )
    noise: object = component("noise", None)  # type: ignore[assignment]  # with two remarks
    renewed: PositiveInt = 2
    small: float = 1e-8


def test_keys_of_a_class():
    noises = "clipped_uniform | cosine | linear | log_linear | polynomial"
    assert list(keys_of(Sample, "s")) == [
        Key("s.shared", "true or false", "true", "", "``shared`` is explained here"),
        Key("s.renewed", "whole number", "2", ">= 1", ""),
        Key("s.mode", "text", "''", "'' | cut", "how it is read"),
        Key("s.shares", "2 x number", "[0.5, 1.0]", ">= 0 and <= 1", "a comment of two lines, above its field"),
        Key("s.names", "list of text", "[a, b]", "", "names of things"),
        Key("s.noise", "noise schedule", "null", noises, "with two remarks"),
        Key("s.small", "number", "1e-08", "", ""),
    ]


def test_every_key_of_the_schema_has_a_line():
    assert not [key.path for key in keys_of(RunConfig) if not key.doc]


@pytest.mark.parametrize(
    "path, first",
    [
        ("train.engine", "train.engine = local  (text; local | deepspeed)"),
        ("train", "train.steps = ???  (whole number; >= 0)"),
        ("model.lora", "model.lora.rank = 0  (whole number; >= 0)"),
        ("eval.sampler.ar", "eval.sampler.ar.temperature = 0  (number; >= 0)"),
        ("objective.nar.noised", "objective.nar.noised = answer  (text; answer | speech | by_kind)"),
        ("objective.valle.cut.mode", "objective.valle.cut.mode = stored  (text; stored | fixed | uniform | seconds)"),
        ("objective.ttt.mask.block_causal", "objective.ttt.mask.block_causal.block_length = 26  (whole number; >= 1)"),
        ("objective.mask", None),
        ("eval.normalizer.none", "eval.normalizer.none has no keys"),
        ("", "plugins = []  (list of text)"),
    ],
)
def test_explanations(path, first):
    if first is None:
        with pytest.raises(UnknownNameError, match="^--explain: objective: no objective named 'mask'"):
            explain(path)
    else:
        assert explain(path).splitlines()[0] == first


@pytest.mark.parametrize(
    "path, message",
    [
        ("trian", "--explain: no key 'trian'. Did you mean 'train'"),
        ("train.stps", "--explain: no key 'train.stps'. Did you mean 'steps'"),
        ("run.seed.x", "--explain: run.seed is one value, it has no 'x'"),
        ("eval.sampler.blockwize", "no sampler named 'blockwize'. Did you mean 'blockwise'"),
    ],
)
def test_unknown_keys(path, message):
    with pytest.raises((ConfigError, UnknownNameError), match=message):
        explain(path)


def test_the_verb(capsys):
    assert main(["config", "--explain", "eval.cache"]) == 0
    assert capsys.readouterr().out.startswith("eval.cache = exact  (text; exact | block | dual | none)\n    keys kept")
    assert main(["config", "--explain"]) == 0 and "train.lr = 2e-05" in capsys.readouterr().out
    assert main(["config", "--explain", "eval.cach"]) == 2


def test_list_shows_choices(capsys):
    assert main(["list", "strategy"]) == 0
    assert "scope=batch or sample" in capsys.readouterr().out
