"""One training step done several ways, on one set of weights: what `ttt bench train` times and `ttt bench loader` compares with."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from ttt.bench.common import Way
from ttt.bench.workload import PADDED, Work, network, packed
from ttt.errors import TttError
from ttt.masks.library import Hybrid
from ttt.masks.materialize import materialize
from ttt.model.backbone import compile_layers
from ttt.objective.library import TtT
from ttt.registry.families import NOISE, WEIGHTING
from ttt.rng import generator
from ttt.types import ModelInputs, Plan

if TYPE_CHECKING:
    from ttt.model.lm import SpeechTextLM

REFERENCE = "reference"
_SAME = 1.0e-4  # relative difference up to which two float32 losses are the same


class Steps:
    """The ways of doing one training step, on one set of weights."""

    def __init__(self, made: Work, arguments: argparse.Namespace, plain: ModuleType | None) -> None:
        self.made, self.plain, self.seed = made, plain, arguments.seed
        self.device = torch.device(arguments.device)
        self.autocast = arguments.autocast == "bfloat16"
        self.model: SpeechTextLM = network(
            made.vocab, arguments.seed, arguments.attention, gradient_checkpointing=arguments.checkpointing
        ).to(self.device)  # fmt: skip
        if arguments.compile:
            compile_layers(self.model.transformers_model)
        self.objective = TtT(Hybrid(), NOISE.build("linear", "bench"), WEIGHTING.build("inverse_p", "bench"), ())
        self.others: dict[str, SpeechTextLM] = {}

    def way(self, name: str) -> Way:
        """A way by name; each round is a batch of its own."""
        step = getattr(self, name)
        return lambda number: self._timed(step, number)

    def check(self, names: list[str]) -> None:
        """Every way's loss and gradient norm on the first batch cut short.  Raises `TttError` where they differ."""
        short = Work(self.made.vocab, (tuple(_cut(s, 160) for s in self.made.rounds[0]),))
        whole, self.made = self.made, short
        try:
            found = {name: self._checked(name) for name in names}
        finally:
            self.made = whole
        tolerance = 3e-2 if self.autocast else _SAME
        for name, values in found.items():
            for what, value, expected in zip(("loss", "gradient norm"), values, found[names[0]], strict=True):
                if abs(value - expected) > tolerance * abs(expected):
                    raise TttError(
                        f"bench: {what} of {name} is {value:.6f}, of {names[0]} {expected:.6f}: not the same work"
                    )

    def reference(self, number: int) -> float:
        """All rows padded to one length, everything dense."""
        rows, times, uniform = self._padded(number, PADDED if number >= 0 else 0)
        return self._plain_step(self._plain_model(), rows, times, uniform)

    def unpadded(self, number: int) -> float:
        """The reference's own code, document by document: no padding, everything else as before."""
        total = 0.0
        documents = self._documents(number)
        model = self._plain_model()
        model.zero_grad(set_to_none=True)
        times, uniform = self._draws(number, len(documents), PADDED)
        for i, stream in enumerate(documents):
            rows = self._rows([stream], len(stream))
            with self._autocast():
                value = self.plain.loss(  # type: ignore[union-attr]
                    model, rows, times[i : i + 1], uniform[i : i + 1, : len(stream)], self.made.vocab.mask_id,
                    self.made.vocab.audio_start,
                ) / len(documents)  # fmt: skip
            value.backward()
            total += float(value.detach())
        return total

    def packed(self, number: int) -> float:
        """One packed row, attention by document; logits at every position."""
        return self._from_logits(number, everywhere=True)

    def loss_positions(self, number: int) -> float:
        """Logits only where there is loss, all of them at once."""
        return self._from_logits(number, everywhere=False)

    def packed_step(self, number: int) -> float:
        """What `ttt train` does: loss positions, some logits at a time."""
        self.model.zero_grad(set_to_none=True)
        plan = self._plan(number)
        with self._autocast():
            found = self.objective.terms(self.model, plan)
        value = sum(t.scale * t.sum / t.count for t in found.terms.values())
        value.backward()  # type: ignore[union-attr]
        return float(value.detach())  # type: ignore[union-attr]

    def _timed(self, step: Callable[[int], float], number: int) -> float:
        step(number)
        return self.made.tokens(number)

    def _checked(self, name: str) -> tuple[float, float]:
        loss = getattr(self, name)(0)
        model = self._plain_model() if name in (REFERENCE, "unpadded") else self.model
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        return loss, float(torch.stack([g.norm() for g in grads]).norm())

    def _documents(self, number: int):
        return self.made.rounds[number % len(self.made.rounds)]

    def _draws(self, number: int, rows: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        gen = generator(self.seed, "bench", number)
        times = torch.rand(rows, generator=gen)
        return times.to(self.device), torch.rand((rows, length), generator=gen).to(self.device)

    def _plan(self, number: int) -> Plan:
        documents = self._documents(number)
        times, uniform = (x.cpu() for x in self._draws(number, len(documents), PADDED))
        batch = packed(documents, self.made.vocab)
        flat = [uniform[i % len(uniform), : len(s)] for i, s in enumerate(documents)]
        return self.objective.plan_from(batch, self.objective.maskable(batch), times, torch.cat(flat)[None])

    def _from_logits(self, number: int, everywhere: bool) -> float:
        self.model.zero_grad(set_to_none=True)
        plan = self._plan(number)
        used = list(plan.terms.values())
        source = torch.cat([t.source for t in used])
        select = torch.arange(plan.input_ids.numel()) if everywhere else source
        mask = materialize(plan.mask, plan.layout.to(self.device), self.model.attention, self.model.dtype)
        inputs = (plan.input_ids.to(self.device), plan.position_ids.to(self.device), mask, select.to(self.device))
        with self._autocast():
            logits = self.model(ModelInputs(*inputs))
        if everywhere:  # as the reference: cross-entropy at every position, once a term
            value = torch.zeros((), device=self.device)
            for term in used:
                labels = torch.full((plan.input_ids.numel(),), -100)
                weight = torch.zeros(plan.input_ids.numel())
                labels[term.source], weight[term.source] = term.target, term.weight
                nll = F.cross_entropy(logits, labels.to(self.device), ignore_index=-100, reduction="none")
                value = value + (nll * weight.to(self.device)).sum() * (term.scale / term.count)
        else:
            nll = F.cross_entropy(logits, torch.cat([t.target for t in used]).to(self.device), reduction="none")
            weight = torch.cat([t.weight * (t.scale / t.count) for t in used])
            value = (nll * weight.to(self.device)).sum()
        value.backward()
        return float(value.detach())

    def _plain_model(self) -> Any:
        if "plain" not in self.others:
            other = network(self.made.vocab, self.seed, "sdpa").to(self.device)
            other.load_state_dict(self.model.state_dict())
            self.others["plain"] = other
        return self.others["plain"].transformers_model

    def _padded(self, number: int, length: int):
        documents = self._documents(number)
        if sum(map(len, documents)) < 1000:  # the check's short rows
            length = max(map(len, documents))
        times, uniform = self._draws(number, len(documents), PADDED)
        return self._rows(list(documents), length), times, uniform[:, :length]

    def _rows(self, documents: list, length: int):
        assert self.plain is not None
        rows = self.plain.pad([(s.ids.tolist(), s.prompt_length) for s in documents], length, self.made.vocab.pad_id)
        return type(rows)(*(getattr(rows, f).to(self.device) for f in rows.__dataclass_fields__))

    def _plain_step(self, model: Any, rows: Any, times: torch.Tensor, uniform: torch.Tensor) -> float:
        assert self.plain is not None
        with self._autocast():
            return self.plain.step(model, rows, times, uniform, self.made.vocab.mask_id, self.made.vocab.audio_start)

    def _autocast(self):
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.autocast)


def _cut(stream, length: int):
    import dataclasses

    keep = {n: getattr(stream, n)[:length] for n in ("ids", "kind", "run_id", "target", "noisable")}
    return dataclasses.replace(stream, **keep)
