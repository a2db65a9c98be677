"""`ttt bench size`: training and decoding at the size people train, on one accelerator, in one call.

Random weights in the shape of Qwen2.5 0.5B or 1.5B with 16,384 codes, bfloat16.  Training: rows of 2,048 packed into one of
16,384 under the hybrid mask, beside the same layers and loss on rows of 2,048 with causal flash attention and nothing else.
Decoding: the answers of `ttt bench decode`, one prompt and many.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch

from ttt.bench.common import Report, Timing, Way, check_at_least_one, measure, ratios
from ttt.bench.decode import BLOCK, BLOCKS, Bench
from ttt.bench.workload import network, packed, work
from ttt.errors import ConfigError
from ttt.masks.library import Hybrid
from ttt.model.cross_entropy import chunked_nll
from ttt.objective.library import TtT
from ttt.registry.families import NOISE, WEIGHTING
from ttt.rng import generator

CODES = 16_384
QWEN = {"num_key_value_heads": 2, "tie_word_embeddings": True, "max_position_embeddings": 32_768}
SHAPES: dict[str, dict[str, Any]] = {
    "0.5b": {**QWEN, "hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14, "intermediate_size": 4864,
             "vocab_size": 151_665 + CODES + 23},
    "1.5b": {**QWEN, "hidden_size": 1536, "num_hidden_layers": 28, "num_attention_heads": 12, "intermediate_size": 8960,
             "vocab_size": 151_665 + CODES + 23},
    "tiny": {**QWEN, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128,
             "vocab_size": 2_000},
}  # fmt: skip
PEAKS = {
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
}  # dense bfloat16 FLOP/s, from the makers' sheets


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``ttt bench size``."""
    parser.add_argument("--size", choices=tuple(SHAPES), default="0.5b", help="shape of the network (default 0.5b)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda", help="where (default cuda)")
    parser.add_argument("--tokens", type=int, default=16_384, metavar="N", help="of one training step (default 16384)")
    parser.add_argument("--row", type=int, default=2_048, metavar="N", help="of a document (default 2048)")
    parser.add_argument(
        "--batch", type=int, default=32, metavar="N", help="prompts decoded together, beside 1 (default 32)"
    )
    parser.add_argument("--prompt", type=int, default=300, metavar="N", help="tokens of a prompt (default 300)")
    parser.add_argument("--checkpointing", action="store_true", help="train with gradient checkpointing")


def run(arguments: argparse.Namespace) -> Report:
    """Training, then decoding.  Raises `ConfigError` where the device or the numbers do not fit."""
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "--device: cuda asked for, but torch sees no GPU; --device cpu --size tiny tries the program out"
        )
    check_at_least_one(arguments, "prompt")
    if arguments.row < 256 or arguments.tokens < arguments.row or arguments.tokens % arguments.row:
        raise ConfigError(f"--tokens: must be a multiple of --row (>= 256), got {arguments.tokens} and {arguments.row}")
    if arguments.batch < 2:
        raise ConfigError(f"--batch: must be >= 2, got {arguments.batch}")
    training = Training(arguments)
    steps = measure({"causal": training.causal, "hybrid": training.hybrid}, arguments.repeat)
    found = ratios(steps, "causal")
    peak, source = peak_flops(training.device)
    used = {t.name: t.rate * training.flops_per_token / peak for t in steps}
    parameters, memory = training.parameters, training.peak_memory()
    del training
    if arguments.device == "cuda":
        torch.cuda.empty_cache()
    answers, latency = decoding(arguments)
    notes = [
        f"peak: {peak / 1e12:.0f} TFLOP/s bfloat16, {source}",
        *(f"MFU of {name}: {share:.1%}" for name, share in used.items()),
        f"hybrid over causal: {found['hybrid']:.2f}; peak memory of training: {memory}",
        *(
            f"first block, {name}: {seconds * 1e3:.0f} ms after the prompts came in"
            for name, seconds in latency.items()
        ),
    ]
    shape = SHAPES[arguments.size]
    sizes = {
        "network": f"Qwen2.5 {arguments.size}, {parameters / 1e6:.0f} M parameters, vocabulary {shape['vocab_size']}, bfloat16",
        "training": f"{arguments.tokens} tokens a step, documents of {arguments.row}; hybrid: packed into one row, loss of TtT",
        "decoding": f"prompt {arguments.prompt}, 41 text steps, 2 spans of {BLOCKS} blocks of {BLOCK}, one token a call",
    }
    extra = {"mfu": used, "peak_flops": peak, "peak_source": source, "first_block_s": latency, "memory": memory}
    return Report("size: training and decoding", sizes, [*steps, *answers], found, notes, extra)


