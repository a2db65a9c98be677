"""Configurations that cannot be: one line each, with the key; text is taken as it is written; what is documented loads."""

import logging
from dataclasses import fields
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from ttt.config.load import SECTIONS, build_config, load_config, read_layers, resolved_yaml
from ttt.config.schema import RunConfig
from ttt.config.written import unquoted
from ttt.errors import TttError
from ttt.registry import families
from ttt.registry.core import Registry
from ttt.registry.fields import bounds, choices, field_types, is_text

TEXTS = [
    "2026_01_30", "001", "no", "off", "Yes", "12:30:45", "exp #1/a", "1e5", "0x1F", "1_000", ".5", ".inf", "2026-01-30", "a: b",
    "[1", "{x", "- x", "? x", "!!int 3", "&a", "*a", "%", "@x", "`", "a\tb", "a\nb", "null", "~", "你好", "x=y", " a ", "it's",
]  # fmt: skip


def refusal(content: str | None, tmp_path, *overrides: str) -> str:
    """The one line of `load_config`."""
    paths = []
    if content is not None:
        paths = [tmp_path / "recipe.yaml"]
        paths[0].write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(TttError) as error:
        load_config(paths, overrides)
    assert "\n" not in str(error.value) and len(str(error.value)) < 700
    return str(error.value)


@pytest.mark.parametrize("text", TEXTS)
def test_text_of_the_command_line_is_taken_as_typed(text):
    config = load_config([], [f"run.dir={text}", f"eval.note={text}", "codec=precomputed"])
    assert (config.run.dir, config.eval.note) == (text, text)


@pytest.mark.parametrize(
    "settings_, expected",
    [
        (["codec={name: rvq}", "codec.path=001"], "001"),
        (["codec.name=rvq", "codec.path=exp #1"], "exp #1"),
        (["codec.path=2026_01_30", "codec.name=rvq"], "2026_01_30"),  # the plug-in is named later
        (["codec={name: rvq, path: no}"], "no"),
    ],
)
def test_text_of_plug_ins_is_taken_as_typed(settings_, expected):
    assert load_config([], settings_).codec.path == expected


@pytest.mark.parametrize(
    "typed, text", [("'no'", "no"), ('"a b"', "a b"), ("''", ""), ("'a' and 'b'", "'a' and 'b'"), ("'", "'"), ('"a', '"a')]
)
def test_quotes_around_the_whole_are_taken_off(typed, text):
    assert unquoted(typed) == text
    assert load_config([], [f"eval.note={typed}"]).eval.note == text


