from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from ttt.config import load
from ttt.config.load import SECTIONS, build_config, load_config, merge, read_layers, resolved_yaml
from ttt.errors import ConfigError, RegistryError, UnknownNameError
from ttt.registry import name_of
from ttt.registry.fields import fault, field_types

ROOT = Path(__file__).resolve().parents[3]
# Recipes lie in folders `conf`; tables of experiments (tests/unit/cli/test_ablate.py) and a run's bands do not count.
RECIPES = sorted(
    p for folder in ("recipes", "egs") for p in (ROOT / folder).rglob("conf/*.y*ml") if p.name != "bands.yaml"
)
# Files that only make sense on top of a recipe.
OVERLAYS = {
    "egs/mini_talk/conf/quick.yaml": "egs/mini_talk/conf/ttt.yaml",
    "egs/mini_talk/ablations/conf/world.yaml": "egs/mini_talk/conf/ttt.yaml",
    "egs/mini_talk/ablations/conf/spans_world.yaml": "egs/mini_talk/conf/ttt.yaml",
    "egs/mini_talk/ablations/conf/llada_world.yaml": "egs/mini_talk/llada/conf/tts.yaml",
    "egs/mini_talk/ablations/conf/audiolm_world.yaml": "egs/mini_talk/audiolm/conf/stages.yaml",
    "egs/mini_talk/slamomni/conf/world.yaml": "egs/mini_talk/slamomni/conf/v1.1.yaml",
}
FOLDERS = ("data.dir=/tmp/d", "data.corpus=/tmp/c", "run.dir=/tmp/r")


@pytest.fixture
def write(tmp_path):
    def one(name, content):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        return tmp_path / name

    return one


def test_defaults_need_no_file():
    config = load_config([])
    assert name_of(config.objective) == "ttt" and config.codec is None
    assert config.run.dir == "???" and config.train.steps == "???"
    assert [name_of(t) for t in config.tasks] == ["asr", "tts", "qa"]


def test_layers_later_wins_and_command_line_wins_over_all(write):
    a = write("a.yaml", {"train": {"steps": 1, "lr": 0.1}, "eval": {"limit": 3}})
    b = write("b.yaml", {"train": {"steps": 2}})
    config = load_config([a, b], ["train.lr=0.5"])
    assert (config.train.steps, config.train.lr, config.eval.limit) == (2, 0.5, 3)


def test_extends_is_relative_to_its_file_and_may_be_a_list(write):
    write("base/one.yaml", {"train": {"steps": 1, "accumulate": 7}})
    write("base/two.yaml", {"extends": "one.yaml", "train": {"steps": 2}})
    write("base/three.yaml", {"train": {"warmup_steps": 9}})
    top = write("top.yaml", {"extends": ["base/two.yaml", "base/three.yaml"], "train": {"lr": 0.25}})
    train = load_config([top]).train
    assert (train.steps, train.accumulate, train.warmup_steps, train.lr) == (2, 7, 9, 0.25)


def test_circular_extends(write):
    write("x.yaml", {"extends": "y.yaml"})
    y = write("y.yaml", {"extends": "x.yaml"})
    with pytest.raises(ConfigError, match=r"y\.yaml: 'extends' goes round in a circle: .*y\.yaml -> .*x\.yaml"):
        load_config([y])
    with pytest.raises(ConfigError, match="circle"):
        load_config([write("self.yaml", {"extends": "self.yaml"})])


def test_diamond_is_no_circle(write):
    write("base.yaml", {"train": {"steps": 1}})
    write("l.yaml", {"extends": "base.yaml"})
    write("r.yaml", {"extends": "base.yaml", "train": {"lr": 0.5}})
    assert load_config([write("t.yaml", {"extends": ["l.yaml", "r.yaml"]})]).train.lr == 0.5


def test_changed_component_replaces_its_block(write):
    a = write("a.yaml", {"objective": {"name": "ttt", "noise": {"name": "polynomial", "power": 3}, "min_mask_prob": 0.5}})
    kept = load_config([a], ["objective.noise.power=4"]).objective
    assert kept.noise.power == 4 and kept.min_mask_prob == 0.5
    swapped = load_config([a], ["objective.noise=cosine"]).objective
    assert name_of(swapped.noise) == "cosine" and swapped.min_mask_prob == 0.5
    assert name_of(load_config([a], ["objective={name: ar}"]).objective) == "ar"
    assert name_of(load_config([a], ["objective.name=ar"]).objective) == "ar"
    assert load_config([a], ["objective.noise=polynomial"]).objective.noise.power == 3, "the same name keeps its fields"


