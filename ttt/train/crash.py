"""What is kept of an update that failed: its batches and plans, loadable, and computed again on request."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ttt.errors import DataError
from ttt.interfaces import Objective
from ttt.io.json_input import read_json
from ttt.rng import derive_seed
from ttt.train.step import draw_plan, micro_batch_number, name_examples
from ttt.types import CodeSpace, Kind, PackedBatch, Plan

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Crash:
    """One rank's window of a failed update.

    ``record``: ``update`` (from 0), ``rank``, ``world_size``, ``seed``, ``error`` and one entry per micro-batch;
    ``plans``: what was stored of each plan: ``input_ids`` and, per loss term, ``NAME.source``, ``NAME.target``,
    ``NAME.weight``.  Empty where planning itself failed.
    """

    record: Mapping[str, Any]
    batches: Sequence[PackedBatch]
    plans: Sequence[Mapping[str, Tensor]]

    def draw(self, objective: Objective, index: int) -> Plan:
        """The plan of micro-batch ``index`` once more, with the noise it had."""
        number = micro_batch_number(index, self.record["rank"], self.record["world_size"])
        return draw_plan(objective, self.batches[index], self.record["seed"], self.record["update"], number)

    def replay(self, objective: Objective, model: nn.Module, index: int) -> dict[str, float]:
        """Loss sums by term of micro-batch ``index`` under ``model``.

        Raises `DataError` when ``objective`` plans it otherwise than it was planned then.
        """
        plan = self.draw(objective, index)
        for name, stored in self.plans[index].items():
            if not torch.equal(stored, _plan_tensors(plan).get(name, torch.empty(0))):
                raise DataError(
                    f"micro-batch {index}: {name} is planned otherwise than then: another objective or version"
                )
        number = micro_batch_number(index, self.record["rank"], self.record["world_size"])
        torch.manual_seed(derive_seed(self.record["seed"], "dropout", self.record["update"], number))
        with torch.no_grad():
            return {name: float(t.sum) for name, t in objective.terms(model, plan).terms.items()}


def save_crash(
    folder: Path, window: Sequence[PackedBatch], error: BaseException, objective: Objective, *, update: int, seed: int,
    rank: int = 0, world_size: int = 1,
) -> None:  # fmt: skip
    """Keep and log the batches of a failed update: ``rank-R.json``, ``rank-R.safetensors`` (``i.FIELD``, ``i.plan.FIELD``)."""
    from safetensors.torch import save_file

    batches = []
    tensors: dict[str, Tensor] = {}
    for i, batch in enumerate(window):
        values = {f.name: getattr(batch, f.name) for f in fields(batch)}
        kept = {f"{i}.{k}": v for k, v in values.items() if isinstance(v, Tensor)}
        try:
            plan = draw_plan(objective, batch, seed, update, micro_batch_number(i, rank, world_size))
            kept.update({f"{i}.plan.{k}": v for k, v in _plan_tensors(plan).items()})
        except Exception as second:  # perhaps planning is what failed; the first error is the one that matters
            log.error("  micro-batch %d: no plan: %s", i, second)
        tensors.update({k: v.cpu().contiguous().clone() for k, v in kept.items()})
        kinds = Counter(batch.kind.flatten().tolist())
        batches.append({
            "shape": list(batch.ids.shape), "kinds": {k.name: kinds.get(int(k), 0) for k in Kind},
            **{k: asdict(v) if isinstance(v, CodeSpace) else v for k, v in values.items() if not isinstance(v, Tensor)},
        })  # fmt: skip
    record = {
        "update": update, "step": update + 1, "rank": rank, "world_size": world_size, "seed": seed,
        "error": f"{type(error).__name__}: {error}", "batches": batches,
    }  # fmt: skip
    log.error("step %d failed: %s", update + 1, record["error"])
    for i, entry in enumerate(batches):
        names = name_examples([window[i]], 64)
        log.error("  micro-batch %d: shape %s, %s, %s", i, entry["shape"], entry["kinds"], names)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"rank-{rank}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        if tensors:
            save_file(tensors, folder / f"rank-{rank}.safetensors")
        log.error("  saved to %s", folder)
    except Exception as second:
        log.error("  not saved to %s: %s", folder, second)


def load_crash(folder: Path, rank: int = 0) -> Crash:
    """What `save_crash` wrote.  Raises `DataError` when there is nothing of this rank."""
    from safetensors.torch import load_file

    record = read_json(folder / f"rank-{rank}.json", "name a folder crash-N of a run")
    path = folder / f"rank-{rank}.safetensors"
    tensors = load_file(path) if path.is_file() else {}
    names = {f.name for f in fields(PackedBatch)}
    batches, plans = [], []
    for i, entry in enumerate(record["batches"]):
        of_batch = {k.split(".", 1)[1]: v for k, v in tensors.items() if k.startswith(f"{i}.")}
        plans.append({k.removeprefix("plan."): v for k, v in of_batch.items() if k.startswith("plan.")})
        values = {k: v for k, v in {**of_batch, **entry}.items() if k in names}
        space = entry.get("space")
        if space is not None:
            codebooks = tuple((a, b) for a, b in space["codebooks"])
            space = CodeSpace(codebooks, tuple(space["ends"]), space.get("frame_rate_hz", 0.0))
        names_of = {name: tuple(entry.get(name, ())) for name in ("uids", "tasks")}
        pairs = tuple((a, b) for a, b in entry.get("pairs", ()))
        batches.append(PackedBatch(**{**values, **names_of, "space": space, "pairs": pairs}))
    return Crash(record, batches, plans)


def _plan_tensors(plan: Plan) -> dict[str, Tensor]:
    tensors = {"input_ids": plan.input_ids}
    for name, term in plan.terms.items():
        tensors.update({f"{name}.source": term.source, f"{name}.target": term.target, f"{name}.weight": term.weight})
    return tensors
