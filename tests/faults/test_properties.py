"""Any JSON value in any field, any bytes in any file, any text as an id: success, or one line and exit code 2."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

bounded = settings(
    deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
few, many = settings(bounded, max_examples=8), settings(bounded, max_examples=40)

# Texts with halves of surrogate pairs, controls and marks of direction among them.
texts = st.text(st.characters(exclude_categories=()), max_size=12)
scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), texts)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=6
)

C = ("--config", "recipe.yaml")


def verdict(run, *words: str) -> None:
    """Success, or exit code 2 and one line that is no command to the terminal."""
    outcome = run(*words)
    assert not outcome.crashed, outcome.err
    assert outcome.code in (0, 1, 2), outcome.code
    if outcome.code == 2:
        assert len(outcome.err.splitlines()) == 1, outcome.err
    assert not set(outcome.out + outcome.err) & set("\x1b\x9b\x07\u202e"), repr(outcome.out + outcome.err)


# Readers: the verb that reads a file fastest -> the file.
READERS = {
    "data/test.jsonl": ("data", "check", "data/test.jsonl"),
    "chats.jsonl": ("data", "convert", "--from", "official", "--overwrite", "chats.jsonl", "new.jsonl"),
    "corpus/test.jsonl": ("tokenize", "--overwrite", *C, "data.splits=[test]", "data.dir=new"),
    "corpus/test.items.jsonl": ("examples", "--overwrite", *C),
    "data/codes/test.jsonl": ("examples", "--overwrite", *C),
    "run/eval/test.trace.jsonl": ("replay", "run/eval/test.trace.jsonl", "--speed", "0"),
    "codes.json": ("vocode", *C, "--overwrite", "--tokens", "codes.json", "--out", "new.wav"),
    "store/store.json": ("data", "check", "store"),
    "run/eval/card.json": ("repro", "run/eval/card.json", "--dry-run"),
}


def first_record(path: str) -> dict:
    """The first object of a file."""
    text = Path(path).read_text()
    return json.loads(text) if path.endswith(".json") else json.loads(text.splitlines()[-1])


@pytest.mark.parametrize("path", READERS)
def test_any_value_in_any_field(path, world, run, tree):
    good, record = Path(path).read_bytes(), first_record(path)

    @few
    @given(st.sampled_from(sorted(record)), values)
    def check(key, value):
        line = json.dumps({**record, key: value})
        Path(path).write_text(line + "\n")
        verdict(run, *READERS[path])

    check()
    Path(path).write_bytes(good)


@pytest.mark.parametrize("path", [*READERS, "recipe.yaml"])
def test_any_bytes_in_any_file(path, world, run):
    words = READERS.get(path, ("config", *C))

    @few
    @given(st.binary(max_size=60) | values.map(lambda value: json.dumps(value).encode("utf-8", "surrogatepass")))
    def check(content):
        Path(path).write_bytes(content)
        verdict(run, *words)

    check()


def test_any_text_as_id(world, run, tree):
    """Ids end up in file names, in the terminal and in seeds."""
    record = first_record(world.examples)
    own = ("new", "odd.jsonl")
    before = {k: v for k, v in tree("..").items() if not k.startswith(tuple(f"world/{o}" for o in own))}

    @few
    @given(texts)
    def check(uid):
        Path("odd.jsonl").write_text(json.dumps({**record, "uid": uid}) + "\n")
        verdict(run, "stream", "run", "--examples", "odd.jsonl", "--warmup", "0", "--out", "new", "--overwrite")

    check()
    after = {k: v for k, v in tree("..").items() if not k.startswith(tuple(f"world/{o}" for o in own))}
    assert after == before


def test_any_value_in_the_configuration(world, run):
    from ttt.config.load import SECTIONS

    keys = [f"{section}.{key}" for section, cls in SECTIONS.items() for key in cls.__dataclass_fields__]
    keys += [
        "plugins",
        "tasks",
        "codec",
        "judge",
        "speaker",
        "objective",
        "extends",
        "objective.mask",
        "eval.sampler.name",
    ]

    @many
    @given(st.sampled_from(keys), values)
    def check(key, value):
        node = value
        for part in reversed(key.split(".")):
            node = {part: node}
        try:
            content = yaml.safe_dump(node, allow_unicode=True)
        except yaml.YAMLError:  # no YAML writer writes it
            content = json.dumps(node)
        Path("edited.yaml").write_bytes(content.encode("utf-8", "surrogatepass"))
        verdict(run, "config", "--config", "edited.yaml")

    check()


@many
@given(texts)
def test_names_of_ids(key):
    """Safe on every file system, different for different ids."""
    from ttt.io.names import file_name

    name = file_name(key)
    assert name and "/" not in name and "\0" not in name and not name.startswith(".") and len(name.encode()) <= 200
    assert name.isprintable() and file_name(key) == name and (key == name or "~" in name)


@many
@given(values)
def test_what_is_read_is_what_was_written(value):
    """The reader of JSON and Python's agree, except for what no file may hold."""
    from ttt.errors import DataError
    from ttt.io.json_input import parse_json

    text = json.dumps(value)
    try:
        read = parse_json(text, "here")
    except DataError as error:
        assert str(error).startswith("here: ") and "\n" not in str(error)
        assert any(word in text for word in ("NaN", "Infinity", "\\ud")), error
    else:
        assert read == json.loads(text)


@many
@given(texts)
def test_visible_text(text):
    from ttt.io.terminal import visible

    shown = visible(text)
    assert visible(shown) == shown
    shown.encode("utf-8")
    assert not set(shown) & set("\x1b\x07\x9b\r\u202e\x7f")
