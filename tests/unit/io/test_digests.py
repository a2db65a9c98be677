"""Digests that are stored in cards, markers, checkpoints and manifests: their values must never change."""

import pytest

from ttt.errors import DataError
from ttt.io import digests


@pytest.fixture()
def folder(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "a.txt").write_bytes(b"abc")
    (tmp_path / "b" / "c.bin").write_bytes(bytes(range(256)))
    (tmp_path / "x.done.json").write_text("{}")
    return tmp_path


STORED = [
    (lambda f: digests.digest_of_bytes(b"abc"), "d8bb14d833d59559"),
    (lambda f: digests.digest_of_bytes(b"abc", 4), "63906248"),
    (lambda f: digests.digest_of_json({"b": 1, "a": [2, "é"]}), "0cac1d155664f8de"),
    (lambda f: digests.digest_of_file(f / "a.txt"), "d8bb14d833d59559"),
    (lambda f: digests.digest_of_file(f / "a.txt", 16), "cf4ab791c62b8d2b2109c90275287816"),
    (lambda f: digests.digest_of_listing(f, ".done.json"), "43c145b9fdaf39d9"),
    (lambda f: digests.sha256_digest(f / "a.txt"), "ba7816bf8f01cfea"),
    (lambda f: digests.sha256_digest(f), "2621263c37994682"),
    (lambda f: digests.hash64(b"abc"), 0x5995d533d814bbd8),
    (lambda f: digests.hash64(b"abc", "big"), 0xD8BB14D833D59559),
]


@pytest.mark.parametrize(("digest", "value"), STORED)
def test_values(folder, digest, value):
    assert digest(folder) == value


def test_order_of_keys_and_contents():
    assert digests.digest_of_json({"a": 1, "b": 2}) == digests.digest_of_json({"b": 2, "a": 1})
    assert digests.digest_of_json({"a": 1, "b": 2}) != digests.digest_of_json({"a": 1, "b": 3})


def test_a_listing_sees_names_and_sizes_only(folder):
    before = digests.digest_of_listing(folder)
    (folder / "a.txt").write_bytes(b"xyz")
    assert digests.digest_of_listing(folder) == before
    (folder / "a.txt").write_bytes(b"xyzz")
    assert digests.digest_of_listing(folder) != before


def test_sha256_of_nothing(tmp_path):
    with pytest.raises(DataError, match="none: cannot take its digest"):
        digests.sha256_digest(tmp_path / "none")


def test_digest_of_a_folder_depends_on_names_and_contents(tmp_path):
    for name, text in (("a", "1"), ("b", "2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_text(text)
    before = digests.sha256_digest(tmp_path)
    (tmp_path / "b" / "x").write_text("3")
    assert digests.sha256_digest(tmp_path) != before