class Training:
    """One network and its two ways of a step, forward and backward without an update."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.device = torch.device(arguments.device)
        self.row, self.tokens, self.seed = arguments.row, arguments.tokens, arguments.seed
        shape = SHAPES[arguments.size]
        self.made = work(self.seed, shape["vocab_size"], [[self.row] * (self.tokens // self.row)])
        self.model = network(self.made.vocab, self.seed, "auto", shape, arguments.checkpointing)
        self.model.to(self.device, torch.bfloat16)
        self.objective = TtT(Hybrid(), NOISE.build("linear", "bench"), WEIGHTING.build("inverse_p", "bench"), ())
        self.batch = packed(self.made.rounds[0], self.made.vocab)
        self.parameters = sum(p.numel() for p in self.model.parameters())
        # Forward and backward: 6 for every weight that multiplies (a tied table does so once), and attention over half a row.
        self.flops_per_token = 6 * self.parameters + 6 * shape["num_hidden_layers"] * shape["hidden_size"] * self.row

    def hybrid(self, number: int) -> float:
        """What `ttt train` does."""
        self.model.zero_grad(set_to_none=True)
        plan = self.objective.plan(self.batch, generator(self.seed, "bench", number))
        found = self.objective.terms(self.model, plan)
        sum(t.scale * t.sum / t.count for t in found.terms.values()).backward()  # type: ignore[union-attr]
        return self.tokens

    def causal(self, number: int) -> float:
        """The same layers on rows with causal attention, next-token loss at as many positions as the other way has."""
        self.model.zero_grad(set_to_none=True)
        plan = self.objective.plan(self.batch, generator(self.seed, "bench", number))
        places = torch.cat([t.source for t in plan.terms.values()]).to(self.device)
        ids = self.batch.ids.view(-1, self.row).to(self.device)
        hf = self.model.transformers_model
        config, before = hf.config, self.model.attention
        config._attn_implementation = "sdpa"
        try:
            hidden = hf.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state.flatten(0, 1)
        finally:
            config._attn_implementation = before
        targets = ids.flatten().roll(-1)[places]
        chunked_nll(hf.get_output_embeddings(), hidden[places], targets).mean().backward()
        return self.tokens

    def peak_memory(self) -> str:
        """Of the allocator, on a GPU."""
        if self.device.type != "cuda":
            return "not measured on a CPU"
        return f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB"


def decoding(arguments: argparse.Namespace) -> tuple[list[Timing], dict[str, float]]:
    """Answers to one prompt and to many, and seconds until the first block of any of them."""
    bench = Bench(arguments.seed, arguments.batch, SHAPES[arguments.size], arguments.prompt)
    bench.model.to(torch.device(arguments.device), torch.bfloat16)
    first: dict[str, list[float]] = {}

    def way(batch: int) -> Way:
        def answer(number: int) -> float:
            decoder = bench.decoder(Hybrid(), BLOCK, "exact")
            started, tokens = time.perf_counter(), 0
            for event in decoder.events(bench.prompts[:batch]):
                tokens += len(event.ids)
                if event.kind == "block" and len(first.setdefault(f"batch {batch}", [])) <= number:
                    first[f"batch {batch}"].append(time.perf_counter() - started)
            return tokens

        return answer

    timings = measure({f"decode_batch{n}": way(n) for n in (1, arguments.batch)}, arguments.repeat, warmup=0)
    return timings, {name: sorted(seconds)[len(seconds) // 2] for name, seconds in first.items()}


def peak_flops(device: torch.device) -> tuple[float, str]:
    """bfloat16 FLOP/s of the device and where the number is from: the maker's sheet, else a large product."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name()
        for known, peak in PEAKS.items():
            if known in name:
                return peak, f"sheet of {known}"
    size = 8192 if device.type == "cuda" else 512
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16 if device.type == "cuda" else torch.float32)
    best = min(_seconds(lambda: a @ a) for _ in range(5))
    return 2 * size**3 / best, f"measured: a product of {size} x {size} matrices"


def _seconds(work_: Any) -> float:
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    wait()
    started = time.perf_counter()
    work_()
    wait()
    return time.perf_counter() - started
