"""LLaDA's block sampler and the three iterative samplers, on the whole-answer canvas with full attention."""

import json

import pytest
import torch

from tests.parity.conftest import cases, folder
from ttt.masks.library import Full
from ttt.rng import generator
from ttt.sampling.decoder.decoder import Decoder, DecodeSettings
from ttt.sampling.decoder.session import Session
from ttt.sampling.samplers.blocks import Blockwise, SpanRequest
from ttt.sampling.samplers.iterative import FixedLength, SemiArOrigin, SemiArPadding
from ttt.sampling.samplers.logits import transfer_counts
from ttt.sampling.samplers.remask import LowConfidence
from ttt.types import Prompt

ITERATIVE = {
    "fixed_length": FixedLength, "semi_autoregressive_origin": SemiArOrigin, "semi_autoregressive_padding": SemiArPadding,
}  # fmt: skip
CACHE = pytest.mark.parametrize("cache", ["exact", "none"])


@pytest.fixture(scope="module")
def files():
    return {
        name: json.loads((folder() / name).read_text()) for name in ("llada_generate.json", "iterative_samplers.json")
    }


def run(sampler, model, vocab, prompts, cache, ends=(), strict=False, limit=10**9):
    """New ids per row, and the number of network calls."""
    counted = []
    with torch.no_grad():
        session = Session(model, Full(), [Prompt(str(i), p) for i, p in enumerate(prompts)], cache, room=64)

        def count_and_run(requests):
            counted.extend(r for r in requests if not r.guidance)
            return session.run(requests)

        n = len(prompts)
        request = SpanRequest(
            count_and_run, vocab.mask_id, [tuple(ends)] * n, None, [None] * n, [limit] * n,
            [generator(1, f"test/{i}") for i in range(n)], strict=strict, force_end=False, pad_id=vocab.pad_id,
        )  # fmt: skip
        new = [[] for _ in prompts]
        for block in sampler.span(request):
            new[block.row] += block.ids.tolist()
    return new, len(counted)


def blockwise(params) -> Blockwise:
    assert params["remasking"] == "low_confidence"
    return Blockwise(
        block_length=params["block_length"], gen_length=params["gen_length"], diffusion_steps=params["steps"],
        cfg_scale=params["cfg_scale"], remask=LowConfidence(), canvas="answer", whole_canvas=True,
    )  # fmt: skip


def iterative(params, length, **fields):
    more = {k: params[k] for k in ("initial_length", "length_increment") if k in params}
    kind = ITERATIVE[params["sampling_method"]]
    if kind is FixedLength:
        more = {}
    if kind is SemiArPadding:
        more.pop("length_increment", None)
    return kind(
        gen_length=length, num_iterations=params["num_iterations"], remasking_ratio=params["remasking_ratio"],
        remask=LowConfidence(), temperature=0.0, canvas="answer", **more, **fields,
    )  # fmt: skip


@CACHE
@pytest.mark.parametrize("case", cases("llada_generate.json"))
def test_llada_generate_token_identical(case, vocab, models, files, cache):
    visible = case["attention_mask"]
    prompts = [[t for t, v in zip(p, m, strict=True) if v] for p, m in zip(case["prompt_ids"], visible, strict=True)]
    expected = [o[len(p) :] for o, p in zip(case["output_ids"], case["prompt_ids"], strict=True)]
    model = models(files["llada_generate.json"]["model"])
    new, calls = run(blockwise(case["params"]), model, vocab, prompts, cache)
    assert new == expected and calls == case["forwards"]


@pytest.mark.parametrize("case", cases("llada_generate.json"))
def test_llada_generate_through_the_decoder(case, vocab, models, files):
    """The same answers from `Decoder`, which stops at the end token; rows of a batch share every call."""
    prompts = [
        Prompt(str(i), [t for t, v in zip(p, m, strict=True) if v])
        for i, (p, m) in enumerate(zip(case["prompt_ids"], case["attention_mask"], strict=True))
    ]
    decoder = Decoder(
        models(files["llada_generate.json"]["model"]), Full(), blockwise(case["params"]), DecodeSettings(strict=False)
    )
    answers = decoder.generate(prompts)
    stopped = False
    for answer, output, prompt in zip(answers, case["output_ids"], case["prompt_ids"], strict=True):
        new = output[len(prompt) :]
        if vocab.im_end_id in new:
            stopped = True
            new = new[: new.index(vocab.im_end_id) + 1]
        assert list(answer.ids) == new
    assert decoder.calls["ar"] == 0 and (decoder.calls["diffusion"] == case["forwards"] or stopped)


@pytest.mark.skipif(
    not (folder() / "llada_generate.json").is_file(), reason="no reference numbers (set TTT_PARITY_DIR)"
)
def test_transfer_schedule(files):
    schedule = files["llada_generate.json"]["transfer_schedule"]
    assert schedule
    for example in schedule:
        assert transfer_counts(example["masked"], example["steps"]) == example["counts"]


@CACHE
@pytest.mark.parametrize("case", cases("iterative_samplers.json"))
def test_iterative_samplers_token_identical(case, vocab, models, files, cache):
    p = case["params"]
    new, calls = run(
        iterative(p, case["max_new_tokens"], official=True), models(files["iterative_samplers.json"]["model"]), vocab,
        case["prompt_ids"], cache, ends=(p["eos_token_id"],),
    )  # fmt: skip
    assert new == [o[len(i) :] for o, i in zip(case["output_ids"], case["prompt_ids"], strict=True)]
    assert calls == case["forwards"]
    assert [ids.count(vocab.mask_id) for ids in new] == case["masks_left"]


@pytest.mark.parametrize("case", cases("iterative_samplers.json"))
def test_iterative_samplers_without_their_faults(case, vocab, models, files):
    """The repaired samplers agree up to the first end token, and finish what the official ones leave masked."""
    p = case["params"]
    model = models(files["iterative_samplers.json"]["model"])
    new, calls = run(
        iterative(p, case["max_new_tokens"]), model, vocab, case["prompt_ids"], "exact", ends=(p["eos_token_id"],)
    )
    assert all(vocab.mask_id not in ids for ids in new)
    if any(case["masks_left"]):
        assert all(len(ids) == case["max_new_tokens"] or ids[-1] == p["eos_token_id"] for ids in new)
        assert calls == case["forwards"] + p["num_iterations"]
        return
    for ids, output, prompt in zip(new, case["output_ids"], case["prompt_ids"], strict=True):
        expected = output[len(prompt) :]
        if p["eos_token_id"] in expected:
            expected = expected[: expected.index(p["eos_token_id"]) + 1]
        assert ids == expected
    assert calls == case["forwards"]
