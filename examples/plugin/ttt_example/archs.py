"""An architecture of one's own: a small Transformer in plain PyTorch, saved in two files beside the tokenizer.

It has every member of `ttt.interfaces.LanguageModel`, so objectives, samplers, chat, likelihood and the others work with it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ttt.errors import CheckpointError, ConfigError
from ttt.interfaces import Arch
from ttt.model.cache import PackedCall, attend_rows
from ttt.model.cross_entropy import chunked_scores
from ttt.model.folder import KEY, read_into
from ttt.registry.families import ARCH
from ttt.text.tokenizer import TextTokenizer
from ttt.types import ModelInputs


class Layer(nn.Module):
    """Attention and feed-forward part, each behind a norm and with a residual; hidden states [B, T, D]."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor, number: int, mask: Tensor | None, call: PackedCall | None = None) -> Tensor:
        """``mask`` bool [B, 1, T, T]; with ``call``, a decoding call, its rows look at their own keys instead."""
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # [B, H, T, d]
        if call is None:
            seen = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        else:
            seen = attend_rows(number, q, k, v, call, None)
        x = x + self.out(seen.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class SmallNetwork(nn.Module):
    """Learned positions, one table for embedding and head."""

    attention = "sdpa"  # how masks are made for it: bool [B, 1, T, T]

    def __init__(self, arch: SmallLM, tokenizer: TextTokenizer) -> None:
        super().__init__()
        self.arch, self.tokenizer, self.max_positions = arch, tokenizer, arch.positions
        self.ids = nn.Embedding(tokenizer.vocab.size, arch.dim)
        self.places = nn.Embedding(arch.positions, arch.dim)
        self.layers = nn.ModuleList(Layer(arch.dim, arch.heads) for _ in range(arch.layers))
        self.norm = nn.LayerNorm(arch.dim)
        self.logits = nn.Linear(arch.dim, tokenizer.vocab.size, bias=False)
        self.logits.weight = self.ids.weight

    @property
    def num_ids(self) -> int:
        """Ids that logits cover."""
        return self.ids.num_embeddings

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return self.ids.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.ids.weight.device

    def token_tables(self) -> dict[str, Tensor]:
        """The one table."""
        return {"embedding": self.ids.weight}

    def hidden(
        self, input_ids: Tensor, position_ids: Tensor, attention_mask: Any, call: PackedCall | None = None
    ) -> Tensor:
        """Hidden states [B, T, D] of ids and positions i64 [B, T]."""
        x = self.ids(input_ids) + self.places(position_ids)
        for number, layer in enumerate(self.layers):
            x = layer(x, number, attention_mask, call)
        return self.norm(x)

    def hidden_of_rows(self, call: PackedCall) -> Tensor:
        """Hidden states [n, D] of the wanted tokens of a decoding call."""
        ids, positions = (x[None].to(self.device) for x in (call.input_ids, call.position_ids))
        return self.hidden(ids, positions, None, call)[0, call.wanted.to(self.device)]

    def head(self, hidden: Tensor, ids: slice | None = None) -> Tensor:
        """Logits f32 [..., V], or of ``ids`` only."""
        return F.linear(hidden, self.logits.weight if ids is None else self.logits.weight[ids]).float()

    def forward(self, x: ModelInputs) -> Any:
        """Logits at ``x.select``, or with targets their -log p."""
        hidden = self.hidden(x.input_ids, x.position_ids, x.attention_mask).flatten(0, 1)[x.select]
        if x.targets is None:
            return self.head(hidden)
        nll, hits = chunked_scores(self.logits, hidden, x.targets, x.weight, columns=x.columns, hits=x.hits)
        return (nll, hits) if x.hits else nll

    def prepare(self) -> None:
        """Nothing to prepare."""

    def save(self, folder: str | Path) -> None:
        """``config.json`` with the architecture's block, ``model.safetensors``, the tokenizer."""
        from safetensors.torch import save_model

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps({KEY: {"name": "small_lm", **asdict(self.arch)}}) + "\n")
        save_model(self, str(folder / "model.safetensors"))
        self.tokenizer.save(folder)


@ARCH.register("small_lm")
@dataclass(frozen=True)
class SmallLM(Arch):
    """A Transformer of ``layers`` layers, ``dim`` wide, for at most ``positions`` tokens."""

    works_like: ClassVar[str] = "causal_lm"

    dim: int = 32
    heads: int = 4
    layers: int = 2
    positions: int = 1024

    def start(self, section: Any, tokenizer: Any, seed: int, code_vectors: Any = None, weights: str | Path = ""):
        """Random weights, or those of the folder ``weights``."""
        for key in ("path", "preset", "compile", "gradient_checkpointing"):
            if getattr(section, key):
                raise ConfigError(f"model.{key}: small_lm has no such setting; leave it out")
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            network = SmallNetwork(self, tokenizer)
        if weights:
            read_into(network, Path(weights))
        return network.to(getattr(torch, section.dtype)).train()

    def open(self, folder: Path, attention: str, dtype: torch.dtype):
        """What `SmallNetwork.save` wrote."""
        if not (folder / "model.safetensors").is_file():
            raise CheckpointError(f"{folder}: no model.safetensors here; name the folder of a small_lm")
        network = SmallNetwork(self, TextTokenizer.load(folder))
        read_into(network, folder)
        return network.to(dtype)
