import json

import pytest
import torch

from tests.parity.conftest import cases, need, rows, tensors
from ttt.diffusion.schedules import Linear
from ttt.diffusion.strategies import preserve_prefix
from ttt.diffusion.weightings import InverseP
from ttt.masks.library import Hybrid
from ttt.objective.library import TtT

TOLERANCE = 1e-5  # relative; a folder with rounded weights names its own, in losses.json


@pytest.fixture(scope="module")
def about():
    return json.loads(need("losses.json").read_text())


@pytest.mark.parametrize("case", cases("losses.json"))
def test_losses_logits_and_gradients(case, vocab, models, about):
    found, name = tensors("losses.safetensors"), case["name"]
    get = lambda key: found.get(f"{name}.{key}")  # noqa: E731
    model = models(about["model"])
    batch = rows(get("input_ids"), vocab, get("labels"), get("attention_mask"), get("prompt_lengths"))
    objective = TtT(mask=Hybrid(), noise=Linear(), weighting=InverseP(), strategies=())
    maskable = objective.maskable(batch)
    if case["path"] == "diffusion" and get("t") is not None:
        assert torch.equal(maskable, get("maskable_before_prefix"))
        split = get("prefix_split").long()  # column in its row, -1: unused
        flat = torch.where(split >= 0, split + torch.arange(len(split)) * batch.ids.shape[1], -1)
        maskable = preserve_prefix(batch, maskable, flat)
        assert torch.equal(maskable, get("maskable"))
        plan = objective.plan_from(batch, maskable, get("t"), get("u"))
    else:
        clean = torch.zeros_like(maskable)
        plan = objective.plan_from(batch, clean, torch.zeros(batch.n_docs), torch.ones(batch.ids.shape))
    if get("noisy_input_ids") is not None:
        assert torch.equal(plan.input_ids, get("noisy_input_ids").long())
    model.zero_grad()
    terms = objective.terms(model, plan).terms
    value = {key: float(t.sum.detach()) / t.count for key, t in terms.items()}
    tolerance = about.get("tolerance", TOLERANCE)
    assert value["ar"] == pytest.approx(case["ar_loss"], rel=tolerance, abs=1e-9)
    if case["diff_loss"] is not None:
        assert value["nar"] == pytest.approx(case["diff_loss"], rel=tolerance, abs=1e-9)
    total = sum(t.scale * t.sum / t.count for t in terms.values())
    assert float(total.detach()) == pytest.approx(case["loss"], rel=tolerance)
    if case.get("grad_norm"):
        total.backward()
        norms = {n: p.grad.double().norm() for n, p in model.hf.named_parameters() if p.grad is not None}
        norms["<all parameters>"] = torch.stack(list(norms.values())).norm()
        for key, expected in case["grad_norm"].items():
            assert float(norms[key]) == pytest.approx(expected, rel=tolerance), key


@pytest.mark.parametrize("case", cases("losses.json"))
def test_logits(case, vocab, models, about):
    from ttt.masks.materialize import materialize
    from ttt.types import ModelInputs

    found, name = tensors("losses.safetensors"), case["name"]
    if f"{name}.logits" not in found:
        pytest.skip("the case has no logits")
    model = models(about["model"])
    clean = found[f"{name}.input_ids"].long()
    batch = rows(clean, vocab, attention_mask=found[f"{name}.attention_mask"])
    ids = found.get(f"{name}.noisy_input_ids", clean).long()
    at = found[f"{name}.logit_positions"].long() + torch.arange(len(ids))[:, None] * ids.shape[1]
    with torch.no_grad():
        logits = model(
            ModelInputs(ids, batch.position, materialize(Hybrid(), batch.layout(), "sdpa", torch.float32), at.flatten())
        )
    assert torch.allclose(logits.view(*at.shape, -1), found[f"{name}.logits"], atol=1e-4)
