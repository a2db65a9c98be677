"""Examples -> generation records: prompts through the decoder, and the objective on true answers.

Prompts are decoded in groups.  Which prompts form a group, and so which of them share network calls, depends on the
prompts and the settings alone.  Processes that deal the groups out among them therefore write the same answers as one
process that decodes them all, to the last bit.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ttt.data.batches.rows import collate
from ttt.data.encode import encode_example
from ttt.data.read.holes import filled, prompt_with_holes
from ttt.data.read.prompts import IDS
from ttt.interfaces import Network, Objective, Task
from ttt.rng import generator
from ttt.sampling.decoder.decoder import Decoder
from ttt.sampling.trace.record import Tracer
from ttt.text.tokenizer import TextTokenizer
from ttt.types import Example, Prompt, written_text

# A finished answer makes room for the next prompt of its group, so in long groups fewer rows are empty; many groups can be
# dealt out evenly.  So a group holds as many batches as there are groups, up to this number.
BATCHES = 16


@dataclass(frozen=True)
class Asked:
    """An example and its prompt as the model reads it; ``words``: the text of its last turn."""

    example: Example
    prompt: Prompt
    words: str

    @classmethod
    def of(cls, example: Example, task: Task, tokenizer: TextTokenizer) -> Asked:
        """The prompt that the example's task makes."""
        without_answer = task.prompt(example)
        prompt = prompt_with_holes(example, without_answer, tokenizer, example.uid)
        given = IDS in example.meta
        return cls(example, prompt, tokenizer.decode(prompt.ids) if given else written_text(without_answer.turns[-1].spans))


def groups_of(asked: Sequence[Asked], decoder: Decoder, batch_size: int) -> Iterator[list[Asked]]:
    """Prompts that are decoded together: of one task, of similar lengths, the shortest first.

    A group never holds prompts of which ``eval.batch_tokens`` lets less than half as many be decoded at a time as of its first.
    """
    by_task: dict[str, list[Asked]] = {}
    for one in sorted(asked, key=lambda a: (a.example.task, len(a.prompt.ids), a.example.uid)):
        by_task.setdefault(one.example.task, []).append(one)
    for same_task in by_task.values():
        size = batch_size * min(BATCHES, math.ceil(math.sqrt(len(same_task) / batch_size)))
        group: list[Asked] = []
        for one in same_task:
            rows = decoder.rows_together(len(one.prompt.ids), batch_size)
            if group and (len(group) == size or 2 * rows < decoder.rows_together(len(group[0].prompt.ids), batch_size)):
                yield group
                group = []
            group.append(one)
        yield group


def answers(
    decoder: Decoder, group: Sequence[Asked], batch_size: int, tracer: Tracer | None = None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number in the group, generation record) as soon as each answer has ended.

    Its ``seconds`` are a first estimate: the shares are known when all of the group has ended (`Decoder.seconds_of`).
    """
    rows = decoder.rows_together(max(len(one.prompt.ids) for one in group), min(batch_size, len(group)))
    with contextlib.closing(decoder.answers([one.prompt for one in group], tracer, batch_size)) as made:
        for row, answer in made:
            example, prompt = group[row].example, group[row].prompt
            yield row, {
                "uid": example.uid, "task": example.task, "split": example.meta.get("split", ""),
                "prompt": group[row].words, "text": answer.text, "codes": answer.codes.tolist(), "calls": dict(answer.calls),
                "seconds": answer.seconds, "first_block_s": answer.first_block_s, "stopped": answer.stopped,
                "n_tokens": len(answer.ids), "batch": rows,
                **({"holes": filled(prompt, list(answer.ids), decoder.model.tokenizer)} if prompt.known else {}),
            }  # fmt: skip


def generate(
    decoder: Decoder, examples: Sequence[Example], tasks: Mapping[str, Task], batch_size: int
) -> list[dict[str, Any]]:
    """Generation records in the order of ``examples``; of each task, ``batch_size`` prompts are decoded at a time.

    ``tasks``: label -> task, which makes the prompt.
    """
    by_uid: dict[str, dict[str, Any]] = {}
    asked = [Asked.of(example, tasks[example.task], decoder.model.tokenizer) for example in examples]
    for group in groups_of(asked, decoder, batch_size):
        for _, record in answers(decoder, group, batch_size):
            by_uid[record["uid"]] = record
        for row, one in enumerate(group):
            by_uid[one.example.uid]["seconds"] = decoder.seconds_of(row)
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
