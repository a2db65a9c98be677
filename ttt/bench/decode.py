"""`ttt bench decode`: the decoder against a loop that computes everything anew at every step, on the same answers.

The default work is an answer of 41 text tokens and two spans of 4 blocks of 26 to a prompt of 300 tokens, by a network of 25
million random weights.  Random weights write no sensible text, so the text is given (each text step still runs in full), and
spans have their length by rule.  With ``--run`` a trained model answers examples instead.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ttt.bench.common import Report, Timing, Way, check_at_least_one, ids_of, measure, ratios, reference_loop
from ttt.bench.trained import run_trained
from ttt.bench.workload import SHAPE, network, vocabulary
from ttt.config.schema import Cache
from ttt.errors import ConfigError, TttError
from ttt.interfaces import LengthRule, MaskRule
from ttt.masks.library import BlockCausal, Hybrid
from ttt.rng import derive_seed
from ttt.sampling.decoder.decoder import Decoder, DecodeSettings
from ttt.sampling.decoder.session import Session
from ttt.sampling.decoder.state import DecoderRow
from ttt.sampling.samplers.blocks import Blockwise
from ttt.sampling.samplers.remask import LowConfidence
from ttt.types import LogitsRequest, Prompt

if TYPE_CHECKING:
    from ttt.model.lm import SpeechTextLM

REFERENCE = "reference"
PROMPT, TEXTS, BLOCK, BLOCKS = (
    300,
    (19, 19),
    26,
    4,
)  # tokens of the prompt, of text before each span, of a block; blocks
SAMPLED = 12  # one in so many of the reference's calls is timed
GUIDANCE = 0.1  # cfg_scale of the guided way
SWEEP = (300, 1_000, 2_000, 4_000, 8_000)  # tokens of the prompt


@dataclass(frozen=True)
class Exactly(LengthRule):
    """Every span, the last one too, has ``codes`` codes."""

    codes: int

    def exact_codes(self, last: bool) -> int | None:
        """``codes``."""
        return self.codes

    def max_codes(self, last: bool) -> int:
        """``codes``."""
        return self.codes


class Scripted(Decoder):
    """Writes ``script`` at the text steps whatever the model says, after having worked out what it says."""

    script: Sequence[int] = ()

    def choose(self, logits: Tensor, rows: Sequence[DecoderRow], inside: bool, first: int) -> Tensor:
        """The script's tokens."""
        super().choose(logits, rows, inside, first)
        # A row has written its text so far, which is shorter than a span, and whole spans.
        return torch.tensor([self.script[r.num_written % (BLOCK * BLOCKS)] for r in rows], device=logits.device)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``ttt bench decode``."""
    parser.add_argument("--batch", type=int, default=8, metavar="N", help="prompts in work at a time (default 8)")
    parser.add_argument(
        "--tokens-per-call", type=float, default=4.0, metavar="X",
        help="tokens that a call of the threshold ways commits; random weights are sure of nothing, so it is given (default 4)",
    )  # fmt: skip
    parser.add_argument("--full-reference", action="store_true", help="run every call of the reference in every round")
    parser.add_argument("--guided", action="store_true", help=f"also exact with guidance (cfg_scale {GUIDANCE}); slow")
    parser.add_argument("--no-reference", action="store_true", help="time our ways only")
    parser.add_argument(
        "--sweep", choices=("prompt",), help="time of a block against the length of the prompt, instead"
    )
    parser.add_argument(
        "--run", default="", metavar="DIR", help="a trained run or checkpoint answers --examples instead"
    )
    parser.add_argument("--examples", default="", metavar="FILE", help="with --run: examples to answer")
    parser.add_argument("--items", type=int, default=12, metavar="N", help="with --run: how many of them (default 12)")
    parser.add_argument(
        "--threshold", type=float, default=0.9, metavar="P", help="with --run: commit from P on (default 0.9)"
    )


def run(arguments: argparse.Namespace) -> Report:
    """Measure what the arguments ask for.  Raises `ConfigError` for those that say nothing sensible."""
    check_at_least_one(arguments, "repeat", "items")
    if arguments.batch < 2:
        raise ConfigError(f"--batch: must be >= 2, got {arguments.batch}")
    if not 1 <= arguments.tokens_per_call <= BLOCK:
        raise ConfigError(
            f"--tokens-per-call: must lie between 1 and the block's {BLOCK}, got {arguments.tokens_per_call}"
        )
    if bool(arguments.run) != bool(arguments.examples):
        raise ConfigError("--run and --examples go together")
    if arguments.run:
        return run_trained(arguments)
    bench = Bench(arguments.seed, arguments.batch)
    return bench.sweep(arguments.repeat) if arguments.sweep else bench.compare(arguments)


class Bench:
    """The generated work: network, prompts, text.  ``shape``, ``prompt``: smaller ones for tests."""

    def __init__(self, seed: int, batch: int, shape: Mapping[str, Any] = SHAPE, prompt: int = PROMPT) -> None:
        self.vocab = v = vocabulary(shape["vocab_size"])
        self.model: SpeechTextLM = network(v, seed, "sdpa", dict(shape)).eval()
        self.model.tokenizer.decode = lambda ids: " ".join(map(str, ids))  # type: ignore[method-assign]
        self.rng = np.random.default_rng(derive_seed(seed, "bench/decode"))
        self.prompts = [self.prompt(f"{n}", prompt) for n in range(batch)]
        first, second = (self.rng.integers(0, v.pad_id, n).tolist() for n in TEXTS)
        self.script = [*first, v.soa_id, *second, v.soa_last_id, v.im_end_id]

    def prompt(self, uid: str, length: int) -> Prompt:
        """Random text of ``length`` tokens."""
        return Prompt(uid, self.rng.integers(0, self.vocab.pad_id, length).tolist())

    @property
    def tokens(self) -> int:
        """Tokens of an answer."""
        return len(self.script) + 2 * BLOCK * BLOCKS

    def decoder(self, mask: MaskRule, steps: int, cache: Cache, guidance: float = 0.0) -> Scripted:
        """A decoder that takes ``steps`` calls for a block; with ``guidance`` each has a second, uncached row."""
        length = BLOCK * BLOCKS
        sampler = Blockwise(
            block_length=BLOCK, gen_length=length, diffusion_steps=steps * BLOCKS, remask=LowConfidence(),
            cfg_scale=guidance,
        )  # fmt: skip
        settings = DecodeSettings(max_tokens=self.tokens, cache=cache, length=Exactly(length - 1))
        decoder = Scripted(self.model, mask, sampler, settings)
        decoder.script = self.script
        return decoder

    def way(self, mask: MaskRule, steps: int, cache: Cache, batch: int = 1, guidance: float = 0.0) -> Way:
        """Answers to ``batch`` prompts, all in work at the same time."""

        def answer(number: int) -> float:
            return sum(len(g.ids) for g in self.decoder(mask, steps, cache, guidance).generate(self.prompts[:batch]))

        return answer

    def compare(self, arguments: argparse.Namespace) -> Report:
        """All ways against the reference."""
        fast = math.ceil(BLOCK / arguments.tokens_per_call)
        hybrid, blocks = Hybrid(), BlockCausal(BLOCK)
        batched = f"exact_batch{arguments.batch}"
        ways: dict[str, Way] = {
            "exact": self.way(hybrid, BLOCK, "exact"),
            "block_cached": self.way(hybrid, BLOCK, "block"),
            "block_causal": self.way(blocks, BLOCK, "exact"),
            "threshold": self.way(hybrid, fast, "exact"),
            "threshold_block_cached": self.way(hybrid, fast, "block"),
            "threshold_block_causal": self.way(blocks, fast, "exact"),
            batched: self.way(hybrid, BLOCK, "exact", arguments.batch),
        }
        notes = [
            f"threshold*: {fast} calls a block of {BLOCK} (--tokens-per-call {arguments.tokens_per_call:g}); how many a trained "
            "model needs at equal quality is to be measured on it (--run, 'ttt ablate')",
            "block_cached: an approximation under this mask; block_causal: another mask, under which keeping blocks is exact",
        ]
        if arguments.guided:
            ways["guided"] = self.way(hybrid, BLOCK, "exact", guidance=GUIDANCE)
            notes.append(f"guided: cfg_scale {GUIDANCE}; each call has a second row, of which nothing is cached")
        if not arguments.no_reference:
            plain = reference_loop("reference_decode")
            reference = Reference(self, plain)
            notes += reference.check(self.decoder(hybrid, BLOCK, "exact"))
            ways = {REFERENCE: reference.whole if arguments.full_reference else reference.sample, **ways}
            if not arguments.full_reference:
                notes.append(
                    f"reference: one in {SAMPLED} of its {len(reference.states)} calls was run, evenly over the answer; its "
                    "tokens/s are those calls' share of the tokens over their time (--full-reference runs all)"
                )
        self.way(hybrid, 1, "block")(0)  # whatever is slow only once
        timings = measure(ways, arguments.repeat, warmup=0)
        found = {} if arguments.no_reference else ratios(timings, REFERENCE)
        rate = {t.name: t.rate for t in timings}
        found[f"{batched}_over_exact"] = rate[batched] / rate["exact"]
        parameters = sum(p.numel() for p in self.model.parameters())
        work = {
            "network": f"{parameters / 1e6:.1f} M parameters, vocabulary {self.vocab.size}, random weights",
            "answer": f"prompt {len(self.prompts[0].ids)}, {len(self.script)} text steps, 2 spans of {BLOCKS} blocks of {BLOCK}",
            "batch": f"{arguments.batch} prompts of equal length",
        }
        return Report("decoding", work, timings, found, notes)

    def sweep(self, repeat: int, lengths: Sequence[int] = SWEEP) -> Report:
        """Seconds of a block of the first span against the prompt's length, beside attention's own seconds."""
        timings, own, blocks = [], {}, {}
        for length in lengths:
            seconds = [self._block_seconds(self.prompt(f"{length}/{n}", length)) for n in range(repeat)]
            timings.append(Timing(f"prompt_{length}", tuple(seconds), (1.0,) * repeat, "blocks"))
            blocks[length], own[length] = statistics.median(seconds), self._attention_seconds(length, repeat)
        first, last = lengths[0], lengths[-1]
        grown, attention = blocks[last] - blocks[first], own[last] - own[first]
        slope = math.log(blocks[last] / blocks[lengths[-2]]) / math.log(last / lengths[-2])
        notes = [f"prompt_{n}: attention alone {own[n]:.3f} s of {blocks[n]:.3f} s a block" for n in lengths]
        notes.append(f"from {lengths[-2]} to {last} tokens the time of a block grows with length^{slope:.2f}")
        found = {"growth_over_attention": grown / attention}
        work = {
            "block": f"{BLOCK} tokens, one a call, the first two blocks of a span (exact cache, hybrid mask)",
            "growth_over_attention": f"seconds a block gains from {first} to {last} tokens over those attention alone gains",
        }
        extra = {"attention_s": own, "block_s": blocks, "slope": slope}
        return Report("decoding against the prompt's length", work, timings, found, notes, extra)

    def _block_seconds(self, prompt: Prompt) -> float:
        decoder = self.decoder(Hybrid(), BLOCK, "exact")
        decoder.script = [self.vocab.soa_id]
        times = []
        for _ in decoder.events([prompt]):
            times.append(time.perf_counter())
            if len(times) == 3:  # the opening token, two blocks
                break
        return (times[2] - times[0]) / 2

    def _attention_seconds(self, length: int, repeat: int) -> float:
        c = self.model.transformers_model.config
        heads, groups = c.num_attention_heads, c.num_key_value_heads
        width = c.hidden_size // heads
        total = []
        for _ in range(repeat):
            spent = 0.0
            for block in (0, 1):  # as in the span: a second block comes with the first one's tokens
                n = BLOCK * (block + 1)
                q = torch.randn(1, heads, n, width)
                k, v = torch.randn(2, 1, groups, length + 1 + n, width)
                started = time.perf_counter()
                for _ in range(BLOCK * c.num_hidden_layers):
                    torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=groups != heads)
                spent += time.perf_counter() - started
            total.append(spent / 2)
        return statistics.median(total)


class Reference:
    """The plain loop on the first prompt: all states it goes through, and its time on some of them or all."""

    def __init__(self, bench: Bench, plain: ModuleType) -> None:
        v = bench.vocab
        self.bench, self.plain = bench, plain
        self.ids = ids_of(plain, v)
        length = BLOCK * BLOCKS - 1
        self.work = plain.Work(BLOCK, BLOCK, bench.tokens, length, codes=length, text=bench.script)
        self.prompt = list(bench.prompts[0].ids)
        self.states: list[list[int]] = []

    @torch.no_grad()
    def check(self, decoder: Decoder) -> list[str]:
        """Compare tokens and logits.

        The reference's loop is run on logits of the session, which gives its states and its answer at little cost; the
        answer must be the decoder's.  At a sample of the states its own logits must be the session's.
        """
        session = Session(self.bench.model, Hybrid(), [self.bench.prompts[0]], room=self.bench.tokens + 64)
        writing = self.plain.states(self.prompt, self.ids, self.work)
        state = next(writing)
        committed, worst = len(self.prompt), 0.0
        while True:
            tail = torch.tensor(state[committed:], dtype=torch.long)
            last = BLOCK
            if self.ids.mask not in state:  # a text step: everything there is is final
                session.append(0, tail, closed=state[-1] in (self.ids.end_span, self.ids.end_last))
                committed, tail, last = len(state), tail[:0], 1
            places = torch.arange(len(tail) - last, len(tail))[None]
            logits = session.run([LogitsRequest(torch.tensor([0]), tail[None], places, last)])[0][0]
            if len(self.states) % (4 * SAMPLED) == 0:
                worst = max(worst, float((self._own(state)[-last:] - logits).abs().max()))
            self.states.append(list(state))
            try:
                state = writing.send(logits)
            except StopIteration as end:
                answer = end.value
                break
        ours = list(decoder.generate([self.bench.prompts[0]])[0].ids)
        if ours != answer:
            at = next(
                (i for i, (a, b) in enumerate(zip(ours, answer, strict=False)) if a != b), min(len(ours), len(answer))
            )
            raise TttError(f"bench decode: the decoder's tokens differ from the reference's from token {at} on")
        return [
            f"tokens of exact = tokens of the reference's loop; its logits differ by at most {worst:.1e} (a sample)"
        ]

    def _own(self, state: list[int]) -> Tensor:
        return self.plain.forward(self.bench.model.transformers_model, state, self.ids.audio_start, len(self.prompt), 0)

    @torch.no_grad()
    def sample(self, number: int) -> float:
        """Some of the calls, others in each round; the share of the answer's tokens that they stand for."""
        some = self.states[number % SAMPLED :: SAMPLED]
        index = torch.arange(self.bench.vocab.size)
        codes = (index >= self.ids.code_start) & (index < self.ids.code_stop)
        for state in some:
            logits = self._own(state)
            if self.ids.mask in state:
                self.plain.candidates(logits, codes)
        return self.bench.tokens * len(some) / len(self.states)

    def whole(self, number: int) -> float:
        """The answer."""
        tokens, _ = self.plain.decode(self.bench.model.transformers_model, self.prompt, self.ids, self.work)
        return len(tokens)
