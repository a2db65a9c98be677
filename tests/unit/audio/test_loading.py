"""Where codecs, judges and speaker encoders compute: the fields `device` and `dtype`, and the one place that calls `load`."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
import pytest
import torch

import ttt
from ttt.audio.codecs.toy import Toy
from ttt.audio.loading import load_part, load_plugin
from ttt.check.core import check
from ttt.config.explain import explain
from ttt.config.load import load_config, to_plain
from ttt.errors import ConfigError
from ttt.eval.listen import Instruments
from ttt.interfaces import Codec, Judge, SpeakerEncoder
from ttt.registry.core import Registry
from ttt.registry.families import CODEC, JUDGE, NORMALIZER, SPEAKER


class Recorder:
    """Notes what `load` is called with."""

    def load(self, device: str = "cpu", dtype: str = "float32"):
        self.calls.append((device, dtype))
        return self

    def transcribe(self, waves):
        return []

    def embed(self, waves):
        return np.zeros((0, 1), dtype=np.float32)


@dataclass
class Codes(Recorder, Toy):
    calls: list = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.codec_id = ""


@dataclass
class Ears(Recorder, Judge):
    calls: list = field(default_factory=list)


@dataclass
class Voices(Recorder, SpeakerEncoder):
    calls: list = field(default_factory=list)


@pytest.fixture
def gpus(monkeypatch):
    """Torch believes that it has two GPUs; nothing is computed on them."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


def with_parts(*settings: str, **own):
    config = load_config([], ["codec=toy", "judge=toy", *settings])
    parts = {"codec": Codes(**own), "judge": Ears(**own), "speaker": Voices(**own)}
    for name, plugin in parts.items():
        object.__setattr__(config, name, plugin)
    return config, parts


@pytest.mark.parametrize("part", ["codec", "judge", "speaker"])
def test_the_device_is_that_of_the_run_unless_the_part_has_its_own(part, gpus, monkeypatch):
    for settings, own, expected in (
        (["run.device=cpu"], {}, ("cpu", "float32")),
        ([], {}, ("cuda:0", "float32")),
        (["run.device=cuda:1", "model.dtype=bfloat16"], {}, ("cuda:1", "float32")),
        (["run.device=cuda:1"], {"device": "cpu", "dtype": "float16"}, ("cpu", "float16")),
        (["run.device=cpu"], {"device": "auto", "dtype": "bfloat16"}, ("cuda:0", "bfloat16")),
    ):
        config, parts = with_parts(*settings, **own)
        assert load_part(config, part) is parts[part] and parts[part].calls == [expected]
    monkeypatch.setenv("LOCAL_RANK", "1")  # "cuda" is the process's own GPU
    config, parts = with_parts("run.device=cuda")
    load_part(config, part)
    assert parts[part].calls == [("cuda:1", "float32")]
    object.__setattr__(config, part, None)
    assert load_part(config, part) is None


def test_a_gpu_that_is_not_there_is_one_line_naming_the_key(gpus, monkeypatch):
    config, _ = with_parts("run.device=cpu", device="cuda:7")
    with pytest.raises(ConfigError, match=r"^judge\.device: cuda:7 is GPU 7 here, but torch sees 2"):
        load_part(config, "judge")
    config, _ = with_parts("run.device=cuda:3")
    with pytest.raises(ConfigError, match=r"^run\.device: cuda:3 is GPU 3"):
        load_part(config, "codec")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config, _ = with_parts("run.device=cpu", device="cuda")
    with pytest.raises(ConfigError, match=r"^codec\.device: cuda asked for, but torch sees no GPU; use codec\.device=cpu$"):
        load_part(config, "codec")


@pytest.mark.parametrize("family, part, name", [(CODEC, "codec", "dac"), (JUDGE, "judge", "toy"), (SPEAKER, "speaker", "small")])
def test_every_plugin_of_the_three_families_has_the_two_fields(family, part, name):
    assert [f.name for f in fields(family.get(name))][-2:] == ["device", "dtype"]
    built = family.build({"name": name, "device": "cuda:1", "dtype": "bfloat16"}, part)
    assert {k: to_plain(built)[k] for k in ("device", "dtype")} == {"device": "cuda:1", "dtype": "bfloat16"}
    for key, value in (("device", "meta"), ("device", "cuda:x"), ("dtype", "float64"), ("dtype", "int8")):
        with pytest.raises(ConfigError, match=rf"^{part}\.{key}: no '{value}'.* Choices: "):
            family.build({"name": name, key: value}, part)
    shown = explain(f"{part}.{name}.device")
    assert "empty: run.device" in shown and "cuda:N" in shown


def test_plugins_may_be_frozen_have_such_fields_themselves_and_take_less():
    registry = Registry("judge_of_others", "judge", "ttt.interfaces.Judge", Judge)
    seen = []

    @registry.register("frozen")
    @dataclass(frozen=True)
    class Frozen(Judge):
        words: int  # no default: the two fields come by name only

        def load(self, device="cpu"):
            seen.append(device)
            return self

        def transcribe(self, waves):
            return []

    @registry.register("own")
    @dataclass
    class Own(Judge):
        device: str = "cpu"

        def load(self):
            seen.append("nothing")
            return self

        def transcribe(self, waves):
            return []

    assert load_plugin(registry.build({"name": "frozen", "words": 3, "device": "cpu"}, "judge"), "judge") == Frozen(3, device="cpu")
    load_plugin(Own(), "judge")
    assert seen == ["cpu", "nothing"]
    with pytest.raises(ConfigError, match=r"^judge\.dtype: 'frozen' cannot compute in float16; choices: float32$"):
        load_plugin(Frozen(3, dtype="float16"), "judge")
    assert [f.name for f in fields(Own)] == ["device", "dtype"]


@pytest.mark.parametrize(
    "family, part, name", [(CODEC, "codec", "mel_kmeans"), (JUDGE, "judge", "ctc"), (SPEAKER, "speaker", "small")]
)
def test_what_computes_in_float32_only_refuses_before_it_reads_weights(family, part, name):
    with pytest.raises(ConfigError, match=rf"^{part}\.dtype: '{name}' cannot compute in bfloat16; choices: float32$"):
        load_plugin(family.build({"name": name, "dtype": "bfloat16", "path": "nowhere"}, part), part)


def test_all_who_load_a_part_go_through_the_one_place():
    """Nobody else calls `load` of a part; those who are handed one without weights load it with its own fields."""
    ours = Path(ttt.__file__).parent
    direct = [
        f"{path.relative_to(ours)}: {line.strip()}"
        for path in ours.rglob("*.py") for line in path.read_text(encoding="utf-8").splitlines()
        if re.search(r"\b(codec|judge|speaker)\.load\(", line)
    ]  # fmt: skip
    assert not direct
    own = {"device": "cpu", "dtype": "float16"}
    codec, judge, speaker = Codes(**own), Ears(**own), Voices(**own)
    Instruments(judge, codec, NORMALIZER.build("words", ""), speaker).ready_for([], {})
    check("codec", checked := Codes(**own))
    for plugin in (judge, codec, speaker, checked):  # `check` goes on to ask for other types
        assert plugin.calls[0] == ("cpu", "float16")


def test_the_base_class_leaves_codecs_that_are_no_dataclasses_alone():
    class Plain(Codec):
        def load(self):
            return self

        encode = decode = open_stream = None

    assert (Plain().device, Plain().dtype) == ("", "float32") and load_plugin(Plain(), "codec").dtype == "float32"
