"""`ttt bench decode --run`: a trained model answers examples, by the reference loop and by our ways."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from ttt.bench.common import Report, Way, ids_of, measure, ratios, reference_loop
from ttt.errors import ConfigError, TttError
from ttt.interfaces import LanguageModel, MaskRule
from ttt.masks.library import BlockCausal, DualStream, Hybrid
from ttt.sampling.decoder.decoder import Decoder
from ttt.sampling.samplers.blocks import Blockwise
from ttt.sampling.samplers.confidence import Threshold
from ttt.types import Prompt


def run_trained(arguments: argparse.Namespace) -> Report:
    """Answers of a run.  Raises `ConfigError` for what the reference loop cannot do, `TttError` where tokens differ."""
    from ttt.api import decode_settings, open_model, open_run
    from ttt.data.encode import encode_example
    from ttt.data.read.examples import read_examples

    config, folder = open_run(arguments.run)
    sampler, mask = config.eval.sampler, config.objective.mask
    if not isinstance(sampler, Blockwise) or sampler.canvas != "span":
        raise ConfigError("bench decode: eval.sampler must be 'blockwise' on spans, which the reference loop does")
    plain = None if arguments.no_reference else reference_loop("reference_decode")
    block_causal = _block_causal(mask, sampler) if plain else False
    model = open_model(config, folder, LanguageModel, attention="sdpa")
    tasks = {t.label: t for t in config.tasks}
    examples = read_examples(arguments.examples)
    examples = examples[:: max(1, len(examples) // arguments.items)][: arguments.items]
    prompts = []
    for e in examples:
        stream = encode_example(tasks[e.task].prompt(e), model.tokenizer, open_answer=True)
        prompts.append(Prompt.of(stream, e.uid))
    settings = dataclasses.replace(decode_settings(config), cache="exact")
    known = {f.name for f in dataclasses.fields(Threshold)}
    fields = {f.name: getattr(sampler, f.name) for f in dataclasses.fields(sampler) if f.name in known}
    sure = Threshold(**{**fields, "threshold": arguments.threshold, "end_guard": True})
    calls: dict[str, float] = {}

    def ours(name: str, how: Any, cache: str, batch: int) -> Way:
        def answer(number: int) -> float:
            made = Decoder(model, mask, how, dataclasses.replace(settings, cache=cache)).generate(
                prompts, batch_size=batch
            )
            calls[name] = sum(g.calls["diffusion"] for g in made) / max(1, sum(len(g.codes) for g in made))
            answers[name] = [list(g.ids) for g in made]
            return sum(len(g.ids) for g in made)

        return answer

    answers: dict[str, list[list[int]]] = {}
    ways = {
        "exact": ours("exact", sampler, "exact", 1), "block_cached": ours("block_cached", sampler, "block", 1),
        "threshold": ours("threshold", sure, "exact", 1),
        f"exact_batch{arguments.batch}": ours(f"exact_batch{arguments.batch}", sampler, "exact", arguments.batch),
        f"threshold_batch{arguments.batch}": ours(f"threshold_batch{arguments.batch}", sure, "exact", arguments.batch),
    }  # fmt: skip
    if plain:
        ways = {"reference": _reference(plain, model, prompts, sampler, settings, block_causal, answers), **ways}
    timings = measure(ways, arguments.repeat)
    notes = [f"{name}: {n:.2f} network calls for a code" for name, n in calls.items()]
    if plain:
        for name in ("exact", f"exact_batch{arguments.batch}"):
            differ = sum(a != b for a, b in zip(answers[name], answers["reference"], strict=True))
            if differ:
                raise TttError(f"bench decode: {name}: {differ} of {len(prompts)} answers differ from the reference's")
        notes.append(
            f"exact, exact_batch{arguments.batch}: all {len(prompts)} answers are the reference's, token for token"
        )
    for name in ("block_cached", "threshold"):
        same = sum(a == b for a, b in zip(answers[name], answers["exact"], strict=True))
        notes.append(f"{name}: {same} of {len(prompts)} answers are those of exact; judge the rest with 'ttt score'")
    work = {"model": str(folder), "examples": f"{len(prompts)} of {arguments.examples}"}
    found = ratios(timings, "reference") if plain else {}
    rate = {t.name: t.rate for t in timings}
    found[f"exact_batch{arguments.batch}_over_exact"] = rate[f"exact_batch{arguments.batch}"] / rate["exact"]
    return Report("decoding, trained model", work, timings, found, notes)


def _block_causal(mask: MaskRule, sampler: Blockwise) -> bool:
    clean = mask.clean if isinstance(mask, DualStream) else mask
    if isinstance(clean, BlockCausal) and clean.block_length == sampler.block_length:
        return True
    if isinstance(clean, Hybrid) and clean.bidirectional_prompt_audio:
        return False
    raise ConfigError(f"bench decode: the reference loop knows no mask like {mask}; use --no-reference")


def _reference(
    plain: ModuleType, model: Any, prompts: Sequence[Prompt], sampler: Blockwise, settings: Any, block_causal: bool,
    answers: dict[str, list[list[int]]],
) -> Way:  # fmt: skip

    plain_way = (sampler.temperature, sampler.cfg_scale, settings.temperature, settings.strict, sampler.end_guard)
    if plain_way != (0, 0, 0, True, False) or settings.length.exact_codes(False) is not None:
        raise ConfigError("bench decode: the reference loop is greedy and strict, without guidance; use --no-reference")
    work = plain.Work(
        sampler.block_length, sampler.steps_per_block, settings.max_tokens,
        min(sampler.gen_length, settings.length.max_codes(True)), block_causal=block_causal,
    )  # fmt: skip
    ids = ids_of(plain, model.tokenizer.vocab)

    def answer(number: int) -> float:
        answers["reference"] = [plain.decode(model.transformers_model, list(p.ids), ids, work)[0] for p in prompts]
        return sum(map(len, answers["reference"]))

    return answer
