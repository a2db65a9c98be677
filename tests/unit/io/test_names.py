"""File names of ids: ordinary ids stay, any other id gets a name that is safe and its own."""

import itertools

import pytest

from ttt.io.names import INDEX, MAX_BYTES, file_name, file_names, read_index, write_index

ORDINARY = ["test-0001", "a_b", "a.b", "a..b", "LJ001-0001", "1089_134686_000001", "-x", "你好", "x" * MAX_BYTES]
OTHER = [
    "", ".", "..", "...", ".hidden", "a/b", "a\\b", "a b", "a\0b", "a\nb", "a\x1b[2Jb", "../../etc/passwd", "/", "~", "a~b",
    "x" * 300, "你" * 300, "\ud800", "e\u0301", "a.wav", "A.WAV", "a.json", "a:b", "CON?", "a*", "_~e6fc5bb9",
    "a.", "a..", "con", "NUL.x", "\u202egpj", "x" * 200_000,
]  # fmt: skip


@pytest.mark.parametrize("key", ORDINARY)
def test_ordinary_ids_are_their_own_names(key):
    assert file_name(key) == key


@pytest.mark.parametrize("key", OTHER)
def test_other_ids_get_safe_names(tmp_path, key):
    name = file_name(key)
    assert name != key and not name.startswith(".") and not set(name) & set("/\\\0\n\x1b :*?")
    (tmp_path / f"{name}.wav").write_text("")
    assert [p.name for p in tmp_path.iterdir()] == [f"{name}.wav"]


def test_different_ids_have_different_names():
    names = [file_name(key) for key in [*ORDINARY, *OTHER]]
    assert len({n.lower() for n in names}) == len(names)


def test_all_short_ids_of_an_awkward_alphabet_differ():
    keys = ["".join(letters) for n in range(5) for letters in itertools.product("a._/~", repeat=n)]
    assert len({file_name(key) for key in keys}) == len(keys)


def test_names_of_a_set_differ_where_capitals_do_not_count():
    keys = [*ORDINARY, *OTHER, "a", "A", "straße", "strasse", "STRASSE"]
    names = file_names(keys)
    assert len({name.casefold() for name in names.values()}) == len(keys)
    assert names["a_b"] == "a_b" and names["a"] != "a" and file_names(reversed(keys)) == names
    assert all(len(name.encode()) <= MAX_BYTES for name in names.values())


def test_the_index_leads_back_to_the_ids(tmp_path):
    keys = [*ORDINARY, *OTHER]
    names = file_names(keys)
    write_index(tmp_path, {name: key for key, name in names.items()})
    assert read_index(tmp_path) == {name: key for key, name in names.items()}


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "[" * 100_000, '{"names": {"a": "b"}}', '{"format": "ttt-names-1", "names": 5}']
)
def test_somebody_elses_index_names_nothing(tmp_path, text):
    (tmp_path / INDEX).write_text(text)
    assert read_index(tmp_path) == {}
