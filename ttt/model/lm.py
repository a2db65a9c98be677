"""The language model of the architecture ``causal_lm``: a Hugging Face model behind `ttt.interfaces.LanguageModel`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ttt.errors import CheckpointError, ConfigError
from ttt.masks.materialize import materialize
from ttt.masks.segments import Segments
from ttt.model.cross_entropy import chunked_scores
from ttt.model.fast import FastDecoder, fast
from ttt.model.joined import embedded
from ttt.model.last_layer import is_narrow, narrow, widen
from ttt.packed_weights import Packed, pack, packable, unpack
from ttt.text.tokenizer import TextTokenizer
from ttt.types import ModelInputs, Plan

if TYPE_CHECKING:
    from ttt.model.cache import PackedCall
    from ttt.text.vocab import Vocabulary


_EAGER_COPIES = 4  # maps of one layer that eager attention holds at once: scores, mask added, softmax, cast


def stop_at_turn_end(hf: Any, vocab: Vocabulary) -> None:
    """Have plain transformers stop where a turn ends; other generation settings of the backbone stay."""
    for config in (hf.config, getattr(hf, "generation_config", None)):
        if config is not None:
            config.pad_token_id, config.eos_token_id = vocab.pad_id, vocab.im_end_id


class SpeechTextLM(nn.Module):
    """A Hugging Face causal LM, its tokenizer and vocabulary."""

    def __init__(self, hf: Any, tokenizer: TextTokenizer) -> None:
        super().__init__()
        self.hf = hf
        self.tokenizer = tokenizer
        rows = hf.get_input_embeddings().num_embeddings
        if rows < tokenizer.vocab.size:
            raise CheckpointError(
                f"the model has {rows} token rows, its vocabulary {tokenizer.vocab.size}: they do not belong together"
            )
        self._fast: FastDecoder | None = None  # made by `prepare`
        self._heads: dict[tuple[int, int], Packed] | None = None  # rearranged rows of the head, by the range of ids

    def save(self, folder: str | Path) -> None:
        """`save_pretrained` (safetensors), the tokenizer and vocab.json.  Plain transformers stops at the end of a turn."""
        stop_at_turn_end(self.hf, self.tokenizer.vocab)
        self.hf.save_pretrained(folder)
        self.tokenizer.save(Path(folder))

    @property
    def attention(self) -> str:
        """The attention implementation masks have to be made for."""
        return self.hf.config._attn_implementation

    @property
    def num_ids(self) -> int:
        """Ids that logits cover: the vocabulary's, and rows that only fill the table up."""
        return self.hf.get_output_embeddings().weight.shape[0]

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return self.hf.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.hf.get_input_embeddings().weight.device

    @property
    def max_positions(self) -> int:
        """Positions that the backbone was made for; 0 when its configuration does not say."""
        return int(getattr(self.hf.config, "max_position_embeddings", 0) or 0)

    @property
    def num_layers(self) -> int:
        """Number of Transformer layers."""
        return self.hf.config.num_hidden_layers

    @property
    def num_heads(self) -> int:
        """Number of query heads of a layer."""
        return self.hf.config.num_attention_heads

    @property
    def transformers_model(self) -> Any:
        """The plain model of the transformers library, for comparisons with other people's code."""
        return self.hf

    def token_tables(self) -> Mapping[str, Tensor]:
        """``embedding`` and, where it has weights of its own, ``head``: [V, D] each."""
        tables = {"embedding": self.hf.get_input_embeddings().weight}
        head = self.hf.get_output_embeddings()
        if head is not None and head.weight is not tables["embedding"]:
            tables["head"] = head.weight
        return tables

    def prepare(self) -> None:
        """Get ready for decoding, until `train`: `hidden_of_rows` and `head` then take less time (they give the same).

        On a CPU weights are rearranged (`ttt.packed_weights`) and the layers of common backbones run in fewer steps
        (`ttt.model.fast`); elsewhere the last layer works for wanted tokens only (`ttt.model.last_layer`).
        """
        decoder, head = self.hf.get_decoder(), self.hf.get_output_embeddings()
        if self._fast is None or not self._fast.fresh:
            self._fast = fast(decoder)
        if self._fast is None:
            narrow(decoder)
            pack(decoder)
        if self._heads is None and type(head) is nn.Linear and packable(head):
            self._heads = {}

    def train(self, mode: bool = True) -> SpeechTextLM:
        """As `nn.Module.train`; training takes back what `prepare` did."""
        if mode:
            self._fast = self._heads = None
            widen(self.hf.get_decoder())
            unpack(self)
        super().train(mode)
        return self

    def forward(self, x: ModelInputs) -> Any:
        """Logits f32 [N, V] at the flat positions ``x.select``, or with ``x.targets`` their -log p [N]; never [B, T, V].

        With ``x.hits`` (-log p, bool [N]).
        """
        mask = x.attention_mask
        if isinstance(mask, Segments):
            hidden = self._packed_hidden(x.input_ids, x.position_ids, mask)[0, mask.places(x.select)]
        else:
            hidden = self.hidden(x.input_ids, x.position_ids, mask).flatten(0, 1)[x.select]
        if x.targets is None:
            return self.head(hidden)
        head = self.hf.get_output_embeddings()
        nll, hits = chunked_scores(head, hidden, x.targets, x.weight, columns=x.columns, hits=x.hits)
        return (nll, hits) if x.hits else nll

    def _read(self, ids: Tensor) -> dict[str, Tensor]:
        """Ids [B, T], or [B, T, K] where several stand at a position, as the backbone takes them."""
        return {"input_ids": ids} if ids.dim() == 2 else {"inputs_embeds": embedded(self.hf.get_input_embeddings(), ids)}

    def _packed_hidden(self, input_ids: Tensor, position_ids: Tensor, mask: Segments) -> Tensor:
        """Last hidden states [1, N, D] of the real positions in the order of ``mask``."""
        # The mask travels as a keyword argument that backbones hand down to their attention; an empty tensor in its
        # place keeps them from making one of their own, and one that drops the argument from going unnoticed.
        nothing = torch.zeros((1, 1, 0, 0), dtype=torch.bool, device=input_ids.device)
        return self.hf.get_decoder()(
            **self._read(mask.pack(input_ids)), position_ids=mask.pack(position_ids), attention_mask=nothing, use_cache=False,
            segments=mask,
        ).last_hidden_state  # fmt: skip

    def hidden(self, input_ids: Tensor, position_ids: Tensor, attention_mask: Any) -> Tensor:
        """Last hidden states [B, T, D] of the decoder; zeros on padding where rows are packed."""
        if isinstance(attention_mask, Segments):
            return attention_mask.unpack(self._packed_hidden(input_ids, position_ids, attention_mask))
        return self.hf.get_decoder()(
            **self._read(input_ids), position_ids=position_ids, attention_mask=attention_mask, use_cache=False
        ).last_hidden_state

    def hidden_of_rows(self, call: PackedCall) -> Tensor:
        """Last hidden states [n, D] of the wanted tokens (`PackedCall.wanted`) of a decoding call.

        Whatever attention the model was loaded with, rows are attended by `ttt.model.cache.attend_rows`.
        """
        if self._fast is not None and self._fast.fresh:
            return self._fast(call)
        from ttt.model.cache import ROWS

        config, before = self.hf.config, self.attention
        config._attn_implementation = ROWS
        try:
            decoder = self.hf.get_decoder()
            hidden = decoder(
                **self._read(call.input_ids.to(self.device)[None]), position_ids=call.position_ids.to(self.device)[None],
                use_cache=False, packed=call,
            ).last_hidden_state[0]  # fmt: skip
            return hidden if is_narrow(decoder) else hidden[call.wanted.to(hidden.device)]
        finally:
            config._attn_implementation = before

    def head(self, hidden: Tensor, ids: slice | None = None) -> Tensor:
        """Logits f32 [..., V] of hidden states [..., D]; ``ids``: only the columns of these ids, [..., stop - start]."""
        head = self.hf.get_output_embeddings()
        if self._heads is not None and not torch.is_grad_enabled():
            ids = ids or slice(0, head.out_features)
            known = self._heads.get((ids.start, ids.stop))
            if known is None or not known.fresh:
                known = self._heads[ids.start, ids.stop] = Packed(head, ids)
            return known(hidden)
        if ids is None:
            return head(hidden).float()
        if type(head) is not nn.Linear:  # an adapter around the head: its weight alone is not what it computes
            return head(hidden)[..., ids].float()
        return nn.functional.linear(hidden, head.weight[ids], None if head.bias is None else head.bias[ids]).float()

    def attention_map_bytes(self, positions: int) -> int:
        """Memory that `attention_maps` needs for a row of ``positions`` tokens: (layers + a few) x heads x T^2 floats."""
        return 4 * (self.num_layers + _EAGER_COPIES) * self.num_heads * positions * positions

    @torch.no_grad()
    def attention_maps(self, plan: Plan) -> list[Tensor]:
        """Attention probabilities of a plan of one row: for each layer f32 [H, T, T] on the CPU, rows (queries) sum to 1.

        Only ``eager`` attention computes them as such.  Raises `ConfigError` for a model loaded with another
        implementation, and for a backbone that returns none.
        """
        if self.attention != "eager":
            raise ConfigError(f"attention maps need model.attention=eager; this model runs {self.attention!r}")
        if plan.input_ids.shape[0] != 1:
            raise ValueError(f"one row at a time, got {plan.input_ids.shape[0]}")
        out = self.hf.get_decoder()(
            input_ids=plan.input_ids.to(self.device), position_ids=plan.position_ids.to(self.device),
            attention_mask=materialize(plan.mask, plan.layout.to(self.device), "eager", self.dtype),
            use_cache=False, output_attentions=True,
        )  # fmt: skip
        maps = getattr(out, "attentions", None)
        if not maps or any(m is None for m in maps):
            raise ConfigError(f"the backbone {type(self.hf).__name__} gives no attention probabilities")
        return [m[0].float().cpu() for m in maps]
