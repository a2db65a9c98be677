"""The smallest things a `Trainer` takes: a model, an objective and a loader with the real calls."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from ttt.config.schema import RunConfig, RunSection, TrainSection
from ttt.interfaces import Objective
from ttt.rng import generator
from ttt.train.trainer import Trainer
from ttt.types import Kind, LossTerm, LossTerms, ModelInputs, PackedBatch, Plan, PlanTerm

V, D, VOCAB = 12, 8, "vocab-a"


class TinyLM(nn.Module):
    """ModelInputs -> logits [N, V]; the output layer is tied to the embedding, as in small language models."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.embed = nn.Embedding(V, D)
            self.norm = nn.LayerNorm(D)
            self.mix = nn.Linear(D, D)
            self.drop = nn.Dropout(0.1)
            self.head = nn.Linear(D, V, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: ModelInputs) -> torch.Tensor:
        hidden = self.embed(x.input_ids) + x.position_ids[..., None] / 10  # [B, T, D]
        hidden = self.drop(self.mix(self.norm(hidden)))
        return self.head(hidden.flatten(0, 1)[x.select]).float()

    def save(self, folder: Path) -> None:
        weights = {k: v.contiguous() for k, v in self.state_dict().items() if k != "head.weight"}
        save_file(weights, Path(folder) / "model.safetensors")
        (Path(folder) / "vocab.json").write_text(json.dumps({"digest": VOCAB}))


class Toy(Objective):
    """Two terms: ``ar`` on text, ``nar`` on audio under weights that are drawn; no audio, no ``nar`` count."""

    def __init__(self, noise: bool = True, scale: float = 0.5) -> None:
        self.noise, self.scale = noise, scale

    def plan(self, batch: PackedBatch, gen: torch.Generator) -> Plan:
        terms = {}
        for name, kind, scale in (("ar", Kind.TEXT, 1.0), ("nar", Kind.AUDIO, self.scale)):
            at = (batch.target & (batch.kind == kind)).flatten().nonzero()[:, 0]
            weight = torch.rand(len(at), generator=gen) if self.noise and name == "nar" else torch.ones(len(at))
            terms[name] = PlanTerm(at, batch.ids.flatten()[at], weight, float(len(at)), scale)
        return Plan(batch.ids.roll(1, 1), batch.position, batch.layout(), None, terms)

    def terms(self, model: nn.Module, plan: Plan) -> LossTerms:
        found, stats = {}, {}
        for name, term in plan.terms.items():
            logits = model(ModelInputs(plan.input_ids, plan.position_ids, None, term.source))
            nll = F.cross_entropy(logits, term.target, reduction="none")
            found[name] = LossTerm((nll * term.weight).sum(), term.count, term.scale)
            if len(nll):
                stats[f"nll/{name}"] = (float(nll.detach().sum()), float(len(nll)))
        return LossTerms(found, stats)