def test_text_in_files_and_lists_is_taken_as_written(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("run: {dir: 2026_01_30}\ndata: &d {dir: 001, splits: [no, 010, '5']}\neval: {note: 12:30:45, speak: never}\n")
    config = load_config([path], ["tasks=[{name: asr, system: no}]"])
    assert (config.run.dir, config.data.dir, config.eval.note) == ("2026_01_30", "001", "12:30:45")
    assert config.data.splits == ["no", "010", "5"] and config.tasks[0].system == "no"
    again = tmp_path / "again.yaml"
    again.write_text(resolved_yaml(config))
    assert resolved_yaml(load_config([again])) == resolved_yaml(config)


def test_numbers_and_references_are_still_read_by_yaml(tmp_path):
    config = load_config(
        [], ["train.steps=1_000", "train.lr=1e-3", "train.resume=no", "run.dir=${data.dir}/x", "data.dir=001"]
    )
    assert (config.train.steps, config.train.lr, config.train.resume, config.run.dir) == (1000, 0.001, False, "001/x")
    config = load_config([], ["model.overrides={rms_norm_eps: 1e-6, hidden_act: silu}", "model.overrides.hidden_size=8"])
    assert config.model.overrides == {"rms_norm_eps": 1e-6, "hidden_act": "silu", "hidden_size": 8}


def test_settings_of_a_plug_in_alone():
    assert read_layers([], ["path=001"], families.CODEC.get("rvq")) == {"path": "001"}


COMMAND_LINE = [
    ("run.dir=", "run.dir: must not be empty"),
    ("run.dir=  ", "run.dir: must not be empty"),
    ("data.train=", "data.train: must not be empty"),
    ("data.dir=''", "data.dir: must not be empty"),
    ("run.dir=${run.dir}", "config: run.dir: Recursive interpolation detected"),
    ("run.dir=${", "run.dir: no viable alternative"),
    ("run.dir=a\0b", "run.dir: 'a\\x00b' holds characters that no file or file name can hold"),
    ("run.device=cuda:", "run.device: no 'cuda:'. Did you mean 'cuda:N'? Choices: auto, cpu, cuda, cuda:N"),
    ("run.device=cuda:N", "run.device: no 'cuda:N'"),
    ("run.device=gpu", "Choices: auto, cpu, cuda, cuda:N"),
    ("run.seed=99999999999999999999", "run.seed: must be >= -9223372036854775808 and < 9223372036854775808"),
    (f"run.seed={'9' * 5000}", "run.seed: value '9999"),
    ("run.seed=true", "run.seed: must be a whole number, got True"),
    ("data.jobs=100000", "data.jobs: must be >= 1 and <= 1024, got 100000"),
    ("data.row_tokens=99999999999", "data.row_tokens: must be <= 10000000, got 99999999999"),
    ("train.steps=many", "train.steps: must be a whole number, got 'many'"),
    (f"train.steps={'[' * 3000}", "train.steps: value '[["),
    ("train.betas=[[1], 2]", "train.betas: must be 2 x number, got [[1], 2]"),
    ("train.betas={a: 1}", "train.betas: must be 2 x number, got {'a': 1}"),
    ("train.optimizer={name: muon, momentum: 7}", "train.optimizer.momentum: must be"),
    ("tasks=5", "tasks: expected a list of task blocks, got 5"),
    ("objective=no", "objective: no objective named 'no'"),
    ("plugins=5", "plugins: expected a list of files or modules, got 5"),
    ("train={steps: 5, epochs: 3}", "train.epochs: 3 is given beside train.steps=5 (the command line); give one of the two"),
    ("data={batch_tokens: 5, batch_samples: 3}", "data.batch_samples: 3 is given beside data.batch_tokens=5 (the command line)"),
]


@pytest.mark.parametrize("override, words", COMMAND_LINE, ids=[o[:40] for o, _ in COMMAND_LINE])
def test_settings_of_the_command_line(override, words, tmp_path):
    parts = override.split(" ") if override.startswith("train.steps=5 ") else [override]
    assert words in refusal(None, tmp_path, *parts)


FILES = [
    ("run: [1]", "run: expected a block of keys, got [1]"),
    ("run: 5", "run: expected a block of keys, got 5"),
    ("run: {dir: [a]}", "run.dir: must be text, got ['a']"),
    ("run: {dir: null}", "run.dir: must be text, got null"),
    ("run: {5: 1}", "run.5: no such key"),
    ("run: {null: 1}", "recipe.yaml: not readable as YAML: run: Incompatible key type"),
    ("run: !!set {a, b}", "recipe.yaml: not readable as YAML: run:"),
    ("run: !!python/object:os.system x", "recipe.yaml: not readable as YAML"),
    (f"run: {{seed: {'9' * 5000}}}", "recipe.yaml: not readable as YAML: Exceeds the limit"),
    ("extends: 5", "recipe.yaml: extends: expected a file or a list of files, got [5]"),
    ("extends: [[a]]", "recipe.yaml: extends: expected a file or a list of files"),
    ("extends: {a: b}", "recipe.yaml: extends: expected a file or a list of files"),
    ("extends: recipe.yaml", "'extends' goes round in a circle"),
    ("extends: " + "a" * 300, "not readable as YAML: File name too long"),
    ("tasks: 5", "tasks: expected a list of task blocks, got 5"),
    ("tasks: [null]", "tasks[0]: expected a task"),
    ("tasks: [[asr]]", "tasks[0]: expected a task"),
    ("plugins: 5", "plugins: expected a list of files or modules, got 5"),
    ("plugins: [5]", "plug-in '5' failed to import"),
    ("plugins: [null]", "plugins: expected a list of files or modules"),
    ("plugins: [[x]]", "plugins: expected a list of files or modules"),
    ("objective: [1]", "objective: expected a objective"),
    ("objective: {name: [1]}", "objective: no objective named"),
    ("codec: []", "codec: expected a codec"),
    ("eval: {sampler: null}", "eval.sampler: must not be null; name one: "),
    ("train: {optimizer: null}", "train.optimizer: must not be null; name one: "),
    ("train:\n  steps: ${train.steps}", "config: train.steps: Recursive interpolation detected"),
    ("train:\n  steps: ${run.seed}\nrun:\n  seed: ${train.steps}", "Recursive interpolation detected"),
    ("data: '${train}'", "data.steps: no such key"),
    ("x: ${", "recipe.yaml: not readable as YAML: x: no viable alternative"),
    ("data: {dev: '${foo:1}'}", "config: data.dev: Unsupported interpolation type foo"),
    ("data: {splits: {a: b}}", "data.splits: must be a list of text, got {'a': 'b'}"),
    ("data: {splits: [[a]]}", "data.splits: must be a list of text, got [['a']]"),
    ("model: {overrides: [1]}", "model.overrides: must be a block of keys, got [1]"),
    ("model: {lora: [5]}", "model.lora: expected a block of keys, got [5]"),
    ("train: {steps: 5, epochs: 3}", "train.epochs: 3 is given beside train.steps=5"),
    ("a: &x [*x]", "recipe.yaml: not readable as YAML: YAML recursive aliases"),
    ("[" * 2000, "recipe.yaml: not readable as YAML"),
    ("5", "recipe.yaml: not readable as YAML"),
    ("a: 1\n---\nb: 2", "recipe.yaml: not readable as YAML: expected a single document"),
    ("run: {dir: x}\nrun: {dir: y}", "found duplicate key run"),
    (b"\xff\xfer\x00", "recipe.yaml: not readable as YAML"),
    (b"\x00", "recipe.yaml: not readable as YAML"),
]


@pytest.mark.parametrize("content, words", FILES, ids=[str(c)[:40] for c, _ in FILES])
def test_files(content, words, tmp_path):
    assert words in refusal(content, tmp_path)


def test_circles_of_files_and_of_links(tmp_path):
    (tmp_path / "a.yaml").write_text("extends: b.yaml")
    (tmp_path / "b.yaml").write_text("extends: a.yaml")
    (tmp_path / "loop.yaml").symlink_to(tmp_path / "loop.yaml")
    for name, words in [("a.yaml", "'extends' goes round in a circle"), ("loop.yaml", "loop.yaml")]:
        with pytest.raises(TttError, match=words):
            load_config([tmp_path / name])


def test_an_empty_section_takes_nothing_back(tmp_path):
    (tmp_path / "base.yaml").write_text("train: {steps: 7}\ncodec: toy")
    (tmp_path / "top.yaml").write_text("extends: base.yaml\ntrain:\ncodec:\n")
    config = load_config([tmp_path / "top.yaml"])
    assert config.train.steps == 7 and config.codec is None, "a plug-in that may be absent can be taken back"


@pytest.mark.parametrize(
    "raised", ["KeyError('x')", "SystemExit(0)", "RuntimeError('a\\nb')", "ZeroDivisionError()", "OSError(2, 'no')"]
)
def test_plug_ins_that_raise_when_they_are_made(raised, tmp_path):
    name = "breaks_" + "".join(c for c in raised if c.isalpha())
    (tmp_path / "plug.py").write_text(
        "from dataclasses import dataclass\nfrom ttt.interfaces import NoiseSchedule\nfrom ttt.registry.families import NOISE\n"
        f"@NOISE.register({name!r})\n@dataclass(frozen=True)\nclass Broken(NoiseSchedule):\n"
        "    def alpha(self, t): return t\n    def dalpha(self, t): return t\n    def inverse(self, p): return p\n"
        f"    def __post_init__(self): raise {raised}\n"
    )
    try:
        line = refusal(None, tmp_path, f"plugins=[{tmp_path / 'plug.py'}]", f"objective.noise={name}")
        assert line.startswith(f"objective.noise: {name!r} cannot be made: ")
    finally:
        families.NOISE._entries.pop(name, None)


LENGTHS = [
    ("train: {steps: 500}", ["train.epochs=10"], (0, 10.0), "train.epochs=10 (the command line) replaces train.steps=500"),
    ("train: {epochs: 3}", ["train.steps=20"], (20, 0.0), "train.steps=20 (the command line) replaces train.epochs=3"),
    ("train: {steps: 0, epochs: 3}", [], (0, 3.0), ""),
    ("train: {steps: 500}", ["train.steps=0", "train.epochs=3"], (0, 3.0), ""),
    ("train: {lr: 1}", ["train.steps=5", "train.epochs=3"], (0, 3.0), "train.epochs=3 (the command line) replaces train.steps=5"),
    ("train: {steps: 500}", ["train.epochs=0"], (500, 0.0), ""),
    ("train: {steps: 500}", ["train.steps=7"], (7, 0.0), ""),
    ("train: {steps: 500}", ["train.lr=1"], (500, 0.0), ""),
]


@pytest.mark.parametrize("content, overrides, expected, line", LENGTHS)
def test_the_later_length_of_a_run_counts(content, overrides, expected, line, tmp_path, caplog):
    (tmp_path / "r.yaml").write_text(content)
    with caplog.at_level(logging.INFO):
        train = load_config([tmp_path / "r.yaml"], overrides).train
    assert (train.steps, train.epochs) == expected
    assert len(caplog.messages) == bool(line) and line in " ".join(caplog.messages)


def test_the_later_size_of_a_batch_counts(tmp_path, caplog):
    (tmp_path / "a.yaml").write_text("data: {batch_tokens: 8192}")
    (tmp_path / "b.yaml").write_text("extends: a.yaml\ndata: {batch_samples: 4, row_tokens: 100}")
    caplog.set_level(logging.INFO)
    data = load_config([tmp_path / "b.yaml"]).data
    assert (data.batch_tokens, data.batch_samples, data.batch_positions) == (0, 4, 400)
    assert f"data.batch_samples=4 ({tmp_path / 'b.yaml'}) replaces data.batch_tokens=8192" in caplog.text
    data = load_config([tmp_path / "b.yaml"], ["data.batch_tokens=300"]).data
    assert (data.batch_tokens, data.batch_samples, data.batch_positions) == (300, 0, 300)
    (tmp_path / "record.yaml").write_text(resolved_yaml(build_config({"data": {"batch_samples": 4}})))
    assert load_config([tmp_path / "record.yaml"]).data.batch_positions == 4 * 512, "a record holds every key"
    assert load_config([tmp_path / "record.yaml"], ["data.batch_tokens=1024"]).data.batch_samples == 0


def test_the_record_of_a_run_in_epochs_holds_both_and_loads(tmp_path, caplog):
    """`train` writes the updates that the epochs came to into the run's config.yaml."""
    (tmp_path / "config.yaml").write_text(resolved_yaml(build_config({"train": {"steps": 40, "epochs": 2}})))
    train = load_config([tmp_path / "config.yaml"]).train
    assert (train.steps, train.epochs) == (40, 2.0) and not caplog.messages
    assert load_config([tmp_path / "config.yaml"], ["train.epochs=3"]).train.steps == 0


def documented() -> list[tuple[str, Any]]:
    """Every choice and the ends of every range of the sections."""
    values: list[tuple[str, Any]] = []
    for name, section in SECTIONS.items():
        for key, declared in field_types(section).items():
            path, listed, limits = f"{name}.{key}", choices(declared), bounds(declared)
            for choice in listed:
                choice = "cuda:1" if choice == "cuda:N" else choice
                values.append((path, [choice] if str(declared).startswith("list") else choice))
            if limits is not None and not str(declared).startswith(("tuple", "list")):
                values += [(path, end) for end in (limits.ge, limits.le) if end is not None]
    return values


@pytest.mark.parametrize("path, value", documented(), ids=str)
def test_every_documented_value_loads(path, value, tmp_path):
    section, _, key = path.partition(".")
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({section: {key: value}}))
    read = getattr(getattr(load_config([tmp_path / "r.yaml"]), section), key)
    assert read == value
    typed = getattr(getattr(load_config([], [f"{path}={value}"]), section), key)
    assert typed == value


