"""The decoding state of a ``valle`` network: rows of frames of codes, and the passes over them.

It answers the same requests as `ttt.sampling.decoder.session.Session`: logits at masked places of a row's answer, whose
codes follow each other frame by frame.  A place of the first codebook is a step of the AR decoder, whose keys are cached:
exactly, because no position sees a later one (VALL-E, arXiv 2301.02111).  Codes are compared to find the keys that
still hold, so a sampler may change codes that it wrote before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ttt.errors import ConfigError, DataError
from ttt.interfaces import MaskRule
from ttt.masks.materialize import dense
from ttt.model.valle.blocks import KeyValue
from ttt.model.valle.masks import check_rule, frame_layout
from ttt.types import LogitsRequest, Prompt, Voices, Words

if TYPE_CHECKING:
    from ttt.model.valle.network import ValleNetwork


class FrameSession:
    """``slots`` rows; ``cache`` "none" computes everything anew in each call (the slow reference), else keys are kept.

    For networks that read voices, row ``slots + n`` is row n without its voice: what guidance ``no_voice`` asks for.
    """

    def __init__(self, network: ValleNetwork, mask: MaskRule, *, cache: str = "exact", slots: int = 1) -> None:
        check_rule(mask)
        self.network, self.mask, self.keeps = network, mask, cache != "none"
        self.device, self.vocab = network.device, network.tokenizer.vocab
        self.slots, self.speaks = slots, network.arch.voice_dim > 0
        self.rows: list[_Row | None] = [None] * (slots * (1 + self.speaks))
        self._keys: list[KeyValue] = []  # by layer, [rows, H, capacity, d]

    def reserve(self, tokens: int) -> None:
        """Nothing to do: room is made as rows grow."""

    def admit(self, slot: int, prompt: Prompt) -> None:
        """Begin a prompt in row ``slot``: all codes in its ids, as frames.  Raises `DataError` when there are none."""
        frames = self.vocab.codes(np.asarray(prompt.ids, dtype=np.int64))
        if not len(frames):
            raise DataError(f"prompt {prompt.uid!r}: holds no audio; a continuation needs some")
        ids = np.asarray(prompt.ids, dtype=np.int64)
        words = ids[~self.vocab.is_audio(ids)] if self.network.arch.text else ids[:0]
        voice = None if prompt.voice is None else torch.from_numpy(prompt.voice)
        self.rows[slot] = _Row(torch.from_numpy(frames).long(), torch.from_numpy(words), voice)
        if self.speaks:
            self.rows[self.slots + slot] = _Row(torch.from_numpy(frames).long(), torch.from_numpy(words), None)

    def append(self, slot: int, ids: Tensor, closed: bool = False, in_tail: bool = False) -> None:
        """Commit ids of the answer.  Tails begin where the answer does and hold these ids too."""
        for row in (self._row(s) for s in range(slot, len(self.rows), self.slots)):
            row.answer = torch.cat([row.answer, ids.cpu()])

    def row(self, slot: int) -> list[int]:
        """Committed ids of the answer of one row."""
        return self._row(slot).answer.tolist()

    def run(self, requests: Sequence[LogitsRequest]) -> list[Tensor]:
        """Logits f32 [R, p, ids] of every request.

        They are minus infinity but for the codes of a place's codebook and, in the first codebook of an AR decoder, the
        end of the turn.
        """
        q, form = self.network.codebooks, self.network.arch.nar
        slots, wanted_ids, joined, out = [], [], [], []  # of each row of each request
        ar: list[tuple[int, Tensor]] = []
        nar: dict[int, list[tuple[int, Tensor, Tensor]]] = {}
        for request in requests:
            if request.guidance and not (self.speaks and request.guidance == "no_voice"):
                raise ConfigError(
                    "eval.sampler: guidance (cfg_scale) is not for a valle, which has no empty prompt; its own samplers have "
                    "voice_scale, for networks with model.arch.voice_dim"
                )
            slots += (request.rows + self.slots * bool(request.guidance)).tolist()
            wanted_ids += [request.ids] * len(request.rows)
            joined += [request.settled_as_prompt] * len(request.rows)
        rows = (pair for r in requests for pair in zip(r.tails.cpu(), r.places.cpu(), strict=True))
        for n, (ids, places) in enumerate(rows):
            out.append(places.new_zeros(0))
            codebooks = places % q
            if form != "masked_all" and bool((codebooks == 0).any()):
                if len(places) != 1:
                    raise ConfigError(
                        "eval.sampler: a valle writes its first codebook code by code; choose its own sampler"
                    )
                ar.append((n, ids[: int(places)].view(-1, q)[:, 0] - self.vocab.code_start))
                continue
            stage = int(codebooks[0]) if form == "stages" else 0
            if form == "stages" and bool((codebooks != stage).any()):
                raise ConfigError("eval.sampler: this valle fills one codebook after another; choose its own sampler")
            nar.setdefault(stage, []).append((n, ids, places))
        if ar:
            for (n, _), logits in zip(ar, self._ar([slots[n] for n, _ in ar], [c for _, c in ar]), strict=True):
                out[n] = self._placed(logits[None], torch.zeros(1, dtype=torch.long), wanted_ids[n])
        for stage, members in nar.items():
            states = self._nar(stage, [(slots[n], ids, joined[n]) for n, ids, _ in members])
            for (n, _, places), hidden in zip(members, states, strict=True):
                codebooks = (places % q).to(self.device)
                frames = hidden[(places // q).to(self.device)]
                logits = frames.new_zeros(len(places), self.network.num_codes, dtype=torch.float32)
                for codebook in torch.unique(codebooks).tolist():
                    of_codebook = codebooks == codebook
                    logits[of_codebook] = self.network.nar_logits(frames[of_codebook], codebook).float()
                out[n] = self._placed(logits, codebooks, wanted_ids[n])
        logits_of_rows = iter(out)
        return [torch.stack([next(logits_of_rows) for _ in request.rows]) for request in requests]

    def _row(self, slot: int) -> _Row:
        row = self.rows[slot]
        assert row is not None, f"slot {slot} holds no prompt"
        return row

    def _placed(self, logits: Tensor, codebooks: Tensor, ids: slice | None) -> Tensor:
        """Logits [p, N] or [p, N + 1] of codes of ``codebooks`` as logits [p, ids] of ids of the vocabulary."""
        first, stop = (0, self.vocab.size) if ids is None else (ids.start, ids.stop)
        n = self.network.num_codes
        wide = logits.new_full((len(logits), self.vocab.size), -torch.inf)
        at = self.vocab.code_start + codebooks.to(logits.device)[:, None] * n + torch.arange(n, device=logits.device)
        wide.scatter_(1, at, logits[:, :n])
        if logits.shape[1] > n:
            wide[:, self.vocab.im_end_id] = logits[:, n]
        return wide[:, first:stop]

    # ------------------------------------------------------------------------------------------------ first codebook

    def _ar(self, slots: Sequence[int], codes: Sequence[Tensor]) -> list[Tensor]:
        """Logits [N + 1] of the code behind ``codes`` i64 [t] of each row."""
        net = self.network
        rows = [self._row(s) for s in slots]
        if not self.keeps:
            for row in rows:
                row.forget()
        self._prefill([s for s, r in zip(slots, rows, strict=True) if r.after_prompt is None])
        begin = [net.num_codes + 1] if net.arch.prepend_bos else []
        inputs = [[*begin, *c.tolist()] for c in codes]
        hidden: list[Tensor | None] = [r.after_prompt if not i else None for r, i in zip(rows, inputs, strict=True)]
        work = [n for n, i in enumerate(inputs) if i]
        if work:
            starts = [_common(rows[n].inputs, inputs[n]) for n in work]
            starts = [
                min(at, len(inputs[n]) - 1) for n, at in zip(work, starts, strict=True)
            ]  # the last one runs again
            last = self._step([slots[n] for n in work], [inputs[n] for n in work], starts)
            for n, h in zip(work, last, strict=True):
                hidden[n] = h
        logits = net.ar_predict_layer(torch.stack(hidden)).float()  # type: ignore[arg-type]
        return list(logits)

    def _prefill(self, slots: Sequence[int]) -> None:
        """Run the prompts of some rows, keep their keys and the last hidden state."""
        if not slots:
            return
        rows = [self._row(s) for s in slots]
        padded, frames = _stacked([r.prompt for r in rows])
        x, lengths, at = self.network.ar_context(
            padded.to(self.device), frames.to(self.device), self._words(slots), self._voices(slots)
        )
        lengths, size = lengths.cpu(), x.shape[1]
        visible = torch.arange(size) < lengths[:, None]
        mask = dense(self.mask, frame_layout(visible, size))
        mask = (mask | torch.eye(size, dtype=torch.bool))[:, None].to(self.device)
        hidden, new = self.network.ar_decoder(x, at, mask)
        self._write(slots, [0] * len(slots), lengths.tolist(), new)
        for n, row in enumerate(rows):
            row.after_prompt, row.inputs = hidden[n, row.context - 1], []

    def _step(self, slots: Sequence[int], inputs: Sequence[list[int]], starts: Sequence[int]) -> list[Tensor]:
        """Run each row's inputs from ``starts`` on behind what is kept; hidden state [D] of the last of them."""
        net, rows = self.network, [self._row(s) for s in slots]
        prompts, contexts = (
            torch.tensor(lens, device=self.device) for lens in ([len(r.prompt) for r in rows], [r.context for r in rows])
        )
        counts = [len(i) - a for i, a in zip(inputs, starts, strict=True)]
        most = max(counts)
        ids = torch.zeros(len(rows), most, dtype=torch.long)
        for n, (whole, begin) in enumerate(zip(inputs, starts, strict=True)):
            ids[n, : counts[n]] = torch.tensor(whole[begin:])
        first = torch.tensor(starts, device=self.device)
        at = net.target_positions(prompts, first[:, None] + torch.arange(most, device=self.device))
        x = net.ar_target(ids.to(self.device), at, self._voices(slots))
        kept = (contexts + first).tolist()
        longest = max(kept)
        chosen = torch.tensor(list(slots), device=self.device)
        past = [(k[chosen, :, :longest], v[chosen, :, :longest]) for k, v in self._keys]
        old = torch.arange(longest, device=self.device) < (contexts + first)[:, None]
        causal = torch.ones(most, most, dtype=torch.bool, device=self.device).tril()
        size = len(rows)
        mask = torch.cat([old[:, None].expand(size, most, longest), causal.expand(size, most, most)], 2)[:, None]
        hidden, new = net.ar_decoder(x, at, mask, past=past)
        self._write(slots, kept, counts, new)
        for row, own in zip(rows, inputs, strict=True):
            row.inputs = list(own)
        return [hidden[n, count - 1] for n, count in enumerate(counts)]

    def _write(
        self, slots: Sequence[int], starts: Sequence[int], counts: Sequence[int], new: Sequence[KeyValue]
    ) -> None:
        """Store keys and values; what is longer than a row's count is padding."""
        need = max(a + c for a, c in zip(starts, counts, strict=True))
        have = self._keys[0][0].shape[2] if self._keys else 0
        if need > have:
            size = max(need, 2 * have, 64)
            shapes = [(len(self.rows), k.shape[1], size, k.shape[3]) for k, _ in new]
            fresh = [(k.new_zeros(s), v.new_zeros(s)) for s, (k, v) in zip(shapes, new, strict=True)]
            for (k, v), (old_k, old_v) in zip(fresh, self._keys, strict=False):
                k[:, :, :have], v[:, :, :have] = old_k, old_v
            self._keys = fresh
        for n, (slot, at, count) in enumerate(zip(slots, starts, counts, strict=True)):
            for (keys, values), (k, v) in zip(self._keys, new, strict=True):
                keys[slot, :, at : at + count] = k[n, :, :count]
                values[slot, :, at : at + count] = v[n, :, :count]

    # -------------------------------------------------------------------------------------------------- other codebooks

    def _nar(self, stage: int, rows: Sequence[tuple[int, Tensor, bool]]) -> list[Tensor]:
        """Hidden states [T, D'] of the frames of flat ids i64 [T * Q], masks among them, behind each slot's prompt.

        ``rows``: (slot, ids, joined).  Where joined, committed frames are read as more of the prompt (and their states are 0).
        """
        net, q = self.network, self.network.codebooks
        frames, prompts, before = [], [], []
        for slot, ids, joined in rows:
            whole = ids[: len(ids) // q * q].view(-1, q)
            codes = torch.where(whole == self.vocab.mask_id, -1, whole - self.vocab.code_start - self._offsets())
            known = len(self._row(slot).answer) // q if joined else 0
            frames.append(codes[known:])
            prompts.append(torch.cat([self._row(slot).prompt, codes[:known]]))
            before.append(known)
        prompt, prompt_lens = _stacked(prompts)
        target, target_lens = _stacked(frames)
        masked = (target < 0).to(self.device) if net.arch.nar != "stages" else None
        hidden = net.nar_hidden(
            prompt.to(self.device), prompt_lens.to(self.device), target.clamp(min=0).to(self.device),
            target_lens.to(self.device), stage, masked, words=self._words([slot for slot, _, _ in rows]),
            voices=self._voices([slot for slot, _, _ in rows]),
        )  # fmt: skip
        return [F.pad(h[:n], (0, 0, k, 0)) for h, n, k in zip(hidden, target_lens.tolist(), before, strict=True)]

    def _words(self, slots: Sequence[int]) -> Words | None:
        """The text of some rows; None for a network that reads none."""
        if not self.network.arch.text:
            return None
        ids, lens = _stacked([self._row(s).words[:, None] for s in slots])
        return Words(ids[..., 0], lens).to(self.device)

    def _voices(self, slots: Sequence[int]) -> Voices | None:
        """Who speaks in some rows; None for a network that is not told."""
        if not self.speaks:
            return None
        voices = [self._row(s).voice for s in slots]
        nobody = torch.zeros(self.network.arch.voice_dim)
        given = torch.tensor([v is not None for v in voices])
        return Voices(torch.stack([nobody if v is None else v for v in voices]), given).to(self.device)

    def _offsets(self) -> Tensor:
        return torch.arange(self.network.codebooks) * self.network.num_codes


class _Row:
    """``prompt`` i64 [S, Q] and the text before it, ``words`` i64 [L]; ``voice`` f32 [E]; ``answer`` committed flat ids.

    ``inputs``: ids of the AR decoder's target whose keys are kept.
    """

    def __init__(self, prompt: Tensor, words: Tensor, voice: Tensor | None) -> None:
        self.prompt, self.words, self.voice = prompt, words, voice
        self.context = len(words) + len(prompt)  # places before the target
        self.answer = torch.zeros(0, dtype=torch.long)
        self.forget()

    def forget(self) -> None:
        """Keep no keys."""
        self.inputs: list[int] = []
        self.after_prompt: Tensor | None = None  # hidden state of the last prompt frame


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    for n, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return n
    return min(len(a), len(b))


def _stacked(parts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Tensors [n, Q] -> [R, most, Q] padded with 0, lengths [R]."""
    lengths = torch.tensor([len(p) for p in parts])
    out = torch.zeros(len(parts), int(lengths.max()), parts[0].shape[1], dtype=torch.long)
    for n, part in enumerate(parts):
        out[n, : len(part)] = part
    return out, lengths
