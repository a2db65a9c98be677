"""`ttt bench decode` on a tiny network: the plain reference loop and the decoder write the same tokens."""

import argparse
import copy

import pytest
import torch

from tests.conftest import SENTENCES, audio, chat, text, tiny_hf, tiny_model, tiny_tokenizer
from ttt.bench.common import ids_of, reference_loop
from ttt.bench.decode import BLOCK, BLOCKS, Bench, Reference, run
from ttt.bench.workload import SHAPE
from ttt.config.load import load_config, resolved_yaml
from ttt.data.read.examples import write_examples
from ttt.errors import ConfigError, TttError
from ttt.masks.library import BlockCausal, Hybrid
from ttt.model.lm import SpeechTextLM
from ttt.sampling.decoder.decoder import Decoder, DecodeSettings
from ttt.sampling.samplers.blocks import Blockwise
from ttt.sampling.samplers.remask import LowConfidence
from ttt.types import Example, Prompt

V = tiny_tokenizer().vocab
TINY = {**SHAPE, "vocab_size": 400, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4,
        "intermediate_size": 48, "initializer_range": 0.3}  # fmt: skip


@pytest.fixture(scope="module")
def bench():
    return Bench(1, 2, TINY, prompt=20)


def test_the_work_is_what_it_says(bench):
    """41 text steps, two spans of 4 x 26 tokens, one call a place that is open; twice as many tokens for two prompts."""
    decoder = bench.decoder(Hybrid(), BLOCK, "exact")
    (made,) = decoder.generate(bench.prompts[:1])
    assert decoder.calls == {"ar": 41, "diffusion": 2 * (BLOCK * BLOCKS - 1)} and len(made.ids) == 41 + 2 * 104
    assert [len(s.codes) for s in made.spans if s.kind == "audio"] == [103, 103] and made.stopped == "im_end"
    assert bench.way(Hybrid(), 6, "block", 2)(0) == 2 * 249
    fast = bench.decoder(Hybrid(), 6, "exact")
    fast.generate(bench.prompts[:1])
    assert fast.calls == {"ar": 41, "diffusion": 2 * 6 * BLOCKS}


def test_the_reference_writes_the_same_tokens(bench):
    reference = Reference(bench, reference_loop("reference_decode"))
    (note,) = reference.check(bench.decoder(Hybrid(), BLOCK, "exact"))
    assert "tokens of exact = tokens" in note and len(reference.states) == 41 + 206
    tokens, calls = reference.plain.decode(bench.model.hf, reference.prompt, reference.ids, reference.work)
    assert tokens == list(bench.decoder(Hybrid(), BLOCK, "exact").generate(bench.prompts[:1])[0].ids)
    assert calls == len(reference.states) and reference.whole(0) == 249
    assert sum(reference.sample(n) for n in range(12)) == pytest.approx(249)


def test_other_tokens_are_an_error(bench):
    decoder = bench.decoder(Hybrid(), BLOCK, "exact")
    decoder.script = [*bench.script[:5], bench.script[6], *bench.script[6:]]
    with pytest.raises(TttError, match="the decoder's tokens differ from the reference's from token 5 on"):
        Reference(bench, reference_loop("reference_decode")).check(decoder)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("mask", [Hybrid(), BlockCausal(5)], ids=["hybrid", "block_causal"])
def test_free_text_and_free_ends(seed, mask):
    """Greedy answers of a network that opens and closes spans as it likes: token for token those of the plain loop."""
    plain = reference_loop("reference_decode")
    model = tiny_model(seed=seed)
    head = model.hf.get_output_embeddings()
    sampler = Blockwise(block_length=5, gen_length=20, diffusion_steps=12, remask=LowConfidence())
    bias = torch.zeros(head.weight.shape[0])
    bias[[V.soa_id, V.soa_last_id, V.im_end_id, V.eoa_id, V.eoa_last_id]] = torch.tensor([6.0, 5.0, 2.0, 1.5, 1.5])
    head.bias = torch.nn.Parameter(bias)
    try:
        spans = 0
        for n in range(3):
            prompt = [V.im_start_id, 5 + n, 6, V.soa_id, *range(V.code_start, V.code_start + 3 * n), V.user_end_id, 7]
            ours = Decoder(model, mask, sampler, DecodeSettings(max_tokens=40)).generate([Prompt("a", prompt)])[0]
            work = plain.Work(5, 3, 40, 20, block_causal=isinstance(mask, BlockCausal))
            tokens, calls = plain.decode(model.hf, prompt, ids_of(plain, V), work)
            assert tokens == list(ours.ids) and calls == sum(ours.calls.values())
            spans += sum(s.kind == "audio" for s in ours.spans)
        assert spans > 2
    finally:
        head.bias = None


def test_sweep(bench):
    report = bench.sweep(1, (20, 40, 80))
    assert [t.name for t in report.timings] == ["prompt_20", "prompt_40", "prompt_80"]
    assert "growth_over_attention" in report.ratios and "prompt_80" in report.table()


def told(**more):
    base = {"repeat": 1, "threads": 1, "seed": 1, "batch": 2, "tokens_per_call": 4.0, "full_reference": False,
            "no_reference": False, "sweep": None, "run": "", "examples": "", "items": 2, "threshold": 0.5,
            "guided": False}  # fmt: skip
    return argparse.Namespace(**{**base, **more})


def test_every_way_is_in_the_report(bench):
    report = bench.compare(told(guided=True))
    ours = {"exact", "block_cached", "block_causal", "threshold", "threshold_block_cached", "threshold_block_causal",
            "guided"}  # fmt: skip
    assert {*ours, "exact_batch2", "exact_batch2_over_exact", "reference"} == set(report.ratios)
    assert "one in 12" in report.table() and "tokens of exact = tokens of the reference" in report.table()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"batch": 1}, "^--batch: must be >= 2"), ({"tokens_per_call": 27}, "^--tokens-per-call: must lie between 1"),
        ({"repeat": 0}, "^--repeat: must be >= 1, got 0"), ({"items": 0}, "^--items: must be >= 1, got 0"),
        ({"run": "x"}, "^--run and --examples go together"),
    ],
)  # fmt: skip
def test_senseless_options(options, message):
    with pytest.raises(ConfigError, match=message):
        run(told(**options))


def test_a_trained_run(tmp_path):
    """Examples answered by a saved model; the reference loop writes the same tokens."""
    model = SpeechTextLM(copy.deepcopy(tiny_hf()), tiny_tokenizer())
    model.save(tmp_path / "run" / "model")
    sampler = "{name: blockwise, block_length: 4, gen_length: 8, diffusion_steps: 8}"
    config = load_config(
        [], [f"run.dir={tmp_path / 'run'}", f"eval.sampler={sampler}", "eval.max_tokens=12", "tasks=[tts]"]
    )
    (tmp_path / "run" / "config.yaml").write_text(resolved_yaml(config))
    chats = [chat(f"e{i}", [text(SENTENCES[i])], [text("a"), audio([1], "last")]) for i in range(3)]
    examples = [Example(e.uid, e.turns, "tts") for e in chats]
    write_examples(tmp_path / "test.jsonl", examples)
    report = run(told(run=str(tmp_path / "run"), examples=str(tmp_path / "test.jsonl")))
    assert {"reference", "exact", "block_cached", "threshold", "exact_batch2"} <= set(report.ratios)
    assert "all 2 answers are the reference's, token for token" in report.table() or "all 3 answers" in report.table()
