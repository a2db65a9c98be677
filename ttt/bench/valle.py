"""`ttt bench valle`: decoding frames of codes with the keys of the first book's decoder kept, and without.

The default work is 200 frames of four codebooks behind prompts of 150 frames, one answer at a time and a batch of
eight, by a network
of some 15 million random weights, greedy.  Without keys every code of the first codebook runs prompt and answer anew.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ttt.bench.common import Report, Way, check_at_least_one, measure, ratios
from ttt.config.schema import Cache, ModelSection
from ttt.data.encode import encode_example
from ttt.errors import ConfigError, TttError
from ttt.masks.library import Prefix
from ttt.model.valle.arch import Valle
from ttt.rng import derive_seed
from ttt.sampling.decoder.decoder import Decoder, DecodeSettings
from ttt.sampling.samplers.codebooks import ValleSampler
from ttt.text.tokenizer import train_bpe
from ttt.types import Example, LogitsRequest, Prompt, Span, Turn

CODES = 1024  # of a codebook
SAMPLED = 20  # without keys, one in so many calls is run in a round


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``ttt bench valle``."""
    for name, default, what in (
        ("prompt", 150, "frames of a prompt"), ("frames", 200, "frames of an answer"), ("codebooks", 4, "codebooks"),
        ("batch", 8, "prompts of the batch"), ("dim", 256, "width"), ("layers", 6, "layers of each decoder"),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"{what} (default {default})")
    parser.add_argument("--full", action="store_true", help="run every call of the ways without keys in every round")


def run(arguments: argparse.Namespace) -> Report:
    """Measure.  Raises `ConfigError` for sizes that make no work, `TttError` when the ways write different codes."""
    check_at_least_one(arguments, "repeat", "prompt", "frames", "dim", "layers")
    for name in ("codebooks", "batch"):
        if getattr(arguments, name) < 2:
            raise ConfigError(f"--{name}: must be >= 2, got {getattr(arguments, name)}")
    return Bench(arguments).report(arguments.repeat, arguments.full)


