"""The network of the architecture ``valle``: two decoders over frames of codes.

Letters: ``L`` text tokens, ``S`` frames of the prompt, ``T`` frames of the target, ``Q`` codebooks, ``N`` codes of a codebook,
``D`` width.
Names of parameters begin with ``ar_`` or ``nar_``: the two stages of training.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ttt.errors import CheckpointError, ConfigError
from ttt.interfaces import MaskRule
from ttt.io.pretrained import refuse_nonfinite
from ttt.masks.materialize import materialize
from ttt.model.folder import KEY, refuse_other_arch
from ttt.model.valle.blocks import Prenet, SinePositions, Stack, Unplaced, VoiceInput
from ttt.model.valle.masks import check_rule, frame_layout
from ttt.model.valle.session import FrameSession
from ttt.model.valle.targets import IGNORED, EosRule, ar_inputs_labels
from ttt.registry import name_of
from ttt.text.tokenizer import TextTokenizer
from ttt.text.vocab import FLATTEN
from ttt.types import Voices, Words

if TYPE_CHECKING:
    from ttt.model.valle.arch import Valle

TOP = 10  # a code counts as hit when it is among so many likeliest


@dataclass(frozen=True)
class FrameInputs:
    """One training pass.

    ``prompt`` i64 [B, S, Q], ``target`` i64 [B, T, Q]: codes, anything valid on padding; ``prompt_lens``, ``target_lens`` i64 [B].
    ``rule``: the AR decoder's mask.  ``ar``: run the AR decoder, with ``eos`` (`ar_inputs_labels`) and, without a beginning
    token, ``first_code``: let the last prompt frame learn the first code.  ``stages``: codebooks the NAR decoder predicts, one
    pass each, which knows the codebooks below (one of masked codebooks is shown the others as masks).  ``hidden`` bool [B, T, Q]:
    instead, one pass that predicts these masked codes.  ``stretch``: frames at the prompts' ends that positions of the NAR
    decoder's targets do not count (`ttt.data.batches.codec_frames.with_stretch`).  ``words``: text before the prompts.
    ``voices``: who speaks, for networks with ``voice_dim``.
    """

    prompt: Tensor
    prompt_lens: Tensor
    target: Tensor
    target_lens: Tensor
    rule: MaskRule
    ar: bool = True
    eos: EosRule = "first"
    first_code: bool = True
    stages: Sequence[int] = ()
    hidden: Tensor | None = None
    stretch: int = 0
    words: Words | None = None
    voices: Voices | None = None


@dataclass(frozen=True)
class Scores:
    """-log p f32 [n] of what was predicted, whether it was among the ten likeliest bool [n], its row and codebook i64 [n].

    ``end`` bool [n]: it was the end token.
    """

    nll: Tensor
    hit: Tensor
    row: Tensor
    codebook: Tensor
    end: Tensor


class ValleNetwork(nn.Module):
    """AR decoder of the first codebook, NAR decoder of the others; see `Valle` for the fields of ``arch``."""

    attention = "sdpa"
    max_positions = 0  # sines and rotations go on for ever

    def __init__(self, arch: Valle, tokenizer: TextTokenizer) -> None:
        super().__init__()
        vocab = tokenizer.vocab
        self.arch, self.tokenizer = arch, tokenizer
        self.num_codes, self.codebooks = n, q = vocab.num_codes, vocab.num_codebooks
        if vocab.pattern != FLATTEN:
            raise ConfigError(
                f"data.pattern: arch valle reads frames as they are, not in the order {name_of(vocab.pattern)!r}; make the "
                "tokenizer with flatten"
            )
        if q == 1 and arch.nar == "masked":
            raise ConfigError("model.arch.nar: 'masked' fills the upper codebooks, and this vocabulary has one book")
        d = arch.dim

        def tables(rows: Sequence[int], width: int) -> nn.ModuleList:
            return nn.ModuleList(nn.Embedding(r, width) for r in rows)

        rotary = arch.positions == "rotary"
        base = arch.rotary_base if rotary else 0.0

        def placed(width: int, dropout: float, trained: bool) -> nn.Module:
            return Unplaced(dropout) if rotary else SinePositions(width, dropout, trained)

        if arch.nar != "masked_all":
            self.ar_prompt_embeddings = tables([n] * (q - arch.share_tables), d)
            self.ar_audio_embedding = nn.Embedding(n + 1 + arch.prepend_bos, d)
            self.ar_prompt_prenet, self.ar_audio_prenet = (Prenet(d) if arch.prenet else nn.Identity() for _ in "pt")
            self.ar_prompt_position, self.ar_audio_position = (placed(d, arch.dropout, True) for _ in "pt")
            self.ar_decoder = Stack(
                arch.layers, d, arch.heads, arch.dropout, arch.norm_first, adaptive=False, rotary_base=base
            )
            self.ar_predict_layer = nn.Linear(d, n + 1, bias=False)
            if arch.text:
                self.ar_text_embedding = nn.Embedding(vocab.audio_start, d)
                self.ar_text_prenet = Prenet(d) if arch.prenet else nn.Identity()
                self.ar_text_position = placed(d, arch.dropout, True)
            if arch.voice_dim:
                self.ar_voice = VoiceInput(arch.voice_dim, d)
        if q == 1 and arch.nar == "stages":
            return
        d = arch.nar_dim
        masked = arch.nar != "stages"
        read = q if masked or arch.share_embeddings else q - 1  # the last codebook is only predicted
        self.nar_prompt_embeddings = tables([n] * (q - read * arch.share_tables), d)
        # Row N: padding (first codebook); row N, and N + 1 in the first codebook: a masked code.
        self.nar_audio_embeddings = tables([n + (j == 0) + masked for j in range(read)], d)
        self.nar_prompt_prenet, self.nar_audio_prenet = (Prenet(d) if arch.prenet else nn.Identity() for _ in "pt")
        self.nar_prompt_position = placed(d, 0.0, False)
        self.nar_audio_position = placed(d, arch.dropout, False)
        if arch.text:
            self.nar_text_embedding = nn.Embedding(vocab.audio_start, d)
            self.nar_text_prenet = Prenet(d) if arch.prenet else nn.Identity()
            self.nar_text_position = placed(d, 0.0, False)
        if arch.voice_dim:
            self.nar_voice = VoiceInput(arch.voice_dim, d)
        self.nar_stage_embeddings = tables([1] * (1 if masked else q - 1), d)
        self.nar_decoder = Stack(
            arch.nar_layers, d, arch.nar_heads, arch.dropout, arch.norm_first, adaptive=True, rotary_base=base
        )
        self.first_predicted = 0 if arch.nar == "masked_all" else 1
        self.nar_predict_layers = nn.ModuleList(nn.Linear(d, n, bias=False) for _ in range(self.first_predicted, q))
        if arch.share_embeddings:
            if masked:
                raise ConfigError(
                    "model.arch.share_embeddings: only with nar=stages, whose tables have no row for masks"
                )
            for codebook, head in enumerate(self.nar_predict_layers, 1):
                head.weight = self.nar_audio_embeddings[codebook].weight  # type: ignore[assignment,union-attr]

    # ------------------------------------------------------------------------------------ members of ttt.interfaces.Network

    @property
    def num_ids(self) -> int:
        """Ids of the vocabulary: the session's logits cover them."""
        return self.tokenizer.vocab.size

    @property
    def drawn_parameters(self) -> frozenset[str]:
        """Names of the parameters that an update uses or not, by the codebook that it draws: those of single upper codebooks."""
        if self.codebooks == 1 or self.arch.nar != "stages":
            return frozenset()
        first = "nar_audio_embeddings.0."  # read by all
        owned = ["nar_predict_layers.", "nar_stage_embeddings."]
        if not self.arch.share_tables:  # else every prompt reads them
            owned.append("nar_audio_embeddings.")
        return frozenset(
            n for n, _ in self.named_parameters() if n.startswith(tuple(owned)) and not n.startswith(first)
        )

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def save(self, folder: str | Path) -> None:
        """``config.json``, ``model.safetensors`` (shared weights once), the tokenizer and vocab.json."""
        from safetensors.torch import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        about = {"model_type": "ttt_valle", KEY: {"name": "valle", **asdict(self.arch)}, "num_codes": self.num_codes,
                 "num_codebooks": self.codebooks, "dtype": str(self.dtype).removeprefix("torch.")}  # fmt: skip
        (folder / "config.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        weights = {name: p.detach().cpu().contiguous().clone() for name, p in self.named_parameters()}
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        self.tokenizer.save(folder)

    def load_weights(self, folder: Path) -> None:
        """Read what `save` wrote, in place.  Raises `CheckpointError` when it is of another shape or class."""
        from safetensors.torch import load_file

        refuse_other_arch(folder, "valle")
        path = folder / "model.safetensors"
        if not path.is_file():
            raise CheckpointError(f"{folder}: no model.safetensors here; this is not a model folder")
        try:
            stored = load_file(path)
        except Exception as error:  # damaged files surface as many types
            raise CheckpointError(f"{path}: cannot be read: {' '.join(str(error).split())}") from error
        have = dict(self.named_parameters())
        for name in sorted(set(have) ^ set(stored)):
            side = "lacks" if name in have else "has"
            raise CheckpointError(f"{path}: weights of another model: it {side} {name!r}; compare model.arch")
        for name, parameter in have.items():
            if parameter.shape != stored[name].shape:
                raise CheckpointError(
                    f"{path}: weights of another model: {name!r} is {list(stored[name].shape)}, model.arch makes it "
                    f"{list(parameter.shape)}"
                )
        refuse_nonfinite(path, stored.items())
        with torch.no_grad():
            for name, parameter in have.items():
                parameter.copy_(stored[name])

    def prepare(self) -> None:
        """Get ready for decoding: nothing to do."""

    def session(self, mask: MaskRule, *, cache: str = "exact", room: int = 0, slots: int = 1) -> Any:
        """The decoding state (`FrameSession`)."""
        return FrameSession(self, mask, cache=cache, slots=slots)

    # ---------------------------------------------------------------------------------------------- training

    def forward(self, x: FrameInputs) -> dict[str, Scores]:
        """Scores of every prediction that is learned: ``ar``, ``nar``."""
        scores: dict[str, Scores] = {}
        if x.ar:
            scores["ar"] = self._ar_scores(x)
        if x.hidden is not None:
            scores["nar"] = self._masked_scores(x, x.hidden)
        elif x.stages:
            parts = [self._stage_scores(x, s) for s in x.stages]
            scores["nar"] = Scores(*(torch.cat([getattr(p, f) for p in parts]) for f in Scores.__dataclass_fields__))
        return scores

    def _ar_scores(self, x: FrameInputs) -> Scores:
        inputs, labels = ar_inputs_labels(x.target[..., 0], x.target_lens, self.num_codes, self.arch.prepend_bos, x.eos)
        t = inputs.shape[1]
        prompt, before, places = self.ar_context(x.prompt, x.prompt_lens, x.words, x.voices)
        s = prompt.shape[1]
        at = self.target_positions(x.prompt_lens, torch.arange(t, device=inputs.device))
        target = self.ar_target(inputs, at, x.voices)
        hidden, _ = self.ar_decoder(
            torch.cat([prompt, target], 1), torch.cat([places, at], 1), self.ar_mask(x.rule, before, x.target_lens, s, t)
        )
        rows, where = (labels != IGNORED).nonzero(as_tuple=True)
        chosen, wanted = hidden[rows, s + where], labels[rows, where]
        if not self.arch.prepend_bos and x.first_code:
            all_rows = torch.arange(len(labels), device=labels.device)
            chosen = torch.cat([chosen, hidden[all_rows, before - 1]])
            wanted, rows = torch.cat([wanted, x.target[:, 0, 0]]), torch.cat([rows, all_rows])
        return _scores(self.ar_predict_layer(chosen), wanted, rows, torch.zeros_like(rows), self.num_codes)

    def _stage_scores(self, x: FrameInputs, stage: int) -> Scores:
        inside, masked = _inside(x.target_lens, x.target.shape[1]), None
        if self.arch.nar != "stages":
            masked = inside[..., None] & (torch.arange(self.codebooks, device=inside.device) >= stage)
        told = stage if masked is None else 0
        hidden = self.nar_hidden(
            x.prompt, x.prompt_lens, x.target, x.target_lens, told, masked, x.stretch, x.words, x.voices
        )
        rows, where = inside.nonzero(as_tuple=True)
        logits = self.nar_logits(hidden[rows, where], stage)
        return _scores(logits, x.target[rows, where, stage], rows, torch.full_like(rows, stage), self.num_codes)

    def _masked_scores(self, x: FrameInputs, masked: Tensor) -> Scores:
        hidden = self.nar_hidden(
            x.prompt, x.prompt_lens, x.target, x.target_lens, 0, masked, words=x.words, voices=x.voices
        )
        parts = []
        for codebook in range(self.first_predicted, self.codebooks):
            rows, where = masked[..., codebook].nonzero(as_tuple=True)
            logits = self.nar_logits(hidden[rows, where], codebook)
            wanted = x.target[rows, where, codebook]
            parts.append(_scores(logits, wanted, rows, torch.full_like(rows, codebook), self.num_codes))
        return Scores(*(torch.cat([getattr(p, f) for p in parts]) for f in Scores.__dataclass_fields__))

    # ------------------------------------------------------------------------------------- parts, also for decoding

    def ar_prompt(self, codes: Tensor) -> Tensor:
        """Prompt vectors [B, S, D] of codes i64 [B, S, Q]: the sum over codebooks."""
        shared = [self.ar_audio_embedding] if self.arch.share_tables else []
        summed = _summed([*shared, *self.ar_prompt_embeddings], codes)
        at = torch.arange(codes.shape[1], device=codes.device)
        return self.ar_prompt_position(self.ar_prompt_prenet(summed), at)

    def ar_context(
        self, codes: Tensor, lens: Tensor, words: Words | None, voices: Voices | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What stands before the target: vectors [B, P, D] of text and prompt, their lengths [B], positions i64 [B, P]."""
        prompt = self.ar_prompt(codes)
        if voices is not None:
            prompt = self.ar_voice(prompt, voices)
        if words is None:
            return prompt, lens, _count(prompt)
        at = torch.arange(words.ids.shape[1], device=codes.device)
        text = self.ar_text_position(self.ar_text_prenet(self.ar_text_embedding(words.ids)), at)
        if voices is not None:
            text = self.ar_voice(text, voices)
        return _joined(text, words.lens, prompt, lens)

    def target_positions(self, prompt_lens: Tensor, at: Tensor) -> Tensor:
        """Positions i64 [B, T] of places i64 [T] or [B, T] of targets behind prompts of ``prompt_lens`` i64 [B] frames."""
        before = prompt_lens if self.arch.continuous_positions else torch.zeros_like(prompt_lens)
        return at + before[:, None]

    def ar_target(self, ids: Tensor, at: Tensor, voices: Voices | None = None) -> Tensor:
        """Target vectors [B, T, D] of ids i64 [B, T] (codes, end, beginning) at positions i64 [B, T] (`target_positions`)."""
        target = self.ar_audio_position(self.ar_audio_prenet(self.ar_audio_embedding(ids)), at)
        return target if voices is None else self.ar_voice(target, voices)

    def ar_mask(self, rule: MaskRule, prompt_lens: Tensor, target_lens: Tensor, s: int, t: int) -> Tensor:
        """Bool [B, 1, s + t, s + t]: who may look at whom; True is allowed."""
        check_rule(rule)
        visible = torch.cat([_inside(prompt_lens, s), _inside(target_lens + self.arch.prepend_bos, t)], 1)
        layout = frame_layout(visible, s)
        return materialize(rule, layout, "sdpa", self.dtype)

    def nar_hidden(
        self, prompt: Tensor, prompt_lens: Tensor, target: Tensor, target_lens: Tensor, stage: int,
        masked: Tensor | None = None, stretch: int = 0, words: Words | None = None, voices: Voices | None = None,
    ) -> Tensor:  # fmt: skip
        """Hidden states [B, T, D'] of the target's frames.

        ``stage``: the codebook to predict, 1 to Q - 1; the target's codebooks below it are read.  With ``masked``
        bool [B, T, Q] all codebooks
        are read, but for those codes (``stage`` is then 0).  ``stretch``, ``words``, ``voices``: see `FrameInputs`.
        """
        inside = _inside(target_lens, target.shape[1])
        if masked is None:
            first = torch.where(inside, target[..., 0], self.num_codes)  # padding has a row of its own
            y = _summed([*self.nar_audio_embeddings], torch.cat([first[..., None], target[..., 1:stage]], -1))
        else:
            row = target.new_tensor([self.num_codes + (j == 0) for j in range(self.codebooks)])
            ids = torch.where(masked, row, target)
            ids[..., 0] = torch.where(inside, ids[..., 0], self.num_codes)
            y = _summed([*self.nar_audio_embeddings], ids)
        at = self.target_positions(prompt_lens - stretch, torch.arange(target.shape[1], device=target.device))
        y = self.nar_audio_position(self.nar_audio_prenet(y), at)
        shared = [*self.nar_audio_embeddings] if self.arch.share_tables else []
        x = _summed([*shared, *self.nar_prompt_embeddings], prompt)
        x = self.nar_prompt_position(self.nar_prompt_prenet(x), torch.arange(prompt.shape[1], device=prompt.device))
        before, places = prompt_lens, _count(x)
        if words is not None:
            text_at = torch.arange(words.ids.shape[1], device=prompt.device)
            text = self.nar_text_position(self.nar_text_prenet(self.nar_text_embedding(words.ids)), text_at)
            x, before, places = _joined(text, words.lens, x, prompt_lens)
        s = x.shape[1]
        steer = self.nar_stage_embeddings[0 if masked is not None else stage - 1].weight[0]  # type: ignore[union-attr,index]
        mask = self._nar_mask(_inside(before, s), inside)
        both = torch.cat([x, y], 1)
        if voices is not None:
            both = self.nar_voice(both, voices)
        hidden, _ = self.nar_decoder(both, torch.cat([places, at], 1), mask, steer)
        return hidden[:, s:]

    def nar_logits(self, hidden: Tensor, codebook: int) -> Tensor:
        """Logits [..., N] of one codebook."""
        return self.nar_predict_layers[codebook - self.first_predicted](hidden)

    def _nar_mask(self, of_prompt: Tensor, of_target: Tensor) -> Tensor:
        keys = torch.cat([of_prompt, of_target], 1)[:, None, None]  # [B, 1, 1, S + T]
        s, n = of_prompt.shape[1], keys.shape[-1]
        mask = keys.expand(-1, 1, n, n).clone()
        if not self.arch.nar_prompt_sees_target:
            mask[:, :, :s, s:] = False
        # A padded prompt whose keys are all padding would have nothing to look at.
        mask |= torch.eye(n, dtype=torch.bool, device=mask.device)
        return mask


def _summed(tables: Sequence[nn.Module], codes: Tensor) -> Tensor:
    """Sum over codebooks [B, T, D] of the embeddings of codes i64 [B, T, q]."""
    total = tables[0](codes[..., 0])
    for codebook in range(1, codes.shape[-1]):
        total = total + tables[codebook](codes[..., codebook])
    return total


def _count(x: Tensor) -> Tensor:
    """Positions i64 [B, S] of vectors [B, S, D]: from 0 on."""
    return torch.arange(x.shape[1], device=x.device).expand(x.shape[:2])


def _joined(text: Tensor, text_lens: Tensor, prompt: Tensor, lens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Text [B, L, D] and right behind it, in each row, its prompt [B, S, D]: ([B, P, D], lengths [B], positions i64 [B, P]).

    Positions of text and of prompt both start at 0.
    """
    total = text_lens + lens
    at = torch.arange(int(total.max()), device=text.device)
    places = torch.where(at < text_lens[:, None], at, at - text_lens[:, None])
    both = torch.cat([text, prompt], 1)
    source = torch.where(at < text_lens[:, None], at, text.shape[1] + places).clamp(max=both.shape[1] - 1)
    return both.gather(1, source[..., None].expand(-1, -1, both.shape[2])), total, places


def _inside(lengths: Tensor, size: int) -> Tensor:
    """Bool [B, size]: True in a row's own frames."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]


def _scores(logits: Tensor, wanted: Tensor, row: Tensor, codebook: Tensor, num_codes: int) -> Scores:
    logits = logits.float()
    nll = F.cross_entropy(logits, wanted, reduction="none")
    with torch.no_grad():
        of_wanted = logits.gather(1, wanted[:, None])
        hit = (logits > of_wanted).sum(1) < TOP
    return Scores(nll, hit, row, codebook, wanted == num_codes)
