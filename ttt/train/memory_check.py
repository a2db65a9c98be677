"""Does the costliest batch of an epoch fit?  Asked before the first update, so that a run does not end hours later."""

from __future__ import annotations

import logging
from functools import partial

import torch

from ttt.errors import ConfigError
from ttt.interfaces import Objective
from ttt.rng import derive_seed, generator
from ttt.train.engines.base import Engine
from ttt.train.step import micro_batch_loss, name_examples, total_counts
from ttt.types import PackedBatch

log = logging.getLogger(__name__)


def check_memory(engine: Engine, objective: Objective, batch: PackedBatch, seed: int) -> None:
    """Forward and backward of ``batch``; its gradients are dropped, and torch's generators are left as they were.

    Raises `ConfigError` naming the keys that make batches smaller when memory runs out.  The optimiser's state is no part
    of it: that is made by the first update.
    """
    rows, width = batch.ids.shape
    shape = f"{rows} rows of {width} positions, {batch.n_tokens} tokens"
    devices = [engine.device] if engine.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(derive_seed(seed, "memory"))
            plan = objective.plan(batch, generator(seed, "memory"))
            with engine.micro_batch(last=True):
                work = partial(micro_batch_loss, objective=objective, plan=plan, counts=total_counts([plan]))
                loss, (live, _) = engine.compute(work)
                if live:
                    engine.backward(loss)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise ConfigError(
            f"train.check_memory: the costliest batch of an epoch ({shape}, {name_examples([batch], 3)}) does not fit into the "
            f"memory of {engine.device} ({' '.join(str(error).split())[:200]}); lower data.batch_tokens (with a greater "
            "train.accumulate an update stays as large) or data.row_tokens, or set train.autocast=bfloat16 or "
            "model.gradient_checkpointing=true"
        ) from error
    finally:
        engine.discard()
    peak = f", peak {torch.cuda.max_memory_allocated(engine.device) / 2**30:.1f} GiB" if devices else ""
    log.info("train: the costliest batch of an epoch fits: %s%s", shape, peak)


def is_out_of_memory(error: BaseException) -> bool:
    """Is it an allocation that failed, on a device or in the host's memory?"""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    said = str(error).lower()
    return any(part in said for part in ("out of memory", "can't allocate memory", "alloc_failed"))
