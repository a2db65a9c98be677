"""The official mix JSON: which records it shows, and that packing it changes nothing."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import audio, chat, text, tiny_tokenizer
from ttt.data.read.examples import write_examples
from ttt.data.read.records import RecordError
from ttt.data.sources.build_store import Settings, chunks, in_order, pack
from ttt.data.sources.mix import is_mix, named, open_streams, read_mix, select, sources_of
from ttt.data.sources.streams import InMemory, Mixture, streams_digest
from ttt.errors import DataError
from ttt.text.tokenizer import TextTokenizer, train_bpe

ROOT = Path(__file__).resolve().parents[3]
SAMPLES = Path(os.environ.get("TTT_SHARED", ROOT.parent / "shared")) / "official_samples"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two sources of 10 and 6 examples, their mix, a tokenizer."""
    path = tmp_path_factory.mktemp("mix")
    tiny_tokenizer().save(path / "tok")
    for name, n in (("a", 10), ("b", 6)):
        write_examples(
            path / f"{name}.jsonl",
            [chat(str(i), [text("a cat")], [text("on"), audio([i, 3], "last")]) for i in range(n)],
        )
    mix = [
        {"path": "a.jsonl", "sample_ratio": 0.35, "data_type": "IT"},
        {"path": "b.jsonl", "sample_ratio": 1, "data_type": "PT"},
    ]
    (path / "mix.json").write_text(json.dumps([*mix, {"path": "gone.jsonl", "sample_ratio": 0}]))
    return path


def test_select_is_the_official_share():
    assert [len(select(n, r, "a")) for n, r in ((10, 0.35), (10, 0.0), (3, 0.33), (10, 1.0), (10, 3.0))] == [
        3,
        0,
        0,
        10,
        10,
    ]
    assert np.array_equal(select(100, 0.3, "a"), select(100, 0.3, "a"))
    assert not np.array_equal(select(100, 0.3, "a"), select(100, 0.3, "b"))
    assert set(select(100, 0.3, "a")) < set(select(100, 0.5, "a")), "a larger share only adds records"
    chosen = np.zeros(50)
    for name in range(400):
        chosen[select(50, 0.5, str(name))] += 1
    assert chosen.min() > 130 and chosen.max() < 270, "every record has the same chance"


@pytest.mark.parametrize("packed", [False, True])
def test_records_and_tokens(folder, tmp_path, packed):
    tokenizer = TextTokenizer.load(folder / "tok")
    path = folder / "mix.json"
    if packed:
        pack(sources_of(path), tmp_path / "store", Settings(str(folder / "tok")))
        path = tmp_path / "store"
    records = open_streams(path, tokenizer)
    assert len(records) == 3 + 6 and [s.uid for s in records][3:] == list("012345")
    weights = open_streams(path, tokenizer, mix="tokens")
    assert (
        isinstance(weights, Mixture) and weights.weights == [0.35, 1.0] and [len(p) for p in weights.parts] == [10, 6]
    )


def test_a_mix_of_a_store_and_a_file(folder, tmp_path):
    tokenizer = TextTokenizer.load(folder / "tok")
    pack(sources_of(folder / "a.jsonl"), tmp_path / "a", Settings(str(folder / "tok")))
    mix = [{"path": str(tmp_path / "a"), "sample_ratio": 0.5}, {"path": str(folder / "b.jsonl"), "sample_ratio": 1}]
    (tmp_path / "m.json").write_text(json.dumps(mix))
    assert len(open_streams(tmp_path / "m.json", tokenizer)) == 5 + 6


def test_one_file_is_what_it_always_was(folder):
    tokenizer = TextTokenizer.load(folder / "tok")
    source = open_streams(folder / "a.jsonl", tokenizer)
    assert isinstance(source, InMemory) and source.digest == streams_digest(list(source)) and len(source) == 10


@pytest.mark.parametrize(
    "entries, message",
    [
        ([{"path": "a.jsonl", "sample_ratio": "1"}], r"mix.json\[0\]: sample_ratio must be a number >= 0, got '1'"),
        ([{"path": "a.jsonl", "sample_ratio": -1}], "sample_ratio must be a number >= 0, got -1"),
        ([{"path": "a.jsonl", "data_type": "SFT"}], "data_type must be IT or PT, got 'SFT'"),
        ([{"path": "a.jsonl"}, {"path": "x.jsonl", "sample_ratio": 1}], r"mix.json\[1\]: x.jsonl: no such file"),
        ([{"path": "a.jsonl"}, {"paht": "x.jsonl"}], r"mix.json\[1\]: a source needs 'path'"),
        ([{"path": "a.jsonl"}, {"path": "x.jsonl", "sample_ration": 1}], "Did you mean 'sample_ratio'"),
        ([{"path": 5}], r"mix.json\[0\]: path must name a file or store, got 5"),
        ([{"path": "a.jsonl"}, {"path": None, "sample_ratio": 0}], r"mix.json\[1\]: a source needs 'path'"),
        ([{"path": "", "sample_ratio": 0}], "path must name a file or store, got ''"),
        ([{"path": "a.jsonl", "sample_ratio": 0}], "every sample_ratio is 0"),
        ([{"path": "a.jsonl"}, {"path": "a.jsonl"}], "the mix names .*a.jsonl twice"),
    ],
)
def test_wrong_mixes(tmp_path, folder, entries, message):
    (tmp_path / "a.jsonl").write_text("")
    (tmp_path / "mix.json").write_text(json.dumps(entries))
    with pytest.raises(DataError, match=message):
        read_mix(tmp_path / "mix.json")


