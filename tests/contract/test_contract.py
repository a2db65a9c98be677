"""Every registered plug-in keeps its family's promises (`ttt check`): a plug-in is tested the day it is registered.

What needs more than one plug-in at a time (decoding with every mask, sampler and length rule; saved codecs) follows below.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from tests.conftest import gen, random_batch, tiny_model, tiny_tokenizer
from ttt.check import recordings, world
from ttt.check.codecs import noise, prepare
from ttt.check.core import MODULES, check
from ttt.errors import CheckpointError, ConfigError
from ttt.interfaces import TrainableCodec
from ttt.masks.materialize import materialize
from ttt.registry.core import family
from ttt.registry.families import CODEC, LENGTH, MASK, OBJECTIVE, SAMPLER, STRATEGY, TASK

V = tiny_tokenizer().vocab
# Fields with which a plug-in is quick (codecs) or shows all it does (many blocks, every coin falling).
# By name, or by family and name.
FIELDS: dict[str, list[dict]] = {
    "blockwise": [
        {},
        {"block_length": 4, "gen_length": 16, "diffusion_steps": 8},
        {"temperature": 1.0, "end_guard": True},
    ],
    "threshold": [{}, {"block_length": 4, "gen_length": 16}],
    "entropy_bound": [{}, {"block_length": 4, "gen_length": 16, "gamma": 2.0}],
    "first_hitting": [{}, {"block_length": 4, "gen_length": 16}],
    "block_causal": [{}, {"block_length": 3}],
    "hybrid": [{}, {"bidirectional_prompt_audio": False}],
    "dual_stream": [{}],
    "arch valle": [{"dim": 16, "heads": 2, "layers": 1}],
    "polynomial": [{}, {"power": 1.0}],
    "linear": [{}, {"eps": 0.001}],
    "mel_kmeans": [{"num_codes": 16, "pca_dim": 6, "mels": 20, "iterations": 3, "griffin_lim_iterations": 4}],
    "rvq": [
        {"num_codes": 16, "pca_dim": 6, "mels": 20, "iterations": 3, "griffin_lim_iterations": 4},
        {
            "num_codes": 16,
            "pca_dim": 6,
            "mels": 20,
            "iterations": 3,
            "griffin_lim_iterations": 4,
            "strides": [4, 2, 1],
            "frame_rate_hz": 12.5,
        },
    ],
}
CASES = [
    pytest.param(key, name, fields, id=f"{key}-{name}-{number}")
    for key in MODULES
    for name in family(key).names()
    for number, fields in enumerate(FIELDS.get(f"{key} {name}", FIELDS.get(name, [{}])))
]


@pytest.mark.parametrize("key, name, fields", CASES)
def test_plugin_keeps_its_familys_promises(key, name, fields):
    plugin = family(key).build({"name": name, **fields}, key)
    try:
        results = check(key, plugin)
    except (CheckpointError, ConfigError) as error:
        assert key == "codec" or name == "gen_ppl"
        pytest.skip(f"{name}: needs weights or cannot encode ({error})")
    broken = {r.name: f"{r.counter}\n{r.drawing}" for r in results if r.failed}
    assert not broken, broken
    assert any(r.outcome == "ok" for r in results) or plugin.autoregressive


@pytest.mark.parametrize("name", MASK.names())
def test_mask_serves_every_attention(name):
    layout = random_batch().layout()
    b, t = layout.shape
    for implementation in ("sdpa", "eager"):
        assert materialize(MASK.build(name, "mask"), layout, implementation, torch.float32).shape == (b, 1, t, t)


@pytest.mark.parametrize("name", STRATEGY.names())
def test_strategy_has_a_checked_probability(name):
    with pytest.raises(ConfigError, match=r"strategy\.p: must be"):
        STRATEGY.build({"name": name, "p": 2.0}, "strategy")


@pytest.mark.parametrize("name", TASK.names())
def test_task_can_be_copied(name):
    task = TASK.build(name, "task")
    assert dataclasses.replace(task) == task


@pytest.mark.parametrize("name", OBJECTIVE.names())
@pytest.mark.parametrize("seed", range(3))
def test_loss_sits_on_real_documents_only(name, seed):
    objective = OBJECTIVE.build(name, "objective")
    batch = random_batch(seed) if objective.arch == "causal_lm" else recordings.batch(seed)
    if objective.reads_pairs:
        batch = world.pairs(seed)
    plan = objective.plan(batch, gen(1))
    visible, doc = plan.layout.visible.flatten(), plan.layout.doc.flatten()
    for term in plan.terms.values():
        assert visible[term.source].all() and (doc[term.source] >= 0).all()


# --- decoding

BLOCKS = {"block_length": 4, "gen_length": 12}
SETTINGS: dict[str, dict] = {
    "blockwise": {**BLOCKS, "diffusion_steps": 6}, "threshold": BLOCKS, "first_hitting": BLOCKS,
    "entropy_bound": {**BLOCKS, "gamma": 1.0},
    **{name: {"gen_length": 12} for name in ("fixed_length", "semi_ar_origin", "semi_ar_padding")},
}  # fmt: skip
COMBINATIONS = sorted(
    {(s, "hybrid", "until_eoa") for s in SAMPLER.names() if not SAMPLER.get(s).arch}
    | {("blockwise", m, "until_eoa") for m in MASK.names()}
    | {("blockwise", "hybrid", length) for length in LENGTH.names()}
)


@pytest.mark.parametrize("sampler, mask, length", COMBINATIONS)
def test_decoding_leaves_nothing_masked_and_rows_alone(sampler, mask, length):
    from ttt.sampling.decoder.decoder import Decoder, DecodeSettings
    from ttt.types import Prompt

    model = tiny_model(bias={V.soa_id: 4.0, V.soa_last_id: 3.0})
    some = [Prompt("a", [V.im_start_id, 5, 6]), Prompt("b", [V.im_start_id, 7, 8, 9, 10])]
    decoder = Decoder(
        model, MASK.build(mask, "mask"), SAMPLER.build({"name": sampler, **SETTINGS.get(sampler, {})}, "sampler"),
        DecodeSettings(max_tokens=20, length=LENGTH.build(length, "length")),
    )  # fmt: skip
    answers = decoder.generate(some)
    assert [g.ids for g in answers] == [decoder.generate([p])[0].ids for p in some]
    for g in answers:
        assert V.mask_id not in g.ids and 1 <= len(g.ids) <= 20 and g.codes.size and g.stopped


# --- codecs


# `units` needs a published encoder beside: tests/unit/audio/codecs/test_units.py.
@pytest.mark.parametrize("name", [n for n in CODEC.names() if issubclass(CODEC.get(n), TrainableCodec) and n != "units"])
def test_what_was_learnt_survives_the_folder(name, tmp_path):
    fields = FIELDS.get(name, [{}])[0]
    codec = prepare(CODEC.build({"name": name, **fields}, "codec"))
    codec.save(tmp_path / "c")
    again = CODEC.build({"name": name, **fields, "path": str(tmp_path / "c")}, "codec").load()
    assert again.codec_id == codec.codec_id
    wave = noise(codec.rate_hz, 0.9, seed=99)
    np.testing.assert_array_equal(again.encode([wave])[0].ids, codec.encode([wave])[0].ids)
