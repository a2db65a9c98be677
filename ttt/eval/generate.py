"""Examples -> generation records: prompts through the decoder, and the objective on true answers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from ttt.data.batches.rows import collate
from ttt.data.encode import encode_example
from ttt.interfaces import Network, Objective, Task
from ttt.rng import generator
from ttt.sampling.decoder.decoder import Decoder
from ttt.sampling.trace.record import Tracer
from ttt.text.tokenizer import TextTokenizer
from ttt.types import Example, Prompt


def generate(
    decoder: Decoder,
    examples: Sequence[Example],
    tasks: Mapping[str, Task],
    batch_size: int,
    tracer: Tracer | None = None,
    *,
    done: Mapping[str, dict[str, Any]] | None = None,
    on_record: Callable[[dict[str, Any]], None] | None = None,
) -> list[dict[str, Any]]:
    """Generation records in the order of ``examples``; of each task, ``batch_size`` prompts are decoded at a time.

    ``tasks``: label -> task, which makes the prompt.  ``tracer`` records every step of decoding.  ``done``: records by uid of
    examples that were answered before and are not decoded again; ``on_record`` gets every other record as soon as its answer
    has ended (its ``seconds`` are a first estimate: the shares of a batch are known when all of it has ended).
    """
    by_uid = dict(done or {})
    prompts: dict[str, Prompt] = {}
    for example in examples:
        stream = encode_example(tasks[example.task].prompt(example), decoder.model.tokenizer, open_answer=True)
        prompts[example.uid] = Prompt.of(stream, example.uid)
    by_task: dict[str, list[Example]] = {}
    for example in sorted(examples, key=lambda e: (e.task, len(prompts[e.uid].ids), e.uid)):
        by_task.setdefault(example.task, []).append(example)
    for same_task in by_task.values():
        unanswered = [example for example in same_task if example.uid not in by_uid]
        if not unanswered:
            continue
        with contextlib.closing(decoder.answers([prompts[e.uid] for e in unanswered], tracer, batch_size)) as answers:
            for row, made in answers:
                example = unanswered[row]
                record = by_uid[example.uid] = {
                    "uid": example.uid, "task": example.task, "split": example.meta.get("split", ""), "text": made.text,
                    "codes": made.codes.tolist(), "calls": dict(made.calls), "seconds": made.seconds,
                    "first_block_s": made.first_block_s, "stopped": made.stopped, "n_tokens": len(made.ids),
                    "batch": min(batch_size, len(same_task)),
                }  # fmt: skip
                if on_record is not None:
                    on_record(record)
        for row, example in enumerate(unanswered):
            by_uid[example.uid]["seconds"] = decoder.seconds_of(row)
    return [by_uid[e.uid] for e in examples]


def forced_statistics(
    model: Network, objective: Objective, examples: Sequence[Example], tokenizer: TextTokenizer, seed: int
) -> list[dict[str, list[float]]]:
    """The objective's statistics on the true answer of each example, by itself: {name: [sum, count]}.

    The plan is that of validation; its noise depends on ``seed`` and the example's uid only.
    """
    vocab, statistics = tokenizer.vocab, []
    with torch.no_grad():
        for example in examples:
            stream = encode_example(example, tokenizer)
            batch = collate([[stream]], len(stream), vocab.pad_id, vocab.mask_id, vocab.code_space)
            plan = objective.clean_plan(batch, generator(seed, f"forced {example.uid}"))
            statistics.append({name: list(pair) for name, pair in objective.terms(model, plan).stats.items()})
    return statistics
