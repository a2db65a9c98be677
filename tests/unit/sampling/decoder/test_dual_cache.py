"""The approximate caches of whole answers: exact where every block takes one call, and fewer positions than without."""

import pytest

from tests.conftest import tiny_model, tiny_tokenizer
from ttt.masks.library import Causal, Full
from ttt.registry.families import SAMPLER
from ttt.sampling.decoder.decoder import Decoder, DecodeSettings
from ttt.types import Prompt

V = tiny_tokenizer().vocab
PROMPTS = [Prompt("a", list(range(5, 25))), Prompt("b", list(range(30, 42)))]
BLOCKWISE = {
    "name": "blockwise", "block_length": 4, "gen_length": 16, "canvas": "answer", "whole_canvas": True, "logits_eos_inf": True,
}  # fmt: skip
WINDOWS = {
    "name": "semi_ar_padding", "initial_length": 4, "gen_length": 16, "canvas": "answer", "temperature": 0.0,
    "remasking_ratio": 0.5,
}  # fmt: skip
STEPS = {
    "blockwise": lambda n: {**BLOCKWISE, "diffusion_steps": 4 * n},
    "semi_ar_padding": lambda n: {**WINDOWS, "num_iterations": n},
}  # fmt: skip


def decoded(fields, cache, mask=None, prompts=PROMPTS):
    """(answers, positions that the network computed)."""
    model = tiny_model(bias={V.im_end_id: -50.0, V.pad_id: -50.0})
    whole = model.hidden_of_rows
    counted = []

    def counting(call):
        counted.append(sum(map(len, call.ids)))
        return whole(call)

    model.hidden_of_rows = counting
    decoder = Decoder(model, mask or Full(), SAMPLER.build(fields, "sampler"), DecodeSettings(max_tokens=16, cache=cache))
    made = decoder.generate(prompts)
    return [m.ids for m in made], counted


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("cache", ["block", "dual"])
def test_with_one_call_a_block_the_caches_are_exact(name, cache):
    fields = STEPS[name](1)
    assert decoded(fields, cache) == decoded(fields, "none")


@pytest.mark.parametrize("name", STEPS)
def test_dual_is_exact_where_nothing_looks_ahead_and_company_changes_nothing(name):
    fields = STEPS[name](3)
    assert decoded(fields, "dual", Causal())[0] == decoded(fields, "none", Causal())[0]
    together, _ = decoded(fields, "dual")
    assert together == [decoded(fields, "dual", prompts=[p])[0][0] for p in PROMPTS]


def test_positions_that_each_cache_computes():
    """Blocks of 4 in 16, four calls a block, prompts of 20 and 12 tokens."""
    fields = STEPS["blockwise"](4)
    counts = {cache: decoded(fields, cache)[1] for cache in ("none", "exact", "block", "dual")}
    assert {len(c) for c in counts.values()} == {16}  # the calls stay
    whole = 20 + 12 + 2 * 16
    assert sum(counts["none"]) == sum(counts["exact"]) == 16 * whole
    later = [2 * (16 - 4 * b) for b in range(4)]  # from the open block on
    assert sum(counts["block"]) == sum(whole + 3 * n for n in later)
    assert sum(counts["dual"]) == 4 * whole + 4 * 3 * 2 * 4