def test_lists_are_replaced_whole(write):
    a = write("a.yaml", {"data": {"splits": ["train", "dev", "test"]}, "objective": {"strategies": ["banom", "sst"]}})
    config = load_config([a], ["data.splits=[test]", "objective.strategies=[]"])
    assert config.data.splits == ["test"] and config.objective.strategies == ()


def test_merge_changes_no_input():
    old = {"a": {"b": 1}, "l": [1]}
    merge(old, {"a": {"b": 2}, "l": [2]})
    assert old == {"a": {"b": 1}, "l": [1]}


def test_interpolation(write):
    a = write(
        "a.yaml",
        {
            "data": {"dir": "/x", "train": "${data.dir}/train.jsonl"},
            "train": {"steps": 5, "log_every_steps": "${run.seed}"},
        },
    )
    config = load_config([a], ["data.dir=/y"])
    assert config.data.train == "/y/train.jsonl"
    assert config.train.log_every_steps == 1, "a default of the schema may be pointed at"
    with pytest.raises(ConfigError, match="config: .*nowhere"):
        load_config([a], ["data.dev=${data.nowhere}/x"])
    assert load_config([], ["data.train=${data.dir}/x"]).data.train == "???", "missing itself, for who needs it to say"
    with pytest.raises(ConfigError, match=r"^data\.train: missing mandatory value"):
        load_config([], ["data.train=${data.dir}/x"], need=("data.train",))


def test_missing_values_stop_only_the_verb_that_needs_them():
    load_config([], need=())
    with pytest.raises(ConfigError, match=r"^run\.dir: missing mandatory value.*run\.dir=\.\.\."):
        load_config([], need=("run.dir",))
    with pytest.raises(ConfigError, match=r"^train\.steps: missing"):
        load_config([], ["run.dir=x"], need=("run.dir", "train.steps"))
    with pytest.raises(ConfigError, match="^codec: missing; name a codec"):
        load_config([], need=("codec",))


@pytest.mark.parametrize(
    "override, pattern",
    [
        ("trian.steps=3", r"^trian: no such section\. Did you mean 'train'\?"),
        ("train.stpes=3", r"^train\.stpes: no such key .*Did you mean 'steps'\?"),
        ("train.steps=many", r"^train\.steps: .*many"),
        ("train.lr=[1]", r"^train\.lr: "),
        ("train=3", r"^train: expected a block of keys, got 3"),
        ("train.betas=[0.9]", r"^train\.betas: "),
        ("objective=tt", r"^objective: no objective named 'tt'"),
        ("objective.min_mask_prob=2", r"^objective\.min_mask_prob: must be >= 0 and < 1, got 2"),
        ("objective.mask.foo=2", r"^objective\.mask\.foo: no such key"),
        ("eval.sampler.remask=lowconfidence", r"^eval\.sampler\.remask: .*'low_confidence'"),
        ("eval.sampler.block_length=7", r"^eval\.sampler: gen_length 2600 must be a multiple"),
        ("tasks=asr", r"^tasks: expected a list"),
        ("tasks=[asr, tss]", r"^tasks\[1\]: no task named 'tss'\. Did you mean 'tts'\?"),
        ("tasks=[{name: asr, text_chunk: -1}]", r"^tasks\[0\]\.text_chunk: must be >= 0"),
        ("run.seed=1.5", r"^run\.seed: "),
        ("data.splits=train", r"^data\.splits: "),
        ("model.overrides=3", r"^model\.overrides: "),
        ("steps", "an override looks like"),
        ("=3", "an override looks like"),
        ("train..steps=3", "an override looks like"),
        ("train.steps=[1", r"^train\.steps: value '\[1' is not YAML"),
    ],
)
def test_messages_name_the_key(override, pattern):
    with pytest.raises((ConfigError, UnknownNameError), match=pattern) as error:
        load_config([], [override])
    assert "\n" not in str(error.value)


