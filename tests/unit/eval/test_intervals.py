"""Bootstrap: coverage on a known distribution, determinism, paired and two-level forms."""

from __future__ import annotations

import numpy as np
import pytest

from ttt.errors import DataError
from ttt.eval.intervals import bootstrap, bootstrap_two_level, paired_p_value, resampled


def mean(s: np.ndarray) -> float:
    return float(s[0] / s[1])


def rows(x: np.ndarray) -> np.ndarray:
    return np.stack([x, np.ones_like(x)], axis=-1)


def test_interval_covers_the_true_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        value = bootstrap(rows(rng.exponential(1.0, 80)), mean, 200, seed=trial)
        hits += value.low <= 1.0 <= value.high
    # 95 % nominal; the percentile interval of a skewed mean is a little short, and 200 trials have a sd of 1.6 %
    assert 0.88 <= hits / 200 <= 0.985


def test_half_width_of_a_proportion():
    x = np.array([1.0] * 120 + [0.0] * 280)
    value = bootstrap(rows(x), mean, 2000)
    assert value.value == pytest.approx(0.3) and value.n == 400
    assert (value.high - value.low) / 2 == pytest.approx(1.96 * np.sqrt(0.3 * 0.7 / 400), rel=0.08)


def test_same_seed_same_interval_and_other_seed_another():
    x = rows(np.random.default_rng(1).normal(size=50))
    assert bootstrap(x, mean, 100, seed=3) == bootstrap(x, mean, 100, seed=3)
    assert bootstrap(x, mean, 100, seed=3) != bootstrap(x, mean, 100, seed=4)
    assert bootstrap(x[::-1].copy(), mean, 100).value == pytest.approx(bootstrap(x, mean, 100).value)


def test_vectorised_resampling_equals_a_plain_loop():
    x = rows(np.random.default_rng(2).normal(size=7))
    from ttt.rng import derive_seed

    rng = np.random.default_rng(derive_seed(5, "bootstrap"))
    slow = [mean(sum(c * x[i] for i, c in enumerate(rng.multinomial(7, [1 / 7] * 7)))) for _ in range(20)]
    np.testing.assert_allclose(resampled(x, mean, 20, seed=5), slow)


def test_degenerate_samples():
    one = bootstrap(rows(np.array([0.25])), mean)
    assert (one.value, one.low, one.high, one.n) == (0.25, 0.25, 0.25, 1)
    nothing = bootstrap(np.zeros((3, 2)), lambda s: float("nan"))
    assert np.isnan(nothing.value) and np.isnan(nothing.low)
    with pytest.raises(DataError, match="items > 0"):
        bootstrap(np.zeros((0, 2)), mean)
    with pytest.raises(DataError, match="item 1 has statistics that are not finite"):
        bootstrap(np.array([[1.0, 1.0], [np.nan, 1.0]]), mean)


def test_paired_p_value():
    rng = np.random.default_rng(3)
    hard = rng.normal(size=100)
    a, b = rows(hard + 0.5 + 0.1 * rng.normal(size=100)), rows(hard)
    assert paired_p_value(a, b, mean, 999) == pytest.approx(1 / 1000)  # clear although the items vary a lot
    assert paired_p_value(a, a, mean, 100) == 1.0
    noise = rows(hard + rng.normal(size=100) * 0.5)
    assert paired_p_value(noise, b, mean, 500) > 0.02
    with pytest.raises(DataError, match="same items"):
        paired_p_value(a, b[:50], mean)


def test_two_levels_are_wider_where_seeds_differ_and_equal_where_they_do_not():
    rng = np.random.default_rng(4)
    x = rng.normal(size=100)
    alike = rows(np.stack([x] * 5))
    apart = rows(np.stack([x + shift for shift in (-1.0, -0.5, 0.0, 0.5, 1.0)]))
    one = bootstrap(rows(x), mean, 500)
    same, wide = (bootstrap_two_level(y, mean, 500) for y in (alike, apart))
    assert same.value == pytest.approx(one.value) and wide.value == pytest.approx(one.value)
    assert same.high - same.low == pytest.approx(one.high - one.low, rel=0.15)
    assert wide.high - wide.low > 1.5 * (one.high - one.low)
    assert wide.n == 100
    with pytest.raises(DataError, match="seeds, items, k"):
        bootstrap_two_level(rows(x), mean)
