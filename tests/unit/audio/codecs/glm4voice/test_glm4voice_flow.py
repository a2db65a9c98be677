"""Parts of the flow against slow and obvious implementations; rows of a batch do not see each other."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from tests.glm4voice_folders import random_weights
from ttt.audio.codecs.glm4voice.files import CfmConfig, EncoderConfig, EstimatorConfig, FlowConfig, RegulatorConfig
from ttt.audio.codecs.glm4voice.flow import (
    BlockConformer,
    Flow,
    GroupNorm,
    LengthRegulator,
    RelativeAttention,
    _distances,
)

ENCODER = EncoderConfig(8, 8, 2, 12, 2, block_size=3)
CONFIG = FlowConfig(
    8,
    4,
    5,
    30,
    12.5,
    ENCODER,
    RegulatorConfig(4, [1, 1]),
    CfmConfig(estimator=EstimatorConfig(16, 4, [8, 8], 4, 1, 1, 2)),
)


def filled(module: nn.Module, seed: int = 0) -> nn.Module:
    module.load_state_dict(random_weights(module, torch.Generator().manual_seed(seed)))
    return module.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def flow() -> Flow:
    return filled(Flow(CONFIG))


def draws(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_relative_attention_is_its_formula():
    length, width, heads = 5, 8, 2
    attention = filled(RelativeAttention(width, heads))
    x, hidden = draws(1, length, width), torch.zeros(length, length)
    hidden[0, 3:] = -math.inf
    q, k, v = (
        layer(x)[0].view(length, heads, 4) for layer in (attention.linear_q, attention.linear_k, attention.linear_v)
    )
    out = torch.zeros(length, heads, 4)
    for h in range(heads):
        for i in range(length):
            scores = []
            for j in range(length):
                wave = [f((i - j) / 10000 ** (2 * c / width)) for c in range(width // 2) for f in (math.sin, math.cos)]
                r = attention.linear_pos(torch.tensor(wave)).view(heads, 4)[h]
                u, w = attention.pos_bias_u[h], attention.pos_bias_v[h]
                scores.append(((q[i, h] + u) @ k[j, h] + (q[i, h] + w) @ r) / math.sqrt(4) + hidden[i, j])
            out[i, h] = torch.stack(scores).softmax(0) @ v[:, h]
    want = attention.linear_out(out.flatten(1))
    torch.testing.assert_close(attention(x, _distances(length, width), hidden)[0], want, rtol=0, atol=1e-5)


def test_tokens_see_their_block_and_those_before():
    encoder = filled(BlockConformer(ENCODER))
    x = draws(1, 8, 8)
    reach = torch.zeros(8, 8, dtype=torch.bool)  # [changed token, output]
    for j in range(8):
        other = x.clone()
        other[0, j] += 1
        reach[j] = (encoder(other) - encoder(x)).abs().amax(2)[0] > 0
    block = torch.arange(8) // 3
    assert torch.equal(reach, block[:, None] <= block)


def test_each_frame_takes_the_nearest_token_before():
    regulator = LengthRegulator(4, 0, 4)
    with torch.no_grad():
        regulator.model[0].weight.copy_(torch.eye(4)[..., None])
        regulator.model[0].bias.zero_()
        x = draws(2, 33, 4)
        out = regulator(x, [33, 7], [227, 48], torch.ones(2, 1, 227))
    for row, (tokens, frames) in enumerate(((33, 227), (7, 48))):
        for f in range(frames):
            assert torch.equal(out[row, :, f], x[row, f * tokens // frames])


def test_group_norm_leaves_padding_out():
    norm = filled(GroupNorm(2, 4))
    x, mask = draws(2, 4, 7), torch.tensor([[[1.0] * 7], [[1.0] * 5 + [0.0] * 2]])
    out = norm(x, mask)
    torch.testing.assert_close(out[:1], norm(x[:1]), rtol=0, atol=1e-6)
    torch.testing.assert_close(out[1:, :, :5], norm(x[1:, :, :5]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("guidance", [0.0, 0.7])
def test_rows_do_not_depend_on_company(flow, guidance):
    tokens = [torch.arange(n) % 30 for n in (9, 2, 5)]
    noise = [draws(4, n, seed=n) for n in (62, 13, 34)]  # an odd number of frames is halved too
    prompt, speaker = draws(4, 3), draws(5)
    together = flow(tokens, noise, prompt, speaker, 3, guidance)
    for row, start, mel in zip(tokens, noise, together):
        [alone] = flow([row], [start], prompt, speaker, 3, guidance)
        assert alone.shape == (4, start.shape[1] - 3)
        torch.testing.assert_close(mel, alone, rtol=0, atol=2e-5)


def test_guided_euler_steps(flow):
    """Steps of the cosine schedule; without guidance, only the conditional velocity is computed."""
    x, mu, cond, speaker = draws(1, 4, 10), draws(1, 4, 10, seed=2), draws(1, 4, 10, seed=3), draws(1, 4, seed=4)
    estimator, calls = flow.decoder["estimator"], []
    hook = estimator.register_forward_hook(lambda module, given, out: calls.append((len(given[0]), given[1])))
    got = flow.integrate(x, mu, speaker, cond, None, 3, 0.5)
    plain = flow.integrate(x, mu, speaker, cond, None, 3, 0.0)
    hook.remove()
    times = [1 - math.cos(math.pi / 2 * k / 3) for k in range(4)]
    assert [rows for rows, _ in calls] == [2, 2, 2, 1, 1, 1]
    assert [time for _, time in calls] == pytest.approx(times[:3] * 2, abs=1e-6)
    nothing = torch.zeros_like(mu)
    for guidance, result in ((0.5, got), (0.0, plain)):
        want = x
        for now, after in zip(times, times[1:]):
            velocity = (1 + guidance) * estimator(want, now, mu, speaker, cond)
            velocity = velocity - guidance * estimator(want, now, nothing, torch.zeros_like(speaker), nothing)
            want = want + (after - now) * velocity
        torch.testing.assert_close(result, want, rtol=0, atol=1e-5)
    assert (got - plain).abs().max() > 1e-3


def test_what_the_velocity_is_told(flow):
    """The mel of the prompt stands before zeros; the second row, without guidance by tokens, is told nothing."""
    seen = []
    hook = flow.decoder["estimator"].register_forward_hook(lambda module, given, out: seen.append(given))
    prompt = draws(4, 3)
    flow([torch.arange(4)], [draws(4, 27)], prompt, draws(5), 1, 0.7)
    hook.remove()
    x, _, mu, speaker, cond, _ = seen[0]
    assert torch.equal(x[0], x[1]) and mu[0].all() and speaker[0].all()
    assert torch.equal(cond[0, :, :3], prompt) and not cond[0, :, 3:].any()
    assert not (mu[1].any() or speaker[1].any() or cond[1].any())


def test_speaker_vectors_count_by_direction_only(flow):
    vector = draws(5)
    torch.testing.assert_close(flow.speaker(3 * vector), flow.speaker(vector))
    assert torch.equal(flow.speaker(torch.zeros(5))[0], flow.spk_embed_affine_layer.bias)


def test_networks_hold_no_dropout(flow):
    assert not [module for module in flow.modules() if isinstance(module, nn.Dropout)]
