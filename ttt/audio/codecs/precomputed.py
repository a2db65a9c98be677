"""The codec of data that come as codes and are never turned into sound."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NoReturn

from ttt.errors import ConfigError
from ttt.interfaces import Codec, StreamDecoder
from ttt.registry import PositiveFloat, PositiveInt
from ttt.registry.families import CODEC
from ttt.types import AudioCodes, Waveform


@CODEC.register("precomputed")
@dataclass
class Precomputed(Codec):
    """Codes come with the data; nothing is encoded or decoded.  The fields say what the codes are."""

    renamed_fields: ClassVar = {"num_books": "num_codebooks"}

    num_codes: PositiveInt = 16_384
    num_codebooks: PositiveInt = 1
    frame_rate_hz: PositiveFloat = 12.5
    rate_hz: PositiveInt = 24_000
    label: str = "precomputed"  # stored beside the codes as `codec_id`

    def __post_init__(self) -> None:
        self.codec_id = self.label

    def load(self, device: str = "cpu", dtype: str = "float32") -> Precomputed:
        """Nothing to load; returns self."""
        return self

    def encode(self, waves: Sequence[Waveform]) -> list[AudioCodes]:
        """Refused."""
        self._refuse("encode")

    def decode(self, codes: Sequence[AudioCodes]) -> list[Waveform]:
        """Refused."""
        self._refuse("decode")

    def open_stream(self) -> StreamDecoder:
        """Refused."""
        self._refuse("decode")

    def _refuse(self, verb: str) -> NoReturn:
        raise ConfigError(
            f"codec: 'precomputed' cannot {verb}, its codes come with the data: configure the codec that made them, "
            f"for example one of {', '.join(n for n in CODEC.names() if n != 'precomputed')}"
        )
