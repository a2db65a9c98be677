"""Files of samples: wavs, mel plots, TensorBoard.

Letters: ``F`` audio frames, ``Q`` codebooks, ``M`` mel bands, ``S`` wav samples.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ttt.eval.cards import key_prefix
from ttt.eval.generations import answer_codes
from ttt.interfaces import Codec
from ttt.io.names import file_names, write_index
from ttt.types import AudioCodes, Example, Waveform

log = logging.getLogger(__name__)


def write_samples(
    out: Path,
    waves: Mapping[int, Waveform],
    examples: Sequence[Example],
    rows: Sequence[Mapping[str, Any]],
    codec: Codec | None,
) -> dict[int, dict[str, str]]:
    """Wav and mel plot (answer above, resynthesized reference below) of each wave; paths relative to ``out``.

    ``samples/names.json`` says which uid a file name stands for.
    """
    from ttt.audio.wav import write
    from ttt.eval.plots import mel_pair

    assert codec is not None
    files: dict[int, dict[str, str]] = {}
    splits, tasks, uids = (
        file_names(of(i) for i in waves)
        for of in (lambda i: rows[i]["split"] or "all", lambda i: rows[i]["task"], lambda i: examples[i].uid)
    )
    index: dict[str, str] = {}  # path below samples/ -> uid
    for i, wave in waves.items():
        example, row = examples[i], rows[i]
        base = Path("samples") / splits[row["split"] or "all"] / tasks[row["task"]] / uids[example.uid]
        if not len(wave.samples):
            log.warning("%s: codec %s made an empty sound of its codes", example.uid, codec.codec_id)
            continue
        wav, png = f"{base}.wav", f"{base}.png"
        write(out / wav, wave)
        text = row["judged_text"]
        shown = [("generated" if text is None else f"generated, heard as: {text}", wave)]
        codes = answer_codes(example)
        if codes is not None and len(codes):
            (reference,) = codec.decode([AudioCodes(codes, codec.frame_rate_hz, codec.codec_id)])
            shown.append((f"reference through the codec: {row['speech_ref'] or ''}", reference))
        mels, frame_s = _mels(shown)
        mel_pair(mels, out / png, frame_s, example.uid)
        files[i] = {"wav": wav, "png": png}
        index[base.relative_to("samples").as_posix()] = example.uid
    if index:
        write_index(out / "samples", index)
    return files


def _mels(shown: Sequence[tuple[str, Waveform]]) -> tuple[list[tuple[str, np.ndarray]], float]:
    """Log mels f32 [M, F] with windows of 25 ms every 10 ms, and seconds per frame."""
    import torch

    from ttt.audio.signal import MelSettings, log_mel

    rate_hz = shown[0][1].rate_hz
    window, hop = round(0.025 * rate_hz), round(0.010 * rate_hz)
    fft = 1 << (window - 1).bit_length()
    settings = MelSettings(
        rate_hz=rate_hz, fft_samples=fft, window_samples=window, hop_samples=hop, mels=80 if rate_hz >= 16_000 else 40,
        high_hz=min(8000.0, rate_hz / 2),
    )  # fmt: skip
    mels = []
    for name, wave in shown:
        samples = torch.zeros(max(len(wave.samples), fft))  # a shorter wave has no whole window
        samples[: len(wave.samples)] = torch.tensor(wave.samples)
        mels.append((name, log_mel(samples, settings).T.numpy()))
    return mels, hop / rate_hz


def log_to_tensorboard(
    folder: Path,
    step: int,
    metrics: Mapping[str, Mapping[str, Any]],
    rows: Sequence[Mapping[str, Any]],
    waves: Mapping[int, Waveform],
    files: Mapping[int, Mapping[str, str]],
    out: Path,
) -> None:
    """Metrics as ``eval/asr/wer``; samples as audio, picture and text."""
    from matplotlib.image import imread
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder)) as writer:
        for key, entry in metrics.items():
            if entry["value"] is not None:
                writer.add_scalar(f"eval/{key}", entry["value"], step)
        number: Counter[str] = Counter()
        for i, made in files.items():
            row = rows[i]
            group = f"samples/{key_prefix(row['split'])}{row['task']}"
            number[group] += 1
            tag = f"{group}/{number[group]:02d}"
            writer.add_audio(tag, waves[i].samples[None], step, waves[i].rate_hz)
            writer.add_image(tag, imread(out / made["png"])[..., :3], step, dataformats="HWC")
            texts = {k: row[k] for k in ("uid", "text_ref", "text", "speech_ref", "judged_text") if row[k] is not None}
            writer.add_text(tag, "  \n".join(f"{k}: {v}" for k, v in texts.items()), step)