def test_what_is_a_mix(folder, tmp_path):
    (tmp_path / "records.json").write_text(json.dumps([{"text": "a", "path": "x"}]))
    assert is_mix(folder / "mix.json") and not is_mix(folder / "a.jsonl") and not is_mix(tmp_path / "records.json")
    with pytest.raises(DataError, match="a folder without a store"):
        sources_of(tmp_path)


def test_names_of_sources_differ():
    from ttt.data.sources.mix import Source

    found = named([Source(Path("x/en/a.json")), Source(Path("x/zh/a.json")), Source(Path("b.json"))])
    assert [s.name for s in found] == ["en/a.json", "zh/a.json", "b.json"]


def test_a_store_of_another_tokenizer_is_refused(folder, tmp_path):
    pack(sources_of(folder / "a.jsonl"), tmp_path / "s", Settings(str(folder / "tok")))
    other = train_bpe(["quite different words"] * 3, 280, 8)
    with pytest.raises(DataError, match="packed with tokenizer .*--overwrite"):
        open_streams(tmp_path / "s", other)
    with pytest.raises(DataError, match="packed with prompt_rule 'labels', this run has 'official'"):
        open_streams(tmp_path / "s", TextTokenizer.load(folder / "tok"), prompt_rule="official")


def test_broken_records_stop_or_are_counted(folder, tmp_path):
    lines = (folder / "a.jsonl").read_text().splitlines()
    lines[3] = '{"messages": [{"role": "user", "content": "<|begin_of_audio|><|audio_1|>"}], "id": 7}'
    lines[5] = "{"
    lines[6] = lines[6].replace("[6, 3]", "[6, 99]")
    (tmp_path / "x.jsonl").write_text("\n".join(lines))
    settings = Settings(str(folder / "tok"))
    with pytest.raises(RecordError, match=r"x.jsonl:4, message 0: uid 7: span opened by .* has no end token"):
        pack(sources_of(tmp_path / "x.jsonl"), tmp_path / "s", settings)
    assert not (tmp_path / "s").exists()
    store, report = pack(sources_of(tmp_path / "x.jsonl"), tmp_path / "s", settings, skip_bad=True)
    assert len(store) == 7 and dict(report.bad) == {"span without an end": 1, "not JSON": 1, "code out of range": 1}
    assert "code 99 at frame 1 is outside the codebook" in report.first_bad["code out of range"]
    assert store.about["sources"][0]["skipped"] == 3 == sum(store.about["skipped"].values())


def test_two_processes_write_the_same_bytes(folder, tmp_path):
    settings = Settings(str(folder / "tok"))
    for jobs in (1, 2):
        pack(sources_of(folder / "mix.json"), tmp_path / str(jobs), settings, jobs=jobs)
    names = sorted(p.name for p in (tmp_path / "1").iterdir())
    assert all((tmp_path / "1" / n).read_bytes() == (tmp_path / "2" / n).read_bytes() for n in names)


def test_the_bytes_do_not_depend_on_the_place(folder, tmp_path):
    from ttt.io.digests import sha256_digest

    found = []
    for place in ("here", "there"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "a.jsonl").write_bytes((folder / "a.jsonl").read_bytes())
        pack(sources_of(tmp_path / place / "a.jsonl"), tmp_path / place / "store", Settings(str(folder / "tok")))
        found.append(sha256_digest(tmp_path / place / "store"))
    assert found[0] == found[1]


def test_work_in_flight_is_bounded():
    """`in_order` asks for no more than ``ahead`` items before it hands the first result out."""

    class Now:
        def __init__(self, value):
            self.result = lambda: value

    class Pool:
        submit = staticmethod(lambda call, item: Now(call(item)))

    asked = []
    work = (asked.append(i) or i for i in range(100))
    for i, done in enumerate(in_order(Pool(), lambda x: 2 * x, work, 4)):
        assert done == 2 * i and len(asked) <= i + 4
    assert len(asked) == 100 and list(chunks("abc", 2)) == [["a", "b"], ["c"]]


@pytest.mark.skipif(not SAMPLES.is_dir(), reason=f"no official samples at {SAMPLES} (set TTT_SHARED)")
def test_official_samples_through_mix_store_and_loader(tmp_path):
    from ttt.data.batches.loader import Loader

    tokenizer = train_bpe(["the quick brown fox"] * 3, 300, 16384)
    tokenizer.save(tmp_path / "tok")
    files = sorted(SAMPLES.glob("*.json"))
    (tmp_path / "mix.json").write_text(
        json.dumps([{"path": str(p), "sample_ratio": 1, "data_type": "IT"} for p in files])
    )
    store, report = pack(read_mix(tmp_path / "mix.json"), tmp_path / "store", Settings(str(tmp_path / "tok")))
    assert len(store) == sum(len(json.loads(p.read_text())) for p in files) and not report.bad
    memory = open_streams(tmp_path / "mix.json", TextTokenizer.load(tmp_path / "tok"))
    assert streams_digest(list(memory)) == store.digest
    packed = open_streams(tmp_path / "store", tokenizer)
    loader = Loader(packed, tokenizer.vocab, row_tokens=4096, batch_tokens=8192, seed=1, max_drop_share=0.15)
    assert loader.micro_batch(3, 0).n_tokens > 4096
