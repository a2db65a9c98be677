import pytest
import torch

from tests.parity.conftest import cases
from ttt.masks.library import Hybrid
from ttt.rng import generator
from ttt.sampling.decoder.decoder import Decoder, DecodeSettings
from ttt.sampling.decoder.session import Session
from ttt.sampling.samplers.blocks import Blockwise, SpanRequest
from ttt.sampling.samplers.remask import LowConfidence
from ttt.types import Prompt


@pytest.mark.parametrize("cache", ["exact", "none"])
@pytest.mark.parametrize("case", cases("span.json"))
def test_span_sampler_token_identical(case, vocab, models, cache):
    p = case["params"]
    blocks = -(-p["gen_length"] // p["block_length"])
    sampler = Blockwise(
        block_length=p["block_length"], gen_length=blocks * p["block_length"], diffusion_steps=blocks * p["steps"],
        cfg_scale=p["cfg_scale"], temperature=p["temperature"], remask=LowConfidence(),
    )  # fmt: skip
    counted = []
    with torch.no_grad():
        session = Session(models(case["model"]), Hybrid(), [Prompt("x", case["prompt_ids"])], cache, room=64)

        def count_and_run(requests):
            counted.extend(r for r in requests if not r.guidance)
            return session.run(requests)

        request = SpanRequest(
            count_and_run, vocab.mask_id, [tuple(p["end_token_ids"] or ())], None, [None], [10**9], [generator(1, "test")],
            forbidden=tuple(p["forbidden_token_ids"] or ()), strict=False,
        )  # fmt: skip
        new = [token for block in sampler.span(request) for token in block.ids.tolist()]
    assert new == case["new_ids"]
    assert len(counted) == case["forwards"]


@pytest.mark.parametrize("cache", ["exact", "none"])
@pytest.mark.parametrize("case", cases("generate.json"))
def test_generation_token_identical(case, vocab, models, cache):
    p = case["params"]
    sampler = Blockwise(
        block_length=p["block_length"], gen_length=p["diffusion_gen_length"], diffusion_steps=p["diffusion_steps"],
        cfg_scale=p["cfg_scale"], temperature=p["diffusion_temperature"], remask=LowConfidence(),
    )  # fmt: skip
    settings = DecodeSettings(
        max_tokens=p["max_gen_len"], temperature=p["ar_temperature"], top_k=p["top_k"] or 0, top_p=p["top_p"] or 1.0,
        min_text_tokens_after_audio=p["min_text_tokens_after_audio"], strict=False, cache=cache,
    )  # fmt: skip
    decoder = Decoder(models(case["model"]), Hybrid(), sampler, settings)
    (answer,) = decoder.generate([Prompt("x", case["prompt_ids"])])
    assert list(answer.ids) == case["new_ids"]
    assert decoder.calls == {"ar": case["ar_forwards"], "diffusion": case["diffusion_forwards"]}
