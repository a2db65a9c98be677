"""CosyVoice's speech tokenizers through the package ``s3tokenizer``: sound at 16,000 Hz -> tokens.

The version is what the caller says.  The package itself would guess it from the path of the weights.
Letters: ``B`` rows, ``S`` wav samples, ``T`` mel frames, ``F`` tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from ttt.audio.batches import batches
from ttt.errors import CheckpointError, MissingExtraError
from ttt.io.digests import digest_of_file

RATE_HZ = 16_000
_MEL_HOP = 160  # samples of a mel frame
_SHORTEST = 2 * _MEL_HOP  # the spectrum mirrors 200 samples at either end
_BATCH_SAMPLES = 2**20  # of a batch: 65 s

TokenizerVersion = Literal["", "v1", "v1_25hz", "v2", "v3"]


class Version(NamedTuple):
    """A tokenizer: class and name in the package, tokens a second, number of tokens, and the rate that its decoder sounds at."""

    cls: str
    name: str
    frame_rate_hz: float
    num_codes: int
    sound_rate_hz: int


VERSIONS = {
    "v1": Version("S3Tokenizer", "speech_tokenizer_v1", 50.0, 4096, 22_050),
    "v1_25hz": Version("S3Tokenizer", "speech_tokenizer_v1_25hz", 25.0, 4096, 22_050),
    "v2": Version("S3TokenizerV2", "speech_tokenizer_v2_25hz", 25.0, 6561, 24_000),
    "v3": Version("S3TokenizerV3", "speech_tokenizer_v3_25hz", 25.0, 6561, 24_000),
}


class SpeechTokenizer:
    """The tokenizer of a ``.onnx`` file, on a device.  ``digest``: of the file."""

    def __init__(self, path: Path, version: Version, device: str) -> None:
        if not path.is_file():
            raise CheckpointError(
                f"codec.tokenizer: {path}: no such file; name the speech_tokenizer_v1.onnx, _v2.onnx or _v3.onnx of a model folder"
            )
        try:
            import s3tokenizer
        except ImportError as error:
            raise MissingExtraError(
                f"codec: cosyvoice encodes with the package s3tokenizer ({error}): pip install 's3tokenizer>=0.3'"
            ) from error
        self._package, self._device = s3tokenizer, device
        try:
            network = getattr(s3tokenizer, version.cls)(version.name)
            network.init_from_onnx(str(path))
        except Exception as error:  # the package raises many kinds for files of another version or damaged ones
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(
                f"codec.tokenizer: {path} does not hold a {version.name} ({type(error).__name__}: {reason}): "
                "is codec.tokenizer_version right?"
            ) from error
        self._network: Any = network.eval().to(device)
        self.digest = digest_of_file(path, 4)

    def encode(self, waves: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Tokens i32 [F] of each recording f32 [S], F = ceil(duration x tokens a second).

        Recordings are filled up to whole mel frames of 10 ms, so that the last token covers the end.
        """
        import torch

        lengths = [max(_SHORTEST, -(-len(w) // _MEL_HOP) * _MEL_HOP) for w in waves]
        out: list[np.ndarray] = [np.zeros(0, dtype=np.int32)] * len(waves)
        for rows in batches(lengths, _BATCH_SAMPLES, padded=True):
            padded = [np.pad(waves[i], (0, lengths[i] - len(waves[i]))) for i in rows]
            mels = [self._package.log_mel_spectrogram(torch.tensor(w)) for w in padded]  # each with its own maximum
            together, frames = self._package.padding(mels)
            codes, counts = self._network.quantize(together.to(self._device), frames.to(self._device))
            for i, row, n in zip(rows, codes.cpu(), counts.tolist(), strict=True):
                out[i] = row[:n].numpy().astype(np.int32)
        return out
