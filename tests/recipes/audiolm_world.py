"""What users of the published AudioLM program have: recordings of 16 kHz, lhotse cuts with codes, a 32 kHz codec.  All tiny."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np

from ttt.audio.wav import write
from ttt.types import Waveform

CODES, BOOKS, HZ = 16, 4, 50


def make_codec(folder: Path) -> None:
    """EnCodec as it was published for 32 kHz (hop 640, four codebooks), with random weights."""
    import torch
    import transformers

    config = transformers.EncodecConfig(
        target_bandwidths=[0.8], sampling_rate=32_000, upsampling_ratios=[8, 5, 4, 4], hidden_size=8, num_filters=2,
        use_causal_conv=False, codebook_size=CODES, codebook_dim=8, num_lstm_layers=1,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.EncodecModel(config)
        for key, value in model.named_buffers():
            if key.endswith(("embed", "embed_sum")):  # zero at birth: every code would be the same
                value.normal_()
    model.save_pretrained(folder)


def make_wav(path: Path, seconds: float, seed: int, rate_hz: int = 16_000) -> None:
    """A tone that moves about."""
    rng = np.random.default_rng(seed)
    n = round(seconds * rate_hz)
    hz = np.repeat(rng.uniform(200, 900, n // 1600 + 1), 1600)[:n]
    sound = 0.3 * np.sin(2 * np.pi * np.cumsum(hz) / rate_hz) + 0.01 * rng.standard_normal(n)
    write(path, Waveform(sound.astype(np.float32), rate_hz))


def make_cuts(folder: Path, splits: dict[str, tuple[float, ...]]) -> None:
    """``cuts_SPLIT.jsonl.gz`` of cuts that last so many seconds; their codes in HDF5 where h5py is there, as lhotse does."""
    try:
        import h5py
    except ModuleNotFoundError:
        h5py = None
    folder.mkdir(parents=True)
    rng = np.random.default_rng(3)
    for split, seconds in splits.items():
        lines, stored = [], {}
        for n, lasts in enumerate(seconds):
            uid, frames = f"{split}-{n}", round(lasts * HZ)
            # A melody: each codebook is a function of the first, which repeats.
            first = np.tile(rng.integers(0, CODES, 5), frames // 5 + 1)[:frames]
            stored[uid] = np.stack([(first + q) % CODES for q in range(BOOKS)], 1).astype(np.int16)
            lines.append({
                "id": uid, "type": "MonoCut", "start": 0.0, "duration": lasts, "channel": 0,
                "supervisions": [{"id": uid, "recording_id": uid, "start": 0.0, "duration": lasts, "channel": 0, "text": ""}],
                "features": {
                    "type": "encodec", "num_frames": frames, "num_features": BOOKS, "frame_shift": 640 / 32_000,
                    "sampling_rate": 32_000, "start": 0.0, "duration": lasts, "channels": 0,
                    "storage_type": "numpy_hdf5" if h5py else "numpy_files",
                    "storage_path": str(folder / (f"{split}.h5" if h5py else split)), "storage_key": uid if h5py else f"{uid}.npy",
                },
                "recording": {"id": uid, "sampling_rate": 32_000, "num_samples": frames * 640, "duration": lasts, "sources": []},
            })  # fmt: skip
        if h5py:
            with h5py.File(folder / f"{split}.h5", "w") as file:
                for uid, codes in stored.items():
                    file[uid] = codes
        else:
            (folder / split).mkdir()
            for uid, codes in stored.items():
                np.save(folder / split / f"{uid}.npy", codes)
        with gzip.open(folder / f"cuts_{split}.jsonl.gz", "wt", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)


def make_libritts(folder: Path) -> None:
    """LibriTTS: SPEAKER/CHAPTER/ID.wav of 24 kHz, ID.normalized.txt beside; in three parts."""
    for part, number in (("train-clean-100", 4), ("dev-clean", 4), ("test-clean", 4)):
        for n in range(number):
            speaker = 100 + n % 2
            path = folder / part / f"{speaker}/7/{speaker}_7_{n:06}_000000.wav"
            make_wav(path, 4.0 + n / 10, n, rate_hz=24_000)
            path.with_suffix(".normalized.txt").write_text(f"This is sentence {n}.", encoding="utf-8")


def make_world(folder: Path) -> Path:
    """``models/encodec_32khz``, ``data/tokenized`` (cuts), ``data/wavs`` (train, dev, test), ``data/LibriTTS``, ``prompts``."""
    make_codec(folder / "models/encodec_32khz")
    make_cuts(folder / "data/tokenized", {"train": (4.9, 5.0, 5.5, 6.0, 15.1), "validation": (5.0,), "test": (5.0, 5.2)})
    for split, number in (("train", 3), ("dev", 1), ("test", 1)):
        for n in range(number):
            make_wav(folder / "data/wavs" / split / f"{split}{n}.wav", 5.0 + n / 10, n)
    make_wav(folder / "data/wavs/train/short.wav", 4.0, 9)
    make_libritts(folder / "data/LibriTTS")
    for n, name in enumerate(("a", "b")):
        make_wav(folder / "prompts" / f"{name}.wav", 2.0, n, rate_hz=44_100)
    return folder