CHOICES = [
    ("train.engine=deepsped", "train.engine: no 'deepsped'. Did you mean 'deepspeed'? Choices: local, deepspeed"),
    ("model.attention=foo", "model.attention: no 'foo'. Choices: auto, packed, sdpa, eager, flex_attention"),
    ("model.dtype=int3", "model.dtype: no 'int3'. Choices: float32, bfloat16, float16"),
    ("model.lora.quantize=nf8", "model.lora.quantize: no 'nf8'. Did you mean 'nf4'? Choices: none, nf4, int8"),
    ("model.freeze=all", "model.freeze: no 'all'. Choices: none, text_rows, body, text_model"),
    ("eval.speak=loud", "eval.speak: no 'loud'. Choices: free, always, never"),
    ("eval.cache=blocks", "eval.cache: no 'blocks'. Did you mean 'block'? Choices: exact, block, dual, none"),
    ("data.form=roles_", "data.form: no 'roles_'. Did you mean 'roles'? Choices: interleaved, roles, text_then_speech, "
     "text_then_speech_tags, llada_tts, llada_tts_audio, headers"),
    ("data.prompt_rule=x", "data.prompt_rule: no 'x'. Choices: labels, official"),
    ("data.mix=token", "data.mix: no 'token'. Did you mean 'tokens'? Choices: records, tokens"),
    ("data.ratio_mode=batch", "data.ratio_mode: no 'batch'. Did you mean 'batches'? Choices: tokens, batches, legacy_10x"),
    ("data.long_rows=trim", "data.long_rows: no 'trim'. Choices: drop, cut, truncate"),
    ("run.device=tpu", "run.device: no 'tpu'. Did you mean 'cpu'? Choices: auto, cpu, cuda, cuda:N"),
    ("train.autocast=float8", "train.autocast: no 'float8'. Did you mean 'float16'? Choices: none, bfloat16, float16"),
    ("train.schedule_by=second", "train.schedule_by: no 'second'. Did you mean 'seconds'? Choices: steps, seconds"),
    ("train.zero_stage=7", "train.zero_stage: no 7. Choices: 0, 1, 2, 3"),
    ("train.offload=[params, param]", "train.offload[1]: no 'param'. Did you mean 'params'? Choices: optimizer, params"),
    ("eval.speak=no", "eval.speak: no 'no'. Choices: free, always, never"),
    ("train.engine=on", "train.engine: no 'on'. Choices: local, deepspeed"),
]  # fmt: skip
RANGES = [
    ("run.threads=100000", "run.threads: must be >= 0 and <= 1024, got 100000"),
    ("data.ratio=5", "data.ratio: must be >= 0 and <= 1, got 5.0"),
    ("data.max_drop_share=nan", "data.max_drop_share: must be a finite number, got nan"),
    ("data.row_tokens=0", "data.row_tokens: must be >= 1, got 0"),
    ("data.buckets=-1", "data.buckets: must be >= 0, got -1"),
    ("data.quadratic_tokens=-1", "data.quadratic_tokens: must be >= 0, got -1.0"),
    ("model.lora.dropout=1", "model.lora.dropout: must be >= 0 and < 1, got 1.0"),
    ("train.lr=nan", "train.lr: must be a finite number, got nan"),
    ("train.lr=-1", "train.lr: must be >= 0, got -1.0"),
    ("train.epochs=.inf", "train.epochs: must be a finite number, got inf"),
    ("train.max_seconds=nan", "train.max_seconds: must be a finite number, got nan"),
    ("train.betas=[0.9, 1]", "train.betas[1]: must be >= 0 and < 1, got 1.0"),
    ("train.eps=-1e-8", "train.eps: must be >= 0, got -1e-08"),
    ("train.steps=-1", "train.steps: must be >= 0, got -1"),
    ("train.keep_checkpoints=0", "train.keep_checkpoints: must be >= 1, got 0"),
    ("eval.temperature=-0.5", "eval.temperature: must be >= 0, got -0.5"),
    ("eval.temperature=inf", "eval.temperature: must be a finite number, got inf"),
    ("eval.top_p=0", "eval.top_p: must be > 0 and <= 1, got 0.0"),
    ("eval.top_k=-1", "eval.top_k: must be >= 0, got -1"),
    ("eval.batch_size=-1", "eval.batch_size: must be >= 1, got -1"),
    ("eval.bootstrap=-1", "eval.bootstrap: must be >= 0, got -1"),
    ("eval.samples=-1", "eval.samples: must be >= 0, got -1"),
    ("eval.limit=-1", "eval.limit: must be >= 0, got -1"),
    ("eval.max_tokens=99999999", "eval.max_tokens: must be >= 1 and <= 1000000, got 99999999"),
]


