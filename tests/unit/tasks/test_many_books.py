"""From wavs to examples and back with a codec of seven codes a frame: every step knows frames, only the vocabulary ids."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from tests.unit.audio.codecs.test_simple_and_mel import vowels
from ttt.audio.codecs.mel import Rvq
from ttt.audio.wav import write
from ttt.data.encode import encode_example
from ttt.data.read.examples import read_examples
from ttt.data.reports.audit import Settings, audit
from ttt.data.sources.build_store import Settings as PackSettings
from ttt.data.sources.build_store import pack
from ttt.data.sources.mix import sources_of
from ttt.registry.families import TASK
from ttt.sampling.decoder.decoder import spans_of
from ttt.tasks.encode_corpus import encode_manifest
from ttt.tasks.prepare import corpus_tokenizer, prepare, read_codes
from ttt.text.tokenizer import TextTokenizer

NUM_CODES, BOOKS = 12, 7


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A corpus of six sounds, its codes and its examples."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("world")
    waves = [vowels(i) for i in range(12)]
    codec = Rvq(strides=[4, 2, 1], frame_rate_hz=12.5, num_codes=NUM_CODES, pca_dim=6, mels=20, iterations=3)
    codec.fit(waves, seed=1)
    corpus = root / "corpus"
    manifest, items = [], []
    for i in range(6):
        write(corpus / "wav" / f"{i}.wav", waves[i])
        manifest.append({
            "id": f"u{i}", "wav": f"wav/{i}.wav", "text": "a b c", "duration_s": waves[i].duration_s, "speaker": "out",
            "split": "train", "meta": {},
        })  # fmt: skip
        items.append({
            "id": f"i{i}", "task": "tts", "input": None, "output": f"u{i}", "text_in": "a b c", "text_out": "a b c",
            "answer_key": "", "split": "train",
        })  # fmt: skip
    (corpus / "train.jsonl").write_text("".join(json.dumps(r) + "\n" for r in manifest))
    (corpus / "train.items.jsonl").write_text("".join(json.dumps(r) + "\n" for r in items))
    out = root / "data"
    encode_manifest(corpus / "train.jsonl", codec, out / "codes" / "train.jsonl")
    tts = TASK.build({"name": "tts", "text_chunk": 2, "audio_chunk": 3, "text_unit": "words"}, "tasks")
    tokenizer = corpus_tokenizer(corpus, codec, [tts], 300)
    prepare(corpus, ["train"], out, codec, [tts], tokenizer)
    tokenizer.save(out / "tokenizer")
    return codec, waves, out


def test_codes_are_written_frame_by_frame(made):
    codec, waves, out = made
    header = json.loads((out / "codes" / "train.jsonl").read_text().splitlines()[0])
    assert header["num_codebooks"] == BOOKS
    codes = read_codes(out / "codes" / "train.jsonl", codec.codec_id)
    np.testing.assert_array_equal(codes["u2"], codec.encode([waves[2]])[0].ids)


def test_the_vocabulary_knows_the_books_and_keeps_them(made):
    _, _, out = made
    vocab = TextTokenizer.load(out / "tokenizer").vocab
    assert (vocab.num_codebooks, vocab.num_codes) == (BOOKS, NUM_CODES)
    assert vocab.code_stop - vocab.code_start == BOOKS * NUM_CODES


def test_ids_go_round_the_positions_and_chunks_are_frames(made):
    codec, waves, out = made
    tokenizer = TextTokenizer.load(out / "tokenizer")
    vocab = tokenizer.vocab
    example = read_examples(out / "train.jsonl")[0]
    spans = [s for s in example.turns[-1].spans if s.kind == "audio"]
    assert [s.codes.shape[1] for s in spans] == [BOOKS] * 2 and len(spans[0].codes) == 3
    stream = encode_example(example, tokenizer)
    for span, segment in zip(spans, stream.segments, strict=True):
        ids = stream.ids[segment.start : segment.stop]
        assert len(ids) == BOOKS * len(span.codes)
        np.testing.assert_array_equal((ids - vocab.code_start) // NUM_CODES, np.arange(len(ids)) % BOOKS)
    again = spans_of(stream.ids[stream.target].tolist(), tokenizer)
    joined = np.concatenate([s.codes for s in again if s.kind == "audio"])
    np.testing.assert_array_equal(joined, codec.encode([waves[0]])[0].ids)


def test_codes_out_of_their_books_order_are_no_frames(made):
    """Free decoding writes them; reading codebook 2's code as codebook 0's would be another sound."""
    _, _, out = made
    vocab = TextTokenizer.load(out / "tokenizer").vocab
    frames = np.arange(3 * BOOKS).reshape(3, BOOKS) % NUM_CODES
    ids = vocab.code_ids(frames)
    stray = np.concatenate([ids[3:5], ids[:7], ids[2:3], ids[7:14], ids[14:18], ids[14:]])
    np.testing.assert_array_equal(vocab.codes(stray), frames)
    np.testing.assert_array_equal(vocab.codes(ids[1:]), frames[1:])
    assert vocab.codes(ids[::-1]).shape == (0, BOOKS)


def test_frames_are_counted_in_examples_and_in_stores(made, tmp_path):
    codec, waves, out = made
    frames = sum(len(c.ids) for c in codec.encode(waves[:6]))
    tokenizer = str(out / "tokenizer")
    pack(sources_of(out / "train.jsonl"), tmp_path / "store", PackSettings(tokenizer, "labels", False))
    settings = Settings(tokenizer=tokenizer, frame_rate_hz=codec.frame_rate_hz)
    for path in (out / "train.jsonl", tmp_path / "store"):
        report = audit([path], [], settings)
        assert not report.errors and report.files[0].frames == frames, path
