"""Rows of the official sample files: full, and every example whole in exactly one of them."""

import json

import numpy as np
import pytest

from tests.parity.conftest import folder, need, with_codes
from ttt.data.batches.loader import Loader
from ttt.data.encode import encode_example
from ttt.data.read.examples import official_record


@pytest.fixture(scope="module")
def tokenizer():
    return with_codes(need("preprocess/tokenizer.json"))


@pytest.fixture(scope="module")
def streams(tokenizer):
    files = sorted((folder().parent / "official_samples").glob("*.json"))
    if not files:
        pytest.skip(f"no official samples beside {folder()}")
    return [
        encode_example(official_record(record, f"{file.stem}/{i}"), tokenizer, literal_specials=True)
        for file in files
        for i, record in enumerate(json.loads(file.read_text()))
    ]


@pytest.mark.parametrize("row_tokens", [2048, 4096, 8192])
@pytest.mark.parametrize("seed", [1, 2])
def test_rows_are_full_and_examples_whole(streams, tokenizer, row_tokens, seed):
    fitting = {s.uid: s for s in streams if len(s) <= row_tokens}
    loader = Loader(list(fitting.values()), tokenizer.vocab, row_tokens=row_tokens, batch_tokens=row_tokens, seed=seed)
    assert loader.report.fill >= 0.97
    seen = []
    for update in range(loader.updates_per_epoch):
        batch = loader.micro_batch(update, 0)
        for number, uid in enumerate(batch.uids):
            at = batch.doc == number
            assert np.array_equal(batch.ids[at].numpy(), fitting[uid].ids), f"{uid} was cut"
            assert batch.position[at].tolist() == list(range(len(fitting[uid])))
        seen += batch.uids
    assert sorted(seen) == sorted(fitting)
