import pytest
import torch

from tests.conftest import gen
from ttt.sampling.samplers.logits import (
    choose_audio,
    choose_each,
    choose_text,
    guide,
    sampling_probabilities,
    transfer_counts,
)
from ttt.sampling.samplers.remask import LowConfidence, Random

P = torch.tensor([0.5, 0.3, 0.15, 0.05])


def test_guidance_vector():
    assert float(guide(torch.tensor(1.0), torch.tensor(0.4), 0.1)) == pytest.approx(1.06)
    x = torch.randn(3, generator=gen())
    assert torch.allclose(guide(x, torch.zeros(3), 0.0), x)


def test_top_p_vector():
    assert sampling_probabilities(P.log(), 1.0, 0, 0.75).tolist() == pytest.approx([0.625, 0.375, 0, 0])
    assert sampling_probabilities(P.log(), 1.0, 0, 0.8).tolist() == pytest.approx([0.625, 0.375, 0, 0])
    assert sampling_probabilities(P.log(), 1.0, 0, 0.81)[2] > 0
    assert sampling_probabilities(P.log(), 1.0, 0, 0.0).tolist() == [1, 0, 0, 0], "at least one stays"


def test_top_k_then_top_p():
    assert sampling_probabilities(P.log(), 1.0, 2, 1.0).tolist() == pytest.approx([0.625, 0.375, 0, 0])
    assert sampling_probabilities(P.log(), 1.0, 2, 0.6).tolist() == [1, 0, 0, 0]
    hot = sampling_probabilities(P.log(), 2.0, 0, 1.0)
    assert torch.allclose(hot, P.sqrt() / P.sqrt().sum())


@pytest.mark.parametrize(
    "masked, steps, counts",
    [(26, 2, [13, 13]), (32, 10, [4] * 2 + [3] * 8), (5, 8, [1] * 5 + [0] * 3), (0, 3, [0] * 3)],
)
def test_transfer_counts(masked, steps, counts):
    assert transfer_counts(masked, steps) == counts


def test_greedy_and_drawn_text():
    logits = P.log().expand(3, 4)
    assert choose_text(logits, 0.0, 0, 1.0, [gen()] * 3).tolist() == [0, 0, 0]
    gens = [gen(1)]
    drawn = torch.cat([choose_text(logits[:1], 1.0, 0, 1.0, gens) for _ in range(2000)])
    assert torch.bincount(drawn, minlength=4) / 2000 == pytest.approx(P, abs=0.045)  # four standard errors


@pytest.mark.parametrize("top_k, top_p", [(0, 1.0), (2, 1.0), (0, 0.9), (3, 0.5)])
def test_temperature_0_is_greedy_whatever_top_k_and_top_p_say(top_k, top_p):
    logits = torch.randn(40, 9, generator=gen(3))
    likeliest = logits.argmax(-1).tolist()
    assert choose_text(logits, 0.0, top_k, top_p, [gen(i) for i in range(40)]).tolist() == likeliest
    assert choose_each(logits[:, None], 0.0, top_k, top_p, [gen(i) for i in range(40)])[:, 0].tolist() == likeliest
    tiny = choose_text(logits, 1e-40, top_k, top_p, [gen(i) for i in range(40)])
    assert tiny.tolist() == likeliest, "a temperature on the way to 0 overflows nowhere"


def test_gumbel_draws_follow_the_softmax():
    logits = P.log().expand(1, 4000, 4)
    drawn = choose_audio(logits, 1.0, [gen(2)])[0]
    assert torch.bincount(drawn, minlength=4) / 4000 == pytest.approx(P, abs=0.032)
    assert (choose_audio(logits, 0.0, [gen()]) == 0).all()


def test_blocked_ids_are_never_drawn():
    logits = torch.tensor([[[0.0, -torch.inf, -torch.inf]]]).expand(1, 200, 3)
    assert (choose_audio(logits, 1.0, [gen()]) == 0).all()


def test_each_row_draws_from_its_own_generator():
    logits = torch.randn(3, 5, 7, generator=gen())
    together = choose_audio(logits, 1.0, [gen(i) for i in range(3)])
    assert all(torch.equal(together[i : i + 1], choose_audio(logits[i : i + 1], 1.0, [gen(i)])) for i in range(3))
    scores = Random().score(logits, together, [gen(i) for i in range(3)])
    assert torch.equal(scores[1:2], Random().score(logits[1:2], together[1:2], [gen(1)]))


def test_low_confidence_is_the_softmax_probability():
    logits = torch.randn(2, 3, 5, generator=gen())
    chosen = torch.tensor([[0, 1, 2], [4, 3, 0]])
    expected = logits.softmax(-1).gather(-1, chosen[..., None])[..., 0]
    assert torch.allclose(LowConfidence().score(logits, chosen, []), expected)