def batch(seed: int, rows: int = 2, length: int = 6, audio: bool = True) -> PackedBatch:
    """A batch drawn from ``seed``; the last position is padding."""
    gen = generator(seed, "tiny")
    ids = torch.randint(1, V, (rows, length), generator=gen)
    kind = torch.full((rows, length), int(Kind.TEXT), dtype=torch.uint8)
    if audio:
        kind[:, length // 2 :] = int(Kind.AUDIO)
    kind[:, -1] = int(Kind.PAD)
    visible = kind != int(Kind.PAD)
    doc = torch.arange(rows)[:, None].expand(rows, length).contiguous()
    return PackedBatch(
        ids=ids, kind=kind, run_id=torch.zeros_like(ids), doc=doc,
        position=torch.arange(length).expand(rows, length).contiguous(),
        target=visible.clone(), noisable=visible.clone(), visible=visible, n_docs=rows, mask_id=0,
        uids=tuple(f"{seed}-{r}" for r in range(rows)),
    )  # fmt: skip


class ToyLoader:
    """Batches of uneven size; some without audio."""

    digest = "data-a"

    def __init__(self, rank: int = 0, world: int = 1) -> None:
        self.rank, self.world = rank, world

    def micro_batch(self, update: int, index: int) -> PackedBatch:
        number = index * self.world + self.rank
        return batch(100 * update + number, rows=1 + (update + 2 * number) % 3, audio=(update + number) % 3 != 0)

    def epoch_of(self, update: int) -> float:
        return update / 4


def config(folder: Path, **train) -> RunConfig:
    """A run of 12 updates that saves every 4."""
    values = {
        "steps": 12, "accumulate": 2, "lr": 0.05, "warmup_steps": 2, "log_every_steps": 3, "eval_every_steps": 6,
        "save_every_steps": 4, "tensorboard": False, **train,
    }  # fmt: skip
    return RunConfig(run=RunSection(dir=str(folder), device="cpu"), train=TrainSection(**values))


def trainer(folder: Path, loader=None, model=None, objective=None, callbacks=(), run=None, **train) -> Trainer:
    """A `Trainer` of tiny things."""
    made = config(folder, **train)
    if run:
        import dataclasses

        made = dataclasses.replace(made, run=dataclasses.replace(made.run, **run))
    return Trainer(
        made, model or TinyLM(), objective or Toy(), loader or ToyLoader(), [batch(7, 3), batch(8, 1, audio=False)],
        vocab_digest=VOCAB, callbacks=callbacks,
    )  # fmt: skip


def lines(folder: Path) -> list[dict]:
    """metrics.jsonl without what depends on the clock."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in r.items() if k not in ("train/tokens_per_s", "train/seconds")} for r in records]


def killed(folder: str, kill: str, step: int) -> None:
    """Train, and be killed (as by ``kill -9``) in update ``step`` or in the save at ``step``."""

    class Loader(ToyLoader):
        def micro_batch(self, update: int, index: int) -> PackedBatch:
            if kill == "update" and update == step and index == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().micro_batch(update, index)

    class Model(TinyLM):
        def save(self, into: Path) -> None:
            super().save(into)
            if kill == "save" and Path(into).parent.name == f".step-{step:08d}.partial":
                os.kill(os.getpid(), signal.SIGKILL)

    trainer(Path(folder), Loader(), Model()).run()


def killed_runs(folder: str, *kills: str) -> list[dict]:
    """One process after the other, each a fork of this one, which has imported torch and done nothing with it."""
    torch.set_num_threads(1)
    told = []
    for kill in kills:
        child = os.fork()
        if not child:
            try:
                killed(folder, kill.split(":")[0], int(kill.split(":")[1]))
            finally:
                os._exit(1)  # whatever happened, this copy of the process does not go on
        _, status = os.waitpid(child, 0)
        found = sorted(p.name for p in (Path(folder) / "checkpoints").iterdir())
        told.append({"signal": os.waitstatus_to_exitcode(status), "checkpoints": found})
    return told


def ranks(folder: str, steps: str, engine: str = "local") -> None:
    """One of several processes under a launcher; rank 1 is told to stop in update 5 of 12."""
    from ttt.train.engines import world

    rank, size = world()

    class Loader(ToyLoader):
        def micro_batch(self, update: int, index: int) -> PackedBatch:
            if rank == 1 and update == 5 and steps == "12":
                os.kill(os.getpid(), signal.SIGTERM)
            return super().micro_batch(update, index)

    torch.set_num_threads(1)
    more = {"engine": "deepspeed", "zero_stage": 2} if engine == "zero2" else {}
    model = TinyLM(seed=rank)  # rank zero's weights count
    model.drop.p = 0.0
    report = trainer(
        Path(folder), Loader(rank, size), model, Toy(noise=False), accumulate=1, steps=int(steps), **more
    ).run()
    print(json.dumps({"rank": rank, "step": report.step, "stopped": report.stopped}), flush=True)


if __name__ == "__main__":
    # The launcher of DeepSpeed puts an option of its own before the script's.
    ranks(*(a for a in sys.argv[1:] if not a.startswith("--local_rank")))
