"""The architecture ``valle``: its shape, and how its folders are written and read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from ttt.config.schema import ModelSection
from ttt.errors import ConfigError
from ttt.interfaces import Arch
from ttt.registry import NonNegativeInt, PositiveFloat, PositiveInt, Range, ShareBelow1
from ttt.registry.families import ARCH

if TYPE_CHECKING:
    import torch



@ARCH.register("valle", elsewhere=("audio-lm", "audio_lm", "audiolm", "valle-audio", "valle_audio", "VALLE-audio"))
@dataclass(frozen=True)
class Valle(Arch):
    """VALL-E (arXiv 2301.02111): the prompt is audio, with ``text`` also words.  Codebooks and their size are the vocabulary's.

    ``nar`` is what the second decoder learns: ``stages``, one codebook after another (VALL-E); ``masked``, all upper codebooks by
    masked diffusion; ``masked_all``, the first codebook too, and then there is no AR decoder (SoundStorm, arXiv 2305.09636).
    """

    dim: PositiveInt = 1024  # width of the AR decoder
    heads: PositiveInt = 16
    layers: PositiveInt = 12
    dropout: ShareBelow1 = 0.1
    text: bool = False  # prompts begin with text, as in VALL-E; false: text is dropped, as in AudioLM
    norm_first: bool = True  # norms before attention and feed-forward; false: after each residual
    prenet: bool = False  # a small network between embeddings and positions
    prepend_bos: bool = (
        True  # the target begins with a token of its own; false: the last prompt frame predicts the first code
    )
    positions: Literal["sines", "rotary"] = "sines"  # sines (added to the embeddings) | rotary (in the attention of both decoders)
    rotary_base: Annotated[float, Range(gt=1)] = 10000.0  # of rotary positions; small for short recordings
    continuous_positions: bool = (
        False  # the target's positions go on where the prompt's end; false: they start at 0, and the distance of a
        # target frame to the prompt's is not told
    )
    nar: Literal["stages", "masked", "masked_all"] = "stages"  # stages | masked | masked_all
    nar_scale_factor: PositiveFloat = 1.0  # width, heads and layers of the NAR decoder as a share of the AR decoder's
    nar_prompt_sees_target: bool = False  # in the NAR decoder; true: no mask but padding
    voice_dim: NonNegativeInt = 0  # size of the vector that says who speaks (meta.voice_vector); 0: no vector is read
    share_tables: bool = False  # prompt and target are read through the same tables (VALL-E); false: each has its own
    share_embeddings: bool = False  # the NAR head of a codebook is the table of its embedding (VALL-E, not AudioLM)

    def __post_init__(self) -> None:
        if self.dim % self.heads or self.dim % 2:
            raise ValueError(f"dim must be even and a multiple of heads, got {self.dim} and {self.heads}")
        if min(self.nar_heads, self.nar_layers) < 1 or self.nar_dim % self.nar_heads or self.nar_dim % 2:
            raise ValueError(
                f"nar_scale_factor {self.nar_scale_factor} makes a NAR decoder of width {self.nar_dim} with {self.nar_heads} "
                f"heads and {self.nar_layers} layers; the width must be even and a multiple of the heads"
            )
        widths = (self.dim // self.heads, self.nar_dim // self.nar_heads)
        if self.positions == "rotary" and (widths[0] % 2 or widths[1] % 2):
            raise ValueError(f"positions=rotary needs heads of even width, got {widths[0]} (AR) and {widths[1]} (NAR)")

    @property
    def nar_dim(self) -> int:
        """Width of the NAR decoder."""
        return int(self.dim * self.nar_scale_factor)

    @property
    def nar_heads(self) -> int:
        """Heads of the NAR decoder."""
        return int(self.heads * self.nar_scale_factor)

    @property
    def nar_layers(self) -> int:
        """Layers of the NAR decoder."""
        return int(self.layers * self.nar_scale_factor)

    def start(
        self, section: ModelSection, tokenizer: Any, seed: int, code_vectors: Any = None, weights: str | Path = ""
    ):
        """Random weights, or those of ``weights``.  Raises `ConfigError` for keys of `model` that mean nothing here."""
        import torch

        from ttt.model.backbone import weight_type
        from ttt.model.valle.network import ValleNetwork

        _refuse_causal_keys(section)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            network = ValleNetwork(self, tokenizer)
        if weights:
            network.load_weights(Path(weights))
        return network.to(weight_type(section)).train()

    def open(self, folder: Path, attention: str, dtype: torch.dtype) -> Any:
        """From a folder written by `ValleNetwork.save`."""
        from ttt.model.valle.network import ValleNetwork
        from ttt.text.tokenizer import TextTokenizer

        network = ValleNetwork(self, TextTokenizer.load(folder))
        network.load_weights(folder)
        return network.to(dtype)


def _refuse_causal_keys(section: ModelSection) -> None:
    default = ModelSection()
    for key in ("path", "preset", "overrides", "compile", "gradient_checkpointing"):
        if getattr(section, key) != getattr(default, key):
            raise ConfigError(
                f"model.{key}: belongs to model.arch=causal_lm; a valle takes its shape from model.arch alone"
            )
    if section.lora.rank:
        raise ConfigError("model.lora: adapters belong to model.arch=causal_lm; leave it out")
