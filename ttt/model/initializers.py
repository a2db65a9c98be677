"""Initial values of the token rows that were added to a backbone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from ttt.errors import ConfigError
from ttt.interfaces import Initializer
from ttt.registry import NonNegativeFloat
from ttt.registry.families import INITIALIZER


@INITIALIZER.register("normal")
@dataclass(frozen=True)
class Normal(Initializer):
    """N(0, initializer_range): what resizing the embedding does in the official code."""

    def initialize(self, rows: Tensor, ids: Tensor, context: Mapping[str, Any], gen: Generator) -> Tensor:
        """Gaussian rows with the model's own initializer range."""
        return torch.randn(rows.shape, generator=gen) * context["std"]


@INITIALIZER.register("mean")
@dataclass(frozen=True)
class Mean(Initializer):
    """The mean of the old rows plus noise of ``noise`` times their spread: new tokens start neither likely nor unlikely."""

    noise: NonNegativeFloat = 0.1

    def initialize(self, rows: Tensor, ids: Tensor, context: Mapping[str, Any], gen: Generator) -> Tensor:
        """Mean of the old rows + noise."""
        old = context["old"].float()
        return old.mean(0) + self.noise * old.std(0) * torch.randn(rows.shape, generator=gen)


@INITIALIZER.register("twist")
@dataclass(frozen=True)
class Twist(Initializer):
    """Each added row starts as a copy of a text row, drawn without replacement: TWIST's warm start, table included.

    TWIST (Hassid et al. 2023) starts a speech model from text weights and draws its token table anew, which is
    ``model.path`` with ``normal``; here speech tokens also start where words are.  ``jitter`` adds that share of the
    rows' spread as noise, so that copies can part.  An untied head takes the rows of the same text tokens.
    """

    jitter: NonNegativeFloat = 0.01

    def initialize(self, rows: Tensor, ids: Tensor, context: Mapping[str, Any], gen: Generator) -> Tensor:
        """Rows of random text tokens + noise."""
        old = context["old"].float()
        # Not from ``gen``, which has moved on when the head's turn comes: both tables must draw the same tokens.
        choice = torch.Generator().manual_seed(gen.initial_seed())
        rounds = -(-len(rows) // len(old))
        at = torch.cat([torch.randperm(len(old), generator=choice) for _ in range(rounds)])[: len(rows)]
        return old[at] + self.jitter * old.std(0) * torch.randn(rows.shape, generator=gen)


@INITIALIZER.register("codes")
@dataclass(frozen=True)
class Codes(Initializer):
    """Audio rows start as a random orthogonal image of the codec's code vectors; all others as ``normal``.

    Codes that sound alike then start alike.  ``gain`` scales the image relative to the initializer range; ``jitter``
    adds that share of independent noise so that twins can part.
    """

    gain: NonNegativeFloat = 1.0
    jitter: NonNegativeFloat = 0.1

    def initialize(self, rows: Tensor, ids: Tensor, context: Mapping[str, Any], gen: Generator) -> Tensor:
        """Project, standardise, scale."""
        std, vocab, vectors = context["std"], context["vocab"], context["code_vectors"]
        if vectors is None:
            raise ConfigError("model.init: 'codes' needs a codec with code vectors; configure 'codec'")
        flat = torch.from_numpy(np.ascontiguousarray(vectors, dtype=np.float32)).flatten(0, 1)  # [Q * C, E]
        expected = vocab.num_codes * vocab.num_codebooks
        if len(flat) != expected:
            raise ConfigError(
                f"codec: the codec has {len(flat)} codes, the vocabulary {expected}; use the codec it was made for"
            )
        out = torch.randn(rows.shape, generator=gen) * std
        width = rows.shape[1]
        basis, _ = torch.linalg.qr(torch.randn(max(width, flat.shape[1]), max(width, flat.shape[1]), generator=gen))
        image = flat @ basis[: flat.shape[1], :width]
        image = (image - image.mean(0)) / image.std().clamp(min=1e-8)
        image = image * self.gain * std + self.jitter * std * torch.randn(image.shape, generator=gen)
        column, code = (ids - vocab.code_start) // vocab.column_size, (ids - vocab.code_start) % vocab.column_size
        is_code = (ids >= vocab.code_start) & (ids < vocab.code_stop) & (code < vocab.num_codes)  # not the empty code
        out[is_code] = image[(column % vocab.num_codebooks * vocab.num_codes + code)[is_code]]
        return out
