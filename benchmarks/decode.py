#!/usr/bin/env python3
"""Decoding speed against a reference loop that works like the official script, in one run, at identical tokens.

    python benchmarks/decode.py --run egs/mini_talk/exp/ttt --examples egs/mini_talk/exp/full/data/test.jsonl

The reference runs one prompt at a time and the whole sequence through the network for every text token and every
denoising step, with logits for every position.  Both write the same tokens (checked); reported is the ratio of medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import torch

from ttt.cli.run import decode_settings, model_folder
from ttt.config.load import load_config
from ttt.data.formats import read_examples
from ttt.data.spans import encode_example
from ttt.masks.materialize import materialize
from ttt.model.lm import SpeechTextLM
from ttt.sampling.interleave import Decoder
from ttt.sampling.logits import transfer_counts
from ttt.sampling.session import Prompt
from ttt.types import Kind, Layout


@torch.no_grad()
def reference(model: SpeechTextLM, mask, prompt: list[int], block: int, steps: int, max_tokens: int) -> list[int]:
    """Greedy, strict decoding of one prompt, everything computed anew at every step."""
    v = model.tokenizer.vocab
    index = torch.arange(model.hf.get_output_embeddings().weight.shape[0])
    text = (index < v.audio_start) & (index != v.user_end_id) & (index != v.im_start_id) & (index != v.pad_id)
    codes = (index >= v.code_start) & (index < v.code_stop)

    def logits(ids: list[int]) -> torch.Tensor:  # [L, V]
        x = torch.tensor([ids])
        audio = v.is_audio(x)
        at = torch.arange(x.shape[1])[None]
        layout = Layout(
            kind=torch.where(audio, int(Kind.AUDIO), int(Kind.TEXT)), span=torch.cumsum(~audio, 1), doc=torch.zeros_like(x),
            position=at, prompt=at < len(prompt), visible=torch.ones_like(audio), stream=torch.zeros_like(x),
        )  # fmt: skip
        hidden = model.hidden(x, at, materialize(mask, layout, model.attention, model.dtype))
        return model.head(hidden)[0]

    ids = list(prompt)
    while len(ids) - len(prompt) < max_tokens:
        token = int(logits(ids)[-1].masked_fill(~text, -torch.inf).argmax())
        ids.append(token)
        if token == v.im_end_id:
            break
        if token not in (v.soa_id, v.soa_last_id):
            continue
        end = v.eoa_last_id if token == v.soa_last_id else v.eoa_id
        limit = max(1, max_tokens - (len(ids) - len(prompt)) - 1)
        allowed, span = codes.clone(), []
        allowed[end] = True
        while not span or span[-1] != end:
            width = min(block, limit + 1 - len(span))
            canvas = [v.mask_id] * width
            if len(span) + width > limit:
                canvas[-1] = end
            for count in transfer_counts(canvas.count(v.mask_id), steps):
                stop = canvas.index(end) if end in canvas else width
                open_ = [i for i in range(stop) if canvas[i] == v.mask_id]
                if not count or not open_:
                    break
                found = logits(ids + span + canvas)[-width:].masked_fill(~allowed, -torch.inf)
                best = found.softmax(-1).max(-1)
                for i in sorted(open_, key=lambda i: -float(best.values[i]))[:count]:
                    canvas[i] = int(best.indices[i])
            span += canvas[: canvas.index(end) + 1] if end in canvas else canvas
        ids += span
    return ids[len(prompt) :]


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--examples", type=Path, required=True)
    parser.add_argument("--items", type=int, default=30)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    config = load_config([arguments.run / "config.yaml"])
    model = SpeechTextLM.load(model_folder(arguments.run)).eval()
    tasks = {t.label: t for t in config.tasks}
    examples = read_examples(arguments.examples)
    examples = examples[:: max(1, len(examples) // arguments.items)][: arguments.items]
    prompts = [
        Prompt(e.uid, encode_example(tasks[e.task].prompt(e), model.tokenizer, open_answer=True).ids.tolist())
        for e in examples
    ]
    mask, sampler, settings = config.objective.mask, config.eval.sampler, decode_settings(config)

    def run_reference() -> list[list[int]]:
        return [
            reference(model, mask, list(p.ids), sampler.block_length, sampler.steps_per_block, settings.max_tokens)
            for p in prompts
        ]

    def run_ours(size: int) -> list[list[int]]:
        decoder = Decoder(model, mask, sampler, settings)
        return [list(g.ids) for at in range(0, len(prompts), size) for g in decoder.generate(prompts[at : at + size])]

    ways = {
        "reference": run_reference,
        "exact_batch1": lambda: run_ours(1),
        f"exact_batch{arguments.batch}": lambda: run_ours(arguments.batch),
    }
    tokens = {name: way() for name, way in ways.items()}  # the warm-up, and the check
    for name, found in tokens.items():
        differing = sum(a != b for a, b in zip(found, tokens["reference"], strict=True))
        if differing:
            print(
                f"decode.py: {name}: {differing} of {len(prompts)} answers differ from the reference", file=sys.stderr
            )
            return 1
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(arguments.repeat):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - started)
    total = sum(map(len, tokens["reference"]))
    base = statistics.median(seconds["reference"])
    print(
        f"{len(prompts)} prompts, {total} new tokens, identical in all ways; {arguments.threads} thread(s), {arguments.repeat} runs"
    )
    ratios = {}
    for name, values in seconds.items():
        median = statistics.median(values)
        ratios[name] = base / median
        print(
            f"  {name:16} {median:8.2f} s  (min {min(values):.2f}, max {max(values):.2f})"
            f"  {total / median:8.0f} tokens/s  {base / median:6.2f}x"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps({"ratios": ratios, "seconds": seconds, "tokens": total}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
