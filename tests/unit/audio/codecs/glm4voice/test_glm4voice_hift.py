"""The vocoder's source against a sample-by-sample sum; sound has the length and the start that were asked for."""

from __future__ import annotations

import math

import pytest
import torch

from tests.glm4voice_folders import random_weights
from ttt.audio.codecs.glm4voice.files import F0Config, HiftConfig
from ttt.audio.codecs.glm4voice.hift import Hift, Snake


@pytest.fixture(scope="module")
def hift() -> Hift:
    model = Hift(
        HiftConfig(
            in_channels=4, base_channels=8, nb_harmonics=2, f0_predictor=F0Config(in_channels=4, cond_channels=4)
        )
    )
    weights = random_weights(model, torch.Generator().manual_seed(0))
    weights["conv_post.bias"] -= 3
    model.load_state_dict(weights)
    return model.eval().requires_grad_(False)


def draws(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_source_is_a_sum_of_sines_where_there_is_pitch(hift):
    f0 = torch.tensor([[220.0, 5.0, 300.0]])  # the second is below the threshold of 10 Hz
    phase, noise = draws(1, 3, 1), draws(1, 3, 768)
    source = hift.source(f0, phase, noise)
    weight, bias = (value.double() for value in hift.m_source["l_linear"].parameters())
    turns = 0.0
    for n in range(768):
        pitch = f0[0, n // 256].item()
        turns += pitch / 22050
        total = bias.item()
        for h in range(3):
            start = phase[0, h, 0].item() if h else 0.0
            wave = 0.1 * math.sin(2 * math.pi * turns * (h + 1) + start) if pitch > 10 else 0.0
            total += weight[0, h].item() * (wave + noise[0, h, n].item() * (0.003 if pitch > 10 else 0.1 / 3))
        assert source[0, n].item() == pytest.approx(math.tanh(total), abs=1e-5)


def test_pitch_stays_exact_in_long_sounds(hift):
    """After a minute a sine is where it has to be; sums in single precision would be off by thousandths of a turn."""
    frames = 6_000
    source = hift.source(torch.full((1, frames), 333.3), torch.zeros(1, 3, 1), torch.zeros(1, 3, frames * 256))
    n = torch.arange(frames * 256 - 100, frames * 256, dtype=torch.float64) + 1
    pitch = torch.tensor(333.3).double()
    waves = torch.stack([0.1 * torch.sin(2 * math.pi * pitch * h * n / 22050) for h in (1, 2, 3)], 1).float()
    torch.testing.assert_close(source[0, -100:], hift.m_source["l_linear"](waves).tanh()[:, 0], rtol=0, atol=1e-5)


def test_sound_begins_with_the_source_it_is_given(hift):
    mel = draws(1, 4, 6)
    start = draws(1, 256) / 10
    sound, source = hift(mel, torch.Generator().manual_seed(3), start)
    plain, other = hift(mel, torch.Generator().manual_seed(3), start[:, :0])
    assert sound.shape == source.shape == (1, 6 * 256)
    assert torch.equal(source[:, :256], start) and torch.equal(source[:, 256:], other[:, 256:])
    assert not torch.equal(sound[:, :200], plain[:, :200])
    assert sound.abs().max() <= 0.99


def test_draws_follow_the_generator(hift):
    phase, noise = hift.draws(2, torch.Generator().manual_seed(5))
    generator = torch.Generator().manual_seed(5)
    torch.testing.assert_close(phase, (2 * torch.rand(1, 3, 1, generator=generator) - 1) * math.pi)
    assert torch.equal(noise, torch.randn(1, 3, 512, generator=generator))


def test_snake():
    snake, x = Snake(2), draws(1, 2, 5)
    with torch.no_grad():
        snake.alpha.copy_(torch.tensor([0.5, 2.0]))
        want = torch.stack([x[0, c] + torch.sin(a * x[0, c]) ** 2 / a for c, a in enumerate((0.5, 2.0))])
        torch.testing.assert_close(snake(x)[0], want)