class Bench:
    """Network, prompts, and the answers that every way has to write."""

    def __init__(self, told: argparse.Namespace) -> None:
        if told.dim % 8:
            raise ConfigError(f"--dim: must be a multiple of 8 heads, got {told.dim}")
        self.frames, self.codebooks, self.batch = told.frames, told.codebooks, told.batch
        tokenizer = train_bpe(["system user assistant"] * 3, 300, CODES, told.codebooks)
        self.vocab = tokenizer.vocab
        arch = Valle(dim=told.dim, heads=8, layers=told.layers, dropout=0.0)
        self.network = arch.start(ModelSection(), tokenizer, told.seed).eval()
        rng = np.random.default_rng(derive_seed(told.seed, "bench/valle"))
        self.prompts = []
        for n in range(told.batch):
            codes = rng.integers(0, CODES, (told.prompt, told.codebooks)).astype(np.int32)
            asked = Example(f"{n}", (Turn("user", (Span("audio", codes=codes, style="user"),)),), "continuation")
            s = encode_example(asked, tokenizer, open_answer=True)
            self.prompts.append(Prompt.of(s))
        self.answers = self.decoded("exact", self.prompts)

    def decoded(self, cache: Cache, prompts: Sequence[Prompt]) -> list[Tensor]:
        """Ids i64 [T, Q] of the answers to some prompts, all in work at a time."""
        sampler = ValleSampler(temperature=0.0, min_frames=self.frames, max_frames=self.frames)
        settings = DecodeSettings(max_tokens=(self.frames + 1) * self.codebooks, cache=cache)
        made = Decoder(self.network, Prefix(), sampler, settings).generate(prompts, batch_size=len(prompts))
        found = [torch.tensor(self.vocab.code_ids(g.codes, g.uid)).view(-1, self.codebooks) for g in made]
        assert all(len(f) == self.frames for f in found)
        return found

    @property
    def calls(self) -> int:
        """Network calls of an answer: one a frame, one for each further codebook."""
        return self.frames + self.codebooks - 1

    @torch.no_grad()
    def anew(self, rows: int, numbers: Sequence[int]) -> float:
        """Run the calls ``numbers`` of the first ``rows`` answers without keys; the share of their frames it stands for.

        Raises `TttError` when one of them would write another code than the answers hold.
        """
        session = self.network.session(Prefix(), cache="none", slots=rows)
        for slot, prompt in enumerate(self.prompts[:rows]):
            session.admit(slot, prompt)
        for number in numbers:
            requests, expected = zip(*(self._request(slot, number) for slot in range(rows)), strict=True)
            for slot, ((logits,), codes) in enumerate(zip(session.run(requests), expected, strict=True)):
                logits[:, self.vocab.im_end_id] = -torch.inf
                if not torch.equal(logits.argmax(-1).cpu(), codes):
                    raise TttError(f"bench valle: without keys, call {number} of answer {slot} writes other codes")
        return rows * self.frames * len(numbers) / self.calls

    def _request(self, slot: int, number: int) -> tuple[LogitsRequest, Tensor]:
        """Call ``number`` of an answer, and the codes it has to give."""
        answer, codebook = self.answers[slot], max(0, number - self.frames + 1)
        if not codebook:
            tail = torch.cat([answer[:number].flatten(), torch.tensor([self.vocab.mask_id])])
            if self.codebooks > 1:  # the upper codebooks of what is written are not known yet
                tail[:-1].view(-1, self.codebooks)[:, 1:] = self.vocab.mask_id
            places, codes = torch.tensor([len(tail) - 1]), answer[number, :1]
            return LogitsRequest(torch.tensor([slot]), tail[None], places[None], window=1, kind="ar"), codes
        known = answer.clone()
        known[:, codebook:] = self.vocab.mask_id
        places = torch.arange(self.frames) * self.codebooks + codebook
        tails = known.flatten()[None]
        return LogitsRequest(torch.tensor([slot]), tails, places[None], tails.shape[1]), answer[:, codebook]

    def report(self, repeat: int, full: bool) -> Report:
        """All ways, after their codes have been compared."""
        first = self.prompts[:1]
        for cache in ("exact", "none"):
            if not torch.equal(self.decoded(cache, first)[0], self.answers[0]):
                raise TttError(
                    f"bench valle: alone and with cache {cache!r} the first prompt is answered by other codes"
                )
        step = 1 if full else min(SAMPLED, self.calls)

        def uncached(rows: int) -> Way:
            return lambda number: self.anew(rows, range(number % step, self.calls, step))

        def cached(prompts: Sequence[Prompt]) -> Way:
            return lambda number: float(sum(map(len, self.decoded("exact", prompts))))

        many = f"batch{self.batch}"
        ways = {
            "uncached": uncached(1), "cached": cached(first),
            f"uncached_{many}": uncached(self.batch), f"cached_{many}": cached(self.prompts),
        }  # fmt: skip
        timings = measure(ways, repeat, unit="frames", warmup=0)
        found = ratios(timings, "uncached")
        found[f"cached_{many}_over_uncached_{many}"] = ratios(timings, f"uncached_{many}")[f"cached_{many}"]
        found[f"cached_{many}_over_cached"] = ratios(timings, "cached")[f"cached_{many}"]
        parameters = sum(p.numel() for p in self.network.parameters())
        work = {
            "network": f"{parameters / 1e6:.1f} M parameters, {self.codebooks} codebooks of {CODES} codes, random weights",
            "answer": f"prompt of {len(self.vocab.codes(np.asarray(first[0].ids)))} frames, {self.frames} frames, greedy",
            "batch": f"{self.batch} prompts of equal length",
        }
        notes = [
            "codes of all ways are equal: of the first answer each, of the others those of the calls that were run"
        ]
        if step > 1:
            notes.append(
                f"uncached: one in {step} of an answer's {self.calls} calls was run, others in each round; frames/s are those "
                "calls' share of the frames over their time (--full runs all)"
            )
        return Report("decoding frames of codes", work, timings, found, notes)