@pytest.mark.parametrize("override, line", CHOICES + RANGES)
def test_choices_and_ranges_are_checked_when_a_configuration_is_loaded(override, line):
    with pytest.raises(ConfigError) as error:
        load_config([], [override])
    assert str(error.value) == line


def test_every_choice_and_range_of_the_schema_accepts_its_default():
    for section in SECTIONS.values():
        for name, declared in field_types(section).items():
            default = section.__dataclass_fields__[name].default
            assert default == "???" or fault(declared, default) is None, f"{section.__name__}.{name}"


def test_sections_made_in_python_are_checked_too():
    with pytest.raises(ValueError, match="^lr: must be >= 0, got -1"):
        replace(load_config([]).train, lr=-1)


def test_renamed_and_moved_keys_still_work_and_warn(write, monkeypatch, caplog):
    monkeypatch.setattr(load, "RENAMED_KEYS", {"train.rate": "train.lr", "model.seed": "run.seed", "optim": "train"})
    old = write("config.yaml", {"train": {"rate": 0.5, "steps": 3}, "model": {"seed": 7}})
    config = load_config([old], ["train.lr=0.25"])
    assert (config.train.lr, config.train.steps, config.run.seed) == (0.25, 3, 7), "a later layer may use the new name"
    assert [r.message for r in caplog.records] == [
        "config: train.rate is now called train.lr; the old name still works",
        "config: model.seed is now called run.seed; the old name still works",
    ]
    assert load_config([], ["optim.steps=4"]).train.steps == 4
    with pytest.raises(ConfigError, match="^train.rate: is the old name of train.lr, which is given too; remove train.rate"):
        build_config({"train": {"rate": 1, "lr": 1}})


def test_values_are_converted():
    train = load_config([], ["train.steps=3", "train.lr=1e-3", "train.resume=false", "train.betas=[0.5, 0.75]"]).train
    assert train.lr == 0.001 and train.resume is False and tuple(train.betas) == (0.5, 0.75)


@pytest.mark.parametrize("content", ["train: [1", "a: b: c", "- 1\n- 2\n", "\tx: 1"])
def test_bad_yaml_names_the_file(write, content):
    path = write("bad.yaml", content)
    with pytest.raises(ConfigError, match=r"bad\.yaml: ") as error:
        load_config([path])
    assert "\n" not in str(error.value)


def test_empty_and_absent_files(write, tmp_path):
    assert load_config([write("empty.yaml", "")]).run.seed == 1
    with pytest.raises(ConfigError, match=r"absent\.yaml: no such config file"):
        load_config([tmp_path / "absent.yaml"])
    with pytest.raises(ConfigError, match=r"gone\.yaml: no such config file"):
        load_config([write("a.yaml", {"extends": "gone.yaml"})])


def test_plugins_are_listed_relative_to_the_recipe(write):
    path = write("a.yaml", {"plugins": ["nothing_here.py"]})
    with pytest.raises(RegistryError, match="nothing_here.py.*no such file"):
        load_config([path])
    with pytest.raises(ConfigError, match="^plugins: expected a list"):
        load_config([], ["plugins=x.py"])


def same(a, b):
    return replace(a) == replace(b) and resolved_yaml(a) == resolved_yaml(b)


def test_resolved_yaml_loads_again_to_an_equal_config(write):
    first = load_config(
        [], ["objective.noise={name: polynomial, power: 3}", "train.steps=4", "model.overrides={hidden_size: 8}"]
    )
    again = load_config([write("resolved.yaml", resolved_yaml(first))])
    assert same(first, again)


def test_build_config_takes_plain_values():
    assert build_config({"run": {"seed": 3}}).run.seed == 3


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_shipped_recipe_loads(path, write):
    base = OVERLAYS.get(str(path.relative_to(ROOT)))
    paths = [ROOT / base, path] if base else [path]
    config = load_config(paths, FOLDERS)
    assert config.tasks
    assert same(config, load_config([write("resolved.yaml", resolved_yaml(config))]))


def test_read_layers_keeps_only_what_was_given(write):
    assert read_layers([write("a.yaml", {"train": {"steps": 1}})]) == {"train": {"steps": 1}}
