"""A stream decoder for codecs that turn codes into log-mels: Griffin-Lim on a moving window continues what was already output."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ttt.audio.codecs.checks import check_codes
from ttt.audio.signal import MelSettings, griffin_lim, mel_to_linear
from ttt.interfaces import Codec, StreamDecoder

_PAST = 24  # mel frames of given samples that a window starts with


class MelStream(StreamDecoder):
    """Holds back ``ahead`` code frames and two mel frames, because later codes still change them.

    ``mels(ids, start, stop)``: the log-mels f32 [stop - start, M] of mel frames [start, stop) of codes i32 [F, Q], of which
    each has ``stack`` mel frames.
    """

    def __init__(
        self, codec: Codec, mels: Callable[[np.ndarray, int, int], Tensor], stack: int, ahead: int, settings: MelSettings,
        iterations: int,
    ) -> None:  # fmt: skip
        self._codec, self._mels, self._stack, self._ahead = codec, mels, stack, ahead
        self._settings, self._iterations = settings, iterations
        self._ids = np.zeros((0, codec.num_codebooks), dtype=np.int32)
        self._given = np.zeros(0, dtype=np.float32)  # all samples output so far: streams are short

    def push(self, codes: np.ndarray) -> np.ndarray:
        """Codes [F, Q] -> the samples that are final by now.  Raises `DataError` for codes outside the codebook."""
        check_codes(codes, self._codec.num_codes, self._codec.num_codebooks, self._codec.codec_id)
        self._ids = np.concatenate([self._ids, codes.astype(np.int32)])
        return self._give(max(0, len(self._ids) - self._ahead) * self._stack, 2)

    def finish(self) -> np.ndarray:
        """The rest."""
        return self._give(len(self._ids) * self._stack, 0)

    @torch.inference_mode()
    def _give(self, ready: int, held: int) -> np.ndarray:
        hop = self._settings.hop_samples
        done = len(self._given) // hop
        if ready - held <= done:
            return np.zeros(0, dtype=np.float32)
        first = max(0, done - _PAST)
        mels = self._mels(self._ids, first, ready)
        known = torch.tensor(self._given[first * hop :], device=mels.device)[None]
        samples = griffin_lim(
            mel_to_linear(mels, self._settings)[None], [len(mels)], self._settings, self._iterations, known=known
        )  # fmt: skip
        new = samples[0, known.shape[1] : (ready - held - first) * hop].clamp(-1.0, 1.0).cpu().numpy()
        self._given = np.concatenate([self._given, new])
        return new
