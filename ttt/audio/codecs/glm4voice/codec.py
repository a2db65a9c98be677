"""The codec of GLM-4-Voice (arXiv 2412.02612): its speech tokenizer and its decoder, from their published folders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ttt.audio.codecs.checks import check_codes, check_wave, standardize
from ttt.audio.codecs.glm4voice.decoder import Decoder
from ttt.audio.codecs.glm4voice.tokenizer import RATE_HZ, open_tokenizer
from ttt.errors import CheckpointError, ConfigError
from ttt.interfaces import Codec, StreamDecoder
from ttt.io.digests import digest_of_bytes
from ttt.registry import PositiveInt
from ttt.registry.families import CODEC
from ttt.types import AudioCodes, Waveform


@CODEC.register("glm4voice")
@dataclass
class Glm4Voice(Codec):
    """GLM-4-Voice: 12.5 tokens of 16,384 a second, made from sound at 16,000 Hz, heard at 22,050 Hz.

    One of the two folders may be left out.
    """

    path: str = ""  # folder of the tokenizer; empty: only decodes
    decoder: str = ""  # folder of the decoder; empty: only encodes
    steps: PositiveInt = 10  # of the flow that makes the sound; fewer are faster and rougher

    codec_id = ""
    num_codebooks = 1
    rate_hz = 22_050

    @property
    def encode_rate_hz(self) -> int:
        """Samples per second of the recordings that `encode` takes."""
        return RATE_HZ

    def load(self, device: str = "cpu", dtype: str = "float32") -> Glm4Voice:
        """Load what the two folders hold; returns self.

        ``codec_id`` is the name and the number of codes, and with a tokenizer a digest of its codebook.
        """
        if not self.path and not self.decoder:
            raise CheckpointError(
                "codec.path, codec.decoder: neither is set for codec 'glm4voice': name the folder of the tokenizer (to encode), "
                "of the decoder (to decode), or both"
            )
        type_, digest = getattr(torch, dtype), ""
        self._decoder = Decoder.load(self.decoder, device, type_) if self.decoder else None
        self._tokenizer = open_tokenizer(Path(self.path), device, type_) if self.path else None
        if self._decoder:
            self.rate_hz, self.frame_rate_hz = self._decoder.rate_hz, self._decoder.frame_rate_hz
            self.num_codes = self._decoder.num_codes
        if self._tokenizer:
            made = (self._tokenizer.config.quantize_vocab_size, RATE_HZ / self._tokenizer.config.token_samples)
            if self._decoder and made != (self.num_codes, self.frame_rate_hz):
                raise CheckpointError(
                    f"codec.decoder: {self.decoder} knows {self.num_codes} codes at {self.frame_rate_hz:g} a second, the tokenizer "
                    f"in {self.path} makes {made[0]} at {made[1]:g}: name two folders that belong together"
                )
            self.num_codes, self.frame_rate_hz = made
            digest = "-" + digest_of_bytes(self._tokenizer.codebook.weight.cpu().numpy().tobytes(), 4)
        self.codec_id = f"glm4voice-{self.num_codes}{digest}"
        self._loaded = (device, dtype)
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Another process gets the names of the folders, not the weights."""
        return {key: value for key, value in vars(self).items() if key not in ("_tokenizer", "_decoder")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Loads again what was loaded."""
        vars(self).update(state)
        if "_loaded" in state:
            self.load(*self._loaded)

    def encode(self, waves: Sequence[Waveform]) -> list[AudioCodes]:
        """Codes of each recording, one for every 80 ms begun, each by itself: company could change the last one.

        Raises `ConfigError` without a tokenizer.
        """
        network = self._needed("tokenizer", "path", "encode")
        out = []
        for wave in waves:
            check_wave(wave, self.encode_rate_hz, "glm4voice")
            out.append(AudioCodes(network.encode(wave.samples)[:, None], self.frame_rate_hz, self.codec_id))
        return out

    def decode(self, codes: Sequence[AudioCodes]) -> list[Waveform]:
        """Sound of each code sequence, 1764 samples a code as published.  Raises `ConfigError` without a decoder."""
        decoder = self._needed("decoder", "decoder", "decode")
        for c in codes:
            check_codes(c.ids, self.num_codes, 1, "glm4voice")
        rows = [c.ids[:, 0] for c in codes]
        # Rounding, which company changes, adds up in the phases of the vocoder; on the CPU batches would gain nothing for it.
        batches = [[row] for row in rows] if decoder.device.type == "cpu" else [rows]
        sounds = [sound for batch in batches for sound in decoder.decode_batch(batch, steps=self.steps)]
        return [Waveform(sound, self.rate_hz) for sound in sounds]

    def open_stream(self) -> StreamDecoder:
        """Sound while codes arrive: as many samples as in one go, not the same ones."""
        return self._needed("decoder", "decoder", "decode").open_stream(steps=self.steps)

    def code_vectors(self) -> np.ndarray | None:
        """The entries of the codebook, standardised: f32 [1, C, D]; None without a tokenizer."""
        if self._tokenizer is None:
            return None
        return standardize(self._tokenizer.codebook.weight.cpu().numpy()[None])

    def _needed(self, part: str, key: str, verb: str) -> Any:
        if not self.codec_id:
            raise CheckpointError("codec 'glm4voice' holds no weights yet: call load() (codec.path, codec.decoder)")
        if (found := getattr(self, f"_{part}")) is None:
            raise ConfigError(
                f"codec.{key}: not set, so codec 'glm4voice' cannot {verb}: name the folder of its {part}"
            )
        return found
