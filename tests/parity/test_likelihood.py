import json
import math

import numpy as np
import pytest
import torch

from tests.parity.conftest import cases, folder, tensors
from ttt.likelihood import Draws, Part, Patterns, estimate, masked_nll, patterns, spread_counts
from ttt.masks.library import Full
from ttt.types import Kind, TokenStream, audio_runs

TOLERANCE = 1e-4  # relative; a folder with rounded weights names its own, in llada_loglik.json


def answer_part(prompt: np.ndarray, answer: np.ndarray, vocab) -> Part:
    """A prompt and its answer as one set, all of which may be masked."""
    ids = np.concatenate([prompt, answer]).astype(np.int64)
    kind = np.where(vocab.is_audio(ids), Kind.AUDIO, Kind.TEXT).astype(np.uint8)
    target = np.arange(len(ids)) >= len(prompt)
    stream = TokenStream("x", ids, kind, audio_runs(kind), target, target)
    return Part(stream, np.flatnonzero(target), len(answer))


@pytest.mark.parametrize("case", cases("llada_loglik.json"))
def test_llada_log_likelihood(case, vocab, models):
    meta = json.loads((folder() / "llada_loglik.json").read_text())
    found = tensors("llada_loglik.safetensors")
    get = lambda key: found[f"{case['name']}.{key}"].numpy()  # noqa: E731
    assert meta["mask_id"] == vocab.mask_id
    part = answer_part(get("prompt_ids"), get("answer_ids"), vocab)
    n = len(part.at)
    masked = get("noisy_ids")[:, part.at] == vocab.mask_id
    counts = get("n_masked")
    assert masked.sum(1).tolist() == counts.tolist() == case["n_masked"]
    assert masked.sum(1) / n == pytest.approx(get("mask_ratio"))
    # The counts of every group follow from its first one.
    size = case["batch_size"]
    for begin in range(0, len(counts), size):
        assert spread_counts(n, size, int(counts[begin]), official=True).tolist() == counts[begin : begin + size].tolist()
    (values,) = masked_nll(models(meta["model"]), Full(), [part], [masked], 400, case["cfg_scale"])
    tolerance = meta.get("tolerance", TOLERANCE)
    assert values.sum(1) == pytest.approx(get("loss_per_mask"), rel=tolerance)
    weight, group = np.full(len(masked), 1 / len(masked)), np.arange(len(masked)) // size
    mean, _ = estimate(values, Patterns(masked, weight, group))
    assert -mean.sum() == pytest.approx(case["log_likelihood_estimate"], rel=tolerance)


@pytest.mark.parametrize("case", cases("llada_loglik.json"))
def test_own_draws_agree_with_the_reference_estimate(case, vocab, models):
    """Other masks, the same quantity: the two estimates differ by their noise only."""
    meta = json.loads((folder() / "llada_loglik.json").read_text())
    found = tensors("llada_loglik.safetensors")
    part = answer_part(*(found[f"{case['name']}.{key}"].numpy() for key in ("prompt_ids", "answer_ids")), vocab)
    theirs = found[f"{case['name']}.loss_per_mask"].double()
    drawn = patterns(len(part.at), Draws(64, "spread", 8), torch.Generator().manual_seed(1))
    (values,) = masked_nll(models(meta["model"]), Full(), [part], [drawn.masked], 800, case["cfg_scale"])
    mean, variance = estimate(values, drawn)
    noise = math.sqrt(float(theirs.var()) / len(theirs) + float(variance.sum()))
    assert abs(-mean.sum() - case["log_likelihood_estimate"]) <= 4 * noise + 1e-3
