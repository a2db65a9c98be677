"""SNAC (arXiv 2410.14411) through the package ``snac``, from a local folder; nothing is downloaded.

Letters: ``F`` frames, ``Q`` code positions per frame, ``C`` codes per codebook, ``S`` wav samples, ``E`` dimensions
of a code vector.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ttt.audio.codecs.published import PublishedCodec
from ttt.audio.hierarchy import join, positions, split
from ttt.errors import CheckpointError, ConfigError, MissingExtraError
from ttt.registry.families import CODEC

if TYPE_CHECKING:
    from torch import Tensor


@CODEC.register("snac")
@dataclass
class Snac(PublishedCodec):
    """SNAC: codebooks at several rates, one coarse frame at a time (24 kHz: 7 positions of 4,096 codes, 11.7 frames/s).

    Positions of a frame: code of the first codebook; of the second its first half, of the third its first two quarters;
    the second half likewise.  The decoder's noise is drawn from a fixed seed, so that the same codes sound the same.

    Weights are read from ``model.safetensors``.  They are published as ``pytorch_model.bin`` only, a pickle: that is read with
    ``allow_pickle``, by torch's restricted reader, which makes tensors and nothing else.
    """

    allow_pickle: bool = False

    model_class = "SNAC"
    pickled_file = "pytorch_model.bin"

    def _open(self, folder: Path) -> tuple[Any, list[str]]:
        try:
            import snac
        except ImportError as error:
            raise MissingExtraError("codec 'snac' needs the package snac: pip install snac") from error
        model = snac.SNAC(**json.loads((folder / "config.json").read_text(encoding="utf-8")))
        keys = model.load_state_dict(self._weights(folder), strict=False)
        if keys.unexpected_keys:
            raise ValueError(f"unknown array {keys.unexpected_keys[0]!r}")
        return model, sorted(keys.missing_keys)

    def _weights(self, folder: Path) -> dict[str, Tensor]:
        if (folder / self.weights_file).is_file():
            from safetensors.torch import load_file

            return load_file(folder / self.weights_file)
        pickled = folder / self.pickled_file
        if pickled.is_file() and not self.allow_pickle:
            raise CheckpointError(
                f"{pickled}: pickled weights, which can run code when they are read; set codec.allow_pickle=true to read them with "
                f"torch's restricted reader, or save them as {self.weights_file}"
            )
        return torch.load(pickled, map_location="cpu", weights_only=True)

    def _config(self, model: Any) -> Any:
        return model  # it holds its settings itself

    def _dtypes(self, config: Any) -> tuple[str, ...]:
        # the package's rotary embedding is float32, and its attention takes no mixture
        return super()._dtypes(config) if config.attn_window_size is None else ("float32",)

    def _samples_per_frame(self, config: Any) -> int:
        self._strides = [int(s) for s in config.vq_strides]
        if self._strides[0] != max(self._strides):
            raise ConfigError(f"{self.path}: the first codebook must be the coarsest, got vq_strides {self._strides}")
        # local attention wants whole windows of it
        self._multiple = math.lcm(self._strides[0], config.attn_window_size or 1) // self._strides[0]
        return int(config.hop_length) * self._strides[0]

    def _available_codebooks(self, config: Any) -> int:
        available = len(positions(self._strides))
        if self.num_codebooks not in (0, available):
            raise ConfigError(
                f"codec.num_codebooks: {self.num_codebooks} asked for, but the {available} positions of a SNAC frame "
                "belong together; leave it at 0"
            )
        return available

    def _encode(self, model: Any, samples: Tensor) -> Tensor:
        rows = zip(*(codebook.cpu().numpy() for codebook in model.encode(samples)), strict=True)
        return torch.stack([torch.from_numpy(join(list(row), self._strides).T.copy()) for row in rows])

    def _decode(self, model: Any, ids: Tensor) -> Tensor:
        sounds = []
        for codes in ids.transpose(1, 2).cpu().numpy():  # [F, Q]
            whole = np.pad(codes, ((0, -len(codes) % self._multiple), (0, 0)), mode="edge")
            codebooks = [torch.from_numpy(codebook)[None].to(ids.device) for codebook in split(whole, self._strides)]
            with torch.random.fork_rng([ids.device] if ids.device.type == "cuda" else []):
                torch.manual_seed(0)  # one by one: each row gets the noise that it gets alone
                sounds.append(model.decode(codebooks))
        return torch.cat(sounds)

    def _codebooks(self, model: Any) -> list[Tensor]:
        return [model.quantizer.quantizers[codebook].codebook.weight for codebook, _ in positions(self._strides)]