def test_every_default_of_every_plug_in_and_section_loads_when_given():
    for registry in vars(families).values():
        for entry in registry.entries() if isinstance(registry, Registry) else ():
            if any(f.default is f.default_factory for f in fields(entry.cls) if f.init):
                continue  # needs values
            made = registry.build({"name": entry.name}, "x")
            plain = {f.name: getattr(made, f.name) for f in fields(entry.cls) if f.init and "family" not in f.metadata}
            assert registry.build({"name": entry.name, **plain}, "x") == made


NUMBERS = st.sampled_from([-1, 0, 7, 10**30, -0.5, 1.5, float("nan"), float("inf"), 1e300, True])
VALUES = st.recursive(
    st.none() | NUMBERS | st.text(max_size=8) | st.sampled_from(["???", "${x}", "${", "no", "ttt", "cuda:1"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["name", "x", "steps", "5"]), inner, max_size=3),
    max_leaves=4,
)  # fmt: skip
PATHS = [f"{s}.{f}" for s, cls in SECTIONS.items() for f in field_types(cls)] + [f.name for f in fields(RunConfig)]


@settings(max_examples=250, deadline=None, derandomize=True)
@given(st.sampled_from([p for p in PATHS if p != "plugins"]), VALUES)
def test_any_value_in_any_field_is_refused_in_one_line_or_loads(path, value):
    section, _, key = path.partition(".")
    try:
        config = build_config({section: {key: value}} if key else {section: value})
    except TttError as error:
        assert "\n" not in str(error)
        return
    resolved_yaml(config)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.sampled_from([p for p in PATHS if p != "plugins"]), st.text(max_size=12))
def test_any_text_of_the_command_line_is_refused_in_one_line_or_taken(path, text):
    section, _, key = path.partition(".")
    try:
        config = load_config([], [f"{path}={text}"])
    except TttError as error:
        assert "\n" not in str(error)
        return
    if key and is_text(field_types(SECTIONS[section])[key]) and "$" not in text and text[:1] not in ("'", '"'):
        assert getattr(getattr(config, section), key) == text


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.binary(max_size=40) | st.text(alphabet="{}[]:-&*!'\"#,\n abc01${}|>%@~?", max_size=40).map(str.encode))
def test_any_bytes_in_a_file(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("any") / "r.yaml"
    path.write_bytes(content)
    try:
        load_config([path])
    except TttError as error:
        assert "\n" not in str(error)
    assert path.read_bytes() == content
