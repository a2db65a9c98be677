import pytest
import torch

from tests.parity.conftest import cases, rows, tensors
from ttt.masks.library import Hybrid
from ttt.masks.materialize import dense


@pytest.mark.parametrize("case", cases("masks.json"))
def test_hybrid_mask_is_bit_equal(case, vocab):
    found = tensors("masks.safetensors")
    name = case["name"]
    batch = rows(found[f"{name}.input_ids"], vocab, attention_mask=found.get(f"{name}.attention_mask"))
    allowed = dense(Hybrid(), batch.layout())
    assert torch.equal(allowed, found[f"{name}.allowed"].bool())
    assert int(allowed.sum()) == case["allowed_true"]
