"""``eval.batch_tokens``: how many tokens rows that are decoded together may hold."""

import pytest

from tests.conftest import tiny_model
from ttt.masks.library import Hybrid
from ttt.sampling.decoder import decoder as module
from ttt.sampling.decoder.decoder import Decoder, DecodeSettings
from ttt.sampling.samplers.blocks import Blockwise
from ttt.sampling.samplers.remask import LowConfidence
from ttt.types import Prompt

PROMPTS = [Prompt(f"p{n}", tuple(range(5, 5 + n))) for n in (4, 6, 10, 3)]


def decoder(batch_tokens: int) -> Decoder:
    sampler = Blockwise(block_length=4, diffusion_steps=4, gen_length=8, remask=LowConfidence())
    return Decoder(tiny_model(), Hybrid(), sampler, DecodeSettings(max_tokens=10, batch_tokens=batch_tokens))


@pytest.mark.parametrize("bound,rows", [(0, 4), (80, 4), (79, 3), (40, 2), (19, 1), (1, 1)])
def test_rows_of_the_longest_prompt_and_its_answer_fit_the_bound(monkeypatch, bound, rows):
    sessions, opened = [], module.open_session
    monkeypatch.setattr(module, "open_session", lambda *a, **k: sessions.append(opened(*a, **k)) or sessions[-1])
    made = decoder(bound).generate(PROMPTS, batch_size=8)
    (session,) = sessions
    assert session.cache.slots == rows and session.cache.capacity <= 10 + 10 + 64
    assert [g.ids for g in made] == [g.ids for g in decoder(0).generate(PROMPTS)]


def test_a_batch_size_below_the_bound_counts():
    assert decoder(1000).rows_together(10, 3) == 3 and decoder(0).rows_together(10, 3) == 3
