"""Stored codes: lhotse cuts and a manifest of arrays become examples; durations are filtered and counted."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest

from ttt.data.convert.core import Report, results, write_records
from ttt.data.convert.corpora import Lhotse
from ttt.data.convert.features import Codes, LhotseCodes
from ttt.data.read.examples import read_examples
from ttt.data.read.records import RecordError
from ttt.errors import MissingExtraError

CODES = np.random.default_rng(0).integers(0, 64, (100, 4))


def cut(folder, name="a", start=0.0, duration=2.0, **features):
    stored = {
        "type": "encodec", "num_frames": 100, "num_features": 4, "frame_shift": 0.02, "sampling_rate": 32000, "start": 0.0,
        "duration": 2.0, "storage_type": "numpy_files", "storage_path": str(folder), "storage_key": "all.npy", **features,
    }  # fmt: skip
    return {
        "id": name, "start": start, "duration": duration, "channel": 0, "type": "MonoCut", "features": stored,
        "supervisions": [{"id": "s", "start": 0.0, "duration": duration, "text": "yes", "speaker": "ann"}],
    }  # fmt: skip


def cuts_file(folder, *cuts):
    np.save(folder / "all.npy", CODES)
    path = folder / "cuts.jsonl.gz"
    with gzip.open(path, "wt") as out:
        out.writelines(json.dumps(c) + "\n" for c in cuts)
    return path


def codes_of(example):
    """Prompt and answer in one piece."""
    return np.concatenate([t.spans[0].codes for t in example.turns])


def converted(converter, path, folder):
    report = Report()
    write_records(results(converter, path, report, skip_bad=False), folder / "out.jsonl")
    return list(read_examples(folder / "out.jsonl")), report


def test_cuts_and_stretches_of_them_get_their_frames(tmp_path):
    path = cuts_file(tmp_path, cut(tmp_path), cut(tmp_path, "b", start=0.5, duration=1.0))
    (whole, part), _ = converted(LhotseCodes(num_codes=64), path, tmp_path)
    assert np.array_equal(codes_of(whole), CODES)
    assert np.array_equal(codes_of(part), CODES[25:75])
    assert [len(t.spans[0].codes) for t in whole.turns] == [40, 60]
    assert whole.meta["speaker"] == "ann" and whole.meta["frame_rate_hz"] == 50.0 and whole.task == "continuation"


def test_examples_are_continuations_that_a_model_of_frames_reads(tmp_path):
    from ttt.data.batches.codec_frames import frames_of
    from ttt.data.batches.rows import collate
    from ttt.data.encode import encode_example
    from ttt.text.tokenizer import train_bpe

    (example,), _ = converted(LhotseCodes(prompt_share=0.25), cuts_file(tmp_path, cut(tmp_path)), tmp_path)
    tokenizer = train_bpe(["a b"], 300, 64, 4)
    vocab = tokenizer.vocab
    stream = encode_example(example, tokenizer)
    frames = frames_of(collate([[stream]], len(stream), vocab.pad_id, vocab.mask_id, vocab.code_space))
    assert np.array_equal(frames.prompt[0], CODES[:25]) and np.array_equal(frames.target[0], CODES[25:])


def test_durations_are_filtered_and_counted(tmp_path):
    seconds = [0.4, 0.5, 1.0, 1.5, 1.6]
    path = cuts_file(tmp_path, *(cut(tmp_path, f"c{s}", duration=s) for s in seconds))
    found, report = converted(LhotseCodes(min_duration_s=0.5, max_duration_s=1.5), path, tmp_path)
    assert [e.uid for e in found] == ["c0.5", "c1.0", "c1.5"]
    assert report.skipped == {"shorter than 0.5 s": 1, "longer than 1.5 s": 1} and (report.rows, report.written) == (
        5,
        3,
    )


def test_recordings_are_filtered_too(tmp_path):
    sample = Lhotse().sample(tmp_path)
    report = Report()
    assert list(results(Lhotse(max_duration_s=0.4), sample, report, skip_bad=False)) == []
    assert report.skipped == {"longer than 0.4 s": 1}


def test_manifest_of_arrays(tmp_path):
    np.save(tmp_path / "x.npy", CODES[:7].astype(np.int16))
    line = {"id": "x", "codes": "x.npy", "duration": 0.14, "num_frames": 7, "speaker": "bob"}
    (tmp_path / "m.jsonl").write_text(json.dumps(line) + "\n")
    (example,), _ = converted(Codes(root=str(tmp_path)), tmp_path / "m.jsonl", tmp_path)
    assert np.array_equal(codes_of(example), CODES[:7]) and example.meta["speaker"] == "bob"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"storage_type": "lilcom_chunky"}, "storage 'lilcom_chunky'; store codes as numpy_hdf5 or numpy_files"),
        ({"storage_key": "none.npy"}, "none.npy: not readable .*set 'root'"),
        ({"storage_key": "mel.npy"}, "does not hold whole numbers >= 0; is it mel energies"),
        ({"start": 1.9}, "lies outside its stored features"),
        ({"storage_key": "row.npy"}, r"expected an array \[frames, codebooks\], got shape \[100\]"),
    ],
)
def test_what_cannot_be_codes_is_refused_with_its_line(tmp_path, change, message):
    np.save(tmp_path / "mel.npy", np.full((100, 4), 0.5))
    np.save(tmp_path / "row.npy", np.arange(100))
    path = cuts_file(tmp_path, cut(tmp_path, **change))
    with pytest.raises(RecordError, match=rf"cuts.jsonl.gz:1: .*{message}"):
        list(results(LhotseCodes(), path, Report(), skip_bad=False))


def test_a_code_outside_the_book_is_refused(tmp_path):
    with pytest.raises(RecordError, match="outside the codebook of 10"):
        list(results(LhotseCodes(num_codes=10), cuts_file(tmp_path, cut(tmp_path)), Report(), skip_bad=False))


def test_hdf5_needs_its_extra(tmp_path):
    """With h5py the array is read; without it the message names the extra."""
    path = cuts_file(
        tmp_path, cut(tmp_path, storage_type="numpy_hdf5", storage_path=f"{tmp_path}/c.h5", storage_key="k")
    )
    try:
        import h5py
    except ModuleNotFoundError:
        with pytest.raises(MissingExtraError, match=r"c.h5: HDF5 files need h5py: pip install 'ttt-speech\[hdf5\]'"):
            list(results(LhotseCodes(), path, Report(), skip_bad=False))
        return
    with h5py.File(tmp_path / "c.h5", "w") as out:
        out["k"] = CODES
    (example,), _ = converted(LhotseCodes(), path, tmp_path)
    assert np.array_equal(codes_of(example), CODES)
